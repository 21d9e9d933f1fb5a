//! Everything that is no matrix product: pooling, rectifiers, sums, relevance, heads and channel reductions.
//! Forward and backward stand together. Work is split by sample and row, never within a sum.

use rayon::prelude::*;

use super::{Base, Target, View, Workers};
use crate::backend::{AvgGeom, PoolGeom, stabilise};
use crate::net::Shape;

/// Elements of one unit of elementwise work.
const GRAIN: usize = 1 << 14;

impl Target<'_> {
    /// Calls `work(b, start, part)` for parts of `grain` elements of each result `b`, in any order.
    fn parts(self, workers: &Workers, grain: usize, work: impl Fn(usize, usize, &mut [f32]) + Sync) {
        let (len, grain) = (self.len, grain.clamp(1, self.len));
        workers.pool.install(|| {
            self.data.par_chunks_mut(len).enumerate().for_each(|(b, result)| {
                let parts = result.par_chunks_mut(grain).enumerate();
                parts.for_each(|(i, part)| work(b, i * grain, part));
            });
        });
    }
}

pub(super) fn unary(workers: &Workers, x: View<'_>, y: Target<'_>, f: impl Fn(f32) -> f32 + Sync) {
    let lanes = y.lanes;
    y.parts(workers, GRAIN, |b, start, y| {
        y.iter_mut().zip(&x.of(b, lanes)[start..]).for_each(|(y, x)| *y = f(*x));
    });
}

pub(super) fn binary(
    workers: &Workers,
    a: View<'_>,
    c: View<'_>,
    base: Base<'_>,
    y: Target<'_>,
    f: impl Fn(f32, f32) -> f32 + Sync,
) {
    let lanes = y.lanes;
    y.parts(workers, GRAIN, |b, start, y| {
        base.begin(b, lanes, start, y);
        let (a, c) = (&a.of(b, lanes)[start..], &c.of(b, lanes)[start..]);
        y.iter_mut().zip(a).zip(c).for_each(|((y, a), c)| *y += f(*a, *c));
    });
}

pub(super) fn divide(workers: &Workers, r: View<'_>, z: View<'_>, z2: Option<View<'_>>, eps: f32, y: Target<'_>) {
    let lanes = y.lanes;
    y.parts(workers, GRAIN, |b, start, y| {
        let (r, z) = (&r.of(b, lanes)[start..], &z.of(b, lanes)[start..]);
        match z2 {
            None => y.iter_mut().zip(r).zip(z).for_each(|((y, r), z)| *y = r / stabilise(*z, eps)),
            Some(z2) => {
                let z2 = &z2.of(b, lanes)[start..];
                let terms = y.iter_mut().zip(r).zip(z).zip(z2);
                terms.for_each(|(((y, r), z), z2)| *y = r / stabilise(z + z2, eps));
            }
        }
    });
}

/// First and one-past-last kernel position along an axis whose pixel lies inside.
fn inside(g: &PoolGeom, axis: usize, i: usize, n: usize) -> std::ops::Range<usize> {
    let (start, pad) = (i * g.window.stride[axis], g.window.pad[axis]);
    let lo = pad.saturating_sub(start);
    lo..g.window.kernel[axis].min((n + pad).saturating_sub(start)).max(lo)
}

pub(super) fn max_pool(workers: &Workers, g: &PoolGeom, x: View<'_>, y: Target<'_>, index: Option<&mut [u8]>) {
    let (c, row, lanes) = (g.y.c, g.y.w * g.y.c, y.lanes);
    let pool_row = |b: usize, oy: usize, y: &mut [f32], mut index: Option<&mut [u8]>| {
        let x = x.of(b, lanes);
        for (ox, y) in y.chunks_exact_mut(c).enumerate() {
            let mut index = index.as_mut().map(|index| &mut index[ox * c..(ox + 1) * c]);
            y.fill(f32::NEG_INFINITY);
            if let Some(index) = &mut index {
                index.fill(0);
            }
            for ky in inside(g, 0, oy, g.x.h) {
                let iy = oy * g.window.stride[0] + ky - g.window.pad[0];
                for kx in inside(g, 1, ox, g.x.w) {
                    let ix = ox * g.window.stride[1] + kx - g.window.pad[1];
                    let x = &x[(iy * g.x.w + ix) * c..][..c];
                    let position = (ky * g.window.kernel[1] + kx) as u8;
                    match &mut index {
                        // A value that is no number wins, as in torch, so that it is not hidden.
                        None => y.iter_mut().zip(x).for_each(|(y, x)| *y = if *x > *y || x.is_nan() { *x } else { *y }),
                        Some(index) => {
                            for ((y, x), i) in y.iter_mut().zip(x).zip(index.iter_mut()) {
                                if *x > *y || x.is_nan() {
                                    (*y, *i) = (*x, position);
                                }
                            }
                        }
                    }
                }
            }
        }
    };
    workers.pool.install(|| {
        let rows = y.data.par_chunks_mut(row).enumerate();
        match index {
            None => rows.for_each(|(i, y)| pool_row(i / g.y.h, i % g.y.h, y, None)),
            Some(index) => {
                let rows = rows.zip(index.par_chunks_mut(row));
                rows.for_each(|((i, y), index)| pool_row(i / g.y.h, i % g.y.h, y, Some(index)));
            }
        }
    });
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
    winners: &[u8],
    dy: View<'_>,
    base: Base<'_>,
    dx: Target<'_>,
) {
    let (c, lanes) = (g.x.c, dx.lanes);
    let ([kh, kw], [sy, sx], [py, px]) = (g.window.kernel, g.window.stride, g.window.pad);
    dx.parts(workers, g.x.w * c, |b, start, dx| {
        base.begin(b, lanes, start, dx);
        let iy = start / (g.x.w * c);
        let winners = &winners[b / lanes * g.y.len()..][..g.y.len()];
        let dy = dy.of(b, lanes);
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

pub(super) fn softmax(logits: View<'_>, p: Target<'_>) {
    for (b, p) in p.data.chunks_exact_mut(p.len).enumerate() {
        let logits = logits.of(b, 1);
        let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        p.iter_mut().zip(logits).for_each(|(p, l)| *p = (l - top).exp());
        let sum: f64 = p.iter().map(|p| f64::from(*p)).sum();
        p.iter_mut().for_each(|p| *p = (f64::from(*p) / sum) as f32);
    }
}

pub(super) fn top_k(p: View<'_>, k: usize, classes: Target<'_>) {
    let p = p.of(0, 1);
    let mut taken = Vec::with_capacity(k);
    for slot in classes.data.iter_mut().take(k) {
        let free = (0..p.len()).filter(|i| !taken.contains(i));
        let best = free.reduce(|best, i| if p[i] > p[best] { i } else { best }).unwrap_or(0);
        taken.push(best);
        *slot = f32::from_bits(best as u32);
    }
}

/// Class indices are stored as `u32` in memory that is viewed as `f32`.
fn class(classes: View<'_>, lane: usize) -> usize {
    classes.data[lane].to_bits() as usize
}

pub(super) fn pick(p: View<'_>, classes: View<'_>, y: Target<'_>) {
    let lanes = y.lanes;
    for (b, y) in y.data.iter_mut().enumerate() {
        *y = p.of(b / lanes, 1)[class(classes, b % lanes)];
    }
}

pub(super) fn seed(classes: View<'_>, value: Option<View<'_>>, y: Target<'_>) {
    let lanes = y.lanes;
    for (b, y) in y.data.chunks_exact_mut(y.len).enumerate() {
        let class = class(classes, b % lanes);
        y.fill(0.0);
        y[class] = value.map_or(1.0, |v| v.of(b, lanes)[class]);
    }
}

pub(super) fn pixel_sum(workers: &Workers, channels: usize, scale: f32, x: View<'_>, y: Target<'_>) {
    let lanes = y.lanes;
    y.parts(workers, channels, |b, _, y| {
        let x = x.of(b, lanes);
        y.fill(0.0);
        for pixel in x.chunks_exact(channels) {
            y.iter_mut().zip(pixel).for_each(|(y, x)| *y += x);
        }
        y.iter_mut().for_each(|y| *y *= scale);
    });
}

pub(super) fn class_row(weight: &[f32], classes: View<'_>, scale: f32, y: Target<'_>) {
    let lanes = y.lanes;
    for (b, y) in y.data.chunks_exact_mut(y.len).enumerate() {
        let row = &weight[class(classes, b % lanes) * y.len()..][..y.len()];
        y.iter_mut().zip(row).for_each(|(y, w)| *y = w * scale);
    }
}

pub(super) fn channel_sum(workers: &Workers, channels: usize, x: View<'_>, weights: Option<View<'_>>, y: Target<'_>) {
    /// Partial sums, so that the compiler can keep several in flight.
    const WIDTH: usize = 16;
    let lanes = y.lanes;
    y.parts(workers, 256, |b, start, y| {
        let x = &x.of(b, lanes)[start * channels..];
        let weights = weights.map(|w| w.of(b, lanes));
        for (y, pixel) in y.iter_mut().zip(x.chunks_exact(channels)) {
            let mut sums = [0.0_f32; WIDTH];
            for (i, x) in pixel.chunks(WIDTH).enumerate() {
                match weights {
                    None => sums.iter_mut().zip(x).for_each(|(s, x)| *s += x),
                    Some(w) => {
                        let w = &w[i * WIDTH..];
                        sums.iter_mut().zip(x).zip(w).for_each(|((s, x), w)| *s += x * w);
                    }
                }
            }
            *y = sums.iter().sum();
        }
    });
}

pub(super) fn channel_scale(workers: &Workers, channels: usize, x: View<'_>, weights: View<'_>, y: Target<'_>) {
    let lanes = y.lanes;
    y.parts(workers, GRAIN.next_multiple_of(channels), |b, start, y| {
        let (x, weights) = (&x.of(b, lanes)[start..], weights.of(b, lanes));
        for (y, x) in y.chunks_exact_mut(channels).zip(x.chunks_exact(channels)) {
            y.iter_mut().zip(x).zip(weights).for_each(|((y, x), w)| *y = x * w);
        }
    });
}

pub(super) fn channel_max(workers: &Workers, channels: usize, x: View<'_>, y: Target<'_>) {
    let lanes = y.lanes;
    // What is no number wins, so that it is not hidden.
    let larger = |m: f32, v: &f32| if v.abs() > m || v.is_nan() { v.abs() } else { m };
    y.parts(workers, 256, |b, start, y| {
        let pixels = x.of(b, lanes)[start * channels..].chunks_exact(channels);
        y.iter_mut().zip(pixels).for_each(|(y, pixel)| *y = pixel.iter().fold(0.0, larger));
    });
}
