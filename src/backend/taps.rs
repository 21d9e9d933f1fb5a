//! Convolution and its input-gradient as one thing, a gather: every pixel of the result reads pixels of the source at
//! fixed offsets (*taps*) and multiplies them with a matrix `[taps·source channels, result channels]`.
//!
//! The input-gradient of a strided convolution falls apart into stride² *phases*, each an unstrided gather with the
//! taps that reach it, so that no product with an inserted zero is ever formed.

use super::ConvGeom;
#[cfg(feature = "cuda")]
use super::WeightRef;
#[cfg(feature = "cuda")]
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
    /// Position of each tap in the kernel.
    pub positions: Vec<usize>,
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
        positions: (0..taps[0] * taps[1]).collect(),
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
        let position = |y: &(usize, isize), x: &(usize, isize)| y.0 * g.window.kernel[1] + x.0;
        let positions = rows.iter().flat_map(|y| cols.iter().map(move |x| position(y, x))).collect();
        let phase = Phase { origin, step, h, w, stride: [1, 1], first, taps, positions, weight, depth };
        weight += depth * g.x.c;
        phase
    };
    reaching_phases(g).map(phase).collect()
}

/// All phases of an input-gradient as one: its pixels are the first of each `stride`, and its matrix has columns for all
/// pixels up to the next one (*parts*, row by row), with zeros where a tap does not reach a part.
#[cfg(feature = "cuda")]
pub(crate) fn merged(g: &ConvGeom) -> (Phase, [Vec<Reach>; 2]) {
    let axis = |a: usize| {
        let parts: Vec<_> = (0..g.window.stride[a])
            .map(|part| reaching(part, g.window.kernel[a], g.window.stride[a], g.window.pad[a]))
            .collect();
        let offsets = || parts.iter().flatten().map(|tap| tap.1);
        let (first, last) = (offsets().min().unwrap_or(0), offsets().max().unwrap_or(-1));
        let position = |part: &Vec<(usize, isize)>, at: isize| part.iter().find(|tap| tap.1 == at).map(|tap| tap.0);
        (first, (first..=last).map(|at| parts.iter().map(|part| position(part, at)).collect()).collect())
    };
    let ((first_y, rows), (first_x, cols)): ((_, Vec<Reach>), (_, Vec<Reach>)) = (axis(0), axis(1));
    let phase = Phase {
        origin: [0, 0],
        step: g.window.stride,
        h: g.x.h.div_ceil(g.window.stride[0]),
        w: g.x.w.div_ceil(g.window.stride[1]),
        stride: [1, 1],
        first: [first_y, first_x],
        taps: [rows.len(), cols.len()],
        positions: vec![],
        weight: 0,
        depth: rows.len() * cols.len() * g.y.c,
    };
    (phase, [rows, cols])
}

/// Position in the kernel by which a tap reaches each part, along one axis.
#[cfg(feature = "cuda")]
pub(crate) type Reach = Vec<Option<usize>>;

/// The matrix of [`merged`].
#[cfg(feature = "cuda")]
pub(crate) fn pack_merged(param: &Param, g: &ConvGeom, w: WeightRef) -> Vec<f32> {
    let (phase, [rows, cols]) = merged(g);
    let [part_rows, part_cols] = g.window.stride;
    let mut packed = Vec::with_capacity(phase.depth * part_rows * part_cols * g.x.c);
    for (row, col) in rows.iter().flat_map(|row| cols.iter().map(move |col| (row, col))) {
        for output in 0..g.y.c {
            for (y, x) in row.iter().flat_map(|y| col.iter().map(move |x| (y, x))) {
                let tap = y.zip(*x).map(|(y, x)| y * g.window.kernel[1] + x);
                packed.extend((0..g.x.c).map(|input| tap.map_or(0.0, |tap| element(param, w, tap, input, output))));
            }
        }
    }
    packed
}

/// A view's element; 0 for input channels beyond the parameter's own, which a backend may have added to the network's
/// input.
#[cfg(feature = "cuda")]
fn element(param: &Param, w: WeightRef, tap: usize, input: usize, output: usize) -> f32 {
    if input < param.inputs { w.of(param, output, param.tap(tap, input, output)) } else { 0.0 }
}

/// The matrices of all phases, one after the other.
#[cfg(feature = "cuda")]
pub(crate) fn pack(param: &Param, g: &ConvGeom, w: WeightRef, direction: Direction) -> Vec<f32> {
    let mut packed = Vec::with_capacity(param.kernel[0] * param.kernel[1] * g.x.c * g.y.c);
    let view = |tap: usize, input: usize, output: usize| element(param, w, tap, input, output);
    for tap in phases(g, direction).iter().flat_map(|phase| &phase.positions) {
        match direction {
            Direction::Forward => {
                (0..g.x.c).for_each(|input| packed.extend((0..g.y.c).map(|output| view(*tap, input, output))));
            }
            Direction::Backward => {
                (0..g.y.c).for_each(|output| packed.extend((0..g.x.c).map(|input| view(*tap, input, output))));
            }
        }
    }
    packed
}
