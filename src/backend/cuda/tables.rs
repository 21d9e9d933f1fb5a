//! What kernels look up instead of computing it: where patches are sampled, where their maps lie, how pictures are
//! scaled.

use std::sync::Arc;

use super::args::{Blend, Cover, Reach};
use super::device::Handle;
use super::memory::Buffer;
use crate::backend::Tables;
use crate::error::Result;
use crate::grid::{Place, Samples, Taps};

/// A program's tables on the device.
pub(super) struct DeviceTables {
    /// `[grid rows][scaled rows]` of taps, and the same of columns.
    pub rows: Buffer,
    pub cols: Buffer,
    /// `[3][256]`
    pub levels: Buffer,
    /// Covers of the canvas' rows and where those of each row begin; the same of columns.
    pub covers: [Buffer; 2],
    pub firsts: [Buffer; 2],
    /// The tables on the host, for sizes and flags.
    pub host: Tables,
}

/// Size of `Taps` in `kernels/args.cuh`: four indices and four weights.
const TAPS_BYTES: usize = 32;

impl DeviceTables {
    pub fn new(handle: &Arc<Handle>, host: Tables) -> Result<Self> {
        let what = "tables of the grid";
        let taps = |samples: &Samples| Buffer::of(handle, &taps(samples), what);
        let levels: Vec<f32> = host.resample.levels.iter().flatten().copied().collect();
        let [(row_firsts, rows), (col_firsts, cols)] =
            [(&host.fold.rows, host.fold.canvas.0), (&host.fold.cols, host.fold.canvas.1)]
                .map(|(places, len)| covers(places, len));
        Ok(Self {
            rows: taps(&host.resample.rows)?,
            cols: taps(&host.resample.cols)?,
            levels: Buffer::of(handle, &levels, what)?,
            covers: [Buffer::of(handle, &rows, what)?, Buffer::of(handle, &cols, what)?],
            firsts: [Buffer::of(handle, &row_firsts, what)?, Buffer::of(handle, &col_firsts, what)?],
            host,
        })
    }
}

fn taps(samples: &Samples) -> Vec<u8> {
    let bytes = |t: &Taps| -> [u8; TAPS_BYTES] {
        let words = t.index.map(u32::to_le_bytes).into_iter().chain(t.weight.map(f32::to_le_bytes));
        let mut bytes = [0; TAPS_BYTES];
        bytes.as_chunks_mut().0.iter_mut().zip(words).for_each(|(to, from)| *to = from);
        bytes
    };
    samples.patches.iter().flatten().flat_map(bytes).collect()
}

/// For each of `len` rows or columns, the patches that cover it, in their order.
fn covers(places: &[Place], len: usize) -> (Vec<u32>, Vec<Cover>) {
    let mut firsts = vec![0];
    let mut covers = vec![];
    for d in 0..len {
        for (patch, place) in places.iter().enumerate() {
            if let Some(blend) = d.checked_sub(place.span.start).and_then(|at| place.blend.get(at)) {
                covers.push(Cover { patch: patch as u32, lo: blend.lo, hi: blend.hi, t: blend.t });
            }
        }
        firsts.push(covers.len() as u32);
    }
    (firsts, covers)
}

/// Reach and weights of the result pixels `kept` along an axis that is resized.
pub(super) fn reaches(from: usize, to: usize, kept: std::ops::Range<usize>) -> (Vec<Reach>, Vec<i32>) {
    let mut weights = vec![];
    let mut reach = |taps: &crate::resize::Taps| {
        let entry = Reach { first: taps.first as u32, count: taps.weights.len() as u32, weights: weights.len() as u32 };
        weights.extend(&taps.weights);
        entry
    };
    let reaches = crate::resize::taps(from, to)[kept].iter().map(&mut reach).collect();
    (reaches, weights)
}

/// Where photo pixels along an axis lie in a map; see `render::axis`.
pub(super) fn blends(axis: &[Option<crate::grid::Blend>]) -> Vec<Blend> {
    let blend = |b: &Option<crate::grid::Blend>| match b {
        Some(b) => Blend { lo: b.lo, hi: b.hi, t: b.t },
        None => Blend { lo: u32::MAX, hi: 0, t: 0.0 },
    };
    axis.iter().map(blend).collect()
}
