//! 3×3 convolutions of stride 1 by Winograd's algorithm F(4×4, 3×3): a quarter of the multiplications.
//!
//! A tile of 6×6 source pixels gives 4×4 result pixels. Source tiles and weights are evaluated as polynomials at six
//! points along each axis, the products of each of the 36 pairs of points are summed over the channels, and the result
//! is interpolated. The points 0, ±3/4, ±3/2 and ∞ keep rounding within about twice that of the direct sum (0, ±1, ±2
//! and ∞, which are usual, make it four times).
//!
//! Weights are transformed when they are used, panel by panel: that costs little beside the products, and no memory.

use super::panel::{PANEL, Product};
use super::simd::{LANES, Lanes, widest};
use crate::net::Shape;

/// Result pixels of a tile along an axis.
pub(super) const TILE: usize = 4;

/// Points along an axis, and source pixels of a tile.
const POINTS: usize = 6;

/// Pairs of points.
const PAIRS: usize = POINTS * POINTS;

/// The points are 0, ±A, ±B and ∞.
const A: f32 = 0.75;
const B: f32 = 1.5;
const A2: f32 = A * A;
const B2: f32 = B * B;

/// Tiles of a block: many, so that weights are transformed seldom; few, so that a block stays near the core.
pub(super) fn tiles_of_block(channels: usize) -> usize {
    const VALUES: usize = 30_720;
    (VALUES / channels).clamp(12, 120) / 12 * 12
}

/// Scratch memory for a block, in elements.
pub(super) fn scratch(channels: usize) -> usize {
    PAIRS * (tiles_of_block(channels) * (channels + PANEL) + channels * PANEL)
}

/// Where a tile begins in a sample; may lie outside.
#[derive(Clone, Copy)]
pub(super) struct Corner<'a> {
    pub sample: &'a [f32],
    pub y: isize,
    pub x: isize,
}

/// Transformed tiles and their products with a panel of weights.
pub(super) struct Block<'s> {
    tiles: usize,
    channels: usize,
    /// `[pair, tile, channel]`
    values: &'s mut [f32],
    /// `[pair, channel, column]`
    weights: &'s mut [f32],
    /// `[pair, tile, column]`
    products: &'s mut [f32],
}

impl<'s> Block<'s> {
    /// Transforms the tiles that begin at the corners, in samples of a shape.
    pub fn new<'a>(shape: Shape, corners: impl ExactSizeIterator<Item = Corner<'a>>, scratch: &'s mut [f32]) -> Self {
        let (tiles, channels) = (corners.len(), shape.c);
        let (values, rest) = scratch.split_at_mut(PAIRS * tiles * channels);
        let (weights, rest) = rest.split_at_mut(PAIRS * channels * PANEL);
        for (tile, corner) in corners.enumerate() {
            transform_tile(shape, corner, &mut values[tile * channels..], tiles * channels);
        }
        Self { tiles, channels, values, weights, products: &mut rest[..PAIRS * tiles * PANEL] }
    }

    /// Multiplies by the outputs `first..first + width`, at most [`PANEL`], of a weight `[3, 3, channels, outputs]`.
    pub fn multiply(&mut self, product: Product, weight: &[f32], outputs: usize, first: usize, width: usize) {
        transform_weight(weight, self.channels, outputs, first, width, self.weights);
        let values = self.values.chunks_exact(self.tiles * self.channels);
        let products = self.products.chunks_exact_mut(self.tiles * PANEL);
        for ((values, weights), products) in values.zip(self.weights.chunks_exact(self.channels * PANEL)).zip(products)
        {
            product(self.channels, values, weights, products);
        }
    }

    /// The result of one tile: `[TILE·TILE pixels, PANEL columns]`.
    pub fn result(&self, tile: usize, out: &mut [f32; TILE * TILE * PANEL]) {
        interpolate_tile(&self.products[tile * PANEL..], self.tiles * PANEL, out);
    }
}

/// Six neighbours at the six points: row by row the coefficients of `∏ (x − p)` over the other points p.
#[inline(always)]
fn evaluate(d: [Lanes; POINTS]) -> [Lanes; POINTS] {
    let (even_a, odd_a) = (d[4] - B2 * d[2], A * (d[3] - B2 * d[1]));
    let (even_b, odd_b) = (d[4] - A2 * d[2], B * (d[3] - A2 * d[1]));
    let end = |i: usize| d[i + 4] - (A2 + B2) * d[i + 2] + (A2 * B2) * d[i];
    [end(0), even_a + odd_a, even_a - odd_a, even_b + odd_b, even_b - odd_b, end(1)]
}

/// Three taps at the six points, each divided by the product of its point's distances to the others.
#[inline(always)]
fn evaluate_taps(g: [Lanes; 3]) -> [Lanes; POINTS] {
    const N: f32 = 1.0 / (A2 * B2);
    const NA: f32 = 1.0 / (2.0 * A2 * (A2 - B2));
    const NB: f32 = 1.0 / (2.0 * B2 * (B2 - A2));
    let (even_a, odd_a) = (NA * (g[0] + A2 * g[2]), (NA * A) * g[1]);
    let (even_b, odd_b) = (NB * (g[0] + B2 * g[2]), (NB * B) * g[1]);
    [N * g[0], even_a + odd_a, even_a - odd_a, even_b + odd_b, even_b - odd_b, g[2]]
}

/// Four neighbours from their values at the six points.
#[inline(always)]
fn interpolate(m: [Lanes; POINTS]) -> [Lanes; TILE] {
    let (even_a, odd_a, even_b, odd_b) = (m[1] + m[2], m[1] - m[2], m[3] + m[4], m[3] - m[4]);
    [
        m[0] + even_a + even_b,
        A * odd_a + B * odd_b,
        A2 * even_a + B2 * even_b,
        (A2 * A) * odd_a + (B2 * B) * odd_b + m[5],
    ]
}

/// Columns to rows.
#[inline(always)]
fn turned<const M: usize, const N: usize>(columns: [[Lanes; M]; N]) -> [[Lanes; N]; M] {
    std::array::from_fn(|i| std::array::from_fn(|j| columns[j][i]))
}

widest! {
    /// Writes a tile's values at the pairs of points, which lie `stride` apart.
    fn transform_tile(shape: Shape, corner: Corner<'_>, out: &mut [f32], stride: usize) {
        let inside = |at: isize, n: usize| usize::try_from(at).ok().filter(|at| *at < n);
        let ys: [Option<usize>; POINTS] = std::array::from_fn(|i| inside(corner.y + i as isize, shape.h));
        let xs: [Option<usize>; POINTS] = std::array::from_fn(|i| inside(corner.x + i as isize, shape.w));
        for c in (0..shape.c).step_by(LANES) {
            let at = |y: usize, x: usize| match (ys[y], xs[x]) {
                (Some(y), Some(x)) => Lanes::load(&corner.sample[(y * shape.w + x) * shape.c + c..]),
                _ => Lanes::ZERO,
            };
            let columns: [_; POINTS] = std::array::from_fn(|x| evaluate(std::array::from_fn(|y| at(y, x))));
            for (y, row) in turned(columns).into_iter().enumerate() {
                for (x, values) in evaluate(row).into_iter().enumerate() {
                    values.store(&mut out[(y * POINTS + x) * stride + c..]);
                }
            }
        }
    }

    /// Writes the taps `[3, 3, channels, outputs]` of some outputs (first, number) at the pairs of points.
    fn transform_weight(
        weight: &[f32],
        channels: usize,
        outputs: usize,
        first: usize,
        width: usize,
        out: &mut [f32],
    ) {
        for c in 0..channels {
            for column in (0..PANEL).step_by(LANES) {
                let at = |tap: usize| match column < width {
                    true => Lanes::load(&weight[(tap * channels + c) * outputs + first + column..]),
                    false => Lanes::ZERO,
                };
                let columns: [_; 3] = std::array::from_fn(|x| evaluate_taps(std::array::from_fn(|y| at(y * 3 + x))));
                for (y, row) in turned(columns).into_iter().enumerate() {
                    for (x, values) in evaluate_taps(row).into_iter().enumerate() {
                        values.store(&mut out[((y * POINTS + x) * channels + c) * PANEL + column..]);
                    }
                }
            }
        }
    }

    /// Interpolates a tile from its products, which lie `stride` apart.
    fn interpolate_tile(products: &[f32], stride: usize, out: &mut [f32; TILE * TILE * PANEL]) {
        for column in (0..PANEL).step_by(LANES) {
            let at = |y: usize, x: usize| Lanes::load(&products[(y * POINTS + x) * stride + column..]);
            let columns: [_; POINTS] = std::array::from_fn(|x| interpolate(std::array::from_fn(|y| at(y, x))));
            for (y, row) in turned(columns).into_iter().enumerate() {
                for (x, values) in interpolate(row).into_iter().enumerate() {
                    values.store(&mut out[(y * TILE + x) * PANEL + column..]);
                }
            }
        }
    }
}
