//! The network's head: probabilities, classes, and where walks down start.

use super::linear::Weight;
use super::{Target, View};
use crate::backend::Seed;

pub(super) fn softmax(logits: View<'_>, p: Target<'_>) {
    for (b, p) in p.data.chunks_exact_mut(p.len).enumerate() {
        let logits = logits.of(b, 1);
        let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        p.iter_mut().zip(logits).for_each(|(p, l)| *p = (l - top).exp());
        let sum: f64 = p.iter().map(|p| f64::from(*p)).sum();
        p.iter_mut().for_each(|p| *p = (f64::from(*p) / sum) as f32);
    }
}

pub(super) fn top_k(p: View<'_>, k: usize, classes: Target<'_>) {
    let p = p.of(0, 1);
    let mut taken = Vec::with_capacity(k);
    for slot in classes.data.iter_mut().take(k) {
        let free = (0..p.len()).filter(|i| !taken.contains(i));
        let best = free.reduce(|best, i| if p[i] > p[best] { i } else { best }).unwrap_or(0);
        taken.push(best);
        *slot = f32::from_bits(best as u32);
    }
}

/// Class indices are stored as `u32` in memory that is viewed as `f32`.
fn class(classes: View<'_>, lane: usize) -> usize {
    classes.data[lane].to_bits() as usize
}

pub(super) fn pick(p: View<'_>, classes: View<'_>, y: Target<'_>) {
    let lanes = y.lanes;
    for (b, y) in y.data.iter_mut().enumerate() {
        *y = p.of(b / lanes, 1)[class(classes, b % lanes)];
    }
}

pub(super) fn seed(seed: Seed, classes: View<'_>, x: Option<View<'_>>, y: Target<'_>) {
    let lanes = y.lanes;
    for (b, y) in y.data.chunks_exact_mut(y.len).enumerate() {
        let (k, others) = (class(classes, b % lanes), (y.len() - 1) as f32);
        let x = x.map_or(&[][..], |x| x.of(b, lanes));
        let rest = || (0..x.len()).filter(|j| *j != k).map(|j| f64::from(x[j])).sum::<f64>() as f32;
        y.fill(0.0);
        match seed {
            Seed::One => y[k] = 1.0,
            Seed::Value => y[k] = x[k],
            Seed::Magnitude => y[k] = x[k].abs(),
            Seed::Softmax => y[k] = x[k] * rest() + 1e-8,
            Seed::Others => y.fill(if others > 0.0 { x[k] / others } else { 0.0 }),
            Seed::OtherMagnitudes => y.iter_mut().zip(x).for_each(|(y, x)| *y = x.abs()),
            Seed::OtherSoftmax => y.iter_mut().zip(x).for_each(|(y, p)| *y = x[k] * p),
        }
        if matches!(seed, Seed::Others | Seed::OtherMagnitudes | Seed::OtherSoftmax) {
            y[k] = 0.0;
        }
    }
}

/// `q = softmax(u)` with `u_j = y_t·exp(−½(d_j/σ)²)`, `d_j = y_j − y_t`, `σ = max |d|`: the gradient of `q_t` at the
/// logits y. Zero where all logits are equal.
pub(super) fn gradient(logits: View<'_>, classes: View<'_>, out: Target<'_>) {
    let lanes = out.lanes;
    for (b, out) in out.data.chunks_exact_mut(out.len).enumerate() {
        let (t, y) = (class(classes, b % lanes), logits.of(b, lanes));
        out.fill(0.0);
        let target = f64::from(y[t]);
        let d = |j: usize| f64::from(y[j]) - target;
        let farthest = (0..y.len()).fold(t, |far, j| if d(j).abs() > d(far).abs() { j } else { far });
        let sigma = d(farthest).abs();
        if sigma == 0.0 {
            continue;
        }
        let e = |j: usize| (-0.5 * (d(j) / sigma).powi(2)).exp();
        let u = |j: usize| target * e(j);
        let top = (0..y.len()).map(u).fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = (0..y.len()).map(|j| (u(j) - top).exp()).sum();
        let q = |j: usize| (u(j) - top).exp() / sum;
        let (mut at_target, mut at_sigma) = (0.0, 0.0);
        for (j, out) in out.iter_mut().enumerate() {
            let gu = q(t) * (f64::from(u8::from(j == t)) - q(j));
            *out = (-gu * u(j) * d(j) / sigma.powi(2)) as f32;
            at_target += gu * (e(j) + u(j) * d(j) / sigma.powi(2));
            at_sigma += gu * u(j) * d(j).powi(2) / sigma.powi(3);
        }
        at_sigma *= d(farthest).signum();
        out[farthest] += at_sigma as f32;
        out[t] += (at_target - at_sigma) as f32;
    }
}

/// `|q| / Σ|q| · (Σq + bias)`, 0 where the products sum to nothing.
pub(super) fn shares(bias: &[f32], q: View<'_>, classes: View<'_>, y: Target<'_>) {
    let lanes = y.lanes;
    for (b, y) in y.data.chunks_exact_mut(y.len).enumerate() {
        let q = q.of(b, lanes);
        let sum: f64 = q.iter().map(|q| f64::from(*q)).sum();
        let size: f64 = q.iter().map(|q| f64::from(q.abs())).sum();
        let total = sum + f64::from(bias[class(classes, b % lanes)]);
        let each = if sum == 0.0 { 0.0 } else { total / size };
        y.iter_mut().zip(q).for_each(|(y, q)| *y = (f64::from(q.abs()) * each) as f32);
    }
}

pub(super) fn class_row(weight: Weight<'_>, classes: View<'_>, scale: f32, y: Target<'_>) {
    let lanes = y.lanes;
    for (b, y) in y.data.chunks_exact_mut(y.len).enumerate() {
        weight.copy(class(classes, b % lanes), 0..y.len(), y);
        y.iter_mut().for_each(|y| *y *= scale);
    }
}
