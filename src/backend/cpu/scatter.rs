//! Input-gradients of few channels, the picture's above all: each pixel of the source is multiplied by all taps at once
//! and the products are added where they belong. Gathered, such a result would fill a small part of a panel.

use std::ops::Range;

use super::conv::ConvKernel;
use super::epilogue::Call;
use super::panel::{self, PANEL, ROWS, Rows, RowsMut};
use super::simd::{LANES, widest};
use super::{Shared, Target, Workers};
use crate::backend::ConvGeom;
use crate::backend::taps::Direction;
use crate::net::{Param, Shape, Window};

/// Pixels that are multiplied at once: so many that a panel of weights is read seldom.
const PIXELS: usize = 2 * ROWS;

/// Rows of the result that one thread makes at a time: many, because source rows at their borders are multiplied twice; few
/// enough for several threads and to stay near the core.
fn rows_of_band(height: usize) -> usize {
    const ROWS: usize = 80;
    height.div_ceil((height / ROWS).max(4).next_multiple_of(2))
}

/// Whether products are scattered.
pub(super) fn suits(direction: Direction, result: Shape) -> bool {
    direction == Direction::Backward && 4 * result.c <= PANEL
}

/// Products of one pixel: `[kernel row, kernel column, channel]`.
fn width(g: &ConvGeom) -> usize {
    g.window.kernel[0] * g.window.kernel[1] * g.x.c
}

/// Scratch memory in elements: of each thread and of all together.
pub(super) fn scratch(g: &ConvGeom) -> (usize, usize) {
    let panels = width(g).div_ceil(PANEL);
    (rows_of_band(g.x.h) * g.x.w * g.x.c + PIXELS * (panels * PANEL + LANES), panels * g.y.c * PANEL)
}

/// Runs an input-gradient, band by band. The order in which an element's products are added does not depend on the band.
pub(super) fn run(kernel: &ConvKernel, workers: &Workers, param: &Param, call: &Call<'_>, dx: Target<'_>) {
    let g = &kernel.key.g;
    let mut packed = workers.packed();
    pack(kernel, param, &mut packed);
    let (count, len) = (dx.count(), dx.len);
    let height = rows_of_band(g.x.h);
    let bands = g.x.h.div_ceil(height);
    let result = Shared::new(dx.data);
    workers.each(count * bands, |i| {
        let (b, first) = (i / bands, i % bands * height);
        let rows = first..(first + height).min(g.x.h);
        let mut scratch = workers.scratch();
        let (sums, products) = scratch.split_at_mut(rows.len() * g.x.w * g.x.c);
        band(g, &packed, call.source.of(b, call.lanes), rows, sums, products);
        let at = first * g.x.w * g.x.c;
        // SAFETY: inside result `b`; no other unit has these rows.
        let out = unsafe { std::slice::from_raw_parts_mut(result.at(b * len + at), sums.len()) };
        finish(call, sums, b, at, out);
    });
}

/// Packs the weights: `[panel, source channel, column]`.
fn pack(kernel: &ConvKernel, param: &Param, packed: &mut [f32]) {
    let (g, view) = (&kernel.key.g, kernel.key.weight);
    for (panel, matrix) in packed.chunks_exact_mut(g.y.c * PANEL).take(width(g).div_ceil(PANEL)).enumerate() {
        let columns = panel * PANEL..((panel + 1) * PANEL).min(width(g));
        for (output, row) in matrix.chunks_exact_mut(PANEL).enumerate() {
            for (to, column) in row.iter_mut().zip(columns.clone()) {
                *to = view.of(param, output, param.tap(column / g.x.c, column % g.x.c, output));
            }
        }
    }
}

/// The sums of some rows of the result.
fn band(g: &ConvGeom, packed: &[f32], dy: &[f32], rows: Range<usize>, sums: &mut [f32], products: &mut [f32]) {
    let Window { kernel, stride, pad } = g.window;
    let (k, stride_of_products) = (g.y.c, width(g).next_multiple_of(PANEL) + LANES);
    let product = panel::select();
    sums.fill(0.0);
    // Source rows of which a tap leads into the band.
    let first = (rows.start + pad[0] + 1).saturating_sub(kernel[0]).div_ceil(stride[0]);
    let last = ((rows.end - 1 + pad[0]) / stride[0] + 1).min(g.y.h);
    for y in first..last {
        for x in (0..g.y.w).step_by(PIXELS) {
            let count = PIXELS.min(g.y.w - x);
            let pixels = Rows { data: &dy[(y * g.y.w + x) * k..], stride: k };
            pixels.fetch(count, PIXELS);
            for (panel, weight) in packed.chunks_exact(k * PANEL).take(width(g).div_ceil(PANEL)).enumerate() {
                let c = RowsMut { data: &mut products[panel * PANEL..], stride: stride_of_products };
                product(count, k, pixels, weight, c);
            }
            for (x, products) in (x..x + count).zip(products.chunks_exact(stride_of_products)) {
                add(g, [y, x], products, &rows, sums);
            }
        }
    }
}

widest! {
    /// Adds the products of source pixel `at` to the rows that they belong to.
    fn add(g: &ConvGeom, at: [usize; 2], products: &[f32], rows: &Range<usize>, sums: &mut [f32]) {
        let Window { kernel, stride, pad } = g.window;
        let (first, row) = (at[1] * stride[1], kernel[1] * g.x.c);
        // Taps beyond the sides of the result.
        let lo = pad[1].saturating_sub(first).min(kernel[1]);
        let hi = (g.x.w + pad[1]).saturating_sub(first).clamp(lo, kernel[1]);
        for (tap, products) in products.chunks_exact(row).take(kernel[0]).enumerate() {
            let y = (at[0] * stride[0] + tap).wrapping_sub(pad[0]);
            if rows.contains(&y) && lo < hi {
                let to = ((y - rows.start) * g.x.w + first + lo - pad[1]) * g.x.c;
                let products = &products[lo * g.x.c..hi * g.x.c];
                sums[to..][..products.len()].iter_mut().zip(products).for_each(|(sum, p)| *sum += p);
            }
        }
    }

    /// Finishes elements from `at` on of result `b`.
    fn finish(call: &Call<'_>, sums: &mut [f32], b: usize, at: usize, out: &mut [f32]) {
        call.finish(sums, b, at, 0, out);
    }
}
