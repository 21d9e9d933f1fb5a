//! Captions, in the bitmap font Spleen.

use spleen_font::{FONT_12X24, PSF2Font};

use super::Picture;

/// Rows of a line.
pub(super) const HEIGHT: usize = 24;
const WIDTH: usize = 12;
const INK: [u8; 3] = [32; 3];

/// Draws a line of text from row `top`, column `left`, cut off with dots where it is wider than `width` pixels.
pub(super) fn draw(sheet: &mut Picture, top: usize, left: usize, width: usize, text: &str) {
    const DOTS: &str = "...";
    // A font that cannot be read leaves the captions out.
    let Ok(mut font) = PSF2Font::new(FONT_12X24) else { return };
    let fits = width / WIDTH;
    let shown: String = match text.chars().count() > fits {
        true => text.chars().take(fits.saturating_sub(DOTS.len())).chain(DOTS.chars()).take(fits).collect(),
        false => text.into(),
    };
    for (i, letter) in shown.chars().enumerate() {
        let letter = letter.to_string();
        let glyph = font.glyph_for_utf8(letter.as_bytes()).or_else(|| font.glyph_for_utf8(b"?"));
        for (y, row) in glyph.into_iter().flatten().take(HEIGHT).enumerate() {
            for (x, _) in row.take(WIDTH).enumerate().filter(|(_, ink)| *ink) {
                let at = ((top + y) * sheet.w + left + i * WIDTH + x) * 3;
                if let Some(pixel) = sheet.pixels.get_mut(at..at + 3) {
                    pixel.copy_from_slice(&INK);
                }
            }
        }
    }
}
