//! Pictures of one photo side by side, each under its caption.

use super::{Picture, overlay, text};
use crate::frame::{Frame, Working, rgb};
use crate::map::Map;
use crate::methods::Level;

/// A map in a panel.
#[derive(Debug, Clone)]
pub struct Tile<'a> {
    /// What is written above it.
    pub caption: String,
    /// The map, which is laid over the photo.
    pub map: &'a Map,
    /// As what it is drawn.
    pub level: Level,
}

/// The photo under its caption, and to its right rows of maps over it.
pub fn panel(photo: &Frame<'_>, working: &Working, caption: &str, rows: &[Vec<Tile<'_>>]) -> Picture {
    const MARGIN: usize = 16;
    const HEADER: usize = 36;
    const PAPER: u8 = 255;
    // A single row is large; columns of several are wide enough for the longest name of a method.
    let (long_side, least_width) = if rows.len() > 1 { (384.0, 352) } else { (512.0, 256) };

    let (h, w) = photo.size();
    let scale = long_side / h.max(w) as f64;
    let side = |n: usize| ((n as f64 * scale).round() as usize).max(1);
    let (th, tw) = (side(h), side(w));
    let column = tw.max(least_width);
    let small = Picture { h: th, w: tw, pixels: crate::resize::resize(&rgb(photo), (h, w), (th, tw)) };
    let frame = Frame::packed(&small.pixels, th, tw);
    let source = working.source.map(|v| v * scale);

    let columns = 1 + rows.iter().map(Vec::len).max().unwrap_or(0);
    let height = HEADER + th + MARGIN;
    let mut sheet = Picture::plain(height * rows.len().max(1), MARGIN + columns * (column + MARGIN), PAPER);
    let mut place = |row: usize, i: usize, caption: &str, tile: &Picture| {
        let (top, left) = (row * height, MARGIN + i * (column + MARGIN));
        text::draw(&mut sheet, top + (HEADER - text::HEIGHT) / 2, left, column, caption);
        sheet.paste(top + HEADER, left + (column - tw) / 2, tile);
    };
    place(0, 0, caption, &small);
    for (row, tiles) in rows.iter().enumerate() {
        for (i, tile) in tiles.iter().enumerate() {
            place(row, i + 1, &tile.caption, &overlay(&frame, source, tile.map, tile.level));
        }
    }
    sheet
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Fit;

    #[test]
    fn rows_lie_below_each_other_and_levels_have_palettes_of_their_own() {
        let pixels = vec![100; 8 * 8 * 3];
        let photo = Frame::packed(&pixels, 8, 8);
        let working = Working::new((8, 8), Fit::None, 8).unwrap();
        let map = Map::new(8, 8, (0..64).map(|v| v as f32).collect());
        let tile = |level| Tile { caption: String::new(), map: &map, level };
        let row = || vec![tile(Level::Layer), tile(Level::Input), tile(Level::Layer)];
        let one = panel(&photo, &working, "", &[row()]);
        let two = panel(&photo, &working, "", &[row(), row()]);
        assert_eq!((one.h, one.w), (36 + 512 + 16, 16 + 4 * (512 + 16)));
        assert_eq!((two.h, two.w), (2 * (36 + 384 + 16), 16 + 4 * (384 + 16)));
        let part = |row: usize, column: usize| -> Vec<u8> {
            let (top, left) = (row * 436 + 36, (16 + column * 400) * 3);
            (top..top + 384).flat_map(|y| two.pixels[y * two.w * 3 + left..][..384 * 3].to_vec()).collect()
        };
        assert!(part(0, 0).iter().all(|v| *v == 100) && part(1, 0).iter().all(|v| *v == 255));
        assert!(part(0, 1) == part(0, 3) && part(0, 1) == part(1, 1) && part(0, 2) == part(1, 2));
        assert!(part(0, 1) != part(0, 2));
    }
}
