//! A map: one number a pixel, and what is done to it before it is shown.

use std::sync::LazyLock;

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
    pub fn min_max(self) -> Self {
        let range = self.range();
        self.min_max_of(range)
    }

    /// The same with a range that is known.
    pub(crate) fn min_max_of(mut self, (lo, hi): (f32, f32)) -> Self {
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

    /// One axis of a Gaussian of five taps, border reflected without repeating the edge (`methods.md` 1.5).
    #[must_use]
    pub fn blur(&self, vertical: bool) -> Self {
        let reach = (BLUR.len() / 2) as isize;
        let reflect = |i: isize, n: usize| {
            let last = n as isize - 1;
            let i = i.abs();
            (if i > last { 2 * last - i } else { i }).clamp(0, last) as usize
        };
        let (h, w) = (self.h, self.w);
        let at = |p: usize, i: isize| {
            let (y, x) = (p / w, p % w);
            match vertical {
                true => self.data[reflect(y as isize + i, h) * w + x],
                false => self.data[y * w + reflect(x as isize + i, w)],
            }
        };
        let value = |p: usize| (-reach..=reach).zip(*BLUR).map(|(i, k)| f64::from(at(p, i)) * k).sum::<f64>() as f32;
        Self { h, w, data: (0..h * w).map(value).collect() }
    }
}

/// Five taps of a Gaussian with σ = 3; they sum to 1.
pub(crate) static BLUR: LazyLock<[f64; 5]> = LazyLock::new(|| {
    const SIGMA: f64 = 3.0;
    let kernel = [-2.0_f64, -1.0, 0.0, 1.0, 2.0].map(|i| (-i * i / (2.0 * SIGMA * SIGMA)).exp());
    let sum: f64 = kernel.iter().sum();
    kernel.map(|k| k / sum)
});
