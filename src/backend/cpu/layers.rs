//! Pooling and flattening, forward and backward. Work is split by sample and row, never within a sum.

use rayon::prelude::*;

use super::simd::widest;
use super::{Base, Target, View, Workers};
use crate::backend::{AvgGeom, PoolGeom};
use crate::net::Shape;

/// First and one-past-last kernel position along an axis whose pixel lies inside.
fn inside(g: &PoolGeom, axis: usize, i: usize, n: usize) -> std::ops::Range<usize> {
    let (start, pad) = (i * g.window.stride[axis], g.window.pad[axis]);
    let lo = pad.saturating_sub(start);
    lo..g.window.kernel[axis].min((n + pad).saturating_sub(start)).max(lo)
}

pub(super) fn max_pool(workers: &Workers, g: &PoolGeom, x: View<'_>, y: Target<'_>, index: Option<&mut [u8]>) {
    let (row, lanes) = (g.y.w * g.y.c, y.lanes);
    workers.pool.install(|| {
        let rows = y.data.par_chunks_mut(row).enumerate();
        match index {
            None => rows.for_each(|(i, y)| pool_row(g, i % g.y.h, x.of(i / g.y.h, lanes), y, None)),
            Some(index) => {
                let rows = rows.zip(index.par_chunks_mut(row));
                rows.for_each(|((i, y), index)| pool_row(g, i % g.y.h, x.of(i / g.y.h, lanes), y, Some(index)));
            }
        }
    });
}

widest! {
    /// One row of maxima, with the winners' positions in their windows.
    fn pool_row(g: &PoolGeom, oy: usize, x: &[f32], y: &mut [f32], index: Option<&mut [u8]>) {
        let (c, mut index) = (g.y.c, index);
        y.fill(f32::NEG_INFINITY);
        if let Some(index) = &mut index {
            index.fill(0);
        }
        for (ox, y) in y.chunks_exact_mut(c).enumerate() {
            for ky in inside(g, 0, oy, g.x.h) {
                let iy = oy * g.window.stride[0] + ky - g.window.pad[0];
                for kx in inside(g, 1, ox, g.x.w) {
                    let ix = ox * g.window.stride[1] + kx - g.window.pad[1];
                    let x = &x[(iy * g.x.w + ix) * c..][..c];
                    // A value that is no number wins, as in torch, so that it is not hidden.
                    let wins = |x: f32, y: f32| (x > y) | x.is_nan();
                    match &mut index {
                        None => y.iter_mut().zip(x).for_each(|(y, x)| *y = if wins(*x, *y) { *x } else { *y }),
                        Some(index) => {
                            let position = (ky * g.window.kernel[1] + kx) as u8;
                            let index = &mut index[ox * c..(ox + 1) * c];
                            for ((y, x), i) in y.iter_mut().zip(x).zip(index) {
                                let won = wins(*x, *y);
                                (*y, *i) = (if won { *x } else { *y }, if won { position } else { *i });
                            }
                        }
                    }
                }
            }
        }
    }

    /// Adds to a row of pixels what arrived at the windows that they won.
    fn pool_row_back(g: &PoolGeom, iy: usize, winners: &[u8], dy: &[f32], dx: &mut [f32]) {
        let ([kh, kw], [sy, sx], [py, px]) = (g.window.kernel, g.window.stride, g.window.pad);
        let c = g.x.c;
        for (oy, ky) in holding(iy, kh, sy, py, g.y.h) {
            for (ix, dx) in dx.chunks_exact_mut(c).enumerate() {
                for (ox, kx) in holding(ix, kw, sx, px, g.y.w) {
                    let at = (oy * g.y.w + ox) * c;
                    let position = (ky * kw + kx) as u8;
                    let terms = dx.iter_mut().zip(&dy[at..at + c]).zip(&winners[at..at + c]);
                    terms.for_each(|((dx, dy), w)| *dx += if *w == position { *dy } else { 0.0 });
                }
            }
        }
    }
}

/// Windows along an axis that hold pixel `p`, with the pixel's position in each.
fn holding(p: usize, kernel: usize, stride: usize, pad: usize, count: usize) -> impl Iterator<Item = (usize, usize)> {
    let p = p + pad;
    let first = (p + 1).saturating_sub(kernel).div_ceil(stride);
    (first..count.min(p / stride + 1)).map(move |window| (window, p - window * stride))
}

pub(super) fn max_pool_back(
    workers: &Workers,
    g: &PoolGeom,
    winners: View<'_, u8>,
    dy: View<'_>,
    base: Base<'_>,
    dx: Target<'_>,
) {
    let (row, lanes) = (g.x.w * g.x.c, dx.lanes);
    dx.parts(workers, row, |b, start, dx| {
        base.begin(b, lanes, start, dx);
        pool_row_back(g, start / row, winners.of(b, lanes), dy.of(b, lanes), dx);
    });
}

pub(super) fn avg_pool(workers: &Workers, g: &AvgGeom, x: View<'_>, y: Target<'_>) {
    let (c, lanes) = (g.y.c, y.lanes);
    y.parts(workers, g.y.w * c, |b, start, y| {
        let x = x.of(b, lanes);
        let (y0, y1, dh) = g.pool.bin(0, start / (g.y.w * c), g.x.h);
        for (ox, y) in y.chunks_exact_mut(c).enumerate() {
            let (x0, x1, dw) = g.pool.bin(1, ox, g.x.w);
            y.fill(0.0);
            for iy in y0..y1 {
                for pixel in x[(iy * g.x.w + x0) * c..(iy * g.x.w + x1) * c].chunks_exact(c) {
                    y.iter_mut().zip(pixel).for_each(|(y, x)| *y += x);
                }
            }
            let divisor = (dh * dw) as f32;
            y.iter_mut().for_each(|y| *y /= divisor);
        }
    });
}

pub(super) fn avg_pool_back(
    workers: &Workers,
    g: &AvgGeom,
    dy: View<'_>,
    mul: Option<View<'_>>,
    base: Base<'_>,
    dx: Target<'_>,
) {
    let (c, lanes) = (g.x.c, dx.lanes);
    dx.parts(workers, g.x.w * c, |b, start, dx| {
        base.begin(b, lanes, start, dx);
        let iy = start / (g.x.w * c);
        let dy = dy.of(b, lanes);
        let holds = |axis, i, n, p| {
            let (lo, hi, divisor) = g.pool.bin(axis, i, n);
            (lo..hi).contains(&p).then_some(divisor)
        };
        for oy in 0..g.y.h {
            let Some(dh) = holds(0, oy, g.x.h, iy) else { continue };
            for (ix, dx) in dx.chunks_exact_mut(c).enumerate() {
                for ox in 0..g.y.w {
                    let Some(dw) = holds(1, ox, g.x.w, ix) else { continue };
                    let divisor = (dh * dw) as f32;
                    let dy = &dy[(oy * g.y.w + ox) * c..][..c];
                    match mul {
                        None => dx.iter_mut().zip(dy).for_each(|(dx, dy)| *dx += dy / divisor),
                        Some(mul) => {
                            let mul = &mul.of(b, lanes)[start + ix * c..][..c];
                            dx.iter_mut().zip(dy).zip(mul).for_each(|((dx, dy), m)| *dx += m * (dy / divisor));
                        }
                    }
                }
            }
        }
    });
}

pub(super) fn flatten(workers: &Workers, shape: Shape, x: View<'_>, y: Target<'_>) {
    let (c, lanes) = (shape.c, y.lanes);
    let pixels = shape.h * shape.w;
    y.parts(workers, pixels, |b, start, y| {
        let channel = start / pixels;
        y.iter_mut().zip(x.of(b, lanes).chunks_exact(c)).for_each(|(y, x)| *y = x[channel]);
    });
}

pub(super) fn flatten_back(workers: &Workers, shape: Shape, dy: View<'_>, base: Base<'_>, dx: Target<'_>) {
    let (c, lanes) = (shape.c, dx.lanes);
    let pixels = shape.h * shape.w;
    dx.parts(workers, c, |b, start, dx| {
        base.begin(b, lanes, start, dx);
        let pixel = start / c;
        dx.iter_mut().zip(dy.of(b, lanes)[pixel..].iter().step_by(pixels)).for_each(|(dx, dy)| *dx += dy);
    });
}
