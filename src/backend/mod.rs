//! What the engine needs from a device: memory and a closed set of instructions on it.
//!
//! A *program* is a flat list of [`Instr`]. Its operands are slots of one arena that the plan has laid out, so running
//! a program allocates nothing and can be captured once and replayed. Each backend matches all instructions, so a
//! missing one does not compile.

pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod taps;
mod work;

use std::ops::Range;
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::frame::{Frame, Working};
use crate::grid::{FoldPlan, Resample};
use crate::methods::Level;
use crate::net::{AvgPool, ParamId, Shape, Window};
pub use work::{Ceilings, Work};

/// A range of the arena that holds one value of the program for every sample of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// First byte, a multiple of [`ALIGN`].
    pub offset: usize,
    /// Elements of one lane.
    pub len: usize,
    /// Lanes of one sample: 1, or the number of explained classes.
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

/// A view of a weight. Rules of relevance propagation split weights by sign and never touch them otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Variant {
    /// As trained.
    Plain,
    /// max(w, 0).
    Positive,
    /// min(w, 0).
    Negative,
}

impl Variant {
    /// The variant of one value.
    pub fn of(self, w: f32) -> f32 {
        match self {
            Self::Plain => w,
            Self::Positive => w.max(0.0),
            Self::Negative => w.min(0.0),
        }
    }
}

/// A weight in one of its variants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WeightRef {
    /// The layer's parameters.
    pub param: ParamId,
    /// Which view of them.
    pub variant: Variant,
}

/// A convolution between two shapes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConvGeom {
    /// Kernel, stride, padding.
    pub window: Window,
    /// Shape of the input.
    pub x: Shape,
    /// Shape of the output.
    pub y: Shape,
}

/// A max pooling between two shapes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PoolGeom {
    /// Kernel, stride, padding.
    pub window: Window,
    /// Shape of the input.
    pub x: Shape,
    /// Shape of the output.
    pub y: Shape,
}

/// An average pooling between two shapes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AvgGeom {
    /// The bins.
    pub pool: AvgPool,
    /// Shape of the input.
    pub x: Shape,
    /// Shape of the output.
    pub y: Shape,
}

/// One operation. `R` is a register while a program is written and a [`Slot`] once it is laid out.
///
/// Shapes are of one sample. Operands of one lane are broadcast over the lanes of the result. `add` is a term of the
/// result's shape that is added to it: the residual in a forward pass, the other readers' share in a backward pass.
#[derive(Debug, Clone, PartialEq)]
pub enum Instr<R> {
    /// Patches of the working image (u8, RGB): crop, resize, normalise. `[S, h, w, 3]`
    Unfold { image: (usize, usize), y: R },
    /// `y = relu?(w*x + bias + add)`
    Conv { g: ConvGeom, w: WeightRef, bias: Option<Variant>, x: R, add: Option<R>, relu: bool, y: R },
    /// `dx = mul ⊙ (wᵀ*dy) + add`
    ConvBack { g: ConvGeom, w: WeightRef, dy: R, mul: Option<R>, add: Option<R>, dx: R },
    /// `y = relu?(W·x + bias + add)`
    Linear { w: WeightRef, bias: Option<Variant>, x: R, add: Option<R>, relu: bool, y: R },
    /// `dx = mul ⊙ (Wᵀ·dy) + add`
    LinearBack { w: WeightRef, dy: R, mul: Option<R>, add: Option<R>, dx: R },
    /// Maximum of each window and, when asked for, which pixel of the window was the first to hold it.
    MaxPool { g: PoolGeom, x: R, y: R, index: Option<R> },
    /// Sends `dy` to the winners and adds `add`.
    MaxPoolBack { g: PoolGeom, index: R, dy: R, add: Option<R>, dx: R },
    /// Mean of each bin.
    AvgPool { g: AvgGeom, x: R, y: R },
    /// `dx = mul ⊙ (poolᵀ dy) + add`
    AvgPoolBack { g: AvgGeom, dy: R, mul: Option<R>, add: Option<R>, dx: R },
    /// `y = max(x, 0)`, see [`rectify`].
    Relu { x: R, y: R },
    /// `dx = dy · [y > 0] + add`, `y` being the rectifier's output
    ReluBack { y: R, dy: R, add: Option<R>, dx: R },
    /// `y = relu?(a + b)`
    Add { a: R, b: R, relu: bool, y: R },
    /// Reorders (row, column, channel) to (channel, row, column).
    Flatten { x: Shape, from: R, y: R },
    /// Reorders (channel, row, column) to (row, column, channel) and adds `add`.
    FlattenBack { x: Shape, dy: R, add: Option<R>, dx: R },
    /// `y = r / stabilised(z + z2)`, see [`stabilise`].
    Divide { r: R, z: R, z2: Option<R>, eps: f32, y: R },
    /// `y = x ⊙ c + add`
    Multiply { x: R, c: R, add: Option<R>, y: R },
    /// `y = max(x, 0)` or `y = min(x, 0)`
    Part { x: R, positive: bool, y: R },
    /// `p = softmax(logits)`
    Softmax { logits: R, p: R },
    /// Indices (u32) of the largest values of the first sample, largest first; of equal ones the first.
    TopK { p: R, k: usize, classes: R },
    /// `y[class] = p[class]` for each explained class.
    Pick { p: R, classes: R, y: R },
    /// Zero but at the explained class: 1, or the class's `value`.
    Seed { classes: R, value: Option<R>, y: R },
    /// `y[c] = scale · Σ_pixel x[pixel, c]`
    PixelSum { x: R, channels: usize, scale: f32, y: R },
    /// Row of each explained class in a linear layer, times `scale`.
    ClassRow { w: WeightRef, classes: R, scale: f32, y: R },
    /// `y[pixel] = Σ_c x[pixel, c]·weights[c]`, or without weights the plain sum.
    ChannelSum { x: R, channels: usize, weights: Option<R>, y: R },
    /// `y[pixel, c] = x[pixel, c]·weights[c]`
    ChannelScale { x: R, channels: usize, weights: R, y: R },
    /// `y[pixel] = max_c |x[pixel, c]|`
    ChannelMax { x: R, channels: usize, y: R },
    /// Copies a value of the batch to its place among all patches.
    Keep { x: R, y: R },
    /// Weighs the maps of all patches by `exp(p)`, scales them back and adds them where they lie (`methods.md`
    /// sections 3.2 and 3.3). A gather: each pixel sums the patches that cover it, in their order.
    Fold { maps: R, p: R, map: (usize, usize), y: R },
    /// Smallest and largest value of each lane.
    Range { x: R, y: R },
    /// A map of `from` (rows, columns) at the size `to`, bilinear (`methods.md` 1.4).
    ResizeMap { from: (usize, usize), to: (usize, usize), x: R, y: R },
    /// A map scaled by its range to 0..1; zeros where all values are equal.
    MinMax { x: R, range: R, y: R },
    /// Five taps of a Gaussian with σ = 3 along one axis (`methods.md` 1.5).
    Blur { size: (usize, usize), vertical: bool, x: R, y: R },
    /// The photo with the map of `size` over it: `render::overlay`, which says what `source` is. `[h, w, 3]`
    Overlay { size: (usize, usize), photo: (usize, usize), source: [f64; 4], level: Level, x: R, range: R, y: R },
}

/// How an instruction touches an operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reads it.
    Read,
    /// Reads each element only to add it to the result's: the result may take its memory.
    ReadInPlace,
    /// Writes all of it.
    Write,
}

impl<R> Instr<R> {
    /// The same instruction with every operand replaced, inputs before results.
    #[rustfmt::skip]
    pub fn map<S>(self, mut f: impl FnMut(R, Access) -> S) -> Instr<S> {
        use Access::{Read, ReadInPlace, Write};
        use Instr as I;
        macro_rules! read { ($($x:ident),*) => { $(let $x = f($x, Read);)* }; }
        macro_rules! read_opt { ($($x:ident),*) => { $(let $x = $x.map(|x| f(x, Read));)* }; }
        macro_rules! in_place_opt { ($($x:ident),*) => { $(let $x = $x.map(|x| f(x, ReadInPlace));)* }; }
        macro_rules! write { ($($x:ident),*) => { $(let $x = f($x, Write);)* }; }
        match self {
            I::Unfold { image, y } => { write!(y); I::Unfold { image, y } }
            I::Conv { g, w, bias, x, add, relu, y } => { read!(x); in_place_opt!(add); write!(y); I::Conv { g, w, bias, x, add, relu, y } }
            I::ConvBack { g, w, dy, mul, add, dx } => { read!(dy); read_opt!(mul); in_place_opt!(add); write!(dx); I::ConvBack { g, w, dy, mul, add, dx } }
            I::Linear { w, bias, x, add, relu, y } => { read!(x); in_place_opt!(add); write!(y); I::Linear { w, bias, x, add, relu, y } }
            I::LinearBack { w, dy, mul, add, dx } => { read!(dy); read_opt!(mul); in_place_opt!(add); write!(dx); I::LinearBack { w, dy, mul, add, dx } }
            I::MaxPool { g, x, y, index } => { read!(x); write!(y); let index = index.map(|i| f(i, Write)); I::MaxPool { g, x, y, index } }
            I::MaxPoolBack { g, index, dy, add, dx } => { read!(index, dy); in_place_opt!(add); write!(dx); I::MaxPoolBack { g, index, dy, add, dx } }
            I::AvgPool { g, x, y } => { read!(x); write!(y); I::AvgPool { g, x, y } }
            I::AvgPoolBack { g, dy, mul, add, dx } => { read!(dy); read_opt!(mul); in_place_opt!(add); write!(dx); I::AvgPoolBack { g, dy, mul, add, dx } }
            I::Relu { x, y } => { read!(x); write!(y); I::Relu { x, y } }
            I::ReluBack { y, dy, add, dx } => { read!(y, dy); in_place_opt!(add); write!(dx); I::ReluBack { y, dy, add, dx } }
            I::Add { a, b, relu, y } => { read!(a, b); write!(y); I::Add { a, b, relu, y } }
            I::Flatten { x, from, y } => { read!(from); write!(y); I::Flatten { x, from, y } }
            I::FlattenBack { x, dy, add, dx } => { read!(dy); in_place_opt!(add); write!(dx); I::FlattenBack { x, dy, add, dx } }
            I::Divide { r, z, z2, eps, y } => { read!(r, z); read_opt!(z2); write!(y); I::Divide { r, z, z2, eps, y } }
            I::Multiply { x, c, add, y } => { read!(x, c); in_place_opt!(add); write!(y); I::Multiply { x, c, add, y } }
            I::Part { x, positive, y } => { read!(x); write!(y); I::Part { x, positive, y } }
            I::Softmax { logits, p } => { read!(logits); write!(p); I::Softmax { logits, p } }
            I::TopK { p, k, classes } => { read!(p); write!(classes); I::TopK { p, k, classes } }
            I::Pick { p, classes, y } => { read!(p, classes); write!(y); I::Pick { p, classes, y } }
            I::Seed { classes, value, y } => { read!(classes); read_opt!(value); write!(y); I::Seed { classes, value, y } }
            I::PixelSum { x, channels, scale, y } => { read!(x); write!(y); I::PixelSum { x, channels, scale, y } }
            I::ClassRow { w, classes, scale, y } => { read!(classes); write!(y); I::ClassRow { w, classes, scale, y } }
            I::ChannelSum { x, channels, weights, y } => { read!(x); read_opt!(weights); write!(y); I::ChannelSum { x, channels, weights, y } }
            I::ChannelScale { x, channels, weights, y } => { read!(x, weights); write!(y); I::ChannelScale { x, channels, weights, y } }
            I::ChannelMax { x, channels, y } => { read!(x); write!(y); I::ChannelMax { x, channels, y } }
            I::Keep { x, y } => { read!(x); write!(y); I::Keep { x, y } }
            I::Fold { maps, p, map, y } => { read!(maps, p); write!(y); I::Fold { maps, p, map, y } }
            I::Range { x, y } => { read!(x); write!(y); I::Range { x, y } }
            I::ResizeMap { from, to, x, y } => { read!(x); write!(y); I::ResizeMap { from, to, x, y } }
            I::MinMax { x, range, y } => { read!(x, range); write!(y); I::MinMax { x, range, y } }
            I::Blur { size, vertical, x, y } => { read!(x); write!(y); I::Blur { size, vertical, x, y } }
            I::Overlay { size, photo, source, level, x, range, y } => { read!(x, range); write!(y); I::Overlay { size, photo, source, level, x, range, y } }
        }
    }
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

/// max(v, 0), but what is no number stays so, as in torch: a rectifier must not hide that a network's values overflowed.
pub fn rectify(v: f32) -> f32 {
    if v < 0.0 { 0.0 } else { v }
}

/// `z + eps·sign(z)` with sign(0) = 1: bounds a quotient without changing the sign of its divisor (`divs` of
/// `methods.md` 1.2). Always in 32 bits: 1e-6 is below the smallest normal number of 16.
pub fn stabilise(z: f32, eps: f32) -> f32 {
    if z >= 0.0 { z + eps } else { z - eps }
}
