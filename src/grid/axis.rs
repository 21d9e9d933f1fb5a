//! Where patches lie along one axis, in each mode.

use super::{Grid, Mode};

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
pub(super) struct Axis {
    /// What is cut from the image, patch by patch.
    pub crops: Vec<Span>,
    /// Where the maps lie on the canvas.
    pub places: Vec<Span>,
    /// Pixels of the canvas.
    pub canvas: usize,
    /// Pixels of a scaled patch.
    pub scaled: usize,
    /// Factor that patches are scaled up by.
    pub alpha: f64,
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
    /// Lays the patches of a grid along an axis; an error says in numbers why that cannot be.
    pub fn new(grid: &Grid, size: usize) -> std::result::Result<Self, String> {
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
