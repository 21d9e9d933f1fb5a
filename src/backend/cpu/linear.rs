//! Fully connected layers as products over blocks of samples. The bits of a sample's result do not depend on how many
//! samples share the batch: for the sake of a library whose sums do, its products are of full blocks.

use super::dot;
use super::matmul::{Matrix, matmul};
use super::{Base, Shared, Target, View, Workers};
use crate::backend::{Variant, rectify};
use crate::net::Param;

/// Samples of one block.
const BLOCK: usize = 12;

/// Rows of the weights that make one product: few enough to spread them over the threads.
const ROWS: usize = 64;

/// Columns that make one product of the other direction: a page of each row.
const COLUMNS: usize = 1024;

/// Scratch memory that a layer needs, in elements.
pub(super) fn scratch(param: &Param) -> usize {
    BLOCK * (param.inputs.max(param.outputs) + ROWS.max(COLUMNS))
}

/// `y = relu?(W·x + bias + base)`, `weight` being `[outputs, inputs]`.
pub(super) fn forward(
    workers: &Workers,
    weight: &[f32],
    x: View<'_>,
    bias: Option<(&[f32], Variant)>,
    base: Base<'_>,
    relu: bool,
    y: Target<'_>,
) {
    let (inputs, outputs) = (x.len, y.len);
    let finish = |channels: std::ops::Range<usize>, _: usize, row: &mut [f32]| {
        if let Some((bias, variant)) = bias {
            row.iter_mut().zip(&bias[channels]).for_each(|(o, b)| *o += variant.of(*b));
        }
    };
    let dots = dot::select();
    let multiply = |samples: usize, channels: std::ops::Range<usize>, rows: &[f32], product: &mut [f32]| {
        dots(inputs, &rows[..samples * inputs], &weight[channels.start * inputs..channels.end * inputs], product);
    };
    blocks(workers, [inputs, outputs], ROWS, x, base, y, multiply, finish, relu);
}

/// `dx = mul ⊙ (Wᵀ·dy) + base`
pub(super) fn backward(
    workers: &Workers,
    weight: &[f32],
    dy: View<'_>,
    mul: Option<View<'_>>,
    base: Base<'_>,
    dx: Target<'_>,
) {
    let (outputs, inputs, lanes) = (dy.len, dx.len, dx.lanes);
    let finish = |channels: std::ops::Range<usize>, b: usize, row: &mut [f32]| {
        if let Some(mul) = mul {
            row.iter_mut().zip(&mul.of(b, lanes)[channels]).for_each(|(o, m)| *o *= m);
        }
    };
    let multiply = |_: usize, channels: std::ops::Range<usize>, rows: &[f32], product: &mut [f32]| {
        let weight = Matrix { data: &weight[channels.start..], row: inputs, col: 1 };
        let rows = Matrix { data: rows, row: outputs, col: 1 };
        matmul(BLOCK, channels.len(), outputs, product, rows, weight);
    };
    blocks(workers, [outputs, inputs], COLUMNS, dy, base, dx, multiply, finish, false);
}

#[allow(clippy::too_many_arguments)]
fn blocks(
    workers: &Workers,
    [depth, width]: [usize; 2],
    tile: usize,
    x: View<'_>,
    base: Base<'_>,
    y: Target<'_>,
    multiply: impl Fn(usize, std::ops::Range<usize>, &[f32], &mut [f32]) + Sync,
    finish: impl Fn(std::ops::Range<usize>, usize, &mut [f32]) + Sync,
    relu: bool,
) {
    let (count, lanes) = (y.count(), y.lanes);
    let tiles = width.div_ceil(tile);
    let result = Shared::new(y.data);
    workers.each(count.div_ceil(BLOCK) * tiles, |i| {
        let (first, channel) = (i / tiles * BLOCK, i % tiles * tile);
        let samples = first..(first + BLOCK).min(count);
        let channels = channel..(channel + tile).min(width);
        let n = channels.len();
        let mut scratch = workers.scratch();
        let (rows, product) = scratch.split_at_mut(BLOCK * depth);
        let product = &mut product[..BLOCK * n];
        rows[samples.len() * depth..].fill(0.0);
        for (row, b) in rows.chunks_exact_mut(depth).zip(samples.clone()) {
            row.copy_from_slice(x.of(b, lanes));
        }
        multiply(samples.len(), channels.clone(), rows, product);
        for (row, b) in product.chunks_exact_mut(n).zip(samples) {
            finish(channels.clone(), b, row);
            // SAFETY: these channels of sample `b` belong to this unit alone.
            let out = unsafe { std::slice::from_raw_parts_mut(result.at(b * width + channel), n) };
            base.begin(b, lanes, channel, out);
            out.iter_mut().zip(&*row).for_each(|(o, p)| *o += p);
            if relu {
                out.iter_mut().for_each(|o| *o = rectify(*o));
            }
        }
    });
}
