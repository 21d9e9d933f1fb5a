//! Convolutions whose weight belongs to the sample: the correlation of a layer's input with what arrived at its output,
//! and that weight's way forward and back. Work is split by sample, tap and tile of pixels.

use super::matmul::{Matrix, matmul_add};
use super::{Base, Shared, Target, View, Workers};
use crate::backend::ConvGeom;
use crate::backend::taps::reaching_phases;
use crate::net::Shape;

/// Pixels of one product.
const TILE: usize = 256;

/// Scratch memory in elements.
pub(super) fn scratch(g: &ConvGeom) -> usize {
    TILE * (g.x.c + g.y.c)
}

/// Pixels of a source that an axis of a tap leads to: `stride·q + offset`.
#[derive(Clone, Copy)]
struct Lead {
    stride: [usize; 2],
    offset: [isize; 2],
}

/// Copies what a tap finds for `pixels` of `width` columns into rows of `out`; outside of the source it finds zeros.
fn gather(source: &[f32], shape: Shape, lead: Lead, width: usize, pixels: std::ops::Range<usize>, out: &mut [f32]) {
    for (pixel, row) in pixels.zip(out.chunks_exact_mut(shape.c)) {
        let at = [pixel / width, pixel % width];
        let [y, x] = [0, 1].map(|i| (lead.stride[i] * at[i]) as isize + lead.offset[i]);
        match y >= 0 && x >= 0 && (y as usize) < shape.h && (x as usize) < shape.w {
            true => row.copy_from_slice(&source[(y as usize * shape.w + x as usize) * shape.c..][..shape.c]),
            false => row.fill(0.0),
        }
    }
}

/// Where tap `t` of the kernel leads.
fn forward_lead(g: &ConvGeom, t: usize) -> Lead {
    let position = [t / g.window.kernel[1], t % g.window.kernel[1]];
    Lead { stride: g.window.stride, offset: [0, 1].map(|i| position[i] as isize - g.window.pad[i] as isize) }
}

fn tiles(pixels: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    (0..pixels).step_by(TILE).map(move |start| start..(start + TILE).min(pixels))
}

/// `v[tap] = Σ over pixels of x[where the tap leads]ᵀ · dy`
pub(super) fn correlate(workers: &Workers, g: &ConvGeom, x: View<'_>, dy: View<'_>, v: Target<'_>) {
    let (taps, size, lanes) = (g.window.kernel[0] * g.window.kernel[1], g.x.c * g.y.c, v.lanes);
    let count = v.count();
    let result = Shared::new(v.data);
    workers.each(count * taps, |i| {
        let (b, tap) = (i / taps, i % taps);
        let mut scratch = workers.scratch();
        // SAFETY: this tap's matrix of result `b` belongs to this unit alone.
        let out = unsafe { std::slice::from_raw_parts_mut(result.at(i * size), size) };
        out.fill(0.0);
        for pixels in tiles(g.y.h * g.y.w) {
            let m = pixels.len();
            let rows = &mut scratch[..m * g.x.c];
            gather(x.of(b, lanes), g.x, forward_lead(g, tap), g.y.w, pixels.clone(), rows);
            let columns = Matrix { data: rows, row: 1, col: g.x.c };
            let dy = Matrix { data: &dy.of(b, lanes)[pixels.start * g.y.c..], row: g.y.c, col: 1 };
            matmul_add(g.x.c, g.y.c, m, out, columns, dy);
        }
    });
}

/// `y = Σ over taps of x[where the tap leads] · v[tap]`
pub(super) fn forward(workers: &Workers, g: &ConvGeom, v: View<'_>, x: View<'_>, y: Target<'_>) {
    let (taps, size, lanes) = (g.window.kernel[0] * g.window.kernel[1], g.x.c * g.y.c, y.lanes);
    let pixels = g.y.h * g.y.w;
    y.parts(workers, TILE * g.y.c, |b, start, y| {
        let mut scratch = workers.scratch();
        let first = start / g.y.c;
        let range = first..(first + y.len() / g.y.c).min(pixels);
        let rows = &mut scratch[..range.len() * g.x.c];
        y.fill(0.0);
        for tap in 0..taps {
            gather(x.of(b, lanes), g.x, forward_lead(g, tap), g.y.w, range.clone(), rows);
            let rows = Matrix { data: rows, row: g.x.c, col: 1 };
            let weight = Matrix { data: &v.of(b, lanes)[tap * size..], row: g.y.c, col: 1 };
            matmul_add(range.len(), g.y.c, g.x.c, y, rows, weight);
        }
    });
}

/// `dx = mul ⊙ Σ over taps of dy[where the tap came from] · v[tap]ᵀ + base`
pub(super) fn backward(
    workers: &Workers,
    g: &ConvGeom,
    v: View<'_>,
    dy: View<'_>,
    mul: Option<View<'_>>,
    base: Base<'_>,
    dx: Target<'_>,
) {
    let (size, lanes, len) = (g.x.c * g.y.c, dx.lanes, dx.len);
    let count = dx.count();
    let phases: Vec<_> = reaching_phases(g).collect();
    let extent = |n: usize, axis: usize, origin: usize| n.saturating_sub(origin).div_ceil(g.window.stride[axis]);
    let units: Vec<_> = phases
        .iter()
        .flat_map(|phase| {
            let (h, w) = (extent(g.x.h, 0, phase.0[0]), extent(g.x.w, 1, phase.0[1]));
            tiles(h * w).map(move |pixels| (phase, w, pixels))
        })
        .collect();
    let result = Shared::new(dx.data);
    workers.each(count * units.len(), |i| {
        let (b, ((origin, [rows, cols]), width, pixels)) = (i / units.len(), &units[i % units.len()]);
        let mut scratch = workers.scratch();
        let (gathered, product) = scratch.split_at_mut(TILE * g.y.c);
        let product = &mut product[..pixels.len() * g.x.c];
        product.fill(0.0);
        for ((ky, oy), (kx, ox)) in rows.iter().flat_map(|y| cols.iter().map(move |x| (y, x))) {
            let gathered = &mut gathered[..pixels.len() * g.y.c];
            gather(dy.of(b, lanes), g.y, Lead { stride: [1, 1], offset: [*oy, *ox] }, *width, pixels.clone(), gathered);
            let weight = &v.of(b, lanes)[(ky * g.window.kernel[1] + kx) * size..];
            let (gathered, weight) =
                (Matrix { data: gathered, row: g.y.c, col: 1 }, Matrix { data: weight, row: 1, col: g.y.c });
            matmul_add(pixels.len(), g.x.c, g.y.c, product, gathered, weight);
        }
        for (pixel, row) in pixels.clone().zip(product.chunks_exact_mut(g.x.c)) {
            let [y, x] = [pixel / width, pixel % width];
            let at = ((origin[0] + g.window.stride[0] * y) * g.x.w + origin[1] + g.window.stride[1] * x) * g.x.c;
            if let Some(mul) = mul {
                row.iter_mut().zip(&mul.of(b, lanes)[at..]).for_each(|(p, m)| *p *= m);
            }
            // SAFETY: this pixel of result `b` belongs to this unit alone.
            let out = unsafe { std::slice::from_raw_parts_mut(result.at(b * len + at), g.x.c) };
            base.begin(b, lanes, at, out);
            out.iter_mut().zip(&*row).for_each(|(o, p)| *o += p);
        }
    });
}
