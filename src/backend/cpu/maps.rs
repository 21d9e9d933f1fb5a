//! What is done to finished maps, lane by lane: the same steps as [`Map`]'s own and [`render`]'s.

use super::{Target, View};
use crate::frame::Frame;
use crate::map::Map;
use crate::methods::Level;
use crate::render;

/// Calls `f` with each lane's map of `size` and copies what it gives into the result.
fn each(size: (usize, usize), x: View<'_>, y: Target<'_>, f: impl Fn(usize, Map) -> Map) {
    for (lane, y) in y.data.chunks_exact_mut(y.len).enumerate() {
        y.copy_from_slice(&f(lane, map(size, x, lane)).data);
    }
}

fn map((h, w): (usize, usize), x: View<'_>, lane: usize) -> Map {
    Map::new(h, w, x.data[lane * x.len..][..x.len].to_vec())
}

pub(super) fn blur(size: (usize, usize), vertical: bool, x: View<'_>, y: Target<'_>) {
    each(size, x, y, |_, map| map.blur(vertical));
}

/// One picture a lane; `photo` holds packed RGB pixels.
pub(super) fn overlay(
    photo: &[u8],
    photo_size: (usize, usize),
    source: [f64; 4],
    size: (usize, usize),
    level: Level,
    x: View<'_>,
    y: &mut [u8],
) {
    let frame = Frame::packed(photo, photo_size.0, photo_size.1);
    for (lane, picture) in y.chunks_exact_mut(photo.len().max(1)).enumerate() {
        picture.copy_from_slice(&render::overlay(&frame, source, &map(size, x, lane), level).pixels);
    }
}
