//! Sums and extremes over pixels, channels or whole samples. Each is formed in an order that the shape alone decides.

use rayon::prelude::*;

use super::operands::GRAIN;
use super::{Base, Target, View, Workers};

pub(super) fn pixel_sum(workers: &Workers, channels: usize, scale: f32, x: View<'_>, y: Target<'_>) {
    let lanes = y.lanes;
    y.parts(workers, channels, |b, _, y| {
        let x = x.of(b, lanes);
        y.fill(0.0);
        for pixel in x.chunks_exact(channels) {
            y.iter_mut().zip(pixel).for_each(|(y, x)| *y += x);
        }
        y.iter_mut().for_each(|y| *y *= scale);
    });
}

/// Adds to each lane's `base` so many lanes of x that follow one another, the first one first.
pub(super) fn lane_sum(workers: &Workers, x: View<'_>, base: Base<'_>, y: Target<'_>) {
    let lanes = y.lanes;
    let terms = x.lanes / lanes;
    y.parts(workers, GRAIN, |b, start, y| {
        base.begin(b, lanes, start, y);
        for term in b * terms..(b + 1) * terms {
            y.iter_mut().zip(&x.of(term, x.lanes)[start..]).for_each(|(y, x)| *y += x);
        }
    });
}

pub(super) fn channel_sum(workers: &Workers, channels: usize, x: View<'_>, weights: Option<View<'_>>, y: Target<'_>) {
    /// Partial sums, so that the compiler can keep several in flight.
    const WIDTH: usize = 16;
    let lanes = y.lanes;
    y.parts(workers, 256, |b, start, y| {
        let x = &x.of(b, lanes)[start * channels..];
        let weights = weights.map(|w| w.of(b, lanes));
        for (y, pixel) in y.iter_mut().zip(x.chunks_exact(channels)) {
            let mut sums = [0.0_f32; WIDTH];
            for (i, x) in pixel.chunks(WIDTH).enumerate() {
                match weights {
                    None => sums.iter_mut().zip(x).for_each(|(s, x)| *s += x),
                    Some(w) => {
                        let w = &w[i * WIDTH..];
                        sums.iter_mut().zip(x).zip(w).for_each(|((s, x), w)| *s += x * w);
                    }
                }
            }
            *y = sums.iter().sum();
        }
    });
}

pub(super) fn channel_max(workers: &Workers, channels: usize, x: View<'_>, y: Target<'_>) {
    let lanes = y.lanes;
    // What is no number wins, so that it is not hidden.
    let larger = |m: f32, v: &f32| if v.abs() > m || v.is_nan() { v.abs() } else { m };
    y.parts(workers, 256, |b, start, y| {
        let pixels = x.of(b, lanes)[start * channels..].chunks_exact(channels);
        y.iter_mut().zip(pixels).for_each(|(y, pixel)| *y = pixel.iter().fold(0.0, larger));
    });
}

/// Joins parts of each lane's values, in the order in which they lie.
fn joined<T: Send>(
    workers: &Workers,
    unit: usize,
    x: View<'_>,
    y: Target<'_>,
    part: impl Fn(&[f32]) -> T + Sync,
    join: impl Fn(Vec<T>) -> [f32; 2],
) {
    let lanes = y.lanes;
    for (b, y) in y.data.chunks_exact_mut(2).enumerate() {
        let values = x.of(b, lanes);
        let parts = workers.pool.install(|| values.par_chunks(GRAIN.next_multiple_of(unit)).map(&part).collect());
        y.copy_from_slice(&join(parts));
    }
}

/// Sum of all values and how many are not zero.
pub(super) fn totals(workers: &Workers, x: View<'_>, y: Target<'_>) {
    let part = |x: &[f32]| {
        let sum: f64 = x.iter().map(|v| f64::from(*v)).sum();
        (sum, x.iter().filter(|v| **v != 0.0).count())
    };
    joined(workers, 1, x, y, part, |parts| {
        let (sum, count) = parts.into_iter().fold((0.0, 0), |(s, n), (part, m)| (s + part, n + m));
        [sum as f32, count as f32]
    });
}

/// Smallest and largest value over the channels that count; what is no number does not.
pub(super) fn range(workers: &Workers, (stored, own): (usize, usize), x: View<'_>, y: Target<'_>) {
    const NOTHING: [f32; 2] = [f32::INFINITY, f32::NEG_INFINITY];
    let wider = |a: [f32; 2], b: [f32; 2]| [a[0].min(b[0]), a[1].max(b[1])];
    let part = |x: &[f32]| {
        let values = x.chunks_exact(stored).flat_map(|pixel| &pixel[..own]);
        values.fold(NOTHING, |range, v| wider(range, [*v; 2]))
    };
    joined(workers, stored, x, y, part, |parts| parts.into_iter().fold(NOTHING, wider));
}

/// With `r⁺`, `r⁻` the means of x over the pixels where phi is positive or negative and `Q = [r⁻, r⁺]`, the non-negative
/// parts of the least squares fit `(QᵀQ + 1)⁻¹ Qᵀ x` of each pixel: that of r⁺ less that of r⁻.
pub(super) fn factor(workers: &Workers, channels: usize, x: View<'_>, phi: View<'_>, y: Target<'_>) {
    let (lanes, len) = (y.lanes, y.len);
    workers.pool.install(|| {
        y.data.par_chunks_mut(len).enumerate().for_each(|(b, y)| {
            let (x, phi) = (x.of(b, lanes), phi.of(b, lanes));
            let mean = |sign: f32| {
                let (mut sums, mut count) = (vec![0.0_f64; channels], 0_usize);
                for (pixel, _) in x.chunks_exact(channels).zip(phi).filter(|(_, phi)| sign * **phi > 0.0) {
                    sums.iter_mut().zip(pixel).for_each(|(s, x)| *s += f64::from(*x));
                    count += 1;
                }
                sums.iter_mut().for_each(|s| *s /= count.max(1) as f64);
                sums
            };
            let (low, high) = (mean(-1.0), mean(1.0));
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            let (p, q, r) = (dot(&low, &low) + 1.0, dot(&low, &high), dot(&high, &high) + 1.0);
            let determinant = p * r - q * q;
            for (y, pixel) in y.iter_mut().zip(x.chunks_exact(channels)) {
                let against = |v: &[f64]| v.iter().zip(pixel).map(|(v, x)| v * f64::from(*x)).sum::<f64>();
                let (a, b) = (against(&low), against(&high));
                let fit = |v: f64| (v / determinant).max(0.0);
                *y = (fit(p * b - q * a) - fit(r * a - q * b)) as f32;
            }
        });
    });
}
