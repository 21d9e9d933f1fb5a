//! Resampling of values to another number of rows and columns (`methods.md` 1.4).

use super::{Base, Target, View, Workers};
use crate::backend::Filter;
use crate::grid::{Span, Taps, bicubic};
use crate::net::Shape;

/// What is resampled, and how.
pub(super) struct Resize {
    pub from: Shape,
    /// First channel and number of channels.
    pub slice: (usize, usize),
    pub to: (usize, usize),
    pub filter: Filter,
    pub scale: f32,
}

/// Source positions of one result along an axis, with their weights.
type Sources = Vec<(usize, f32)>;

impl Filter {
    /// The taps of result `d` of `to` over `from` sources.
    pub(crate) fn taps(self, d: usize, from: usize, to: usize) -> Sources {
        let last = from - 1;
        let half_pixel = (d as f64 + 0.5) * from as f64 / to as f64 - 0.5;
        let linear = |s: f64| {
            let lo = (s.floor() as usize).min(last);
            let t = s - lo as f64;
            vec![(lo, (1.0 - t) as f32), ((lo + 1).min(last), t as f32)]
        };
        match self {
            Self::Bilinear => linear(half_pixel.max(0.0)),
            Self::Aligned if to == 1 => linear(0.0),
            Self::Aligned => linear(d as f64 * last as f64 / (to - 1) as f64),
            Self::Bicubic => {
                let Taps { index, weight } = bicubic(half_pixel, &Span { start: 0, len: from });
                index.into_iter().map(|i| i as usize).zip(weight).collect()
            }
        }
    }
}

impl Resize {
    pub(super) fn run(&self, workers: &Workers, x: View<'_>, base: Base<'_>, y: Target<'_>) {
        let Shape { h, w, c } = self.from;
        let ((first, count), (rows, cols)) = (self.slice, self.to);
        let down: Vec<Sources> = (0..rows).map(|d| self.filter.taps(d, h, rows)).collect();
        let across: Vec<Sources> = (0..cols).map(|d| self.filter.taps(d, w, cols)).collect();
        let lanes = y.lanes;
        y.parts(workers, cols * count, |b, start, y| {
            base.begin(b, lanes, start, y);
            let x = x.of(b, lanes);
            for (y, across) in y.chunks_exact_mut(count).zip(&across) {
                for (row, v) in &down[start / (cols * count)] {
                    for (col, u) in across {
                        let weight = self.scale * v * u;
                        let x = &x[(row * w + col) * c + first..][..count];
                        y.iter_mut().zip(x).for_each(|(y, x)| *y += weight * x);
                    }
                }
            }
        });
    }
}
