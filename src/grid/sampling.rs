//! How patches are sampled from an image, and how their maps are read where they are put together.

use super::Span;

/// Weight of one sample among its neighbours: four taps of a bicubic kernel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Taps {
    /// Pixels, counted from the first pixel of the image.
    pub index: [u32; 4],
    /// Their weights; they sum to 1.
    pub weight: [f32; 4],
}

/// Sampling positions of all patches along one axis.
#[derive(Debug, Clone, PartialEq)]
pub struct Samples {
    /// For each patch, one entry a scaled pixel.
    pub patches: Vec<Vec<Taps>>,
    /// What each patch covers.
    pub crops: Vec<Span>,
}

impl Samples {
    /// `step`: distance of two samples in source pixels; the ratio of the sizes where there is none.
    pub(super) fn new(crops: &[Span], scaled: usize, step: Option<f64>) -> Self {
        let patch = |crop: &Span| {
            let step = step.unwrap_or(crop.len as f64 / scaled as f64);
            (0..scaled).map(|d| bicubic((d as f64 + 0.5) * step - 0.5, crop)).collect()
        };
        Self { patches: crops.iter().map(patch).collect(), crops: crops.to_vec() }
    }
}

/// Keys' kernel with a = −0.75; taps clamp at the patch's own edge (`methods.md` 1.4).
pub(crate) fn bicubic(s: f64, crop: &Span) -> Taps {
    const A: f64 = -0.75;
    let near = |x: f64| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    let far = |x: f64| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A;
    // Samples at the same distance from a pixel get the same weights, whatever the patch: positions are rounded.
    const FINE: f64 = (1_u64 << 32) as f64;
    let s = (s * FINE).round() / FINE;
    let base = s.floor();
    let t = s - base;
    let weight = [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)].map(|w| w as f32);
    let last = crop.len as i64 - 1;
    let index = std::array::from_fn(|i| (crop.start as i64 + (base as i64 - 1 + i as i64).clamp(0, last)) as u32);
    Taps { index, weight }
}

/// How patches are cut from an image, scaled and normalised.
#[derive(Debug, Clone, PartialEq)]
pub struct Resample {
    /// Rows and columns of the image.
    pub image: (usize, usize),
    /// Sampling of rows.
    pub rows: Samples,
    /// Sampling of columns.
    pub cols: Samples,
    /// Normalised value of each level of red, green and blue.
    pub levels: [[f32; 256]; 3],
}

/// Weight of a patch's map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weighting {
    /// 1.
    One,
    /// exp(p), p being the class's probability in the patch.
    Exp,
    /// exp(p) divided by its maximum over the patches.
    ExpOverMax,
}

/// Two neighbours in a patch's map and the second one's weight.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Blend {
    /// First neighbour.
    pub lo: u32,
    /// Second neighbour.
    pub hi: u32,
    /// Weight of the second.
    pub t: f32,
}

impl Blend {
    /// Bilinear, half-pixel: position `d` of `to` in a row of `from` (`methods.md` 1.4).
    pub fn new(d: usize, from: usize, to: usize) -> Self {
        let s = ((d as f64 + 0.5) * from as f64 / to as f64 - 0.5).max(0.0);
        let lo = (s as usize).min(from - 1);
        Self { lo: lo as u32, hi: (lo + 1).min(from - 1) as u32, t: (s - lo as f64) as f32 }
    }
}

/// Where a patch's map lies along one axis, and how its pixels are read there.
#[derive(Debug, Clone, PartialEq)]
pub struct Place {
    /// Pixels of the canvas that it covers.
    pub span: Span,
    /// One entry a covered pixel.
    pub blend: Vec<Blend>,
}

impl Place {
    pub(super) fn new(span: Span, map: usize) -> Self {
        Self { span, blend: (0..span.len).map(|d| Blend::new(d, map, span.len)).collect() }
    }
}

/// How the maps of all patches make one map. Patch `i·columns + j` lies at `rows[i]`, `cols[j]`.
#[derive(Debug, Clone, PartialEq)]
pub struct FoldPlan {
    /// Rows and columns of the result.
    pub canvas: (usize, usize),
    /// Places along the rows.
    pub rows: Vec<Place>,
    /// Places along the columns.
    pub cols: Vec<Place>,
    /// Added to the number of patches that cover a pixel.
    pub extra: usize,
    /// Weight of each map.
    pub weighting: Weighting,
}
