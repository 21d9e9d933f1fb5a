//! Convolutions by Winograd's tiles: which ones, and how their work is split among threads.

use super::conv::ConvKernel;
use super::epilogue::Call;
use super::panel::{self, PANEL};
use super::simd::{LANES, widest};
use super::winograd::{self, Block, Corner, PAIRS, TILE, tiles_of_block};
use super::{Shared, Target, Workers};
use crate::backend::{ConvGeom, WeightRef};
use crate::net::{Shape, Window};

/// Whether tiles are right for a convolution from `source` to `result` of so many samples in all.
pub(super) fn suits(g: &ConvGeom, weight: WeightRef, source: Shape, result: Shape, samples: usize) -> bool {
    /// Multiplications that take as long as transforming a weight.
    const TRANSFORM: usize = 200;
    let Window { kernel, stride, .. } = g.window;
    let tiles = samples * tiles_of(result);
    let fewer = PAIRS * tiles + TRANSFORM <= 9 * samples * result.h * result.w;
    let whole = source.c.is_multiple_of(LANES) && result.c.is_multiple_of(LANES);
    (kernel, stride) == ([3, 3], [1, 1]) && !weight.termwise && fewer && whole
}

/// Tiles of a result.
fn tiles_of(result: Shape) -> usize {
    result.h.div_ceil(TILE) * result.w.div_ceil(TILE)
}

/// Most tiles of a block: as many as all of so many results have, where that is less than what is good.
fn most(source: Shape, result: Shape, count: usize) -> usize {
    tiles_of_block(source.c, result.c).min(count * tiles_of(result))
}

/// Scratch memory of each thread for up to `count` results, in elements.
pub(super) fn scratch(source: Shape, result: Shape, count: usize) -> usize {
    winograd::scratch(source.c, result.c, most(source, result, count))
}

/// Runs a convolution by panels of packed weights. Blocks of tiles, which may come from several samples, and where there are
/// few of them panels of channels are spread over the threads; a tile's bits do not depend on its block.
pub(super) fn run(kernel: &ConvKernel, workers: &Workers, packed: &[f32], call: &Call<'_>, y: Target<'_>) {
    let (source, result) = (kernel.source, kernel.result);
    let panels = result.c.div_ceil(PANEL);
    let [rows, cols] = [result.h.div_ceil(TILE), result.w.div_ceil(TILE)];
    let tiles = y.count() * rows * cols;
    let threads = workers.pool.current_num_threads();
    // What is split is what takes longer to transform twice: weights of many outputs, or many tiles.
    let splits = if 2 * tiles < result.c { threads.min(panels) } else { 1 };
    let wanted = threads.div_ceil(splits);
    // As many for each thread.
    let rounds = tiles.div_ceil(wanted * most(source, result, call.lanes * kernel.key.samples));
    let block = tiles.div_ceil(wanted * rounds);
    let blocks = tiles.div_ceil(block);
    let splits = threads.div_ceil(blocks).min(panels);
    let product = panel::select();
    let (first, len) = (kernel.phases[0].first, y.len);
    // Sample, row and column of a tile.
    let place = |tile: usize| (tile / (rows * cols), tile / cols % rows * TILE, tile % cols * TILE);
    let out = Shared::new(y.data);
    workers.each(blocks * splits, |i| {
        let (start, split) = (i / splits * block, i % splits);
        let of_block = start..(start + block).min(tiles);
        let of_split = (split * panels / splits)..((split + 1) * panels / splits);
        let mut scratch = workers.scratch();
        let corner = |tile: usize| {
            let (b, y, x) = place(tile);
            let sample = call.source.of(b, call.lanes);
            Corner { sample, y: y as isize + first[0], x: x as isize + first[1] }
        };
        let mut multiplied = Block::new(source, of_block.clone().map(corner), &mut scratch);
        let one = winograd::taps_len(source.c);
        multiplied.multiply(product, &packed[of_split.start * one..of_split.end * one]);
        let mut pixels = [0.0; TILE * TILE * PANEL];
        for tile in of_block {
            let (b, y, x) = place(tile);
            for (panel, channel) in of_split.clone().map(|panel| panel * PANEL).enumerate() {
                let width = PANEL.min(result.c - channel);
                multiplied.result(panel, tile - start, &mut pixels);
                let places = std::array::from_fn(|i| {
                    let (y, x) = (y + i / TILE, x + i % TILE);
                    (y < result.h && x < result.w).then(|| (y * result.w + x) * result.c + channel)
                });
                finish(call, &mut pixels, b, &places, channel, width, out.shift(b * len));
            }
        }
    });
}

widest! {
    /// Finishes the pixels of a tile, whose first channels lie at `places` of result `b`.
    fn finish(
        call: &Call<'_>,
        pixels: &mut [f32; TILE * TILE * PANEL],
        b: usize,
        places: &[Option<usize>; TILE * TILE],
        channel: usize,
        width: usize,
        out: Shared,
    ) {
        for (pixel, at) in pixels.chunks_exact_mut(PANEL).zip(places) {
            if let Some(at) = *at {
                // SAFETY: inside result `b`, which begins at `out`; no other tile and panel has these channels.
                let out = unsafe { std::slice::from_raw_parts_mut(out.at(at), width) };
                call.finish(&mut pixel[..width], b, at, channel, out);
            }
        }
    }
}
