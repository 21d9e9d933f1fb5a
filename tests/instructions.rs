//! The instructions that only some methods use, against naive definitions in `f64`: on the CPU and, where there is a
//! device, on CUDA.

mod common;

use std::f64::consts::TAU;

use common::case::{ADDS, Add, Case, Operand, Oracle, SAMPLES, Write, no_layer};
use common::reference as oracle;
use common::rig::{Rig, numbers};
use ucag::backend::{Backend, Divisor, Dtype, Filter, Instr, Picks, Scaling, Scope, Sign, Slot, Unary};
use ucag::net::Shape;

/// An instruction without weights whose result has `len` values and as many lanes as its operands have at most.
fn check(name: &str, operands: &[Operand], len: usize, adds: &[Add], write: Write<'_>, oracle: Oracle<'_>) {
    let lanes = operands.iter().map(|o| o.lanes).max().unwrap_or(2);
    for add in adds {
        let (name, operands) = (format!("{name}, {len} values, add {add:?}"), operands.to_vec());
        Case { name, graph: no_layer(), operands, len, lanes, add: *add, relu: false, write, oracle }.check();
    }
}

const NOWHERE: &[Add] = &[Add::Nowhere];

/// Some values exactly 0.
fn with_zeros(operand: Operand) -> Operand {
    operand.map(|v| if v.abs() < 0.4 { 0.0 } else { v })
}

/// Quarters, so that differences are 0 or large.
fn quarters(operand: Operand) -> Operand {
    operand.map(|v| (4.0 * v).round() / 4.0)
}

fn zip(a: &[f64], b: &[f64], f: impl Fn(f64, f64) -> f64) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| f(*a, *b)).collect()
}

const DIVISORS: [Divisor; 3] = [Divisor::Signed(0.25), Divisor::NonZero, Divisor::Shifted(0.25)];

fn quotient(by: Divisor, a: f64, b: f64) -> f64 {
    match by {
        Divisor::Signed(e) => oracle::divs(a, b, f64::from(e)),
        _ if b == 0.0 => 0.0,
        Divisor::NonZero => a / b,
        Divisor::Shifted(e) if b == -f64::from(e) => a / f64::from(e),
        Divisor::Shifted(e) => a / (b + f64::from(e)),
    }
}

#[test]
fn functions_of_a_few_numbers() {
    for len in [37, 4 * 301] {
        let (x, two) = (Operand::random(1, 1, len), Operand::random(2, 2, len));
        let root = |o: &[Slot], _: Option<Slot>, y: Slot| Instr::Unary { f: Unary::Root, x: o[0], y };
        let positive = x.clone().map(f64::abs);
        check("root", &[positive], len, NOWHERE, &root, &|o| o[0].iter().map(|v| v.sqrt()).collect());
        for keep in [Sign::Positive, Sign::Negative, Sign::NonZero] {
            let pass = |v: f64| match keep {
                Sign::Positive => v > 0.0,
                Sign::Negative => v < 0.0,
                Sign::NonZero => v != 0.0,
            };
            let write = |o: &[Slot], add: Option<Slot>, y: Slot| Instr::Mask { keep, x: o[0], r: o[1], add, y };
            let mask = |o: &[&[f64]]| zip(o[0], o[1], |x, r| if pass(x) { r } else { 0.0 });
            check("mask", &[with_zeros(x.clone()), two.clone()], len, &ADDS, &write, &mask);
        }
        let write = |o: &[Slot], _: Option<Slot>, y: Slot| Instr::Larger { a: o[0], b: o[1], y };
        check("larger", &[x.clone(), two.clone()], len, NOWHERE, &write, &|o| zip(o[0], o[1], f64::max));
        let write = |o: &[Slot], _: Option<Slot>, y: Slot| Instr::Damp { x: o[0], c: o[1], y };
        let damp = |o: &[&[f64]]| zip(o[0], o[1], |x, c| x / (1.0 + (-c).exp()));
        check("damp", &[two.clone(), x.clone().map(|v| 5.0 * v)], len, NOWHERE, &write, &damp);
        for by in DIVISORS {
            let write = |o: &[Slot], _: Option<Slot>, y: Slot| Instr::Divide {
                r: o[0],
                z: o[1],
                z2: o.get(2).copied(),
                by,
                scale: -2.5,
                y,
            };
            let divide = |o: &[&[f64]]| {
                let z = o.get(2).map_or(o[1].to_vec(), |z2| oracle::sum(o[1], z2));
                zip(o[0], &z, |r, z| -2.5 * quotient(by, r, z))
            };
            let z = [quarters(x.clone()), quarters(Operand::random(3, 1, len))];
            check(&format!("{by:?}"), &[two.clone(), z[0].clone()], len, NOWHERE, &write, &divide);
            check(&format!("{by:?} of a sum"), &[&[two.clone()][..], &z].concat(), len, NOWHERE, &write, &divide);
        }
    }
}

#[test]
fn numbers_of_samples() {
    for lanes in [1, 3] {
        // Few values, one block's worth, more than a thread takes at once, more than the CPU's units.
        for len in [4, 1000, 12 * 1024 + 4, 3 * 16384 + 20] {
            let x = with_zeros(Operand::random(1, lanes, len)).map(|v| v.max(-0.5));
            let write = |o: &[Slot], _: Option<Slot>, y: Slot| Instr::Totals { x: o[0], y };
            let totals = |o: &[&[f64]]| vec![o[0].iter().sum(), o[0].iter().filter(|v| **v != 0.0).count() as f64];
            check("totals", std::slice::from_ref(&x), 2, NOWHERE, &write, &totals);
            // What does not count is larger than all that does.
            let mut wide = x.clone();
            wide.values.iter_mut().skip(3).step_by(4).for_each(|v| *v = 9.0 * *v + 5.0);
            for channels in [(1, 1), (4, 3), (4, 1)] {
                let write = |o: &[Slot], _: Option<Slot>, y: Slot| Instr::Range { x: o[0], channels, y };
                let range = |o: &[&[f64]]| {
                    let own = || o[0].chunks(channels.0).flat_map(|pixel| pixel[..channels.1].iter().copied());
                    vec![own().fold(f64::INFINITY, f64::min), own().fold(f64::NEG_INFINITY, f64::max)]
                };
                check(&format!("range {channels:?}"), std::slice::from_ref(&wide), 2, NOWHERE, &write, &range);
            }
        }
    }
}

#[test]
fn elements_by_numbers_of_samples() {
    for (len, lanes) in [(35, 1), (1500, 2)] {
        let (x, other) = (Operand::random(1, lanes, len), with_zeros(Operand::random(2, 1, len)));
        let pair = |seed, lanes| quarters(Operand::random(seed, lanes, 2));
        let shift = |o: &[Slot], _: Option<Slot>, y: Slot| Instr::Shift {
            x: o[0],
            mask: o[1],
            count: o[2],
            from: o[3],
            to: o.get(4).copied(),
            y,
        };
        let shifted = |o: &[&[f64]]| {
            let moved = o[3][0] - o.get(4).map_or(0.0, |to| to[0]);
            let step = if o[2][1] == 0.0 { 0.0 } else { moved / o[2][1] };
            zip(o[0], o[1], |x, mask| if mask != 0.0 { x - step } else { x })
        };
        let operands = [x.clone(), other.clone(), pair(3, 1), pair(4, lanes), pair(5, lanes)];
        check("shift", &operands, len, NOWHERE, &shift, &shifted);
        check("shift of all", &operands[..4], len, NOWHERE, &shift, &shifted);
        let write = |o: &[Slot], _: Option<Slot>, y: Slot| Instr::Contrast {
            x: o[0],
            other: o[1],
            total: o[2],
            other_total: o[3],
            y,
        };
        let contrast = |o: &[&[f64]]| {
            let ratio = if o[3][0] == 0.0 { 0.0 } else { o[2][0] / o[3][0] };
            zip(o[0], o[1], |x, other| x - other * ratio)
        };
        check("contrast", &[x.clone(), other, pair(3, lanes), pair(4, 1)], len, NOWHERE, &write, &contrast);
        let largest = DIVISORS.map(Scaling::Largest);
        for by in [&largest[..], &[Scaling::MinMax, Scaling::Sum { channels: 3, eps: 4.0 }]].concat() {
            let write = |o: &[Slot], _: Option<Slot>, y: Slot| Instr::Scale { by, x: o[0], range: o[1], y };
            let scale = |o: &[&[f64]]| {
                let (lo, hi) = (o[1][0], o[1][1]);
                let scaled = |x: &f64| match by {
                    Scaling::MinMax if hi > lo => (x - lo) / (hi - lo),
                    Scaling::MinMax => 0.0,
                    Scaling::Largest(by) => quotient(by, *x, hi),
                    Scaling::Sum { channels, eps } => (x - channels as f64 * lo) / (hi - lo + f64::from(eps)),
                };
                o[0].iter().map(scaled).collect()
            };
            check(&format!("{by:?}"), &[x.clone(), pair(6, lanes)], len, NOWHERE, &write, &scale);
        }
    }
}

#[test]
fn patterns() {
    let values = [0.5, -1.25, 3.0, 0.0625];
    for (pixels, channels) in [(1, 1), (35, 3), (401, 4)] {
        let len = pixels * channels;
        let write = |_: &[Slot], _: Option<Slot>, y: Slot| Instr::Fill { values, channels, y };
        check("fill", &[], len, NOWHERE, &write, &|_| (0..len).map(|i| f64::from(values[i % channels])).collect());
        for (own, upper) in [(channels, false), (channels.div_ceil(2), true)] {
            let (range, channels) = (Operand::random(1, 2, 2), (channels, own));
            let write = |o: &[Slot], _: Option<Slot>, y: Slot| Instr::Bound { range: o[0], upper, channels, y };
            let bound = |o: &[&[f64]]| {
                let value = |i: usize| if i % channels.0 < own { -o[0][usize::from(upper)] } else { 0.0 };
                (0..len).map(value).collect()
            };
            check("bound", &[range], len, NOWHERE, &write, &bound);
        }
        let write = |o: &[Slot], _: Option<Slot>, y: Slot| Instr::Spread { x: o[0], channels, y };
        let spread = |o: &[&[f64]]| (0..len).map(|i| o[0][i / channels]).collect();
        check("spread", &[Operand::random(1, 2, pixels)], len, NOWHERE, &write, &spread);
    }
}

#[test]
fn fits_of_two_factors() {
    for (pixels, channels, lanes, sign) in [(1, 1, 1, 0.0), (30, 5, 2, 0.0), (49, 70, 1, 0.0), (70, 33, 2, 1.0)] {
        let x = Operand::random(1, 1, pixels * channels).map(|v| 0.5 + 0.5 * v);
        // With a sign of 1 no pixel is negative.
        let phi = with_zeros(Operand::random(2, lanes, pixels)).map(|v| if sign > 0.0 { v.abs() } else { v });
        let write = |o: &[Slot], _: Option<Slot>, y: Slot| Instr::Factor { x: o[0], channels, phi: o[1], y };
        let factor = |o: &[&[f64]]| {
            let mean = |keep: fn(f64) -> bool| -> Vec<f64> {
                let kept: Vec<_> = o[0].chunks(channels).zip(o[1]).filter(|(_, phi)| keep(**phi)).collect();
                (0..channels).map(|c| kept.iter().map(|(x, _)| x[c]).sum::<f64>() / kept.len().max(1) as f64).collect()
            };
            let q = [mean(|phi| phi < 0.0), mean(|phi| phi > 0.0)];
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            // Least squares with a ridge of 1, by Cramer's rule.
            let normal = [[dot(&q[0], &q[0]) + 1.0, dot(&q[0], &q[1])], [dot(&q[0], &q[1]), dot(&q[1], &q[1]) + 1.0]];
            let det = |m: [[f64; 2]; 2]| m[0][0] * m[1][1] - m[0][1] * m[1][0];
            let fit = |x: &[f64]| {
                let v = [dot(&q[0], x), dot(&q[1], x)];
                let down = det([[v[0], normal[0][1]], [v[1], normal[1][1]]]) / det(normal);
                let up = det([[normal[0][0], v[0]], [normal[1][0], v[1]]]) / det(normal);
                up.max(0.0) - down.max(0.0)
            };
            o[0].chunks(channels).map(fit).collect()
        };
        check(&format!("factor of {channels} channels"), &[x, phi], pixels, NOWHERE, &write, &factor);
    }
}

#[test]
fn resampling() {
    for (from, slice, to, add) in [
        ((7, 9, 3), (0, 3), (13, 20), Add::Nowhere),
        ((7, 9, 5), (2, 2), (7, 9), Add::Elsewhere),
        ((12, 11, 4), (3, 1), (5, 3), Add::InPlace),
        ((1, 1, 2), (0, 2), (4, 1), Add::Nowhere),
        ((5, 2, 1), (0, 1), (1, 31), Add::Nowhere),
    ] {
        let (first, count) = slice;
        for filter in [Filter::Bilinear, Filter::Aligned, Filter::Bicubic] {
            let write = |o: &[Slot], add: Option<Slot>, y: Slot| {
                let from = Shape::new(from.0, from.1, from.2);
                Instr::Resize { from, slice, to, filter, scale: 1.5, x: o[0], add, y }
            };
            let resized = |o: &[&[f64]]| {
                let size = (from.0, from.1);
                let pixels = (0..to.0 * to.1).map(|i| (i / to.1, i % to.1));
                let value = |at: (usize, usize), c: usize| {
                    let plane: Vec<f64> = o[0].iter().skip(first + c).step_by(from.2).copied().collect();
                    let half = |d: usize, n: usize, to: usize| (d as f64 + 0.5) * n as f64 / to as f64 - 0.5;
                    match filter {
                        Filter::Bilinear => oracle::bilinear(&plane, size, to, at),
                        Filter::Bicubic => {
                            let s = (half(at.0, from.0, to.0), half(at.1, from.1, to.1));
                            oracle::bicubic(|y, x| plane[y * from.1 + x], size, s)
                        }
                        Filter::Aligned => {
                            let s = |d: usize, n: usize, to: usize| d as f64 * (n - 1) as f64 / (to - 1).max(1) as f64;
                            let (y, x) = (s(at.0, from.0, to.0), s(at.1, from.1, to.1));
                            // Hats around the corners.
                            let hat = |i: usize| {
                                let near = |a: f64, b: usize| (1.0 - (a - b as f64).abs()).max(0.0);
                                near(y, i / from.1) * near(x, i % from.1)
                            };
                            plane.iter().enumerate().map(|(i, v)| hat(i) * v).sum()
                        }
                    }
                };
                pixels.flat_map(|at| (0..count).map(move |c| (at, c))).map(|(at, c)| 1.5 * value(at, c)).collect()
            };
            let x = Operand::random(1, 2, from.0 * from.1 * from.2);
            check(&format!("{filter:?} {from:?}"), &[x], to.0 * to.1 * count, &[add], &write, &resized);
        }
    }
}

/// A slot whose values are those of so many lanes.
fn in_lanes(slot: Slot, lanes: usize) -> Slot {
    Slot { len: slot.len / lanes, lanes: slot.lanes * lanes, ..slot }
}

#[test]
fn lanes_are_scaled_one_by_one() {
    let factors = [0.5, -1.25, 3.0];
    for len in [1, 35, 1500] {
        // The result's lanes are one lane of the case.
        for (n, lanes) in [(3, 3), (1, 4)] {
            let write = |o: &[Slot], _: Option<Slot>, y: Slot| {
                let (x, y) = (in_lanes(o[0], o[0].len / len), in_lanes(y, lanes));
                Instr::LaneScale { x, factors: factors[..n].into(), y }
            };
            let scaled = |o: &[&[f64]]| {
                let value = |i: usize| f64::from(factors[i / len % n]) * o[0][i % o[0].len()];
                (0..lanes * len).map(value).collect()
            };
            for x in [Operand::random(1, 1, len), Operand::random(2, 1, lanes * len)] {
                check(&format!("{n} factors"), &[x], lanes * len, NOWHERE, &write, &scaled);
            }
        }
    }
}

#[test]
fn lanes_are_added() {
    for (len, terms, lanes) in [(1, 1, 1), (35, 3, 1), (1500, 8, 1), (35, 1, 2), (1500, 3, 2)] {
        // All terms of a result are one lane of the case.
        let x = Operand::random(1, lanes, terms * len);
        let write = |o: &[Slot], add: Option<Slot>, y: Slot| Instr::LaneSum { x: in_lanes(o[0], terms), add, y };
        let sum = |o: &[&[f64]]| (0..len).map(|i| o[0].iter().skip(i).step_by(len).sum()).collect();
        check(&format!("sum of {terms} lanes"), &[x], len, &ADDS, &write, &sum);
    }
}

/// Splitmix64's finaliser and Box and Muller, anew.
fn noise(seed: u64, draw: u64, patch: u64, element: u64) -> f64 {
    let mix = |z: u64| {
        let mut z = z.wrapping_add(0x9E37_79B9_7F4A_7C15);
        for (shift, factor) in [(30, 0xBF58_476D_1CE4_E5B9_u64), (27, 0x94D0_49BB_1331_11EB)] {
            z = (z ^ (z >> shift)).wrapping_mul(factor);
        }
        z ^ (z >> 31)
    };
    let bits = mix(mix(mix(seed) ^ (patch << 32 | draw)) ^ element);
    let unit = |v: u64| v as f64 / 2_f64.powi(32);
    (-2.0 * unit((bits >> 32) + 1).ln()).sqrt() * (TAU * unit(bits & 0xffff_ffff)).cos()
}

/// Draws of the noise of samples `first..`, from draw 3 on, by a backend that stores images with so many channels in such a
/// type.
fn perturbed<B: Backend>(
    mut rig: Rig<B>,
    first: usize,
    draws: usize,
    stored: usize,
    dtype: Dtype,
    x: &Operand,
) -> Vec<f32> {
    let (samples, range) = (SAMPLES - first, Operand::random(2, 1, 2));
    let from = rig.slot(x.len, 1, dtype, Scope::Batch, x.bytes(first..SAMPLES));
    let range = rig.slot(2, 1, Dtype::F32, Scope::Batch, range.bytes(first..SAMPLES));
    let y = rig.result(x.len, draws, dtype, Scope::Batch, samples);
    rig.first = first;
    let channels = (stored, 3);
    let instr = Instr::Perturb { x: from, range, sigma: 0.5, seed: 1 << 40, draw: 3, channels, y };
    numbers(&rig.run(instr, samples, &[y])[0], dtype)
}

#[test]
fn perturbations() {
    const PIXELS: usize = 700;
    let range = Operand::random(2, 1, 2);
    let expected = |x: &Operand, draws: usize, stored: usize| -> Vec<f64> {
        let value = |patch: usize, draw: usize, i: usize| {
            let (pixel, c) = (i / stored, i % stored);
            let span = range.of(patch, 0)[1] - range.of(patch, 0)[0];
            let n = noise(1 << 40, 3 + draw as u64, patch as u64, (pixel * 3 + c) as u64);
            x.of(patch, 0)[i] + if c < 3 { 0.5 * span * n } else { 0.0 }
        };
        let lanes = (0..SAMPLES).flat_map(|patch| (0..draws).map(move |draw| (patch, draw)));
        lanes
            .flat_map(|(patch, draw)| (0..x.len).map(move |i| (patch, draw, i)))
            .map(|(p, d, i)| value(p, d, i))
            .collect()
    };
    for draws in [1, 3] {
        let x = Operand::random(1, 1, PIXELS * 3);
        let found = perturbed(Rig::new(&no_layer(), 2), 0, draws, 3, Dtype::F32, &x);
        common::assert_nmse("noise", &found, &expected(&x, draws, 3), common::tolerance::OP);
        let late = perturbed(Rig::new(&no_layer(), 1), 4, draws, 3, Dtype::F32, &x);
        assert_eq!(found[4 * draws * x.len..], late, "noise depends on the batch");
        #[cfg(feature = "cuda")]
        for (dtype, bound) in [(Dtype::F32, common::tolerance::OP), (Dtype::F16, common::tolerance::HALF_OP)] {
            let Some(backend) = common::cuda::backend(&no_layer()) else { return };
            let x = Operand::random(1, 1, PIXELS * 4).half();
            let found = perturbed(Rig::on(backend), 0, draws, 4, dtype, &Operand { dtype, ..x.clone() });
            common::assert_nmse("noise on the device", &found, &expected(&x, draws, 4), bound);
            let backend = common::cuda::backend(&no_layer()).expect("it was there");
            let late = perturbed(Rig::on(backend), 4, draws, 4, dtype, &Operand { dtype, ..x.clone() });
            assert_eq!(found[4 * draws * x.len..], late, "noise depends on the batch");
        }
    }
}

/// Pixels of one value that patches share, for the patches from `first` on.
fn gathered<B: Backend>(mut rig: Rig<B>, first: usize, dtype: Dtype, x: &Operand, picks: &Picks) -> Vec<f32> {
    let samples = SAMPLES - first;
    let from = rig.slot(x.len, 1, dtype, Scope::Shared, x.bytes(0..1));
    let y = rig.result(picks.to.len(), 1, dtype, Scope::Batch, samples);
    rig.first = first;
    let instr = Instr::Gather { picks: picks.clone(), x: from, y };
    numbers(&rig.run(instr, samples, &[y])[0], dtype)
}

#[test]
fn pixels_are_gathered() {
    const NONE: u32 = Picks::OUTSIDE;
    for channels in [4, 6, 1] {
        // Patches of three rows and two columns, in a grid of three by three; runs, gaps, repetitions, and what is outside.
        let rows = [NONE, 0, 1, 4, 4, 2, 3, NONE, 0].into();
        let cols = [0, 1, NONE, NONE, 3, 2].into();
        let (from, to) = (Shape::new(5, 4, channels), Shape::new(3, 2, channels));
        let picks = Picks { from, to, rows, cols, fill: -2.5 };
        let x = Operand::random(1, 1, from.len()).half();
        let expected = |i: usize| {
            let (patch, pixel, c) = (i / to.len(), i % to.len() / channels, i % channels);
            let (row, col) = (picks.rows[patch / 3 * 3 + pixel / 2], picks.cols[patch % 3 * 2 + pixel % 2]);
            let inside = row != NONE && col != NONE;
            if inside { x.of(0, 0)[(row as usize * from.w + col as usize) * channels + c] } else { -2.5 }
        };
        let expected: Vec<f32> = (0..SAMPLES * to.len()).map(|i| expected(i) as f32).collect();
        for first in [0, 4] {
            let x = Operand { dtype: Dtype::F32, ..x.clone() };
            let found = gathered(Rig::new(&no_layer(), 2), first, Dtype::F32, &x, &picks);
            assert_eq!(found, expected[first * to.len()..], "{channels} channels");
        }
        #[cfg(feature = "cuda")]
        for (dtype, first) in [(Dtype::F32, 0), (Dtype::F16, 0), (Dtype::F16, 4)] {
            let Some(backend) = common::cuda::backend(&no_layer()) else { continue };
            let x = Operand { dtype, ..x.clone() };
            let found = gathered(Rig::on(backend), first, dtype, &x, &picks);
            assert_eq!(found, expected[first * to.len()..], "{channels} channels on the device, {dtype:?}");
        }
    }
}
