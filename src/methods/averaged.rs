//! Gradients at the input, averaged over several inputs (`decisions.md`, "Methods without a section").

use std::ops::Range;

use super::{INPUT, Job, Kind, RawMap, Setting, gradient};
use crate::backend::Instr;
use crate::engine::{Audit, Reg, Writer};

/// What can be set about SmoothGrad.
pub(super) const DRAWS: &[Setting] = &[
    Setting {
        key: "draws",
        kind: Kind::Count { default: 25, min: 1, max: 256 },
        help: "how many inputs with noise are averaged",
    },
    Setting {
        key: "sigma",
        kind: Kind::Number { default: 0.15, min: 0.0, max: 10.0 },
        help: "standard deviation of the noise, as a part of the input's range",
    },
    Setting {
        key: "seed",
        kind: Kind::Count { default: 0, min: 0, max: usize::MAX },
        help: "which noise: the same seed gives the same map",
    },
    gradient::REDUCE,
];

/// What can be set about integrated gradients.
pub(super) const STEPS: &[Setting] = &[Setting {
    key: "steps",
    kind: Kind::Count { default: 32, min: 1, max: 256 },
    help: "points of the Gauss–Legendre rule",
}];

/// SmoothGrad: the mean gradient of inputs with normal noise added, whose deviation is a part of the input's range.
pub(super) fn smooth_grad(w: &mut Writer<'_>, job: &Job<'_>) -> RawMap {
    let (sigma, seed) = (job.settings.number("sigma") as f32, job.settings.count("seed") as u64);
    let (x, channels, draws) = (w.value(INPUT), w.channels(INPUT), job.settings.count("draws"));
    let range = w.range(x, channels);
    let factors = vec![1.0 / draws as f32; draws];
    let mean = sum_of_gradients(w, job, &factors, |some, y| Instr::Perturb {
        x,
        range,
        sigma,
        seed,
        draw: some.start as u32,
        channels,
        y,
    });
    gradient::reduce(w, job, mean)
}

/// Integrated gradients from the mean colour, which is 0: `X ⊙ ∫ D(t·X) dt` over t from 0 to 1.
pub(super) fn integrated_gradients(w: &mut Writer<'_>, job: &Job<'_>) -> RawMap {
    let x = w.value(INPUT);
    let rule = gauss_legendre(job.settings.count("steps"));
    let (positions, weights): (Vec<f32>, Vec<f32>) = rule.iter().map(|(t, weight)| (*t as f32, *weight as f32)).unzip();
    let integral =
        sum_of_gradients(w, job, &weights, |some, y| Instr::LaneScale { x, factors: positions[some].into(), y });
    let product = w.multiply(x, integral);
    let raw = gradient::colour_sum(w, product);
    if w.audited() {
        let logit = gradient::logit_total(w, job);
        let found = vec![w.totals(raw.map), logit_of_nothing(w, job)];
        w.audit(Audit { node: "completeness".into(), expected: vec![logit], found, less: vec![] });
    }
    raw
}

/// Sum of gradients at the input, each times its factor. `inputs` makes what the network is run on for some of them, one a
/// lane. In which order they are added, and so each bit, does not depend on how many run at once.
fn sum_of_gradients(
    w: &mut Writer<'_>,
    job: &Job<'_>,
    factors: &[f32],
    inputs: impl Fn(Range<usize>, Reg) -> Instr<Reg>,
) -> Reg {
    let (x, len) = (w.value(INPUT), w.shape(INPUT).len());
    // As many in each group.
    let groups = factors.len().div_ceil(w.at_once());
    let begin = |group: usize| group * factors.len() / groups;
    let mut sum = None;
    for some in (0..groups).map(|group| begin(group)..begin(group + 1)) {
        w.at("input");
        let y = w.in_lanes(x, some.len());
        w.push(inputs(some.clone(), y));
        let d = gradient::of_inputs(w, job, y, &factors[some]);
        w.at("input");
        let y = w.class_reg(len);
        w.push(Instr::LaneSum { x: d, add: sum, y });
        sum = Some(y);
    }
    sum.unwrap_or_else(|| unreachable!("there is at least one"))
}

/// The class's logit at the baseline.
fn logit_of_nothing(w: &mut Writer<'_>, job: &Job<'_>) -> Reg {
    let (shape, x) = (w.shape(INPUT), w.value(INPUT));
    let nothing = w.like(x);
    w.push(Instr::Fill { values: [0.0; 4], channels: 1, y: nothing });
    let logit = w.nested(nothing, (shape.h, shape.w), |w| Ok(gradient::logit_total(w, job)));
    logit.unwrap_or_else(|_| unreachable!("the network takes inputs of this size"))
}

/// Positions and weights of the Gauss–Legendre rule with `n` points on [0, 1], by Newton's method on the zeros of the
/// Legendre polynomial.
fn gauss_legendre(n: usize) -> Vec<(f64, f64)> {
    /// Newton's steps: digits double with each, and the starting points have some already.
    const STEPS: usize = 8;
    // The polynomial of degree n at z, |z| < 1, and its derivative.
    let legendre = |z: f64| {
        let (mut before, mut p) = (1.0, z);
        for k in 1..n {
            let k = k as f64;
            (before, p) = (p, ((2.0 * k + 1.0) * z * p - k * before) / (k + 1.0));
        }
        (p, n as f64 * (z * p - before) / (z * z - 1.0))
    };
    let point = |i: usize| {
        let mut z = -(std::f64::consts::PI * (i as f64 + 0.75) / (n as f64 + 0.5)).cos();
        for _ in 0..STEPS {
            let (p, slope) = legendre(z);
            z -= p / slope;
        }
        let slope = legendre(z).1;
        ((1.0 + z) / 2.0, 1.0 / ((1.0 - z * z) * slope * slope))
    };
    (0..n).map(point).collect()
}

#[cfg(test)]
mod tests {
    use super::gauss_legendre;

    /// A rule of n points integrates polynomials up to degree 2n − 1 exactly, and no more.
    #[test]
    fn polynomials_are_integrated_exactly() {
        for n in [1, 2, 3, 8, 32, 256] {
            let rule = gauss_legendre(n);
            assert!(
                rule.is_sorted_by(|a, b| a.0 < b.0) && rule.iter().all(|(t, w)| (0.0..1.0).contains(t) && *w > 0.0)
            );
            let error = |degree: usize| {
                let sum: f64 = rule.iter().map(|(t, w)| w * t.powi(degree as i32)).sum();
                (sum - 1.0 / (degree + 1) as f64).abs()
            };
            assert!((0..2 * n).all(|degree| error(degree) < 1e-14), "{n} points");
            assert!(n > 8 || error(2 * n) > 1e-12, "{n} points");
        }
    }
}
