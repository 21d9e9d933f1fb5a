//! Antialiased bilinear resizing of 8-bit pictures, as Pillow does it: one axis after the other, with integer weights
//! and an 8-bit picture in between.

/// Bits of a weight's fraction: 32 less 8 for the value and 2 for sums beyond 1.
const BITS: u32 = 32 - 8 - 2;

/// Weights of one result pixel: first source pixel and one weight a pixel.
pub(crate) struct Taps {
    pub first: usize,
    pub weights: Vec<i32>,
}

/// The triangle kernel, widened by the reduction so that every source pixel counts.
pub(crate) fn taps(from: usize, to: usize) -> Vec<Taps> {
    let scale = from as f64 / to as f64;
    let support = scale.max(1.0);
    let tap = |d: usize| {
        let centre = (d as f64 + 0.5) * scale;
        let first = ((centre - support + 0.5).max(0.0)) as usize;
        let end = ((centre + support + 0.5) as usize).min(from);
        let triangle = |i: usize| (1.0 - ((i as f64 - centre + 0.5) * (1.0 / support)).abs()).max(0.0);
        let sum: f64 = (first..end).map(triangle).sum();
        let fixed = |i: usize| {
            let weight = if sum > 0.0 { triangle(i) / sum } else { 0.0 };
            (0.5 + weight * f64::from(1 << BITS)) as i32
        };
        Taps { first, weights: (first..end).map(fixed).collect() }
    };
    (0..to).map(tap).collect()
}

fn clip(sum: i32) -> u8 {
    (sum >> BITS).clamp(0, 255) as u8
}

const HALF: i32 = 1 << (BITS - 1);

/// Scales rows of `from` pixels to `to` pixels.
fn across(pixels: &[u8], from: usize, to: usize) -> Vec<u8> {
    let taps = taps(from, to);
    let mut result = Vec::with_capacity(pixels.len() / from * to);
    for row in pixels.chunks_exact(from * 3) {
        for tap in &taps {
            let mut sum = [HALF; 3];
            for (pixel, weight) in row[tap.first * 3..].as_chunks::<3>().0.iter().zip(&tap.weights) {
                sum.iter_mut().zip(pixel).for_each(|(sum, v)| *sum += i32::from(*v) * weight);
            }
            result.extend(sum.map(clip));
        }
    }
    result
}

/// Scales columns of `from` pixels to `to` pixels; a row has `width` bytes.
fn down(pixels: &[u8], width: usize, from: usize, to: usize) -> Vec<u8> {
    let mut result = Vec::with_capacity(to * width);
    let mut sums = vec![0; width];
    for tap in taps(from, to) {
        sums.fill(HALF);
        for (row, weight) in pixels[tap.first * width..].chunks_exact(width).zip(&tap.weights) {
            sums.iter_mut().zip(row).for_each(|(sum, v)| *sum += i32::from(*v) * weight);
        }
        result.extend(sums.iter().copied().map(clip));
    }
    result
}

/// Resizes a densely packed RGB picture of `from` (rows, columns) to `to`. An axis whose size stays is not touched.
///
/// # Panics
/// When `pixels` does not hold `from.0 · from.1 · 3` values, or a size is zero.
pub fn resize(pixels: &[u8], from: (usize, usize), to: (usize, usize)) -> Vec<u8> {
    match (from.0 == to.0, from.1 == to.1) {
        (true, true) => pixels.to_vec(),
        (true, false) => across(pixels, from.1, to.1),
        (false, true) => down(pixels, to.1 * 3, from.0, to.0),
        // Rows first, except where that would make the picture larger before it gets smaller. The order shows in the
        // rounding of the picture in between.
        (false, false) if to.1 > from.1 && to.0 < from.0 => {
            across(&down(pixels, from.1 * 3, from.0, to.0), from.1, to.1)
        }
        (false, false) => down(&across(pixels, from.1, to.1), to.1 * 3, from.0, to.0),
    }
}
