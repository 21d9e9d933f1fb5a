//! Unfold (crop + resize + normalise in one pass) and fold (weight + resize back + overlap-add as a gather).

use super::{Batch, Shared, Target, View, Workers};
use crate::backend::Picks;
use crate::grid::{FoldPlan, Place, Weighting};

/// Rows of a patch that one unit of unfold makes.
const ROWS: usize = 16;

/// Scratch memory of [`unfold`] for an image, in elements.
pub(super) fn scratch(image: (usize, usize)) -> usize {
    image.1 * 3
}

/// Patches `first..` of the working image, scaled and normalised, `[S, h, w, 3]`: down the columns, then across.
pub(super) fn unfold(workers: &Workers, batch: &Batch<'_>, y: Target<'_>) {
    let plan = &batch.tables.resample;
    let width = plan.image.1 * 3;
    let (rows, cols) = (&plan.rows.patches, &plan.cols.patches);
    let (h, row_len, len) = (rows[0].len(), cols[0].len() * 3, y.len);
    let tiles = h.div_ceil(ROWS);
    let (count, result) = (y.count(), Shared::new(y.data));
    workers.each(count * tiles, |i| {
        let (b, first_row) = (i / tiles, i % tiles * ROWS);
        let patch = batch.first + b;
        let (rows, across, crop) =
            (&rows[patch / cols.len()], &cols[patch % cols.len()], &plan.cols.crops[patch % cols.len()]);
        let mut scratch = workers.scratch();
        let (line, _) = scratch[crop.start * 3..(crop.start + crop.len) * 3].as_chunks_mut::<3>();
        for (y, down) in rows.iter().enumerate().skip(first_row).take(ROWS) {
            line.fill([0.0; 3]);
            // Where nothing is scaled, one row is all.
            for (row, weight) in down.index.iter().zip(down.weight).filter(|(_, weight)| *weight != 0.0) {
                let source = &batch.image[*row as usize * width..][crop.start * 3..(crop.start + crop.len) * 3];
                for (sum, pixel) in line.iter_mut().zip(source.as_chunks::<3>().0) {
                    for ((sum, level), levels) in sum.iter_mut().zip(pixel).zip(&plan.levels) {
                        *sum += weight * levels[usize::from(*level)];
                    }
                }
            }
            // SAFETY: row `y` of patch `b` belongs to this unit alone.
            let out = unsafe { std::slice::from_raw_parts_mut(result.at(b * len + y * row_len), row_len) };
            for (out, taps) in out.as_chunks_mut::<3>().0.iter_mut().zip(across) {
                let near = taps.index.map(|i| line[i as usize - crop.start]);
                *out = std::array::from_fn(|c| near.iter().zip(taps.weight).map(|(pixel, w)| w * pixel[c]).sum());
            }
        }
    });
}

/// Pixels of `x`, which all samples share; those of sample `first + b` make result `b`.
pub(super) fn gather(workers: &Workers, picks: &Picks, first: usize, x: View<'_>, y: Target<'_>) {
    let (w, c) = (picks.from.w, picks.from.c);
    y.parts(workers, picks.to.w * c, |b, start, y| {
        let (rows, cols) = picks.of(first + b);
        let row = rows[start / (picks.to.w * c)];
        if row == Picks::OUTSIDE {
            return y.fill(picks.fill);
        }
        let row = &x.data[row as usize * w * c..][..w * c];
        let mut rest = y;
        // Neighbours mostly come from neighbours.
        for run in cols.chunk_by(|a, b| *a != Picks::OUTSIDE && a + 1 == *b) {
            let (part, tail) = rest.split_at_mut(run.len() * c);
            match run[0] {
                Picks::OUTSIDE => part.fill(picks.fill),
                col => part.copy_from_slice(&row[col as usize * c..][..run.len() * c]),
            }
            rest = tail;
        }
    });
}

/// One map a class from the maps of all patches.
pub(super) fn fold(
    workers: &Workers,
    plan: &FoldPlan,
    maps: View<'_>,
    p: View<'_>,
    map: (usize, usize),
    y: Target<'_>,
) {
    let (lanes, width) = (y.lanes, plan.canvas.1);
    let patches = plan.rows.len() * plan.cols.len();
    let covering = |places: &[Place], d: usize| {
        let covers = |p: &Place| (p.span.start..p.span.start + p.span.len).contains(&d);
        places.iter().enumerate().filter(|(_, p)| covers(p)).map(|(i, p)| (i, p.blend[d - p.span.start])).collect()
    };
    let cols: Vec<Vec<(usize, crate::grid::Blend)>> = (0..width).map(|x| covering(&plan.cols, x)).collect();
    for (lane, result) in y.data.chunks_exact_mut(y.len).enumerate() {
        let index = |patch: usize| patch * lanes + lane;
        let exp = |patch: usize| p.data[index(patch)].exp();
        let top = (0..patches).map(exp).fold(0.0, f32::max);
        let weight: Vec<f32> = (0..patches)
            .map(|patch| match plan.weighting {
                Weighting::One => 1.0,
                Weighting::Exp => exp(patch),
                Weighting::ExpOverMax => exp(patch) / top,
            })
            .collect();
        let rows = Shared::new(result);
        workers.each(plan.canvas.0, |d| {
            // SAFETY: each unit has a row of its own.
            let out = unsafe { std::slice::from_raw_parts_mut(rows.at(d * width), width) };
            let down: Vec<(usize, crate::grid::Blend)> = covering(&plan.rows, d);
            for (out, across) in out.iter_mut().zip(&cols) {
                let mut sum = 0.0;
                for (i, v) in &down {
                    for (j, u) in across {
                        let patch = i * plan.cols.len() + j;
                        let m = &maps.data[index(patch) * maps.len..][..map.0 * map.1];
                        let at = |r: u32, c: u32| m[r as usize * map.1 + c as usize];
                        let upper = at(v.lo, u.lo) + u.t * (at(v.lo, u.hi) - at(v.lo, u.lo));
                        let lower = at(v.hi, u.lo) + u.t * (at(v.hi, u.hi) - at(v.hi, u.lo));
                        sum += weight[patch] * (upper + v.t * (lower - upper));
                    }
                }
                *out = sum / (down.len() * across.len() + plan.extra) as f32;
            }
        });
    }
}
