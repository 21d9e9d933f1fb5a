//! Where UCAG's patches lie, how they are sampled and how their maps are put together: pure geometry.
//!
//! Unfold and fold both read this, so they cannot disagree. Formulas: `methods.md` 3.2 (mode `release`) and 3.3
//! (mode `paper`), after Hong et al., AAAI 2023, section 3.

mod axis;
mod sampling;

pub use axis::{ALIGNED, Span};
pub(crate) use sampling::bicubic;
pub use sampling::{Blend, FoldPlan, Place, Resample, Samples, Taps, Weighting};

use crate::error::{ErrorKind, Result};
use crate::models::Preprocess;
use axis::Axis;

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
