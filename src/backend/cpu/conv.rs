//! Convolution and its input-gradient as matrix products over gathered pixels, phase by phase (see [`taps`]); 3×3 ones of
//! stride 1 by Winograd's tiles, those to few channels by products that are scattered.
//!
//! Weights that are not used as they are get packed anew in every run: that costs little beside the products, and no
//! memory that stays.

use std::ops::Range;
use std::slice::ChunksExactMut;

use rayon::prelude::*;

use super::epilogue::{Call, Epilogue};
use super::panel::{self, PANEL, Product, ROWS, Rows, RowsMut};
use super::simd::{LANES, widest};
use super::{Base, Cpu, Shared, Target, View, Workers, pack, scatter, tiled};
use crate::backend::taps::{self, Direction, Phase};
use crate::backend::{ConvGeom, WeightRef};
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

/// A piece of work: pixels of one phase of one sample, and panels of channels.
#[derive(Debug, Clone)]
struct Unit {
    phase: usize,
    pixels: Range<usize>,
    panels: Range<usize>,
}

/// A convolution prepared for one geometry, weight and direction.
pub(super) struct ConvKernel {
    pub(super) key: ConvKey,
    pub(super) source: Shape,
    pub(super) result: Shape,
    pub(super) phases: Vec<Phase>,
    units: Vec<Unit>,
    way: Way,
}

/// How a convolution is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Products of gathered pixels.
    Gathered,
    /// Winograd's tiles.
    Tiled,
    /// Products that are scattered.
    Scattered,
}

impl Cpu {
    /// Prepares a convolution; returns the scratch memory that it needs, in elements: of each thread and of all together.
    pub(super) fn prepare_conv(&mut self, key: ConvKey) -> (usize, usize) {
        let ConvKey { g, weight, direction, samples } = key;
        let winograd = self.winograd;
        let kernel = self.convs.entry(key).or_insert_with(|| {
            let phases = taps::phases(&g, direction);
            let (source, result) = match direction {
                Direction::Forward => (g.x, g.y),
                Direction::Backward => (g.y, g.x),
            };
            let units = units(&phases, result.c);
            let way = if scatter::suits(direction, result) {
                Way::Scattered
            } else if winograd && tiled::suits(&g, weight, source, result, samples) {
                Way::Tiled
            } else {
                Way::Gathered
            };
            ConvKernel { key, source, result, phases, units, way }
        });
        kernel.scratch()
    }
}

/// Cuts the work of one sample into units: so many pixels that the products are large beside the weights, so few that both
/// stay in a core's second-level cache; and panels apart where there are too few pixels to keep several cores busy.
fn units(phases: &[Phase], channels: usize) -> Vec<Unit> {
    const VALUES: usize = 122_880;
    const FEW: usize = 4;
    let panels = channels.div_ceil(PANEL);
    let mut units = Vec::new();
    for (index, phase) in phases.iter().enumerate() {
        let pixels = phase.h * phase.w;
        // An input smaller than the stride has no pixels in some phases.
        if pixels == 0 {
            continue;
        }
        let most = (VALUES / (phase.depth + panels * PANEL)).clamp(2 * ROWS, 10 * ROWS) / ROWS * ROWS;
        let tiles = pixels.div_ceil(most);
        let splits = FEW.div_ceil(tiles * phases.len()).min(panels);
        // As much for each of several cores.
        let tiles = if tiles < FEW { tiles } else { tiles.next_multiple_of(FEW) };
        let tile = pixels.div_ceil(tiles).next_multiple_of(4);
        for split in 0..splits {
            for start in (0..pixels).step_by(tile) {
                units.push(Unit {
                    phase: index,
                    pixels: start..(start + tile).min(pixels),
                    panels: split * panels / splits..(split + 1) * panels / splits,
                });
            }
        }
    }
    units
}

impl ConvKernel {
    /// Convolves `source`; the epilogue turns products into results.
    pub(super) fn run(
        &self,
        workers: &Workers,
        param: &Param,
        source: View<'_>,
        epilogue: Epilogue<'_>,
        base: Base<'_>,
        y: Target<'_>,
    ) {
        let call = Call { source, epilogue, base, lanes: y.lanes };
        if self.way == Way::Scattered {
            return scatter::run(self, workers, param, &call, y);
        }
        let mut memory = workers.packed();
        let packed = match self.is_packed() {
            true => &*param.weight,
            false => {
                self.pack(workers, param, &mut memory);
                &*memory
            }
        };
        match self.way {
            Way::Tiled => tiled::run(self, workers, packed, &call, y),
            _ => self.gathered(workers, packed, &call, y),
        }
    }

    fn gathered(&self, workers: &Workers, packed: &[f32], call: &Call<'_>, y: Target<'_>) {
        let (count, len) = (y.count(), y.len);
        let result = Shared::new(y.data);
        let product = panel::select();
        workers.each(count * self.units.len(), |i| {
            let (b, unit) = (i / self.units.len(), &self.units[i % self.units.len()]);
            self.unit(unit, product, packed, call, b, &mut workers.scratch(), result.shift(b * len));
        });
    }

    /// Whether the parameter's own memory is what products read.
    fn is_packed(&self) -> bool {
        self.key.weight.is_plain() && self.key.direction == Direction::Forward
    }

    /// Packs the weights: `[phase, panel, row of the matrix, column]`.
    fn pack(&self, workers: &Workers, param: &Param, packed: &mut [f32]) {
        let panels = self.result.c.div_ceil(PANEL);
        let mut rest = packed;
        for phase in self.phases.iter().filter(|phase| phase.depth > 0) {
            let (matrix, others) = rest.split_at_mut(panels * phase.depth * PANEL);
            rest = others;
            let of_panels = |(panel, out): (usize, &mut [f32])| {
                pack::pack(param, phase, self.key.weight, self.key.direction, panel, out);
            };
            workers.pool.install(|| matrix.par_chunks_mut(phase.depth * PANEL).enumerate().for_each(of_panels));
        }
    }

    /// One unit of result `b`, which begins at `result`.
    #[allow(clippy::too_many_arguments)]
    fn unit(
        &self,
        unit: &Unit,
        product: Product,
        packed: &[f32],
        call: &Call<'_>,
        b: usize,
        scratch: &mut [f32],
        result: Shared,
    ) {
        /// Weights that a core's second-level cache holds beside all else.
        const NEAR: usize = 131_072;
        let phase = &self.phases[unit.phase];
        let channels = unit.panels.start * PANEL..(unit.panels.end * PANEL).min(self.result.c);
        let (m, k) = (unit.pixels.len(), phase.depth);
        if k == 0 {
            return self.begin(call, b, phase, unit.pixels.clone(), &channels, result);
        }
        let source = call.source.of(b, call.lanes);
        let stride = unit.panels.len() * PANEL + LANES;
        let (products, gathered) = scratch.split_at_mut(m * stride);
        let pixels = if self.is_read_in_place(phase) {
            Rows { data: &source[unit.pixels.start * k..], stride: k }
        } else {
            self.gather(phase, unit.pixels.clone(), source, gathered);
            Rows { data: gathered, stride: k + LANES }
        };
        let panels = self.result.c.div_ceil(PANEL);
        let first = phase.weight / self.result.c * panels * PANEL;
        // Few rows at a time where the weights stay near, so that results are on their way to memory during the next product.
        let rows = if k * channels.len() <= NEAR { ROWS } else { m };
        for row in (0..m).step_by(rows) {
            let count = rows.min(m - row);
            for (i, panel) in unit.panels.clone().enumerate() {
                let weight = &packed[first + panel * k * PANEL..][..k * PANEL];
                let pixels = Rows { data: &pixels.data[row * pixels.stride..], ..pixels };
                product(count, k, pixels, weight, RowsMut { data: &mut products[i * PANEL..], stride });
            }
            let products = products[..count * stride].chunks_exact_mut(stride);
            finish(call, products, b, self, phase, unit.pixels.start + row, &channels, result);
        }
    }

    /// The source itself is the gathered matrix: one tap, no stride, same size. Not where its rows would displace each
    /// other in the cache.
    fn is_read_in_place(&self, phase: &Phase) -> bool {
        const ALIASED: usize = 1024;
        let one = (phase.first, phase.taps, phase.stride) == ([0, 0], [1, 1], [1, 1]);
        one && (phase.h, phase.w) == (self.source.h, self.source.w) && !phase.depth.is_multiple_of(ALIASED)
    }

    /// Copies the taps of each pixel into a row of `out`; taps outside the source are zero. Rows are not a multiple of a
    /// page apart.
    fn gather(&self, phase: &Phase, pixels: Range<usize>, source: &[f32], out: &mut [f32]) {
        let Shape { h, w, c } = self.source;
        let count = phase.taps[1];
        for (pixel, row) in pixels.zip(out.chunks_exact_mut(phase.depth + LANES)) {
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

    /// Finishes pixels of result `b` that no product is for.
    fn begin(
        &self,
        call: &Call<'_>,
        b: usize,
        phase: &Phase,
        pixels: Range<usize>,
        channels: &Range<usize>,
        result: Shared,
    ) {
        for at in pixels.map(|pixel| self.place(phase, pixel, channels)) {
            // SAFETY: inside this result; no other unit has these pixels and channels.
            let out = unsafe { std::slice::from_raw_parts_mut(result.at(at), channels.len()) };
            call.base.begin(b, call.lanes, at, out);
        }
    }

    /// Where some channels of a phase's pixel lie in a result.
    #[inline(always)]
    fn place(&self, phase: &Phase, pixel: usize, channels: &Range<usize>) -> usize {
        let (qy, qx) = (pixel / phase.w, pixel % phase.w);
        let (y, x) = (phase.origin[0] + phase.step[0] * qy, phase.origin[1] + phase.step[1] * qx);
        (y * self.result.w + x) * self.result.c + channels.start
    }

    fn scratch(&self) -> (usize, usize) {
        let panels = self.result.c.div_ceil(PANEL);
        let of = |u: &Unit| u.pixels.len() * (u.panels.len() * PANEL + self.phases[u.phase].depth + 2 * LANES);
        let own = match self.way {
            Way::Scattered => return scatter::scratch(&self.key.g),
            Way::Tiled => tiled::scratch(self.source, self.result, self.key.samples),
            Way::Gathered => self.units.iter().map(of).max().unwrap_or(0),
        };
        let depth: usize = match self.is_packed() {
            true => 0,
            false => self.phases.iter().map(|phase| phase.depth).sum(),
        };
        (own, depth * panels * PANEL)
    }
}

widest! {
    /// Finishes rows of products, which belong to some channels of pixels from `first` on of a phase of result `b`.
    fn finish(
        call: &Call<'_>,
        rows: ChunksExactMut<'_, f32>,
        b: usize,
        kernel: &ConvKernel,
        phase: &Phase,
        first: usize,
        channels: &Range<usize>,
        result: Shared,
    ) {
        for (row, pixel) in rows.zip(first..) {
            let at = kernel.place(phase, pixel, channels);
            // SAFETY: inside this result; no other unit has these pixels and channels.
            let out = unsafe { std::slice::from_raw_parts_mut(result.at(at), channels.len()) };
            call.finish(&mut row[..channels.len()], b, at, channels.start, out);
        }
    }
}
