//! Convolution and its input-gradient as one thing, a gather: every pixel of the result reads pixels of the source at
//! fixed offsets (*taps*) and multiplies them with a matrix `[taps·source channels, result channels]`.
//!
//! The input-gradient of a strided convolution falls apart into stride² *phases*, each an unstrided gather with the
//! taps that reach it, so that no product with an inserted zero is ever formed.

use std::ops::Range;

use super::{ConvGeom, Variant, WeightRef};
use crate::net::Param;

/// Which way a weight is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Direction {
    Forward,
    Backward,
}

/// Result pixels `origin + step·q` that gather the same taps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Phase {
    pub origin: [usize; 2],
    pub step: [usize; 2],
    /// Rows and columns of pixels in this phase.
    pub h: usize,
    pub w: usize,
    /// Source pixel of tap `(y, x)` for pixel `q`: `stride·q + first + (y, x)`.
    pub stride: [usize; 2],
    pub first: [isize; 2],
    /// Rows and columns of taps.
    pub taps: [usize; 2],
    /// First element of this phase's matrix.
    pub weight: usize,
    /// Rows of that matrix; 0 where no tap reaches the phase.
    pub depth: usize,
}

/// The phases of a convolution in one direction.
pub(crate) fn phases(g: &ConvGeom, direction: Direction) -> Vec<Phase> {
    match direction {
        Direction::Forward => vec![forward(g)],
        Direction::Backward => backward(g),
    }
}

fn forward(g: &ConvGeom) -> Phase {
    let taps = g.window.kernel;
    Phase {
        origin: [0, 0],
        step: [1, 1],
        h: g.y.h,
        w: g.y.w,
        stride: g.window.stride,
        first: g.window.pad.map(|p| -(p as isize)),
        taps,
        weight: 0,
        depth: taps[0] * taps[1] * g.x.c,
    }
}

/// Kernel positions along an axis that reach input pixels `≡ origin (mod stride)`, in ascending order of the output
/// pixel they come from, with its offset; the offsets follow one another.
fn reaching(origin: usize, kernel: usize, stride: usize, pad: usize) -> Vec<(usize, isize)> {
    let reaches = |k: &usize| (origin + pad) % stride == k % stride;
    let offset = |k: usize| (k, (origin as isize + pad as isize - k as isize) / stride as isize);
    (0..kernel).rev().filter(reaches).map(offset).collect()
}

/// The kernel positions of both axes that reach each phase, with the offsets of the source pixels, phase by phase.
pub(crate) fn reaching_phases(g: &ConvGeom) -> impl Iterator<Item = ([usize; 2], [Vec<(usize, isize)>; 2])> {
    let ([kh, kw], [sy, sx], [py, px]) = (g.window.kernel, g.window.stride, g.window.pad);
    let origins = (0..sy).flat_map(move |y| (0..sx).map(move |x| [y, x]));
    origins.map(move |[y, x]| ([y, x], [reaching(y, kh, sy, py), reaching(x, kw, sx, px)]))
}

fn backward(g: &ConvGeom) -> Vec<Phase> {
    let step = g.window.stride;
    let mut weight = 0;
    let phase = |(origin, [rows, cols]): ([usize; 2], [Vec<(usize, isize)>; 2])| {
        let first = |taps: &[(usize, isize)]| taps.first().map_or(0, |t| t.1);
        let taps = [rows.len(), cols.len()];
        let depth = taps[0] * taps[1] * g.y.c;
        let pixels = |n: usize, axis: usize| n.saturating_sub(origin[axis]).div_ceil(step[axis]);
        let (h, w) = (pixels(g.x.h, 0), pixels(g.x.w, 1));
        let first = [first(&rows), first(&cols)];
        let phase = Phase { origin, step, h, w, stride: [1, 1], first, taps, weight, depth };
        weight += depth * g.x.c;
        phase
    };
    reaching_phases(g).map(phase).collect()
}

/// The matrices of all phases, one after the other. Source or result channels beyond the parameter's own, which a
/// backend may have added to the network's input, get zeros.
pub(crate) fn pack(param: &Param, g: &ConvGeom, w: WeightRef, direction: Direction) -> Vec<f32> {
    let view = |o: usize, v: f32| w.of(param, o, v);
    let (inputs, outputs, channels) = (param.inputs, param.outputs, g.x.c);
    let tap = |t: usize| &param.weight[t * inputs * outputs..][..inputs * outputs];
    let zeros = |n: usize| std::iter::repeat_n(0.0, n);
    let mut packed = Vec::with_capacity(param.kernel[0] * param.kernel[1] * channels * outputs);
    match direction {
        Direction::Forward => {
            for t in 0..param.kernel[0] * param.kernel[1] {
                packed.extend(tap(t).iter().enumerate().map(|(i, v)| view(i % outputs, *v)));
                packed.extend(zeros((channels - inputs) * outputs));
            }
        }
        Direction::Backward => {
            for (_, [rows, cols]) in reaching_phases(g) {
                for ((ky, _), (kx, _)) in rows.iter().flat_map(|y| cols.iter().map(move |x| (y, x))) {
                    let tap = tap(ky * g.window.kernel[1] + kx);
                    for oc in 0..outputs {
                        packed.extend((0..inputs).map(|ic| view(oc, tap[ic * outputs + oc])));
                        packed.extend(zeros(channels - inputs));
                    }
                }
            }
        }
    }
    packed
}

/// Some columns of the matrix of an unstrided convolution, whose sign is as folded: rows of `width` elements, those beyond
/// the columns zero.
pub(crate) fn pack_columns(
    param: &Param,
    variant: Variant,
    direction: Direction,
    columns: Range<usize>,
    width: usize,
    out: &mut [f32],
) {
    // One loop for each, so that it is compiled for vectors.
    match variant {
        Variant::Plain => pack_columns_of(param, direction, columns, width, out, |v| Variant::Plain.of(v)),
        Variant::Positive => pack_columns_of(param, direction, columns, width, out, |v| Variant::Positive.of(v)),
        Variant::Negative => pack_columns_of(param, direction, columns, width, out, |v| Variant::Negative.of(v)),
        _ => pack_columns_of(param, direction, columns, width, out, |v| variant.of(v)),
    }
}

fn pack_columns_of(
    param: &Param,
    direction: Direction,
    columns: Range<usize>,
    width: usize,
    out: &mut [f32],
    view: impl Fn(f32) -> f32,
) {
    let (inputs, outputs) = (param.inputs, param.outputs);
    match direction {
        Direction::Forward => {
            for (from, to) in param.weight.chunks_exact(outputs).zip(out.chunks_exact_mut(width)) {
                let (own, rest) = to.split_at_mut(columns.len());
                own.iter_mut().zip(&from[columns.clone()]).for_each(|(to, v)| *to = view(*v));
                rest.fill(0.0);
            }
        }
        Direction::Backward => {
            /// Output channels that are turned together, so that what they are written to stays near.
            const TURNED: usize = 16;
            // The last tap comes first.
            let taps = param.weight.chunks_exact(inputs * outputs).rev();
            for (from, to) in taps.zip(out.chunks_exact_mut(outputs * width)) {
                for (first, to) in (0..outputs).step_by(TURNED).zip(to.chunks_mut(TURNED * width)) {
                    to.fill(0.0);
                    for (j, input) in columns.clone().enumerate() {
                        let from = &from[input * outputs + first..(input + 1) * outputs];
                        to[j..].iter_mut().step_by(width).zip(from).for_each(|(to, v)| *to = view(*v));
                    }
                }
            }
        }
    }
}
