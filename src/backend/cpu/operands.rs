//! Operands of an instruction: parts of the arena.

use std::marker::PhantomData;

use rayon::prelude::*;

use super::{Line, Workers};
use crate::backend::{Dtype, Scope, Slot};

/// The arena while a program runs on a batch.
pub(super) struct Operands<'a> {
    start: *mut u8,
    len: usize,
    first: usize,
    samples: usize,
    arena: PhantomData<&'a mut [Line]>,
}

impl<'a> Operands<'a> {
    /// For `samples` samples from sample `first` on.
    pub(super) fn new(arena: &'a mut [Line], first: usize, samples: usize) -> Self {
        let len = std::mem::size_of_val(arena);
        Self { start: arena.as_mut_ptr().cast(), len, first, samples, arena: PhantomData }
    }

    /// First byte of a slot and its number of elements.
    fn locate(&self, slot: &Slot) -> (*mut u8, usize) {
        let sample = slot.len * slot.lanes;
        let (offset, len) = match slot.scope {
            Scope::Batch => (slot.offset, sample * self.samples),
            Scope::All => (slot.offset + self.first * sample * slot.dtype.bytes(), sample * self.samples),
            Scope::Shared => (slot.offset, sample),
        };
        assert!(offset + len * slot.dtype.bytes() <= self.len, "slot outside the arena");
        (self.start.wrapping_add(offset), len)
    }

    /// # Safety
    /// No live [`Target`] may overlap the slot.
    pub(super) unsafe fn view(&self, slot: &Slot) -> View<'a> {
        debug_assert!(matches!(slot.dtype, Dtype::F32 | Dtype::U32));
        let (start, len) = self.locate(slot);
        // SAFETY: in bounds, aligned (slots are), initialised (the arena starts as zeros) and not written while the
        // view lives, by the caller's promise.
        let data = unsafe { std::slice::from_raw_parts(start.cast::<f32>(), len) };
        View { data, len: slot.len, lanes: slot.lanes }
    }

    /// # Safety
    /// No other live operand may overlap the slot.
    pub(super) unsafe fn target(&self, slot: &Slot) -> Target<'a> {
        debug_assert!(matches!(slot.dtype, Dtype::F32 | Dtype::U32));
        let (start, len) = self.locate(slot);
        // SAFETY: in bounds and aligned; the caller promises that nothing else refers to these elements.
        let data = unsafe { std::slice::from_raw_parts_mut(start.cast::<f32>(), len) };
        Target { data, len: slot.len, lanes: slot.lanes }
    }

    /// Winners of max pooling or colours, to be written.
    ///
    /// # Safety
    /// As [`Operands::target`].
    pub(super) unsafe fn bytes_mut(&self, slot: &Slot) -> &'a mut [u8] {
        debug_assert_eq!(slot.dtype, Dtype::U8);
        let (start, len) = self.locate(slot);
        // SAFETY: as in `target`.
        unsafe { std::slice::from_raw_parts_mut(start, len) }
    }

    /// The same, to be read.
    ///
    /// # Safety
    /// As [`Operands::view`].
    pub(super) unsafe fn bytes(&self, slot: &Slot) -> View<'a, u8> {
        debug_assert_eq!(slot.dtype, Dtype::U8);
        let (start, len) = self.locate(slot);
        // SAFETY: as in `view`.
        let data = unsafe { std::slice::from_raw_parts(start, len) };
        View { data, len: slot.len, lanes: slot.lanes }
    }
}

/// An operand that is read: `len` elements for each lane of each sample.
#[derive(Clone, Copy)]
pub(super) struct View<'a, T = f32> {
    pub data: &'a [T],
    pub len: usize,
    pub lanes: usize,
}

impl<'a, T> View<'a, T> {
    /// Values that belong to result `b`, results having `lanes` lanes a sample.
    pub(super) fn of(&self, b: usize, lanes: usize) -> &'a [T] {
        let i = if self.lanes == lanes { b } else { b / lanes };
        &self.data[i * self.len..(i + 1) * self.len]
    }
}

/// A result: `len` elements for each lane of each sample.
pub(super) struct Target<'a> {
    pub data: &'a mut [f32],
    pub len: usize,
    pub lanes: usize,
}

impl Target<'_> {
    /// Number of lanes of all samples.
    pub(super) fn count(&self) -> usize {
        self.data.len() / self.len
    }
}

/// Elements of one unit of elementwise work.
pub(super) const GRAIN: usize = 1 << 14;

impl Target<'_> {
    /// Calls `work(b, start, part)` for parts of `grain` elements of each result `b`, in any order.
    pub(super) fn parts(self, workers: &Workers, grain: usize, work: impl Fn(usize, usize, &mut [f32]) + Sync) {
        let (len, grain) = (self.len, grain.clamp(1, self.len));
        workers.pool.install(|| {
            self.data.par_chunks_mut(len).enumerate().for_each(|(b, result)| {
                let parts = result.par_chunks_mut(grain).enumerate();
                parts.for_each(|(i, part)| work(b, i * grain, part));
            });
        });
    }
}

/// What a result starts from before products are added to it.
#[derive(Clone, Copy)]
pub(super) enum Base<'a> {
    /// Nothing.
    Zero,
    /// The result's own memory, which holds the term to add.
    InPlace,
    /// A term elsewhere.
    From(View<'a>),
}

impl<'a> Base<'a> {
    /// The `len` elements from `start` on of the term for result `b`, where it lies elsewhere.
    pub(super) fn term(&self, b: usize, lanes: usize, start: usize, len: usize) -> Option<&'a [f32]> {
        match self {
            Self::From(view) => Some(&view.of(b, lanes)[start..start + len]),
            Self::Zero | Self::InPlace => None,
        }
    }

    /// Lets `part`, which begins at element `start` of result `b`, begin from this term.
    pub(super) fn begin(&self, b: usize, lanes: usize, start: usize, part: &mut [f32]) {
        match self {
            Self::Zero => part.fill(0.0),
            Self::InPlace => {}
            Self::From(view) => part.copy_from_slice(&view.of(b, lanes)[start..start + part.len()]),
        }
    }
}

/// A pointer to a result that several threads write disjoint parts of.
#[derive(Clone, Copy)]
pub(super) struct Shared(*mut f32);
// SAFETY: users write disjoint elements, which each `unsafe` block that dereferences it argues for.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    pub(super) fn new(data: &mut [f32]) -> Self {
        Self(data.as_mut_ptr())
    }

    pub(super) fn shift(self, offset: usize) -> Self {
        Self(self.at(offset))
    }

    pub(super) fn at(self, offset: usize) -> *mut f32 {
        self.0.wrapping_add(offset)
    }
}
