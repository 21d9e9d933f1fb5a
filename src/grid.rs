//! Where UCAG's patches lie, how they are sampled and how their maps are put together: pure geometry.
//!
//! Unfold and fold both read this, so they cannot disagree. Formulas: `methods.md` 3.2 (mode `release`) and 3.3
//! (mode `paper`), after Hong et al., AAAI 2023, section 3.

use crate::error::{ErrorKind, Result};
use crate::models::Preprocess;

/// Which reading of the method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// The paper's text: patch scaling by exactly α, exact patch counts, a raw signed map.
    #[default]
    Paper,
    /// The authors' published code, for comparison with published figures.
    Release,
    /// The paper's text with sizes nudged, so that neighbouring patches have more in common, as on a square of 224: all
    /// steps between patches are alike, and α makes of each a multiple of [`ALIGNED`] scaled pixels, on each axis apart.
    Aligned,
}

/// The grid of patches that an image is unfolded into.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Grid {
    /// Reading of the method.
    pub mode: Mode,
    /// Patches along each axis, n.
    pub n: usize,
    /// Side of a patch as a part of the image's side, ρ. `None`: 0.555 in mode `paper`, 124/224 in mode `release`.
    pub rho: Option<f64>,
    /// Factor that patches are scaled up by, α.
    pub alpha: f64,
}

impl Default for Grid {
    fn default() -> Self {
        Self { mode: Mode::Paper, n: 6, rho: None, alpha: 2.6 }
    }
}

impl Grid {
    /// ρ, the mode's default where none is given.
    pub fn rho(&self) -> f64 {
        self.rho.unwrap_or(match self.mode {
            Mode::Paper | Mode::Aligned => 0.555,
            Mode::Release => 124.0 / 224.0,
        })
    }
}

/// A range of pixels on one axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// First pixel.
    pub start: usize,
    /// Number of pixels.
    pub len: usize,
}

/// One axis of a grid.
#[derive(Debug, Clone, PartialEq)]
struct Axis {
    /// What is cut from the image, patch by patch.
    crops: Vec<Span>,
    /// Where the maps lie on the canvas.
    places: Vec<Span>,
    canvas: usize,
    scaled: usize,
    /// Factor that patches are scaled up by.
    alpha: f64,
}

/// Scaled pixels of which a step is a multiple in mode `aligned`: layers up to that stride share between all neighbours.
pub const ALIGNED: usize = 4;

/// Rounding guard: floors of products such as 2.6·120 must not fall below the exact value.
const GUARD: f64 = 1e-6;

/// Largest side of a scaled patch; beyond it a setting is a mistake.
const MAX_SIDE: f64 = 16384.0;

/// Most patches along an axis.
const MAX_PATCHES: usize = 256;

impl Axis {
    fn new(grid: &Grid, size: usize) -> std::result::Result<Self, String> {
        let (n, rho, alpha) = (grid.n, grid.rho(), grid.alpha);
        if !(1..=MAX_PATCHES).contains(&n) {
            return Err(format!("expected 1 to {MAX_PATCHES} patches an axis, found {n}"));
        }
        if !(rho > 0.0 && rho <= 1.0) {
            return Err(format!("expected rho above 0 and at most 1, found {rho}"));
        }
        if !(alpha > 0.0 && alpha.is_finite()) {
            return Err(format!("expected a positive alpha, found {alpha}"));
        }
        let mut patch = (rho * size as f64 + GUARD).floor() as usize;
        let mut alpha = alpha;
        if grid.mode == Mode::Aligned && n > size {
            return Err(format!("{n} patches cannot step alike over {size} pixels"));
        }
        if grid.mode == Mode::Aligned && n > 1 && patch < size {
            (patch, alpha) = aligned(n, size, patch, alpha);
        }
        if patch == 0 {
            return Err(format!("rho {rho} of {size} pixels gives patches of 0 pixels"));
        }
        if alpha * patch as f64 > MAX_SIDE {
            return Err(format!("alpha {alpha} scales patches of {patch} pixels beyond {MAX_SIDE}"));
        }
        let scaled = (alpha * patch as f64 + GUARD).floor() as usize;
        if scaled == 0 {
            return Err(format!("alpha {alpha} scales patches of {patch} pixels to nothing"));
        }
        let axis = match grid.mode {
            Mode::Paper | Mode::Aligned => Self::paper(n, size, patch, scaled, alpha)?,
            Mode::Release => Self::release(n, size, patch, scaled)?,
        };
        let gap = axis.places.windows(2).find(|p| p[1].start > p[0].start + p[0].len);
        match gap {
            Some(p) => Err(format!(
                "{n} patches of {patch} pixels leave pixels {}..{} of {size} uncovered; raise rho or the number of patches",
                p[0].start + p[0].len,
                p[1].start
            )),
            None => Ok(axis),
        }
    }

    fn paper(n: usize, size: usize, patch: usize, scaled: usize, alpha: f64) -> std::result::Result<Self, String> {
        let slack = size - patch;
        if n == 1 && slack > 0 {
            return Err(format!("one patch must cover the image, but rho gives it {patch} of {size} pixels"));
        }
        // round_half_up(i·slack / (n−1)) in integers
        let offset = |i: usize| if n == 1 { 0 } else { (2 * i * slack + n - 1) / (2 * (n - 1)) };
        let places: Vec<Span> = (0..n).map(|i| Span { start: offset(i), len: patch }).collect();
        Ok(Self { crops: places.clone(), places, canvas: size, scaled, alpha })
    }

    fn release(n: usize, size: usize, patch: usize, scaled: usize) -> std::result::Result<Self, String> {
        if n < 2 {
            return Err("mode release needs at least 2 patches an axis, found 1".into());
        }
        let stride = (size - patch + 2) / (n - 1);
        if stride == 0 || (n - 1) * stride >= size {
            return Err(format!("{n} patches of {patch} pixels do not fit {size} pixels in mode release"));
        }
        let places: Vec<Span> = (0..n).map(|i| Span { start: i * stride, len: patch }).collect();
        let crops = places.iter().map(|p| Span { start: p.start, len: p.len.min(size - p.start) }).collect();
        let alpha = scaled as f64 / patch as f64;
        Ok(Self { crops, places, canvas: patch + (n - 1) * stride, scaled, alpha })
    }
}

/// Patch and α near the given ones with which all steps are alike and a multiple of [`ALIGNED`] when scaled.
fn aligned(n: usize, size: usize, patch: usize, alpha: f64) -> (usize, f64) {
    let slack = size - patch;
    let step = ((2 * slack + n - 1) / (2 * (n - 1))).clamp(1, (size - 1) / (n - 1));
    let scaled = ALIGNED * ((alpha * step as f64 / ALIGNED as f64).round() as usize).max(1);
    (size - step * (n - 1), scaled as f64 / step as f64)
}

/// A grid laid over an image.
#[derive(Debug, Clone, PartialEq)]
pub struct GridPlan {
    /// The settings it was made from.
    pub grid: Grid,
    /// Rows and columns of the image.
    pub image: (usize, usize),
    rows: Axis,
    cols: Axis,
}

impl GridPlan {
    /// Lays a grid over an image of `h` × `w` pixels.
    ///
    /// # Errors
    /// When the settings leave pixels uncovered or give patches of no or absurd size; the message has the numbers.
    pub fn new(grid: Grid, h: usize, w: usize) -> Result<Self> {
        let axis = |size, name| Axis::new(&grid, size).map_err(|e| ErrorKind::Grid(format!("{name}: {e}")));
        Ok(Self { grid, image: (h, w), rows: axis(h, "rows")?, cols: axis(w, "columns")? })
    }

    /// One "patch" that is the image itself, unscaled.
    pub fn whole(h: usize, w: usize) -> Self {
        let axis = |size| {
            let span = vec![Span { start: 0, len: size }];
            Axis { crops: span.clone(), places: span, canvas: size, scaled: size, alpha: 1.0 }
        };
        let grid = Grid { n: 1, rho: Some(1.0), alpha: 1.0, mode: Mode::Paper };
        Self { grid, image: (h, w), rows: axis(h), cols: axis(w) }
    }

    /// Number of patches.
    pub fn patches(&self) -> usize {
        self.rows.crops.len() * self.cols.crops.len()
    }

    /// Factors by which rows and columns of a patch are scaled up.
    pub fn alpha(&self) -> (f64, f64) {
        (self.rows.alpha, self.cols.alpha)
    }

    /// Rows and columns of a scaled patch.
    pub fn scaled(&self) -> (usize, usize) {
        (self.rows.scaled, self.cols.scaled)
    }

    /// Rows and columns of what the patches' maps add up to; differs from the image in mode `release`.
    pub fn canvas(&self) -> (usize, usize) {
        (self.rows.canvas, self.cols.canvas)
    }

    /// Rows and columns of a patch before scaling.
    pub fn patch(&self) -> (usize, usize) {
        (self.rows.places[0].len, self.cols.places[0].len)
    }

    /// First row, or first column, of the patches along each axis.
    pub fn offsets(&self) -> (Vec<usize>, Vec<usize>) {
        let starts = |axis: &Axis| axis.places.iter().map(|p| p.start).collect();
        (starts(&self.rows), starts(&self.cols))
    }

    /// How patches are sampled for a network with the given preprocessing.
    pub fn resample(&self, preprocess: &Preprocess) -> Resample {
        let exact = self.grid.mode != Mode::Release;
        let side = |axis: &Axis| Samples::new(&axis.crops, axis.scaled, exact.then(|| 1.0 / axis.alpha));
        let levels = std::array::from_fn(|c| {
            let (mean, std) = (f64::from(preprocess.mean[c]), f64::from(preprocess.std[c]));
            std::array::from_fn(|v| ((v as f64 / 255.0 - mean) / std) as f32)
        });
        Resample { image: self.image, rows: side(&self.rows), cols: side(&self.cols), levels }
    }

    /// How maps of `(h, w)` pixels of all patches make one map.
    pub fn fold(&self, map: (usize, usize), weighting: Weighting) -> FoldPlan {
        let extra = match self.grid.mode {
            Mode::Release => 1,
            Mode::Paper | Mode::Aligned => 0,
        };
        let canvas = self.canvas();
        let rows = self.rows.places.iter().map(|p| Place::new(*p, map.0)).collect();
        let cols = self.cols.places.iter().map(|p| Place::new(*p, map.1)).collect();
        FoldPlan { canvas, rows, cols, extra, weighting }
    }
}

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
    fn new(crops: &[Span], scaled: usize, step: Option<f64>) -> Self {
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
    fn new(span: Span, map: usize) -> Self {
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
