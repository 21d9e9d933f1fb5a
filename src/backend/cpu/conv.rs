//! Convolution and its input-gradient as matrix products over gathered pixels, phase by phase (see [`taps`]); 3×3 ones of
//! stride 1 by Winograd's tiles.

use std::sync::Arc;

use super::epilogue::{Call, Epilogue, finish, finish_row};
use super::matmul::{Matrix, matmul, multiply};
use super::{Base, Cpu, Shared, Target, View, Workers, tiled, winograd};
use crate::backend::taps::{self, Direction, Phase};
use crate::backend::{ConvGeom, Variant, WeightRef};
use crate::net::{Param, Shape};

/// What a prepared convolution is found by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct ConvKey {
    pub g: ConvGeom,
    pub weight: WeightRef,
    pub direction: Direction,
    /// Samples of all batches.
    pub samples: usize,
}

/// A piece of work whose shape depends on the layer alone: pixels and channels of one phase of one sample.
#[derive(Debug, Clone)]
struct Unit {
    phase: usize,
    pixels: std::ops::Range<usize>,
    channels: std::ops::Range<usize>,
}

/// A convolution prepared for one geometry, weight and direction.
pub(super) struct ConvKernel {
    pub(super) key: ConvKey,
    pub(super) source: Shape,
    pub(super) result: Shape,
    pub(super) phases: Vec<Phase>,
    units: Vec<Unit>,
    /// Whether it is computed by Winograd's tiles instead.
    tiled: bool,
    /// The matrices of all phases; `None` where they are the parameter's own, or made anew in every run.
    weight: Option<Arc<[f32]>>,
}

impl Cpu {
    /// Prepares a convolution; returns the scratch memory that it needs, in elements: of each thread and of all together.
    pub(super) fn prepare_conv(&mut self, key: ConvKey) -> (usize, usize) {
        let ConvKey { g, weight, direction, samples } = key;
        let param = self.graph.param(weight.param);
        let kernel = self.convs.entry(key).or_insert_with(|| {
            let phases = taps::phases(&g, direction);
            let pack = || taps::pack(param, &g, weight, direction).into();
            let (source, result) = match direction {
                Direction::Forward => (g.x, g.y),
                Direction::Backward => (g.y, g.x),
            };
            let units = units(&phases, result.c);
            let tiled = tiled::suits(&g, weight, source, result, samples);
            let as_is = tiled || weight.is_plain() && direction == Direction::Forward;
            let packed = (!as_is).then(|| self.packed.entry((weight, direction)).or_insert_with(pack).clone());
            ConvKernel { key, source, result, phases, units, tiled, weight: packed }
        });
        kernel.scratch()
    }
}

/// Cuts the work of one sample into units: pixel tiles whose gathered matrix stays in a core's second-level cache, and
/// channel tiles where there are too few pixels to keep several cores busy with one sample.
fn units(phases: &[Phase], channels: usize) -> Vec<Unit> {
    const GATHERED: usize = 400_000;
    const FEW: usize = 4;
    const MIN_CHANNELS: usize = 64;
    const MAX_CHANNELS: usize = 512;
    let mut units = Vec::new();
    for (index, phase) in phases.iter().enumerate() {
        let pixels = phase.h * phase.w;
        // An input smaller than the stride has no pixels in some phases.
        if pixels == 0 {
            continue;
        }
        let tile = (GATHERED / phase.depth.max(1)).clamp(96, 512);
        let tiles = pixels.div_ceil(tile);
        let tile = pixels.div_ceil(tiles).next_multiple_of(8);
        let splits = FEW.div_ceil(tiles * phases.len()).min(channels.div_ceil(MIN_CHANNELS));
        let width = channels.div_ceil(splits.max(1)).next_multiple_of(16).min(MAX_CHANNELS);
        for start in (0..pixels).step_by(tile) {
            for channel in (0..channels).step_by(width) {
                units.push(Unit {
                    phase: index,
                    pixels: start..(start + tile).min(pixels),
                    channels: channel..(channel + width).min(channels),
                });
            }
        }
    }
    units
}

impl ConvKernel {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn forward(
        &self,
        workers: &Workers,
        param: &Param,
        x: View<'_>,
        bias: Option<Variant>,
        base: Base<'_>,
        relu: bool,
        y: Target<'_>,
    ) {
        let epilogue = Epilogue::Forward { bias: bias.map(|variant| (param.bias.as_slice(), variant)), relu };
        let weight = self.weight.as_deref().unwrap_or(&param.weight);
        self.run(workers, param, &Call { weight, source: x, epilogue, base, lanes: y.lanes }, y);
    }

    pub(super) fn backward(
        &self,
        workers: &Workers,
        param: &Param,
        dy: View<'_>,
        mul: Option<View<'_>>,
        base: Base<'_>,
        dx: Target<'_>,
    ) {
        let epilogue = Epilogue::Backward { mul };
        let weight = self.weight.as_deref().unwrap_or_default();
        self.run(workers, param, &Call { weight, source: dy, epilogue, base, lanes: dx.lanes }, dx);
    }

    fn run(&self, workers: &Workers, param: &Param, call: &Call<'_>, y: Target<'_>) {
        if self.tiled {
            return tiled::run(self, workers, param, call, y);
        }
        let (count, len) = (y.count(), y.len);
        let result = Shared::new(y.data);
        workers.each(count * self.units.len(), |i| {
            let b = i / self.units.len();
            self.unit(&self.units[i % self.units.len()], call, b, &mut workers.scratch(), result.shift(b * len));
        });
    }

    /// One unit of result `b`, which begins at `result`.
    fn unit(&self, unit: &Unit, call: &Call<'_>, b: usize, scratch: &mut [f32], result: Shared) {
        let phase = &self.phases[unit.phase];
        let source = call.source.of(b, call.lanes);
        let (m, n, k) = (unit.pixels.len(), unit.channels.len(), phase.depth);
        let (product, gathered) = scratch.split_at_mut(m * n);
        let gathered = if self.is_pointwise(phase) {
            &source[unit.pixels.start * k..]
        } else {
            self.gather(phase, unit.pixels.clone(), source, gathered);
            &gathered[..m * k]
        };
        let pixels = Matrix { data: gathered, row: k, col: 1 };
        // A phase that no tap reaches has no matrix.
        let weight = call.weight.get(phase.weight + unit.channels.start..).unwrap_or_default();
        let weight = Matrix { data: weight, row: self.result.c, col: 1 };
        let place = |pixel: usize| {
            let (qy, qx) = (pixel / phase.w, pixel % phase.w);
            let (y, x) = (phase.origin[0] + phase.step[0] * qy, phase.origin[1] + phase.step[1] * qx);
            (y * self.result.w + x) * self.result.c + unit.channels.start
        };
        let places = || unit.pixels.clone().map(place);
        // SAFETY: `at..at + n` lies in this result, and no other unit has these pixels and channels.
        let out = |at: usize| unsafe { std::slice::from_raw_parts_mut(result.at(at), n) };
        match &call.epilogue {
            Epilogue::Forward { bias, relu } if !matches!(call.base, Base::InPlace) => {
                let first = result.at(place(unit.pixels.start));
                // SAFETY: rows of the result, `result.c` apart; each row's `n` elements are this unit's alone.
                unsafe { multiply(m, n, k, first, self.result.c, pixels, weight, false) };
                let bias = bias.map(|(bias, variant)| (&bias[unit.channels.clone()], variant));
                for at in places() {
                    finish(out(at), call.base.term(b, call.lanes, at, n), bias, *relu);
                }
            }
            _ => {
                matmul(m, n, k, product, pixels, weight);
                for (row, at) in product.chunks_exact_mut(n).zip(places()) {
                    finish_row(call, row, b, at, unit.channels.start, out(at));
                }
            }
        }
    }

    /// The source itself is the gathered matrix: one tap, no stride, same size.
    fn is_pointwise(&self, phase: &Phase) -> bool {
        let one = (phase.first, phase.taps, phase.stride) == ([0, 0], [1, 1], [1, 1]);
        one && (phase.h, phase.w) == (self.source.h, self.source.w)
    }

    /// Copies the taps of each pixel into a row of `out`; taps outside the source are zero.
    fn gather(&self, phase: &Phase, pixels: std::ops::Range<usize>, source: &[f32], out: &mut [f32]) {
        let Shape { h, w, c } = self.source;
        let count = phase.taps[1];
        for (pixel, row) in pixels.zip(out.chunks_exact_mut(phase.depth.max(1))) {
            let (qy, qx) = (pixel / phase.w, pixel % phase.w);
            let mut rest = row;
            for tap in 0..phase.taps[0] {
                let (part, tail) = rest.split_at_mut(count * c);
                rest = tail;
                let y = (phase.stride[0] * qy + tap) as isize + phase.first[0];
                let x = (phase.stride[1] * qx) as isize + phase.first[1];
                let lo = (-x).clamp(0, count as isize) as usize;
                let hi = (w as isize - x).clamp(lo as isize, count as isize) as usize;
                if y < 0 || y >= h as isize || lo == hi {
                    part.fill(0.0);
                    continue;
                }
                let from = (y as usize * w + (x + lo as isize) as usize) * c;
                part[..lo * c].fill(0.0);
                part[lo * c..hi * c].copy_from_slice(&source[from..from + (hi - lo) * c]);
                part[hi * c..].fill(0.0);
            }
        }
    }

    fn scratch(&self) -> (usize, usize) {
        if self.tiled {
            let own = winograd::scratch(self.source.c, self.result.c);
            return (own, tiled::transformed(self.source, self.result));
        }
        let of = |u: &Unit| u.pixels.len() * (u.channels.len() + self.phases[u.phase].depth);
        (self.units.iter().map(of).max().unwrap_or(0), 0)
    }
}
