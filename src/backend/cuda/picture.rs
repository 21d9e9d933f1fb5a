//! From a frame on the host to the working image on the device.

use std::sync::Arc;

use super::args::ResizeArgs;
use super::device::Handle;
use super::kernels::{Kernels, RESIZE_ACROSS, RESIZE_DOWN};
use super::memory::{Buffer, Pinned};
use super::tables::reaches;
use crate::error::Result;
use crate::frame::{Frame, PixelFormat, Working};

/// The frame, the working image, and what lies between them.
pub(super) struct Picture {
    handle: Arc<Handle>,
    staging: Pinned,
    pub photo: Buffer,
    between: Buffer,
    pub image: Buffer,
    resize: Option<Resize>,
    /// Format and size of the latest frame, `[rows, bytes of a row]`.
    pub format: PixelFormat,
    pub pitch: usize,
}

/// Tables for one way of making the working image.
struct Resize {
    working: Working,
    /// Reach and weights along rows (of columns), then along columns (of rows).
    across: [Buffer; 2],
    down: [Buffer; 2],
}

/// Number of a format in `kernels/args.cuh`.
pub(super) fn code(format: PixelFormat) -> u32 {
    match format {
        PixelFormat::Rgb => 0,
        PixelFormat::Bgr => 1,
        PixelFormat::Rgba => 2,
        PixelFormat::Gray => 3,
    }
}

impl Picture {
    pub fn new(handle: &Arc<Handle>) -> Result<Self> {
        Ok(Self {
            handle: handle.clone(),
            staging: Pinned::new(handle, 0)?,
            photo: Buffer::empty(handle),
            between: Buffer::empty(handle),
            image: Buffer::empty(handle),
            resize: None,
            format: PixelFormat::Rgb,
            pitch: 0,
        })
    }

    /// Bytes of device memory that this holds.
    pub fn len(&self) -> usize {
        self.photo.len() + self.between.len() + self.image.len()
    }

    /// Makes the working image of a frame, which is of the size that `working` is for.
    pub fn show(&mut self, kernels: &Kernels, frame: &Frame<'_>, working: &Working) -> Result<()> {
        // The staging memory may still be on its way.
        self.handle.wait()?;
        let (h, w) = frame.size();
        let pitch = frame.bytes(0).len();
        debug_assert_eq!((h, w), working.frame);
        (self.format, self.pitch) = (frame.format(), pitch);
        if self.staging.bytes().len() < pitch * h {
            self.staging = Pinned::new(&self.handle, pitch * h)?;
        }
        grow(&self.handle, &mut self.photo, pitch * h)?;
        grow(&self.handle, &mut self.image, working.h * working.w * 3)?;
        let staged = &mut self.staging.bytes_mut()[..pitch * h];
        staged.chunks_exact_mut(pitch).enumerate().for_each(|(y, row)| row.copy_from_slice(frame.bytes(y)));
        self.photo.write(0, &self.staging.bytes()[..pitch * h])?;

        if self.resize.as_ref().is_none_or(|r| r.working != *working) {
            self.resize = Some(Resize::new(&self.handle, working)?);
        }
        let ((rh, rw), (kept_h, kept_w)) = (working.resized, (working.h, working.w));
        // The same order as `resize::resize`, for the same rounding.
        let down_first = rw > w && rh < h;
        let between = if down_first { (kept_h, w) } else { (h, kept_w) };
        grow(&self.handle, &mut self.between, between.0 * between.1 * 3)?;
        let Some(Resize { across, down, .. }) = &self.resize else { return Ok(()) };
        let args = |x: &Buffer, y: &Buffer, table: &[Buffer; 2], (h, w): (usize, usize), pitch: usize, format: u32| {
            ResizeArgs {
                x: x.pointer(0),
                y: y.pointer(0),
                reach: table[0].pointer(0),
                weights: table[1].pointer(0),
                pitch: pitch as u64,
                format,
                h: h as u32,
                w: w as u32,
                unused: 0,
            }
        };
        let (first, second) = if down_first { (down, across) } else { (across, down) };
        let first = args(&self.photo, &self.between, first, between, pitch, code(self.format));
        let second = args(&self.between, &self.image, second, (kept_h, kept_w), between.1 * 3, 0);
        let grid = |args: &ResizeArgs| [args.w.div_ceil(32) as usize, args.h.div_ceil(8) as usize, 1];
        let [one, two] = if down_first { [&RESIZE_DOWN, &RESIZE_ACROSS] } else { [&RESIZE_ACROSS, &RESIZE_DOWN] };
        // SAFETY: the buffers were made large enough above, and the tables' reach lies within the frame.
        unsafe {
            kernels.launch(one, grid(&first), &first)?;
            kernels.launch(two, grid(&second), &second)
        }
    }
}

/// Makes a buffer at least `len` bytes large.
fn grow(handle: &Arc<Handle>, buffer: &mut Buffer, len: usize) -> Result<()> {
    if buffer.len() < len {
        *buffer = Buffer::new(handle, len, "the frame")?;
    }
    Ok(())
}

impl Resize {
    fn new(handle: &Arc<Handle>, working: &Working) -> Result<Self> {
        let axis = |from, to, first: usize, kept: usize| -> Result<[Buffer; 2]> {
            let (reach, weights) = reaches(from, to, first..first + kept);
            let what = "tables of the working image";
            Ok([Buffer::of(handle, &reach, what)?, Buffer::of(handle, &weights, what)?])
        };
        Ok(Self {
            working: *working,
            across: axis(working.frame.1, working.resized.1, working.corner.1, working.w)?,
            down: axis(working.frame.0, working.resized.0, working.corner.0, working.h)?,
        })
    }
}
