//! Fully connected layers as products over blocks of samples, so that weights are read from memory once for each block.
//! The bits of a sample's result do not depend on how many samples share it. Views of weights are formed as they are read.

use std::ops::Range;

use super::dot;
use super::simd::{LANES, Lanes, widest};
use super::{Base, Shared, Target, View, Workers};
use crate::backend::{Variant, WeightRef, rectify};
use crate::net::Param;

/// Samples of one block.
const BLOCK: usize = 12;

/// Rows of the weights that make one product: few enough to spread them over the threads.
const ROWS: usize = 64;

/// Rows of the weights whose view is formed at a time.
const VIEWED: usize = 8;

/// Parts that the other direction's columns are cut into: long stretches of memory, and some for each thread.
const PARTS: usize = 8;

/// Rows of the weights that are multiplied before sums are stored.
const STEP: usize = 4;

/// A layer's weight `[outputs, inputs]`, seen in one of its variants.
#[derive(Clone, Copy)]
pub(super) struct Weight<'a> {
    pub param: &'a Param,
    pub view: WeightRef,
}

impl<'a> Weight<'a> {
    /// Writes what is seen of some inputs of an output's row.
    pub fn copy(&self, output: usize, inputs: Range<usize>, to: &mut [f32]) {
        to.copy_from_slice(&self.param.weight[output * self.param.inputs..][inputs]);
        self.view.see(self.param, output, to);
    }

    /// Some inputs of some outputs' rows of the view, one after the other, and their distance; in `scratch` where they have to
    /// be formed first.
    fn rows<'s>(&self, outputs: Range<usize>, inputs: Range<usize>, scratch: &'s mut [f32]) -> (&'s [f32], usize)
    where
        'a: 's,
    {
        if self.view.is_plain() {
            let all = self.param.inputs;
            return (
                &self.param.weight[outputs.start * all + inputs.start..][..(outputs.len() - 1) * all + inputs.len()],
                all,
            );
        }
        let rows = &mut scratch[..outputs.len() * inputs.len()];
        outputs
            .zip(rows.chunks_exact_mut(inputs.len()))
            .for_each(|(output, row)| self.copy(output, inputs.clone(), row));
        (rows, inputs.len())
    }
}

/// Scratch memory that a layer needs, in elements.
pub(super) fn scratch(param: &Param, view: WeightRef) -> usize {
    let viewed = if view.is_plain() { 0 } else { VIEWED * param.inputs };
    BLOCK * (param.inputs.max(param.outputs) + ROWS.max(part(param.inputs))) + viewed
}

/// Columns of a part.
fn part(inputs: usize) -> usize {
    inputs.div_ceil(PARTS).next_multiple_of(LANES)
}

/// `y = relu?(W·x + bias + base)`
pub(super) fn forward(
    workers: &Workers,
    weight: Weight<'_>,
    x: View<'_>,
    bias: Option<(&[f32], Variant)>,
    base: Base<'_>,
    relu: bool,
    y: Target<'_>,
) {
    let (inputs, outputs) = (x.len, y.len);
    let finish = |channels: Range<usize>, _: usize, row: &mut [f32]| {
        if let Some((bias, variant)) = bias {
            row.iter_mut().zip(&bias[channels]).for_each(|(o, b)| *o += variant.of(*b));
        }
    };
    let dots = dot::select();
    let multiply = |samples: usize, channels: Range<usize>, rows: &[f32], product: &mut [f32], scratch: &mut [f32]| {
        let n = channels.len();
        for first in channels.clone().step_by(VIEWED) {
            let some = first..(first + VIEWED).min(channels.end);
            let (weights, _) = weight.rows(some, 0..inputs, scratch);
            dots(inputs, &rows[..samples * inputs], weights, n, &mut product[first - channels.start..]);
        }
    };
    blocks(workers, [inputs, outputs], ROWS, x, base, y, multiply, finish, relu);
}

/// `dx = mul ⊙ (Wᵀ·dy) + base`
pub(super) fn backward(
    workers: &Workers,
    weight: Weight<'_>,
    dy: View<'_>,
    mul: Option<View<'_>>,
    base: Base<'_>,
    dx: Target<'_>,
) {
    let (outputs, inputs, lanes) = (dy.len, dx.len, dx.lanes);
    let finish = |channels: Range<usize>, b: usize, row: &mut [f32]| {
        if let Some(mul) = mul {
            row.iter_mut().zip(&mul.of(b, lanes)[channels]).for_each(|(o, m)| *o *= m);
        }
    };
    let multiply = |samples: usize, channels: Range<usize>, rows: &[f32], product: &mut [f32], scratch: &mut [f32]| {
        product.fill(0.0);
        for first in (0..outputs).step_by(STEP) {
            let some = first..(first + STEP).min(outputs);
            // Rows beyond the last count zero times.
            let mut factors = [[0.0; STEP]; BLOCK];
            for (factors, row) in factors.iter_mut().zip(rows.chunks_exact(outputs)).take(samples) {
                factors[..some.len()].copy_from_slice(&row[some.clone()]);
            }
            let (weights, stride) = weight.rows(some.clone(), channels.clone(), scratch);
            let weights = std::array::from_fn(|i| &weights[i.min(some.len() - 1) * stride..][..channels.len()]);
            add_rows(&factors, weights, product);
        }
    };
    blocks(workers, [outputs, inputs], part(inputs), dy, base, dx, multiply, finish, false);
}

widest! {
    /// Adds to each sample's sums its multiples of some rows, one after the other.
    fn add_rows<R>(factors: &[[f32; STEP]; BLOCK], rows: [&[f32]; STEP], sums: &mut [f32]) {
        let n = rows[0].len();
        let whole = n / R::COUNT * R::COUNT;
        for column in (0..whole).step_by(R::COUNT) {
            let mut row = [Lanes(R::zero()); STEP];
            for i in 0..STEP {
                row[i] = Lanes(R::load(&rows[i][column..]));
            }
            for (factors, sums) in factors.iter().zip(sums.chunks_exact_mut(n)) {
                let sums = &mut sums[column..column + R::COUNT];
                let mut sum = Lanes(R::load(sums));
                for i in 0..STEP {
                    sum = sum.plus(factors[i], row[i]);
                }
                sum.0.store(sums);
            }
        }
        for (factors, sums) in factors.iter().zip(sums.chunks_exact_mut(n)) {
            for (column, sum) in sums.iter_mut().enumerate().skip(whole) {
                factors.iter().zip(&rows).for_each(|(factor, row)| *sum += factor * row[column]);
            }
        }
    }
}

#[allow(clippy::too_many_arguments)]
fn blocks(
    workers: &Workers,
    [depth, width]: [usize; 2],
    tile: usize,
    x: View<'_>,
    base: Base<'_>,
    y: Target<'_>,
    multiply: impl Fn(usize, Range<usize>, &[f32], &mut [f32], &mut [f32]) + Sync,
    finish: impl Fn(Range<usize>, usize, &mut [f32]) + Sync,
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
        let (rows, rest) = scratch.split_at_mut(BLOCK * depth);
        let (product, rest) = rest.split_at_mut(samples.len() * n);
        for (row, b) in rows.chunks_exact_mut(depth).zip(samples.clone()) {
            row.copy_from_slice(x.of(b, lanes));
        }
        multiply(samples.len(), channels.clone(), rows, product, rest);
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
