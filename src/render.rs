//! Maps as pictures: laid over the photo, alone, or side by side with captions.

mod panel;
mod text;

pub use panel::{Tile, panel};

use crate::frame::{Frame, rgb};
use crate::grid::Blend;
use crate::map::{Map, Status};
use crate::methods::Level;
use crate::palette::{diverging, sequential};

/// An RGB picture, 8 bits a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// Rows.
    pub h: usize,
    /// Columns.
    pub w: usize,
    /// Pixels, row by row, three bytes each.
    pub pixels: Vec<u8>,
}

/// A map of the method's level scaled for display. A layer's map: its positive part, minimum to 0 and maximum to 1. An
/// input's map: divided by the largest absolute value. A map that says nothing becomes zeros.
#[must_use]
pub fn normalise(map: &Map, level: Level) -> Map {
    let layer = level == Level::Layer;
    match map.status(layer) {
        Status::Fine if layer => map.clone().relu().min_max(),
        Status::Fine => map.clone().signed_unit(),
        Status::Empty | Status::Flat => Map::new(map.h, map.w, vec![0.0; map.data.len()]),
    }
}

/// The map over the photo, at the photo's size. `source` is the part of the photo that the map shows: first row, first
/// column, rows, columns ([`source`](crate::Working::source)); outside of it, and where the map says nothing, the photo
/// stays as it is.
pub fn overlay(photo: &Frame<'_>, source: [f64; 4], map: &Map, level: Level) -> Picture {
    if map.status(level == Level::Layer) != Status::Fine {
        let (h, w) = photo.size();
        return Picture { h, w, pixels: rgb(photo) };
    }
    paint(photo, source, &normalise(map, level), |pixel, value| value.map_or(pixel, |v| cover(pixel, v, level)))
}

/// The map alone, at the photo's size. Outside of `source` it has the colour of zero.
pub fn heat(photo: &Frame<'_>, source: [f64; 4], map: &Map, level: Level) -> Picture {
    paint(photo, source, &normalise(map, level), |_, value| colour(value.unwrap_or(0.0), level))
}

impl Picture {
    /// A picture of one grey.
    fn plain(h: usize, w: usize, grey: u8) -> Self {
        Self { h, w, pixels: vec![grey; h * w * 3] }
    }

    /// Copies a picture that fits to row `top` and column `left`.
    fn paste(&mut self, top: usize, left: usize, other: &Self) {
        let stride = self.w * 3;
        let rows = self.pixels.chunks_exact_mut(stride).skip(top);
        for (row, from) in rows.zip(other.pixels.chunks_exact(other.w * 3)) {
            row[left * 3..][..from.len()].copy_from_slice(from);
        }
    }
}

fn colour(value: f32, level: Level) -> [u8; 3] {
    match level {
        Level::Layer => sequential(value),
        Level::Input => diverging(value),
    }
}

/// A pixel under a map's value; its own colours give way to the palette's. A layer's map is smooth and tints the photo
/// everywhere. An input's map is fine, with few large values: it lies on a pale grey photo, clear where it says nothing,
/// in colours far from the palette's light middle.
fn cover(pixel: [u8; 3], value: f32, level: Level) -> [u8; 3] {
    let strength = value.abs().sqrt();
    let grey = [((299 * u32::from(pixel[0]) + 587 * u32::from(pixel[1]) + 114 * u32::from(pixel[2])) / 1000) as u8; 3];
    match level {
        Level::Layer => mix(mix(pixel, grey, 0.5), sequential(value), 0.25 + 0.45 * strength),
        Level::Input => {
            let pale = mix(mix(pixel, grey, 0.85), [u8::MAX; 3], 0.3);
            mix(pale, diverging((0.6 + 0.4 * value.abs()).copysign(value)), 0.9 * strength)
        }
    }
}

fn mix(below: [u8; 3], above: [u8; 3], share: f32) -> [u8; 3] {
    std::array::from_fn(|c| (f32::from(below[c]) * (1.0 - share) + f32::from(above[c]) * share).round() as u8)
}

/// Every pixel of the photo with the map's value there, bilinear; `None` outside of `source`.
fn paint(
    photo: &Frame<'_>,
    source: [f64; 4],
    map: &Map,
    pixel: impl Fn([u8; 3], Option<f32>) -> [u8; 3] + Sync,
) -> Picture {
    use rayon::prelude::*;

    let (h, w) = photo.size();
    let (rows, cols) = axes((h, w), source, (map.h, map.w));
    let mut pixels = vec![0; h * w * 3];
    pixels.par_chunks_exact_mut(w * 3).enumerate().for_each(|(y, row)| {
        let (out, _) = row.as_chunks_mut::<3>();
        for ((out, below), x) in out.iter_mut().zip(photo.row(y)).zip(&cols) {
            let value = rows[y].zip(*x).map(|(y, x)| {
                let at = |i: u32, j: u32| map.data[i as usize * map.w + j as usize];
                let across = |i: u32| at(i, x.lo) + x.t * (at(i, x.hi) - at(i, x.lo));
                across(y.lo) + y.t * (across(y.hi) - across(y.lo))
            });
            *out = pixel(below, value);
        }
    });
    Picture { h, w, pixels }
}

/// Where a photo's rows and columns lie in a map of `cells` (rows, columns) that covers `source`.
pub(crate) fn axes(
    photo: (usize, usize),
    source: [f64; 4],
    cells: (usize, usize),
) -> (Vec<Option<Blend>>, Vec<Option<Blend>>) {
    (axis(photo.0, source[0], source[2], cells.0), axis(photo.1, source[1], source[3], cells.1))
}

/// For each of `n` photo pixels along an axis, where it lies among `cells` map cells that cover `start..start + len`.
fn axis(n: usize, start: f64, len: f64, cells: usize) -> Vec<Option<Blend>> {
    let blend = |p: usize| {
        let inside = (p as f64 + 0.5 - start) / len;
        let s = (inside * cells as f64 - 0.5).clamp(0.0, cells.saturating_sub(1) as f64);
        let lo = s as usize;
        let blend = Blend { lo: lo as u32, hi: (lo + 1).min(cells - 1) as u32, t: (s - lo as f64) as f32 };
        (0.0..=1.0).contains(&inside).then_some(blend)
    };
    if cells == 0 { vec![None; n] } else { (0..n).map(blend).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GREY: [u8; 3] = [100; 3];

    fn grey(h: usize, w: usize) -> Vec<u8> {
        vec![100; h * w * 3]
    }

    #[test]
    fn a_map_that_says_nothing_leaves_the_photo() {
        let pixels = grey(4, 6);
        let photo = Frame::packed(&pixels, 4, 6);
        for value in [0.0, -1.0, 3.0] {
            let map = Map::new(2, 2, vec![value; 4]);
            assert_eq!(overlay(&photo, [0.0, 0.0, 4.0, 6.0], &map, Level::Layer).pixels, pixels);
        }
    }

    #[test]
    fn outside_of_a_crop_the_photo_stays() {
        let pixels = grey(4, 8);
        let map = Map::new(4, 4, (0..16).map(|v| v as f32).collect());
        let shown = overlay(&Frame::packed(&pixels, 4, 8), [0.0, 2.0, 4.0, 4.0], &map, Level::Layer);
        for (i, pixel) in shown.pixels.as_chunks::<3>().0.iter().enumerate() {
            assert_eq!(*pixel == GREY, !(2..6).contains(&(i % 8)), "pixel {i}");
        }
    }

    #[test]
    fn signs_are_told_apart_and_zero_is_neutral() {
        let pixels = grey(1, 3);
        let map = Map::new(1, 3, vec![-1.0, 0.0, 1.0]);
        let shown = overlay(&Frame::packed(&pixels, 1, 3), [0.0, 0.0, 1.0, 3.0], &map, Level::Input).pixels;
        assert!(shown[2] > shown[0] && shown[6] > shown[8], "{shown:?}");
        assert_eq!(shown[3], shown[5], "{shown:?}");
    }
}
