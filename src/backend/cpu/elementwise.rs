//! Everything that makes one number of a few at the same place.

use super::operands::GRAIN;
use super::{Base, Shared, Target, View, Workers};
use crate::backend::{Divisor, Scaling, Sign, Unary};

pub(super) fn unary(workers: &Workers, x: View<'_>, y: Target<'_>, f: Unary) {
    let lanes = y.lanes;
    y.parts(workers, GRAIN, |b, start, y| {
        y.iter_mut().zip(&x.of(b, lanes)[start..]).for_each(|(y, x)| *y = f.of(*x));
    });
}

pub(super) fn binary(
    workers: &Workers,
    a: View<'_>,
    c: View<'_>,
    base: Base<'_>,
    y: Target<'_>,
    f: impl Fn(f32, f32) -> f32 + Sync,
) {
    let lanes = y.lanes;
    y.parts(workers, GRAIN, |b, start, y| {
        let (a, c) = (&a.of(b, lanes)[start..], &c.of(b, lanes)[start..]);
        let values = a.iter().zip(c).map(|(a, c)| f(*a, *c));
        match (base, base.term(b, lanes, start, y.len())) {
            (Base::InPlace, _) => y.iter_mut().zip(values).for_each(|(y, v)| *y += v),
            (_, Some(term)) => y.iter_mut().zip(values).zip(term).for_each(|((y, v), t)| *y = t + v),
            (_, None) => y.iter_mut().zip(values).for_each(|(y, v)| *y = v),
        }
    });
}

/// `y = r·[x passes keep] + base`
pub(super) fn mask(workers: &Workers, keep: Sign, x: View<'_>, r: View<'_>, base: Base<'_>, y: Target<'_>) {
    // One loop for each test, so that it is compiled for vectors; as those below.
    match keep {
        Sign::Positive => binary(workers, x, r, base, y, |x, r| if Sign::Positive.of(x) { r } else { 0.0 }),
        Sign::Negative => binary(workers, x, r, base, y, |x, r| if Sign::Negative.of(x) { r } else { 0.0 }),
        Sign::NonZero => binary(workers, x, r, base, y, |x, r| if Sign::NonZero.of(x) { r } else { 0.0 }),
    }
}

/// Evaluates the body with the quotient of one kind, for each of which it is compiled for vectors.
macro_rules! by_kind {
    ($by:expr, |$quotient:ident| $body:expr) => {
        match $by {
            Divisor::Signed(eps) => {
                let $quotient = |a: f32, b: f32| Divisor::Signed(eps).quotient(a, b);
                $body
            }
            Divisor::NonZero => {
                let $quotient = |a: f32, b: f32| Divisor::NonZero.quotient(a, b);
                $body
            }
            Divisor::Shifted(eps) => {
                let $quotient = |a: f32, b: f32| Divisor::Shifted(eps).quotient(a, b);
                $body
            }
        }
    };
}
pub(super) use by_kind;

/// `y = scale · r / (z + z2)`
pub(super) fn divide(
    workers: &Workers,
    r: View<'_>,
    (z, z2): (View<'_>, Option<View<'_>>),
    by: Divisor,
    scale: f32,
    y: Target<'_>,
) {
    let lanes = y.lanes;
    by_kind!(by, |quotient| y.parts(workers, GRAIN, |b, start, y| {
        let [r, z] = [r, z].map(|x| &x.of(b, lanes)[start..]);
        match z2 {
            None => y.iter_mut().zip(r).zip(z).for_each(|((y, r), z)| *y = scale * quotient(*r, *z)),
            Some(z2) => {
                let terms = z.iter().zip(&z2.of(b, lanes)[start..]);
                y.iter_mut().zip(r).zip(terms).for_each(|((y, r), (z, z2))| *y = scale * quotient(*r, z + z2));
            }
        }
    }));
}

/// `ya = a·c` and `yb = b·c` with `c = r / z`, where `terms` makes `[a, b, z]` of two operands.
pub(super) fn split(
    workers: &Workers,
    [x1, x2]: [View<'_>; 2],
    terms: impl Fn(f32, f32) -> [f32; 3] + Sync,
    r: View<'_>,
    by: Divisor,
    [ya, yb]: [Target<'_>; 2],
) {
    let (lanes, len, other) = (ya.lanes, ya.len, Shared::new(yb.data));
    by_kind!(by, |quotient| ya.parts(workers, GRAIN, |i, start, ya| {
        // SAFETY: the same part of the other result, which is as long; parts are disjoint.
        let yb = unsafe { std::slice::from_raw_parts_mut(other.at(i * len + start), ya.len()) };
        let [x1, x2, r] = [x1, x2, r].map(|x| &x.of(i, lanes)[start..]);
        for ((ya, yb), ((x1, x2), r)) in ya.iter_mut().zip(yb).zip(x1.iter().zip(x2).zip(r)) {
            let [a, b, z] = terms(*x1, *x2);
            let c = quotient(*r, z);
            (*ya, *yb) = (a * c, b * c);
        }
    }));
}

/// `y[pixel, c] = values[c]`
pub(super) fn fill(workers: &Workers, values: &[f32], y: Target<'_>) {
    y.parts(workers, GRAIN.next_multiple_of(values.len()), |_, _, y| {
        y.chunks_mut(values.len()).for_each(|y| y.copy_from_slice(&values[..y.len()]));
    });
}

/// The negative of one end of each sample's range, in the channels that count.
pub(super) fn bound(workers: &Workers, range: View<'_>, upper: bool, channels: (usize, usize), y: Target<'_>) {
    let (lanes, (stored, own)) = (y.lanes, channels);
    y.parts(workers, GRAIN.next_multiple_of(stored), |b, _, y| {
        let value = -range.of(b, lanes)[usize::from(upper)];
        for y in y.chunks_exact_mut(stored) {
            y[..own].fill(value);
            y[own..].fill(0.0);
        }
    });
}

/// `y[pixel, c] = x[pixel]`
pub(super) fn spread(workers: &Workers, channels: usize, x: View<'_>, y: Target<'_>) {
    let lanes = y.lanes;
    y.parts(workers, GRAIN.next_multiple_of(channels), |b, start, y| {
        let x = &x.of(b, lanes)[start / channels..];
        y.chunks_exact_mut(channels).zip(x).for_each(|(y, x)| y.fill(*x));
    });
}

/// `y[lane] = factors[lane mod n]·x[lane]`
pub(super) fn lane_scale(workers: &Workers, factors: &[f32], x: View<'_>, y: Target<'_>) {
    let lanes = y.lanes;
    y.parts(workers, GRAIN, |b, start, y| {
        let factor = factors[b % lanes % factors.len()];
        y.iter_mut().zip(&x.of(b, lanes)[start..]).for_each(|(y, x)| *y = factor * x);
    });
}

/// `y[pixel, c] = x[pixel, c]·weights[c]`
pub(super) fn channel_scale(workers: &Workers, channels: usize, x: View<'_>, weights: View<'_>, y: Target<'_>) {
    let lanes = y.lanes;
    y.parts(workers, GRAIN.next_multiple_of(channels), |b, start, y| {
        let (x, weights) = (&x.of(b, lanes)[start..], weights.of(b, lanes));
        for (y, x) in y.chunks_exact_mut(channels).zip(x.chunks_exact(channels)) {
            y.iter_mut().zip(x).zip(weights).for_each(|((y, x), w)| *y = x * w);
        }
    });
}

/// `y = x − [mask ≠ 0]·(Σfrom − Σto) / n` by the totals `[count, from, to]`.
pub(super) fn shift(workers: &Workers, x: View<'_>, mask: View<'_>, totals: [Option<View<'_>>; 3], y: Target<'_>) {
    let lanes = y.lanes;
    y.parts(workers, GRAIN, |b, start, y| {
        let [count, from, to] = totals.map(|total| total.map_or([0.0; 2], |t| [t.of(b, lanes)[0], t.of(b, lanes)[1]]));
        let step = Divisor::NonZero.quotient(from[0] - to[0], count[1]);
        let (x, mask) = (&x.of(b, lanes)[start..], &mask.of(b, lanes)[start..]);
        y.iter_mut().zip(x).zip(mask).for_each(|((y, x), m)| *y = x - if *m != 0.0 { step } else { 0.0 });
    });
}

/// `y = x − other·(Σx / Σother)`
pub(super) fn contrast(workers: &Workers, x: View<'_>, other: View<'_>, totals: [View<'_>; 2], y: Target<'_>) {
    let lanes = y.lanes;
    y.parts(workers, GRAIN, |b, start, y| {
        let [total, of_other] = totals.map(|t| t.of(b, lanes)[0]);
        let ratio = Divisor::NonZero.quotient(total, of_other);
        let (x, other) = (&x.of(b, lanes)[start..], &other.of(b, lanes)[start..]);
        y.iter_mut().zip(x).zip(other).for_each(|((y, x), o)| *y = x - o * ratio);
    });
}

/// Values scaled by a range of their lane.
pub(super) fn scale(workers: &Workers, by: Scaling, x: View<'_>, range: View<'_>, y: Target<'_>) {
    let lanes = y.lanes;
    y.parts(workers, GRAIN, |b, start, y| {
        let (x, range) = (&x.of(b, lanes)[start..], range.of(b, lanes));
        y.iter_mut().zip(x).for_each(|(y, x)| *y = by.of(*x, range[0], range[1]));
    });
}
