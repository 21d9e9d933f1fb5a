//! 3×3 convolutions of stride 1 by Winograd's algorithm F(4×4, 3×3): a quarter of the multiplications.
//!
//! A tile of 6×6 source pixels gives 4×4 result pixels. Source tiles and weights are evaluated as polynomials at six
//! points along each axis, the products of each of the 36 pairs of points are summed over the channels, and the result
//! is interpolated. The points 0, ±3/4, ±3/2 and ∞ keep rounding within about twice that of the direct sum (0, ±1, ±2
//! and ∞, which are usual, make it four times).
//!
//! Weights are transformed anew in every run: that costs little beside the products, and no memory that stays.

use super::panel::{PANEL, Product};
use super::simd::{LANES, Lanes, widest};
use crate::net::Shape;

/// Result pixels of a tile along an axis.
pub(super) const TILE: usize = 4;

/// Points along an axis, and source pixels of a tile.
const POINTS: usize = 6;

/// Pairs of points.
pub(super) const PAIRS: usize = POINTS * POINTS;

/// The points are 0, ±A, ±B and ∞.
const A: f32 = 0.75;
const B: f32 = 1.5;
const A2: f32 = A * A;
const B2: f32 = B * B;

/// Tiles of a block: many, so that weights are read seldom; few, so that a block stays near the core.
pub(super) fn tiles_of_block(channels: usize, outputs: usize) -> usize {
    const VALUES: usize = 122_880;
    (VALUES / (channels + outputs)).clamp(12, 120) / 12 * 12
}

/// Distance of the values at two pairs of points, each of which has `len`. Not a multiple of a page: all pairs of a tile
/// are written together, and would displace each other in the cache.
const fn stride(len: usize) -> usize {
    len + LANES
}

/// Scratch memory for a block, in elements.
pub(super) fn scratch(channels: usize, outputs: usize) -> usize {
    let tiles = tiles_of_block(channels, outputs);
    PAIRS * (stride(tiles * channels) + outputs.div_ceil(PANEL) * stride(tiles * PANEL))
}

/// Transformed weights of a panel, in elements: `[pair, channel, column]`, pairs a [`stride`] apart.
pub(super) fn panel_len(channels: usize) -> usize {
    PAIRS * stride(channels * PANEL)
}

/// Where a tile begins in a sample; may lie outside.
#[derive(Clone, Copy)]
pub(super) struct Corner<'a> {
    pub sample: &'a [f32],
    pub y: isize,
    pub x: isize,
}

/// Transforms a panel of a weight `[3, 3, channels, outputs]`: the outputs from `first` on, at most [`PANEL`].
pub(super) fn transform_panel(weight: &[f32], channels: usize, outputs: usize, first: usize, out: &mut [f32]) {
    transform_weight(weight, channels, outputs, first, PANEL.min(outputs - first), out);
}

/// Transformed tiles and their products with some panels of weights.
pub(super) struct Block<'s> {
    tiles: usize,
    channels: usize,
    /// `[pair, tile, channel]`, pairs a [`stride`] apart.
    values: &'s mut [f32],
    /// `[panel, pair, tile, column]`, likewise.
    products: &'s mut [f32],
}

impl<'s> Block<'s> {
    /// Transforms the tiles that begin at the corners, in samples of a shape.
    pub fn new<'a>(shape: Shape, corners: impl ExactSizeIterator<Item = Corner<'a>>, scratch: &'s mut [f32]) -> Self {
        let (tiles, channels) = (corners.len(), shape.c);
        let (values, products) = scratch.split_at_mut(PAIRS * stride(tiles * channels));
        for (tile, corner) in corners.enumerate() {
            transform_tile(shape, corner, &mut values[tile * channels..], stride(tiles * channels));
        }
        Self { tiles, channels, values, products }
    }

    /// Multiplies by transformed panels: pair by pair, so that a pair's values are read from afar once.
    pub fn multiply(&mut self, product: Product, panels: &[f32]) {
        let (tiles, channels) = (self.tiles, self.channels);
        let one = stride(tiles * PANEL);
        for (pair, values) in self.values.chunks_exact(stride(tiles * channels)).enumerate() {
            for (panel, weights) in panels.chunks_exact(panel_len(channels)).enumerate() {
                let weights = &weights[pair * stride(channels * PANEL)..][..channels * PANEL];
                let products = &mut self.products[(panel * PAIRS + pair) * one..][..tiles * PANEL];
                product(channels, &values[..tiles * channels], weights, products);
            }
        }
    }

    /// The result of one tile and panel: `[TILE·TILE pixels, PANEL columns]`.
    pub fn result(&self, panel: usize, tile: usize, out: &mut [f32; TILE * TILE * PANEL]) {
        let one = stride(self.tiles * PANEL);
        interpolate_tile(&self.products[panel * PAIRS * one + tile * PANEL..], one, out);
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
                        values.store(&mut out[(y * POINTS + x) * stride(channels * PANEL) + c * PANEL + column..]);
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
