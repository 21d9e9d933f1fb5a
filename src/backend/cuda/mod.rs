//! NVIDIA GPUs: activations and weights in fp16, every sum in fp32, on tensor cores; gradients, relevance and maps in
//! fp32.
//!
//! What is stored how: activations, weights, and the patches are fp16. Logits, probabilities, everything on the way
//! down the network (so no seed needs scaling), relevance quotients with their stabilisers, class activation maps and
//! folded maps are fp32. Products of fp16 are summed in fp32; products on the way down read their fp32 operand as TF32,
//! which has the range of fp32, and the weights, which TF32 holds exactly; `exact` ones read the operand as a sum of two
//! such numbers. A value that fp16 cannot hold is seen where an own kernel stores or next reads it, and the engine then
//! looks for the node.
//!
//! Bits do not depend on chunk or run: each sum runs in one order that the layer's shape fixes, no kernel adds
//! atomically, and cuBLASLt's algorithm is chosen per layer and number of samples of a program, without splitting sums.

pub mod args;
mod ceilings;
mod conv;
mod device;
mod fill;
mod gemm;
mod kernels;
mod launch;
mod lower;
mod memory;
mod picture;
mod product;
mod program;
mod recording;
mod tables;
mod weights;

use std::sync::Arc;
use std::time::Duration;

use super::{Backend, Ceilings, Dtype, Outcome, Pass, Slot, Step, Storage, Tables};
use crate::error::Result;
use crate::frame::{Frame, PixelFormat, Working};
use crate::net::Graph;
use conv::Limits;
use device::Handle;
pub(crate) use device::{count, gpus};
use gemm::Gemm;
use kernels::Kernels;
use memory::{Buffer, Pinned};
use picture::Picture;
pub use program::Program;
pub use recording::Recording;
use recording::{Event, Stage};
use weights::Weights;

/// The CUDA backend for one network on one GPU.
pub struct Cuda {
    graph: Arc<Graph>,
    arena: Buffer,
    weights: Weights,
    picture: Picture,
    kernels: Kernels,
    gemm: Gemm,
    /// Set by kernels that store a value which is infinite or no number.
    bad: Buffer,
    bad_here: Pinned,
    staging: Pinned,
    limits: Limits,
    /// What recordings refer to of what was shown last: the working image, and the frame where an overlay needs it, with
    /// its format and bytes of a row.
    shown: (u64, Option<(u64, PixelFormat, usize)>),
    /// Changes when that does, or the arena moves.
    generation: u64,
    note: Option<String>,
    handle: Arc<Handle>,
}

impl Cuda {
    /// A backend for one network on the GPU of this number.
    ///
    /// # Errors
    /// When there is no driver or GPU, one of them is too old, a library or kernel is missing, or memory is short.
    pub fn new(graph: Arc<Graph>, number: usize) -> Result<Self> {
        let handle = Arc::new(Handle::open(number)?);
        let limits = handle.limits()?;
        let kernels = Kernels::load(&handle, limits)?;
        let gemm = Gemm::new(&handle)?;
        Ok(Self {
            arena: Buffer::empty(&handle),
            weights: Weights::new(graph.clone(), handle.clone()),
            picture: Picture::new(&handle)?,
            bad: Buffer::of(&handle, &[0_u32], "a flag")?,
            bad_here: Pinned::new(&handle, size_of::<u32>())?,
            staging: Pinned::new(&handle, 0)?,
            limits,
            shown: (0, None),
            generation: 1,
            note: None,
            graph,
            kernels,
            gemm,
            handle,
        })
    }

    /// The GPU's number.
    pub fn number(&self) -> usize {
        self.handle.number
    }

    /// The GPU's name.
    ///
    /// # Errors
    /// When the device fails.
    pub fn name(&self) -> Result<String> {
        self.handle.context.name().map_err(|e| self.handle.failed("asking for its name", e))
    }

    /// Bytes of working memory that plans may take: most of what is free, less room for weights that are not there yet.
    ///
    /// # Errors
    /// When the device fails.
    pub fn free_memory(&self) -> Result<u64> {
        // Both ways; the way down in 32 bits where warpgroups multiply.
        let down = if self.limits.wgmma { size_of::<f32>() } else { size_of::<half::f16>() };
        let each = (size_of::<half::f16>() + down) as u64;
        let params = self.graph.params().iter().map(|p| p.len() as u64 * each);
        Ok((self.handle.free_memory()? / 10 * 9).saturating_sub(params.sum()))
    }

    /// Why explanations run step by step instead of being replayed, where they do.
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    /// Enqueues some of a program's steps.
    fn enqueue(&mut self, pass: &Pass<'_, Program>) -> Result<()> {
        pass.steps.clone().try_for_each(|step| self.step(pass.program, step, pass.samples.clone()))
    }

    /// Enqueues all passes with a mark before and after each.
    fn enqueue_all(&mut self, passes: &[Pass<'_, Program>], events: &[Event], recorded: bool) -> Result<()> {
        self.bad.clear(size_of::<u32>())?;
        events[0].mark(recorded)?;
        for (pass, event) in passes.iter().zip(&events[1..]) {
            self.enqueue(pass)?;
            event.mark(recorded)?;
        }
        self.bad.read(0, self.bad_here.bytes_mut())
    }

    /// Runs all passes, replaying them where they are recorded.
    fn replay(&mut self, passes: &[Pass<'_, Program>], recording: &mut Recording) -> Result<()> {
        self.handle.bind()?;
        if recording.generation != self.generation {
            *recording = Recording { generation: self.generation, ..Recording::default() };
        }
        while recording.events.len() <= passes.len() {
            recording.events.push(Event::new(&self.handle)?);
        }
        if let Stage::Warm = recording.stage {
            let handle = self.handle.clone();
            let graph = recording::Graph::record(&handle, || self.enqueue_all(passes, &recording.events, true));
            recording.stage = match graph {
                Ok(graph) => Stage::Recorded(graph),
                Err(problem) => Stage::Refused(format!("explanations run step by step: {problem}")),
            };
        }
        self.note = None;
        match &recording.stage {
            Stage::Recorded(graph) => return graph.launch(&self.handle),
            Stage::Refused(reason) => self.note = Some(reason.clone()),
            Stage::New | Stage::Warm => {}
        }
        self.enqueue_all(passes, &recording.events, false)?;
        if let Stage::New = recording.stage {
            recording.stage = Stage::Warm;
        }
        Ok(())
    }
}

impl Backend for Cuda {
    type Program = Program;
    type Recording = Recording;

    fn storage(&self) -> Storage {
        // A fourth channel makes a pixel of the input 8 bytes, which asynchronous copies can move.
        Storage { activation: Dtype::F16, input_channels: 4 }
    }

    fn reserve(&mut self, bytes: usize) -> Result<()> {
        if bytes > self.arena.len() {
            // The old one goes first: there may not be room for both.
            self.arena = Buffer::empty(&self.handle);
            self.generation += 1;
            self.arena = Buffer::new(&self.handle, bytes, "the plan")?;
        }
        Ok(())
    }

    fn prepare(&mut self, steps: Vec<Step<Slot>>, tables: Tables) -> Result<Program> {
        self.ready(steps, tables)
    }

    fn forget(&mut self) {}

    fn show(&mut self, frame: &Frame<'_>, working: &Working, keep: bool) -> Result<()> {
        let result = self.picture.show(&self.kernels, frame, working);
        // After a failure too: something may have moved before it.
        let Picture { image, photo, format, pitch, .. } = &self.picture;
        let shown = (image.address(0), keep.then(|| (photo.address(0), *format, *pitch)));
        self.generation += u64::from(shown != self.shown);
        self.shown = shown;
        result
    }

    fn run(&mut self, pass: &Pass<'_, Program>) -> Result<()> {
        self.handle.bind()?;
        self.enqueue(pass)?;
        self.handle.wait()
    }

    fn explain(
        &mut self,
        passes: &[Pass<'_, Program>],
        recording: &mut Recording,
        done: &mut dyn FnMut(usize),
    ) -> Result<Outcome> {
        self.replay(passes, recording)?;
        self.handle.wait()?;
        let between = recording.events.windows(2).take(passes.len());
        let times = between.map(|e| e[0].until(&e[1])).collect::<Result<Vec<Duration>>>()?;
        (0..passes.len()).for_each(done);
        Ok(Outcome { times, overflow: self.bad_here.bytes() != [0; size_of::<u32>()] })
    }

    fn write(&mut self, slot: &Slot, bytes: &[u8]) -> Result<()> {
        self.arena.write(slot.offset, bytes)
    }

    fn read(&mut self, reads: &mut [(Slot, &mut [u8])]) -> Result<()> {
        let all: usize = reads.iter().map(|(_, bytes)| bytes.len()).sum();
        if self.staging.bytes().len() < all {
            self.staging = Pinned::new(&self.handle, all)?;
        }
        let mut rest = self.staging.bytes_mut();
        for (slot, bytes) in reads.iter() {
            let (part, tail) = rest.split_at_mut(bytes.len());
            self.arena.read(slot.offset, part)?;
            rest = tail;
        }
        self.handle.wait()?;
        let mut rest = self.staging.bytes();
        for (_, bytes) in reads {
            let (part, tail) = rest.split_at(bytes.len());
            bytes.copy_from_slice(part);
            rest = tail;
        }
        Ok(())
    }

    fn allocated(&self) -> u64 {
        (self.arena.len() + self.picture.len()) as u64 + self.weights.bytes() + self.gemm.bytes()
    }

    fn ceilings(&mut self) -> Result<Ceilings> {
        ceilings::measure(&self.handle, &mut self.gemm)
    }
}
