//! Pixels, borrowed from whoever holds them, and the working image made from them.

use crate::error::{Error, ErrorKind, Result};

/// Order of a pixel's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PixelFormat {
    /// Red, green, blue.
    Rgb,
    /// Blue, green, red.
    Bgr,
    /// Red, green, blue and an ignored fourth byte.
    Rgba,
    /// One grey value.
    Gray,
}

impl PixelFormat {
    /// Bytes of a pixel.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Rgb | Self::Bgr => 3,
            Self::Rgba => 4,
            Self::Gray => 1,
        }
    }
}

/// A picture of 8-bit pixels whose rows lie `stride` bytes apart.
#[derive(Debug, Clone, Copy)]
pub struct Frame<'a> {
    pixels: &'a [u8],
    h: usize,
    w: usize,
    stride: usize,
    format: PixelFormat,
}

/// Largest ratio of a picture's sides.
const MAX_ASPECT: usize = 20;
/// Most pixels of a working image.
const MAX_PIXELS: usize = 1 << 24;

impl<'a> Frame<'a> {
    /// A frame of `h` rows and `w` columns; `stride` is the distance of two rows in bytes.
    ///
    /// # Errors
    /// When there are no pixels, rows overlap, or the memory is shorter than the rows.
    pub fn new(pixels: &'a [u8], h: usize, w: usize, stride: usize, format: PixelFormat) -> Result<Self> {
        let problem = |text: String| Err(Error::image("frame", text));
        if h == 0 || w == 0 {
            return problem(format!("expected at least one pixel, found {w}×{h}"));
        }
        let row = w.saturating_mul(format.bytes());
        if stride < row {
            return problem(format!("expected a stride of at least {row} bytes for {w} pixels, found {stride}"));
        }
        let need = stride.saturating_mul(h - 1).saturating_add(row);
        if pixels.len() < need {
            return problem(format!("expected {need} bytes for {w}×{h} pixels, found {}", pixels.len()));
        }
        Ok(Self { pixels, h, w, stride, format })
    }

    /// A frame of densely packed RGB pixels.
    ///
    /// # Errors
    /// As [`Frame::new`].
    pub fn rgb(pixels: &'a [u8], h: usize, w: usize) -> Result<Self> {
        Self::new(pixels, h, w, w.saturating_mul(3), PixelFormat::Rgb)
    }

    /// As [`Frame::rgb`], for pixels that are known to be as many.
    pub(crate) const fn packed(pixels: &'a [u8], h: usize, w: usize) -> Self {
        Self { pixels, h, w, stride: w * 3, format: PixelFormat::Rgb }
    }

    /// Rows and columns.
    pub fn size(&self) -> (usize, usize) {
        (self.h, self.w)
    }

    /// Bytes of a row, without what lies between rows.
    #[cfg(feature = "cuda")]
    pub(crate) fn bytes(&self, y: usize) -> &'a [u8] {
        &self.pixels[y * self.stride..][..self.w * self.format.bytes()]
    }

    /// Order of a pixel's bytes.
    #[cfg(feature = "cuda")]
    pub(crate) fn format(&self) -> PixelFormat {
        self.format
    }

    /// Red, green and blue of a row.
    pub(crate) fn row(&self, y: usize) -> impl Iterator<Item = [u8; 3]> + 'a {
        let format = self.format;
        let row = &self.pixels[y * self.stride..][..self.w * format.bytes()];
        row.chunks_exact(format.bytes()).map(move |p| match format {
            PixelFormat::Rgb | PixelFormat::Rgba => [p[0], p[1], p[2]],
            PixelFormat::Bgr => [p[2], p[1], p[0]],
            PixelFormat::Gray => [p[0]; 3],
        })
    }
}

/// How a picture becomes the working image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fit {
    /// Shorter side to the size, aspect kept, nothing cut off.
    #[default]
    Fit,
    /// Both sides to the size.
    Squash,
    /// Shorter side to 256/224 of the size, then the centre.
    Crop,
    /// As it is.
    None,
}

/// The working image, at which a picture is explained: its size and how it is made from the frame.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Working {
    /// Rows.
    pub h: usize,
    /// Columns.
    pub w: usize,
    /// The part of the frame that it shows: first row, first column, rows, columns, in frame pixels.
    pub source: [f64; 4],
    /// Rows and columns of the whole frame.
    pub(crate) frame: (usize, usize),
    /// Rows and columns that the frame is resized to.
    pub(crate) resized: (usize, usize),
    /// First row and first column of the resized frame that are kept.
    pub(crate) corner: (usize, usize),
}

impl Working {
    /// The working image of a frame of `h` rows and `w` columns; `size` is the network's side in pixels.
    ///
    /// # Errors
    /// When the picture is too long and narrow, or the result would be too large.
    pub fn new((h, w): (usize, usize), fit: Fit, size: usize) -> Result<Self> {
        let (short, long) = (h.min(w), h.max(w));
        if long > MAX_ASPECT.saturating_mul(short) {
            let problem = format!("expected sides in a ratio of at most {MAX_ASPECT}, found {w}×{h} pixels");
            return Err(Error::image("frame", problem));
        }
        if size == 0 {
            return Err(ErrorKind::Option { option: "size", problem: "expected at least 1, found 0".into() }.into());
        }
        let fitted = |short_side: usize| {
            let long_side = (short_side as u128 * long as u128 / short as u128) as usize;
            if h <= w { (short_side, long_side) } else { (long_side, short_side) }
        };
        let (rh, rw) = match fit {
            Fit::Fit => fitted(size),
            Fit::Squash => (size, size),
            Fit::Crop => fitted(size.saturating_mul(256) / 224),
            Fit::None => (h, w),
        };
        if rh.saturating_mul(rw) > MAX_PIXELS {
            let problem = format!("expected a working image of at most {MAX_PIXELS} pixels, found {rw}×{rh}");
            return Err(Error::image("frame", problem));
        }
        let source = [0.0, 0.0, h as f64, w as f64];
        let whole = Self { h: rh, w: rw, source, frame: (h, w), resized: (rh, rw), corner: (0, 0) };
        Ok(if fit == Fit::Crop { whole.centre(size) } else { whole })
    }

    /// The central `size` × `size` pixels, torchvision's rounding of the margins.
    fn centre(self, size: usize) -> Self {
        let margin = |n: usize| ((n - size) as f64 / 2.0).round_ties_even() as usize;
        let (top, left) = (margin(self.h), margin(self.w));
        let (sy, sx) = (self.source[2] / self.h as f64, self.source[3] / self.w as f64);
        let source = [top as f64 * sy, left as f64 * sx, size as f64 * sy, size as f64 * sx];
        Self { h: size, w: size, source, corner: (top, left), ..self }
    }

    /// Its pixels, RGB, row by row; a frame of another size than it is for is stretched.
    pub fn pixels(&self, frame: &Frame<'_>) -> Vec<u8> {
        self.pixels_of(&rgb(frame), frame.size())
    }

    /// The same from the pixels, densely packed RGB, of a frame of `size` (rows, columns).
    pub(crate) fn pixels_of(&self, frame: &[u8], size: (usize, usize)) -> Vec<u8> {
        let resized = crate::resize::resize(frame, size, self.resized);
        if self.resized == (self.h, self.w) {
            return resized;
        }
        let rows = resized.chunks_exact(self.resized.1 * 3).skip(self.corner.0).take(self.h);
        rows.flat_map(|row| &row[self.corner.1 * 3..(self.corner.1 + self.w) * 3]).copied().collect()
    }
}

/// All pixels of a frame, densely packed RGB.
pub(crate) fn rgb(frame: &Frame<'_>) -> Vec<u8> {
    let mut pixels = Vec::with_capacity(frame.h * frame.w * 3);
    (0..frame.h).for_each(|y| pixels.extend(frame.row(y).flatten()));
    pixels
}
