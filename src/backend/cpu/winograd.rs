//! 3×3 convolutions of stride 1 by Winograd's algorithm F(4×4, 3×3): a quarter of the multiplications.
//!
//! A tile of 6×6 source pixels gives 4×4 result pixels. Source tiles and weights are evaluated as polynomials at six
//! points along each axis, the products of each of the 36 pairs of points are summed over the channels, and the result
//! is interpolated. `benches/results/winograd.md` has how far results are from `f64`, layer by layer, beside sums as they are
//! defined. With the points 0, ±3/4, ±3/2 and ∞ that is half as far (simulated) as with 0, ±1, ±2 and ∞, which are usual.
//! Nearly all of it comes from the sums over the channels, whose values are larger than what interpolation leaves of them.
//!
//! Weights are transformed as they are multiplied, a row of points at a time: that takes less than to read all from memory,
//! where they would be four times as large as they are.

use super::panel::{PANEL, Product, Rows, RowsMut};
use super::simd::{LANES, Lanes, Register, widest};
use crate::aligned::PAGE;
use crate::net::Shape;

/// Result pixels of a tile along an axis.
pub(super) const TILE: usize = 4;

/// Points along an axis, and source pixels of a tile.
const POINTS: usize = 6;

/// Weights along an axis.
const TAPS: usize = 3;

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

/// Where transformed weights begin in scratch memory: a quarter of a page after its begin, while panels begin at whole or half
/// pages. Processors hold up a read from one page for a write to the same place of another.
const WEIGHTS: usize = PAGE / 4;

/// Scratch memory for a block of so many tiles, in elements.
pub(super) fn scratch(channels: usize, outputs: usize, tiles: usize) -> usize {
    let weights = WEIGHTS + POINTS * stride(channels * PANEL);
    weights + PAIRS * (stride(tiles * channels) + outputs.div_ceil(PANEL) * stride(tiles * PANEL))
}

/// Where a tile begins in a sample; may lie outside.
#[derive(Clone, Copy)]
pub(super) struct Corner<'a> {
    pub sample: &'a [f32],
    pub y: isize,
    pub x: isize,
}

/// Elements of a panel of weights before their transformation: `[tap, channel, column]`.
pub(super) fn taps_len(channels: usize) -> usize {
    TAPS * TAPS * channels * PANEL
}

/// Transformed tiles and their products with some panels of weights.
pub(super) struct Block<'s> {
    tiles: usize,
    channels: usize,
    /// Weights of a row of pairs: `[pair, channel, column]`, pairs a [`stride`] apart.
    weights: &'s mut [f32],
    /// `[pair, tile, channel]`, pairs a [`stride`] apart.
    values: &'s mut [f32],
    /// `[panel, pair, tile, column]`, likewise.
    products: &'s mut [f32],
}

impl<'s> Block<'s> {
    /// Transforms the tiles that begin at the corners, in samples of a shape.
    pub fn new<'a>(shape: Shape, corners: impl ExactSizeIterator<Item = Corner<'a>>, scratch: &'s mut [f32]) -> Self {
        let (tiles, channels) = (corners.len(), shape.c);
        let (weights, scratch) = scratch[WEIGHTS..].split_at_mut(POINTS * stride(channels * PANEL));
        let (values, products) = scratch.split_at_mut(PAIRS * stride(tiles * channels));
        for (tile, corner) in corners.enumerate() {
            transform_tile(shape, corner, &mut values[tile * channels..], stride(tiles * channels));
        }
        Self { tiles, channels, weights, values, products }
    }

    /// Multiplies by panels of weights `[tap, channel, column]`: row by row of pairs, whose transformed weights stay near.
    pub fn multiply(&mut self, product: Product, panels: &[f32]) {
        let (tiles, channels) = (self.tiles, self.channels);
        let one = stride(tiles * PANEL);
        for (row, values) in self.values.chunks_exact(POINTS * stride(tiles * channels)).enumerate() {
            for (panel, taps) in panels.chunks_exact(taps_len(channels)).enumerate() {
                transform_weights(taps, channels, row, self.weights);
                for (column, weights) in self.weights.chunks_exact(stride(channels * PANEL)).enumerate() {
                    let values = &values[column * stride(tiles * channels)..][..tiles * channels];
                    let products = &mut self.products[(panel * PAIRS + row * POINTS + column) * one..][..tiles * PANEL];
                    let values = Rows { data: values, stride: channels };
                    product(tiles, channels, values, weights, RowsMut { data: products, stride: PANEL });
                }
            }
        }
    }

    /// The result of one tile and panel: `[TILE·TILE pixels, PANEL columns]`.
    pub fn result(&self, panel: usize, tile: usize, out: &mut [f32; TILE * TILE * PANEL]) {
        let one = stride(self.tiles * PANEL);
        interpolate_tile(&self.products[panel * PAIRS * one + tile * PANEL..], one, out);
    }
}

/// A linear function along one axis: `M` values become `N`. A trait and not a closure, which would be compiled for narrow
/// registers.
trait Along<const M: usize, const N: usize> {
    fn of<R: Register>(values: [Lanes<R>; M]) -> [Lanes<R>; N];
}

/// Values of neighbouring channels at each place of a square.
type Square<R, const N: usize> = [[Lanes<R>; N]; N];

/// Six neighbours at the six points: row by row the coefficients of `∏ (x − p)` over the other points p.
struct Evaluate;

impl Along<POINTS, POINTS> for Evaluate {
    #[inline(always)]
    fn of<R: Register>(d: [Lanes<R>; POINTS]) -> [Lanes<R>; POINTS] {
        let (even_a, odd_a) = (d[4].plus(-B2, d[2]), A * d[3].plus(-B2, d[1]));
        let (even_b, odd_b) = (d[4].plus(-A2, d[2]), B * d[3].plus(-A2, d[1]));
        let zero = d[4].plus(-(A2 + B2), d[2]).plus(A2 * B2, d[0]);
        let infinity = d[5].plus(-(A2 + B2), d[3]).plus(A2 * B2, d[1]);
        [zero, even_a + odd_a, even_a - odd_a, even_b + odd_b, even_b - odd_b, infinity]
    }
}

/// Row by row what the three taps count for at each of the six points: divided by the product of the point's distances to
/// the others, and times 243/256, which makes all of them exact.
const TAPS_AT_POINTS: [[f32; TAPS]; POINTS] = {
    let [a, b] = [[-0.5, -0.5 * A, -0.5 * A2], [0.125, 0.125 * B, 0.125 * B2]];
    [[0.75, 0.0, 0.0], a, [a[0], -a[1], a[2]], b, [b[0], -b[1], b[2]], [0.0, 0.0, 243.0 / 256.0]]
};

/// What makes up for the factors of [`TAPS_AT_POINTS`] along both axes.
const SCALE: f32 = 65536.0 / 59049.0;

/// Three taps at the six points.
struct EvaluateTaps;

impl Along<TAPS, POINTS> for EvaluateTaps {
    #[inline(always)]
    fn of<R: Register>(g: [Lanes<R>; TAPS]) -> [Lanes<R>; POINTS] {
        let [zero, a, _, b, _, infinity] = TAPS_AT_POINTS;
        let (even_a, odd_a) = ((a[0] * g[0]).plus(a[2], g[2]), a[1] * g[1]);
        let (even_b, odd_b) = ((b[0] * g[0]).plus(b[2], g[2]), b[1] * g[1]);
        [zero[0] * g[0], even_a + odd_a, even_a - odd_a, even_b + odd_b, even_b - odd_b, infinity[2] * g[2]]
    }
}

/// Four neighbours from their values at the six points.
struct Interpolate;

impl Along<POINTS, TILE> for Interpolate {
    #[inline(always)]
    fn of<R: Register>(m: [Lanes<R>; POINTS]) -> [Lanes<R>; TILE] {
        let (even_a, odd_a, even_b, odd_b) = (m[1] + m[2], m[1] - m[2], m[3] + m[4], m[3] - m[4]);
        [
            m[0] + even_a + even_b,
            (A * odd_a).plus(B, odd_b),
            (A2 * even_a).plus(B2, even_b),
            m[5].plus(A2 * A, odd_a).plus(B2 * B, odd_b),
        ]
    }
}

/// `F` of each column and then of each row.
#[inline(always)]
fn both_axes<F: Along<M, N>, R: Register, const M: usize, const N: usize>(from: Square<R, M>) -> Square<R, N> {
    let mut half = [[Lanes(R::zero()); M]; N];
    for x in 0..M {
        let mut column = [Lanes(R::zero()); M];
        for y in 0..M {
            column[y] = from[y][x];
        }
        let column = F::of(column);
        for y in 0..N {
            half[y][x] = column[y];
        }
    }
    let mut both = [[Lanes(R::zero()); N]; N];
    for y in 0..N {
        both[y] = F::of(half[y]);
    }
    both
}

/// A square of lanes, whose rows and columns lie so far apart.
#[inline(always)]
fn load<R: Register, const M: usize>(values: &[f32], row: usize, column: usize) -> Square<R, M> {
    let mut square = [[Lanes(R::zero()); M]; M];
    for y in 0..M {
        for x in 0..M {
            square[y][x] = Lanes(R::load(&values[y * row + x * column..]));
        }
    }
    square
}

/// Writes a square of lanes, likewise.
#[inline(always)]
fn store<R: Register, const N: usize>(square: Square<R, N>, values: &mut [f32], row: usize, column: usize) {
    for y in 0..N {
        for x in 0..N {
            square[y][x].0.store(&mut values[y * row + x * column..]);
        }
    }
}

/// The pixels of a tile of which some lie outside.
#[inline(always)]
fn load_edge<R: Register>(shape: Shape, corner: Corner<'_>, c: usize) -> Square<R, POINTS> {
    let mut tile = [[Lanes(R::zero()); POINTS]; POINTS];
    for (y, row) in (corner.y..).zip(&mut tile) {
        for (x, value) in (corner.x..).zip(row) {
            if (0..shape.h as isize).contains(&y) && (0..shape.w as isize).contains(&x) {
                *value = Lanes(R::load(&corner.sample[(y as usize * shape.w + x as usize) * shape.c + c..]));
            }
        }
    }
    tile
}

widest! {
    /// Writes a tile's values at the pairs of points, which lie `stride` apart.
    fn transform_tile<R>(shape: Shape, corner: Corner<'_>, out: &mut [f32], stride: usize) {
        let inside = |at: isize, n: usize| at >= 0 && at as usize + POINTS <= n;
        let whole = inside(corner.y, shape.h) && inside(corner.x, shape.w);
        for c in (0..shape.c).step_by(R::COUNT) {
            let tile = if whole {
                let first = (corner.y as usize * shape.w + corner.x as usize) * shape.c + c;
                load::<R, POINTS>(&corner.sample[first..], shape.w * shape.c, shape.c)
            } else {
                load_edge::<R>(shape, corner, c)
            };
            store(both_axes::<Evaluate, R, POINTS, POINTS>(tile), &mut out[c..], POINTS * stride, stride);
        }
    }

    /// Writes a panel of weights `[tap, channel, column]` at the pairs of points of a row.
    fn transform_weights<R>(weights: &[f32], channels: usize, row: usize, out: &mut [f32]) {
        let (tap, pair) = (channels * PANEL, stride(channels * PANEL));
        let at_point = TAPS_AT_POINTS[row];
        for at in (0..tap).step_by(R::COUNT) {
            let taps = load::<R, TAPS>(&weights[at..], TAPS * tap, tap);
            let mut of_row = [Lanes(R::zero()); TAPS];
            for x in 0..TAPS {
                of_row[x] = (at_point[0] * taps[0][x]).plus(at_point[1], taps[1][x]).plus(at_point[2], taps[2][x]);
            }
            for (x, value) in EvaluateTaps::of(of_row).into_iter().enumerate() {
                value.0.store(&mut out[x * pair + at..]);
            }
        }
    }

    /// Interpolates a tile from its products, which lie `stride` apart.
    fn interpolate_tile<R>(products: &[f32], stride: usize, out: &mut [f32; TILE * TILE * PANEL]) {
        for column in (0..PANEL).step_by(R::COUNT) {
            let values = load::<R, POINTS>(&products[column..], POINTS * stride, stride);
            let mut pixels = both_axes::<Interpolate, R, POINTS, TILE>(values);
            for row in &mut pixels {
                for pixel in row {
                    *pixel = SCALE * *pixel;
                }
            }
            store(pixels, &mut out[column..], TILE * PANEL, PANEL);
        }
    }
}
