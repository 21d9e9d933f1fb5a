//! Files: photographs in, maps and pictures out. Nothing here prints, and nothing here writes to a disk.

mod encode;
mod sniff;

pub use encode::{npy, png, png16};

use std::fs::File;
use std::io::{Cursor, Read};
use std::path::Path;

use image::codecs::{gif::GifDecoder, png::PngDecoder, webp::WebPDecoder};
use image::{AnimationDecoder, DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits};

use crate::error::{Error, Result};
use crate::frame::Frame;

/// Most bytes of a file, and of a decoded photo.
const MAX_BYTES: u64 = 1 << 30;
/// Most pixels along a side.
const MAX_SIDE: u32 = 1 << 15;

/// A decoded photograph: 8-bit RGB, turned as its EXIF entry says, alpha dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Photo {
    h: usize,
    w: usize,
    pixels: Vec<u8>,
}

impl Photo {
    /// Reads and decodes a file: PNG, JPEG, WebP, BMP, TIFF, PNM or GIF.
    ///
    /// # Errors
    /// As [`read`] and [`Photo::from_bytes`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::from_bytes(&path.display().to_string(), &read(path)?)
    }

    /// Decodes the bytes of a file; `name` stands for it in messages.
    ///
    /// # Errors
    /// When the bytes are of an unknown or unsupported format, an animation, damaged, or more than 2¹⁵ pixels wide or
    /// high or 1 GiB in memory.
    pub fn from_bytes(name: &str, bytes: &[u8]) -> Result<Self> {
        decode(bytes).map_err(|problem| Error::image(name, problem))
    }

    /// Rows and columns.
    pub fn size(&self) -> (usize, usize) {
        (self.h, self.w)
    }

    /// Its pixels, for an [`Explainer`](crate::Explainer).
    pub fn frame(&self) -> Frame<'_> {
        Frame::packed(&self.pixels, self.h, self.w)
    }
}

/// The bytes of a file.
///
/// # Errors
/// When it cannot be read, is a directory, or is larger than 1 GiB.
pub fn read(path: impl AsRef<Path>) -> Result<Vec<u8>> {
    let path = path.as_ref();
    let name = path.display().to_string();
    let unreadable = |e: std::io::Error| Error::image(&name, format!("cannot be read: {e}"));
    let file = File::open(path).map_err(unreadable)?;
    if file.metadata().map_err(unreadable)?.is_dir() {
        return Err(Error::image(&name, "expected a photo, found a directory"));
    }
    read_from(&name, file)
}

/// All bytes of a stream; `name` stands for it in messages.
///
/// # Errors
/// When it cannot be read or gives more than 1 GiB.
pub fn read_from(name: &str, stream: impl Read) -> Result<Vec<u8>> {
    let mut bytes = vec![];
    let read = stream.take(MAX_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(|e| Error::image(name, format!("cannot be read: {e}")))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(Error::image(
            name,
            format!("expected a file of at most {} MiB, found a larger one", MAX_BYTES >> 20),
        ));
    }
    Ok(bytes)
}

/// The name of each readable format.
const READABLE: &[(ImageFormat, &str)] = &[
    (ImageFormat::Png, "PNG"),
    (ImageFormat::Jpeg, "JPEG"),
    (ImageFormat::WebP, "WebP"),
    (ImageFormat::Bmp, "BMP"),
    (ImageFormat::Tiff, "TIFF"),
    (ImageFormat::Pnm, "PNM"),
    (ImageFormat::Gif, "GIF"),
];

fn decode(bytes: &[u8]) -> std::result::Result<Photo, String> {
    let guess = image::guess_format(bytes).ok();
    let Some((format, name)) = READABLE.iter().find(|(format, _)| Some(*format) == guess) else {
        let names: Vec<&str> = READABLE.iter().map(|(_, name)| *name).collect();
        return Err(format!("expected {}, found {}", names.join(", "), sniff::describe(bytes)));
    };
    let damaged = |e: ImageError| match e {
        ImageError::Limits(_) => {
            format!("expected a photo of at most {} MiB in memory, found a larger {name}", MAX_BYTES >> 20)
        }
        e => format!("expected a whole {name}, found a damaged or truncated one ({e})"),
    };
    if animated(*format, bytes).map_err(damaged)? {
        return Err(format!("expected a photo, found an animation ({name} of several frames)"));
    }
    if *format == ImageFormat::Jpeg && !sniff::jpeg_ends(bytes) {
        return Err("expected a whole JPEG, found a truncated one (no end marker)".into());
    }
    let mut reader = ImageReader::with_format(Cursor::new(bytes), *format);
    reader.limits(limits());
    let mut decoder = reader.into_decoder().map_err(damaged)?;
    let (w, h) = decoder.dimensions();
    if w == 0 || h == 0 {
        return Err(format!("expected at least one pixel, found a {name} of {w}×{h}"));
    }
    if w > MAX_SIDE || h > MAX_SIDE || decoder.total_bytes() > MAX_BYTES {
        let most = MAX_BYTES >> 20;
        return Err(format!(
            "expected at most {MAX_SIDE} pixels a side and {most} MiB in memory, found a {name} of {w}×{h}"
        ));
    }
    // A photo whose EXIF entry is broken is shown as it is stored, as viewers do.
    let orientation = decoder.orientation().unwrap_or(image::metadata::Orientation::NoTransforms);
    let mut image = DynamicImage::ImageRgb8(DynamicImage::from_decoder(decoder).map_err(damaged)?.into_rgb8());
    image.apply_orientation(orientation);
    let (w, h) = (image.width() as usize, image.height() as usize);
    Ok(Photo { h, w, pixels: image.into_rgb8().into_raw() })
}

fn limits() -> Limits {
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(MAX_BYTES);
    limits
}

fn animated(format: ImageFormat, bytes: &[u8]) -> image::ImageResult<bool> {
    let stream = Cursor::new(bytes);
    Ok(match format {
        ImageFormat::Png => PngDecoder::with_limits(stream, limits())?.is_apng()?,
        ImageFormat::WebP => WebPDecoder::new(stream)?.has_animation(),
        ImageFormat::Gif => {
            let mut decoder = GifDecoder::new(stream)?;
            decoder.set_limits(limits())?;
            decoder.into_frames().take(2).filter(std::result::Result::is_ok).count() == 2
        }
        _ => false,
    })
}
