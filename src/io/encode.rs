//! File formats that are written, each as bytes.

use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder};

use crate::error::{Error, Result};
use crate::map::Map;
use crate::methods::Level;
use crate::render::Picture;

/// NumPy's format, version 1.0: `float32`, C order, `h` × `w`, values as they are.
pub fn npy(map: &Map) -> Vec<u8> {
    const MAGIC: &[u8] = b"\x93NUMPY\x01\x00";
    const ALIGN: usize = 64;
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}, {}), }}", map.h, map.w);
    // The values begin at a multiple of 64 bytes; the header ends with a line feed.
    let bare = MAGIC.len() + 2 + header.len() + 1;
    header.extend(std::iter::repeat_n(' ', bare.next_multiple_of(ALIGN) - bare));
    header.push('\n');
    let mut bytes = MAGIC.to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(map.data.iter().flat_map(|v| v.to_le_bytes()));
    bytes
}

/// A map as 16-bit grey PNG, `h` × `w`. A layer's map: its positive part, minimum to 0 and maximum to 65535. An input's
/// map: 32768 + 32767·M/max|M|. A map that says nothing is all zero, or all 32768.
///
/// # Errors
/// When the map has no pixels.
pub fn png16(map: &Map, level: Level) -> Result<Vec<u8>> {
    let unit = crate::render::normalise(map, level);
    let (zero, span) = match level {
        Level::Layer => (0.0, 65535.0),
        Level::Input => (32768.0, 32767.0),
    };
    // The encoder takes the machine's byte order.
    let grey: Vec<u8> =
        unit.data.iter().flat_map(|v| ((zero + span * f64::from(*v)).round() as u16).to_ne_bytes()).collect();
    encode(&grey, map.w, map.h, ExtendedColorType::L16)
}

/// A picture as 8-bit RGB PNG.
///
/// # Errors
/// When the picture has no pixels.
pub fn png(picture: &Picture) -> Result<Vec<u8>> {
    encode(&picture.pixels, picture.w, picture.h, ExtendedColorType::Rgb8)
}

fn encode(pixels: &[u8], w: usize, h: usize, colour: ExtendedColorType) -> Result<Vec<u8>> {
    let mut bytes = vec![];
    let failed = |e: &dyn std::fmt::Display| Error::image(format!("{w}×{h} PNG"), format!("cannot be written: {e}"));
    let side = |n: usize| u32::try_from(n).map_err(|e| failed(&e));
    let encoder = PngEncoder::new_with_quality(&mut bytes, CompressionType::Fast, FilterType::Adaptive);
    encoder.write_image(pixels, side(w)?, side(h)?, colour).map_err(|e| failed(&e))?;
    Ok(bytes)
}
