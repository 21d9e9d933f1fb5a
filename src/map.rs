//! A map: one number a pixel, and what is done to it before it is shown.

use crate::grid::Blend;

/// A map of `h` × `w` numbers, row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct Map {
    /// Rows.
    pub h: usize,
    /// Columns.
    pub w: usize,
    /// Values, row by row.
    pub data: Vec<f32>,
}

/// Whether a map says anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It does.
    Fine,
    /// Nothing speaks for the class: no value is positive, in a map of which only the positive part counts.
    Empty,
    /// All pixels are alike.
    Flat,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Fine => "fine",
            Self::Empty => "empty: nothing in the image speaks for this class",
            Self::Flat => "flat: all pixels matter alike",
        })
    }
}

impl Map {
    /// A map of the given size.
    ///
    /// # Panics
    /// When there are not `h·w` values.
    pub fn new(h: usize, w: usize, data: Vec<f32>) -> Self {
        assert_eq!(data.len(), h * w, "a map of {h}×{w} pixels needs as many values");
        Self { h, w, data }
    }

    /// Smallest and largest value; `(0, 0)` for a map without pixels.
    pub fn range(&self) -> (f32, f32) {
        if self.data.is_empty() {
            return (0.0, 0.0);
        }
        self.data.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(lo, hi), v| (lo.min(*v), hi.max(*v)))
    }

    /// Sum of all values, in `f64`.
    pub fn sum(&self) -> f64 {
        self.data.iter().map(|v| f64::from(*v)).sum()
    }

    /// Whether the map says anything; `rectified` when only its positive part counts.
    pub fn status(&self, rectified: bool) -> Status {
        const FLAT: f32 = 1e-6;
        let (lo, hi) = self.range();
        if rectified && hi <= 0.0 {
            Status::Empty
        } else if hi - lo <= FLAT * lo.abs().max(hi.abs()) {
            Status::Flat
        } else {
            Status::Fine
        }
    }

    /// max(v, 0) everywhere.
    #[must_use]
    pub fn relu(mut self) -> Self {
        self.data.iter_mut().for_each(|v| *v = v.max(0.0));
        self
    }

    /// Scaled to 0..1; zeros where all values are equal.
    #[must_use]
    pub fn min_max(mut self) -> Self {
        let (lo, hi) = self.range();
        let span = hi - lo;
        self.data.iter_mut().for_each(|v| *v = if span > 0.0 { (*v - lo) / span } else { 0.0 });
        self
    }

    /// Divided by the largest absolute value; unchanged where all values are zero.
    #[must_use]
    pub fn signed_unit(mut self) -> Self {
        let (lo, hi) = self.range();
        let top = lo.abs().max(hi.abs());
        if top > 0.0 {
            self.data.iter_mut().for_each(|v| *v /= top);
        }
        self
    }

    /// Resized, bilinear with half-pixel centres and no antialiasing (`methods.md` 1.4).
    #[must_use]
    pub fn resize(&self, h: usize, w: usize) -> Self {
        let across: Vec<Blend> = (0..w).map(|x| Blend::new(x, self.w, w)).collect();
        let mut data = Vec::with_capacity(h * w);
        for y in 0..h {
            let down = Blend::new(y, self.h, h);
            let row = |i: u32| &self.data[i as usize * self.w..][..self.w];
            let (upper, lower) = (row(down.lo), row(down.hi));
            data.extend(across.iter().map(|x| {
                let mix = |row: &[f32]| row[x.lo as usize] + x.t * (row[x.hi as usize] - row[x.lo as usize]);
                let (upper, lower) = (mix(upper), mix(lower));
                upper + down.t * (lower - upper)
            }));
        }
        Self { h, w, data }
    }

    /// Separable Gaussian of `taps` (odd) taps, border reflected without repeating the edge (`methods.md` 1.5).
    #[must_use]
    pub fn gauss(&self, taps: usize, sigma: f64) -> Self {
        let reach = (taps / 2) as isize;
        let kernel: Vec<f64> = (-reach..=reach).map(|i| (-((i * i) as f64) / (2.0 * sigma * sigma)).exp()).collect();
        let sum: f64 = kernel.iter().sum();
        let reflect = |i: isize, n: usize| {
            let last = n as isize - 1;
            let i = i.abs();
            (if i > last { 2 * last - i } else { i }).clamp(0, last) as usize
        };
        let blur = |at: &dyn Fn(isize) -> f32| {
            let terms = (-reach..=reach).zip(&kernel);
            (terms.map(|(i, k)| f64::from(at(i)) * k).sum::<f64>() / sum) as f32
        };
        let (h, w) = (self.h, self.w);
        let pass = |source: &[f32], vertical: bool| -> Vec<f32> {
            (0..h * w)
                .map(|p| {
                    let (y, x) = (p / w, p % w);
                    blur(&|i| match vertical {
                        true => source[reflect(y as isize + i, h) * w + x],
                        false => source[y * w + reflect(x as isize + i, w)],
                    })
                })
                .collect()
        };
        Self { h, w, data: pass(&pass(&self.data, false), true) }
    }
}
