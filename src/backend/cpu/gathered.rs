//! Convolutions as products of gathered pixels and a matrix of weights, phase by phase.

use std::ops::Range;
use std::slice::ChunksExactMut;

use super::conv::ConvKernel;
use super::epilogue::Call;
use super::panel::{self, PANEL, Product, ROWS, Rows, RowsMut};
use super::simd::{LANES, widest};
use super::{Shared, Target, Workers};
use crate::backend::taps::Phase;
use crate::net::Shape;

/// A piece of work: pixels of one phase of one sample, and panels of channels.
#[derive(Debug, Clone)]
pub(super) struct Unit {
    phase: usize,
    pixels: Range<usize>,
    panels: Range<usize>,
}

/// Cuts the work of one sample into units: so many pixels that the products are large beside the weights, so few that both
/// stay in a core's second-level cache; and panels apart where there are too few pixels to keep several cores busy.
pub(super) fn units(phases: &[Phase], channels: usize) -> Vec<Unit> {
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

/// Scratch memory of each thread, in elements.
pub(super) fn scratch(phases: &[Phase], units: &[Unit]) -> usize {
    let of = |u: &Unit| u.pixels.len() * (u.panels.len() * PANEL + phases[u.phase].depth + 2 * LANES);
    units.iter().map(of).max().unwrap_or(0)
}

/// Runs a convolution by panels of packed weights.
pub(super) fn run(kernel: &ConvKernel, workers: &Workers, packed: &[f32], call: &Call<'_>, y: Target<'_>) {
    let (count, len, units) = (y.count(), y.len, &kernel.units);
    let result = Shared::new(y.data);
    let product = panel::select();
    workers.each(count * units.len(), |i| {
        let (b, unit) = (i / units.len(), &units[i % units.len()]);
        run_unit(kernel, unit, product, packed, call, b, &mut workers.scratch(), result.shift(b * len));
    });
}

/// One unit of result `b`, which begins at `result`.
#[allow(clippy::too_many_arguments)]
fn run_unit(
    kernel: &ConvKernel,
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
    let phase = &kernel.phases[unit.phase];
    let channels = unit.panels.start * PANEL..(unit.panels.end * PANEL).min(kernel.result.c);
    let (m, k) = (unit.pixels.len(), phase.depth);
    if k == 0 {
        return begin(kernel, call, b, phase, unit.pixels.clone(), &channels, result);
    }
    let source = call.source.of(b, call.lanes);
    let stride = unit.panels.len() * PANEL + LANES;
    let (products, gathered) = scratch.split_at_mut(m * stride);
    let in_place = is_read_in_place(kernel, phase);
    let pixels = if in_place {
        Rows { data: &source[unit.pixels.start * k..], stride: k }
    } else {
        gather(kernel.source, phase, unit.pixels.clone(), source, gathered);
        Rows { data: gathered, stride: k + LANES }
    };
    let panels = kernel.result.c.div_ceil(PANEL);
    let first = phase.weight / kernel.result.c * panels * PANEL;
    // Few rows at a time where the weights stay near. During their product earlier results are on their way to memory, and
    // the epilogue's operands and the next pixels on their way here.
    let near = k * channels.len() <= NEAR;
    let rows = if near { ROWS } else { m };
    for row in (0..m).step_by(rows) {
        let count = rows.min(m - row);
        let from = unit.pixels.start + row;
        if near {
            (from..from + count).for_each(|p| call.fetch(b, place(kernel, phase, p, &channels), channels.len()));
            if in_place {
                pixels.fetch(row + count, count);
            }
        }
        for (i, panel) in unit.panels.clone().enumerate() {
            let weight = &packed[first + panel * k * PANEL..][..k * PANEL];
            let pixels = Rows { data: &pixels.data[row * pixels.stride..], ..pixels };
            product(count, k, pixels, weight, RowsMut { data: &mut products[i * PANEL..], stride });
        }
        let products = products[..count * stride].chunks_exact_mut(stride);
        finish(call, products, b, kernel, phase, from, &channels, result);
    }
}

/// The source itself is the gathered matrix: one tap, no stride, same size. Not where its rows would displace each other in
/// the cache.
fn is_read_in_place(kernel: &ConvKernel, phase: &Phase) -> bool {
    const ALIASED: usize = 1024;
    let one = (phase.first, phase.taps, phase.stride) == ([0, 0], [1, 1], [1, 1]);
    one && (phase.h, phase.w) == (kernel.source.h, kernel.source.w) && !phase.depth.is_multiple_of(ALIASED)
}

/// Copies the taps of each pixel into a row of `out`; taps outside the source are zero. Rows are not a multiple of a page
/// apart.
fn gather(shape: Shape, phase: &Phase, pixels: Range<usize>, source: &[f32], out: &mut [f32]) {
    let Shape { h, w, c } = shape;
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
    kernel: &ConvKernel,
    call: &Call<'_>,
    b: usize,
    phase: &Phase,
    pixels: Range<usize>,
    channels: &Range<usize>,
    result: Shared,
) {
    for at in pixels.map(|pixel| place(kernel, phase, pixel, channels)) {
        // SAFETY: inside this result; no other unit has these pixels and channels.
        let out = unsafe { std::slice::from_raw_parts_mut(result.at(at), channels.len()) };
        call.base.begin(b, call.lanes, at, out);
    }
}

/// Where some channels of a phase's pixel lie in a result.
#[inline(always)]
fn place(kernel: &ConvKernel, phase: &Phase, pixel: usize, channels: &Range<usize>) -> usize {
    let (qy, qx) = (pixel / phase.w, pixel % phase.w);
    let (y, x) = (phase.origin[0] + phase.step[0] * qy, phase.origin[1] + phase.step[1] * qx);
    (y * kernel.result.w + x) * kernel.result.c + channels.start
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
            let at = place(kernel, phase, pixel, channels);
            // SAFETY: inside this result; no other unit has these pixels and channels.
            let out = unsafe { std::slice::from_raw_parts_mut(result.at(at), channels.len()) };
            call.finish(&mut row[..channels.len()], b, at, channels.start, out);
        }
    }
}
