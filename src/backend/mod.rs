//! What the engine needs from a device: memory and a closed set of instructions on it.
//!
//! A *program* is a flat list of [`Instr`]. Its operands are slots of one arena that the plan has laid out, so running
//! a program allocates nothing and can be captured once and replayed. Each backend matches all instructions, so a
//! missing one does not compile.

pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod function;
mod instr;
mod taps;
mod weight;
mod work;

use std::ops::Range;
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::frame::{Frame, Working};
use crate::grid::{FoldPlan, Resample};
pub use function::{Divisor, Scaling, Sign, Unary, rectify};
pub use instr::{Access, AvgGeom, ConvGeom, Filter, Instr, MOST_FACTORS, Picks, PoolGeom, Seed};
pub use weight::{Variant, Vector, WeightRef, WeightSign};
pub use work::{Ceilings, Work};

/// A range of the arena that holds one value of the program for every sample of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// First byte, a multiple of [`ALIGN`].
    pub offset: usize,
    /// Elements of one lane.
    pub len: usize,
    /// Lanes of one sample: 1, or the number of explained classes, or of inputs that the network is run on at once.
    pub lanes: usize,
    /// Type of the elements.
    pub dtype: Dtype,
    /// How it is indexed by sample.
    pub scope: Scope,
}

impl Slot {
    /// Bytes that it has for `samples` samples.
    pub const fn bytes(&self, samples: usize) -> usize {
        let samples = if matches!(self.scope, Scope::Shared) { 1 } else { samples };
        self.len * self.lanes * self.dtype.bytes() * samples
    }
}

/// Alignment of slots in bytes: what matrix products on GPUs take for granted.
pub const ALIGN: usize = 256;

/// Type of a slot's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// Gradients, relevance, probabilities, maps; activations where the backend stores them so.
    F32,
    /// Activations where the backend stores them so.
    F16,
    /// Class indices.
    U32,
    /// Winners of max pooling, counted within the window; colours.
    U8,
}

impl Dtype {
    /// Bytes of one element.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 | Self::U32 => 4,
            Self::F16 => 2,
            Self::U8 => 1,
        }
    }
}

/// How a slot is indexed by sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Sample `s` of the batch at index `s`; contents live within one batch.
    Batch,
    /// Sample `s` of the batch at index `first + s`; contents outlive the batch.
    All,
    /// One value for all samples.
    Shared,
}

/// One instruction of a program and the node it works for, for messages.
#[derive(Debug, Clone, PartialEq)]
pub struct Step<R> {
    /// Name of the node.
    pub node: String,
    /// What to do.
    pub instr: Instr<R>,
}

/// Where patches are cut out and where their maps lie: what a program's unfolding and folding read.
#[derive(Debug, Clone)]
pub struct Tables {
    /// How patches are cut out and scaled.
    pub resample: Resample,
    /// How their maps are put together again.
    pub fold: FoldPlan,
}

impl Tables {
    /// Samples of all batches.
    pub fn samples(&self) -> usize {
        self.resample.rows.patches.len() * self.resample.cols.patches.len()
    }
}

/// How a backend wants the values of a network stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Storage {
    /// Type of activations. Gradients, relevance, probabilities and maps are `F32` everywhere.
    pub activation: Dtype,
    /// Channels of the network's input. Those beyond the third are zeros with weights of zero.
    pub input_channels: usize,
}

/// Part of a program to be run on some samples.
#[derive(Debug, Clone)]
pub struct Pass<'a, P> {
    /// The program.
    pub program: &'a P,
    /// Its steps.
    pub steps: Range<usize>,
    /// The samples, counted among all patches.
    pub samples: Range<usize>,
}

/// What is known after all passes of an explanation have run.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// How long each pass took.
    pub times: Vec<Duration>,
    /// The device saw a value that is infinite or no number. Devices that store in 16 bits must look; others may leave
    /// it to the results.
    pub overflow: bool,
}

/// A device.
pub trait Backend: Send {
    /// Steps made ready for the device.
    type Program: Send;

    /// What the device remembers of passes so as to replay them as one.
    type Recording: Send + Default;

    /// How values are stored.
    fn storage(&self) -> Storage;

    /// Makes the arena at least `bytes` large. Contents are lost if it grows. Does nothing when it is as large already.
    ///
    /// # Errors
    /// When the device has not enough memory; the arena is empty then.
    fn reserve(&mut self, bytes: usize) -> Result<()>;

    /// Makes a program's weights and tables resident and scratch memory large enough.
    ///
    /// # Errors
    /// When the device has not enough memory.
    fn prepare(&mut self, steps: Vec<Step<Slot>>, tables: Tables) -> Result<Self::Program>;

    /// Forgets what was prepared for programs, which will not run again. Weights stay resident.
    fn forget(&mut self);

    /// Makes the working image of a frame, which unfolding reads from now on. `keep` tells whether an overlay will need
    /// the frame itself.
    ///
    /// # Errors
    /// When the device fails.
    fn show(&mut self, frame: &Frame<'_>, working: &Working, keep: bool) -> Result<()>;

    /// Runs one pass.
    ///
    /// # Errors
    /// When the device fails.
    fn run(&mut self, pass: &Pass<'_, Self::Program>) -> Result<()>;

    /// Runs all passes of an explanation in order. A device may record them into `recording`, which is new for new
    /// passes, and replay them later. `done` hears of each pass that is done.
    ///
    /// # Errors
    /// When the device fails.
    fn explain(
        &mut self,
        passes: &[Pass<'_, Self::Program>],
        _recording: &mut Self::Recording,
        done: &mut dyn FnMut(usize),
    ) -> Result<Outcome> {
        let mut times = Vec::with_capacity(passes.len());
        for (i, pass) in passes.iter().enumerate() {
            let start = Instant::now();
            self.run(pass)?;
            times.push(start.elapsed());
            done(i);
        }
        Ok(Outcome { times, overflow: false })
    }

    /// Copies bytes into a slot, from its first element on.
    ///
    /// # Errors
    /// When the device fails.
    fn write(&mut self, slot: &Slot, bytes: &[u8]) -> Result<()>;

    /// Copies bytes out of slots, from the first element of each on.
    ///
    /// # Errors
    /// When the device fails.
    fn read(&mut self, reads: &mut [(Slot, &mut [u8])]) -> Result<()>;

    /// Bytes of the device's memory that this backend holds, weights included where it has copies of them.
    fn allocated(&self) -> u64;

    /// Measures what the device does at best.
    ///
    /// # Errors
    /// When the device fails or has not enough memory.
    fn ceilings(&mut self) -> Result<Ceilings>;
}
