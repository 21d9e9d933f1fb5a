//! The closed set of instructions, and what they take besides operands.

use std::sync::Arc;

use super::{Divisor, Scaling, Sign, Unary, Variant, Vector, WeightRef};
use crate::methods::Level;
use crate::net::{AvgPool, ParamId, Shape, Window};

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

impl ConvGeom {
    /// Multiplications of the plain definition, in either direction.
    pub fn products(&self) -> usize {
        self.y.len() * self.window.kernel[0] * self.window.kernel[1] * self.x.c
    }
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

/// How a value is resampled (`methods.md` 1.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// Bilinear with half-pixel centres.
    Bilinear,
    /// Bilinear with corners on corners.
    Aligned,
    /// Bicubic with half-pixel centres, a = −0.75.
    Bicubic,
}

/// Pixels of one value that make up another, row by row and column by column.
#[derive(Debug, Clone, PartialEq)]
pub struct Picks {
    /// Shape of the value that they are taken from.
    pub from: Shape,
    /// Shape of a result.
    pub to: Shape,
    /// The row that each row of a result is, for every row of patches.
    pub rows: Arc<[u32]>,
    /// The column that each column of a result is, for every column of patches.
    pub cols: Arc<[u32]>,
    /// What a result has [outside](Self::OUTSIDE).
    pub fill: f32,
}

impl Picks {
    /// A row or column that is none of the value's.
    pub const OUTSIDE: u32 = u32::MAX;

    /// Rows and columns of one patch.
    pub fn of(&self, patch: usize) -> (&[u32], &[u32]) {
        let (h, w) = (self.to.h, self.to.w);
        let columns = self.cols.len() / w;
        (&self.rows[patch / columns * h..][..h], &self.cols[patch % columns * w..][..w])
    }
}

/// Most factors of [`Instr::LaneScale`].
pub const MOST_FACTORS: usize = 8;

/// Values at the network's output from which a walk down starts; zero everywhere else. `k` is the explained class, `K`
/// the number of classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seed {
    /// 1 at k.
    One,
    /// xₖ at k.
    Value,
    /// xₖ / (K − 1) at every other class.
    Others,
    /// |xₖ| at k.
    Magnitude,
    /// |xⱼ| at every other class j.
    OtherMagnitudes,
    /// Of probabilities x: xₖ·Σⱼ xⱼ + 1e-8 at k, the sum being over the other classes.
    Softmax,
    /// Of probabilities x: xₖ·xⱼ at every other class j.
    OtherSoftmax,
}

/// One operation. `R` is a register while a program is written and a [`Slot`](super::Slot) once it is laid out.
///
/// Shapes are of one sample. Operands of one lane are broadcast over the lanes of the result. `add` is a term of the
/// result's shape that is added to it: the residual in a forward pass, the other readers' share in a backward pass.
#[derive(Debug, Clone, PartialEq)]
pub enum Instr<R> {
    /// Patches of the working image (u8, RGB): crop, resize, normalise. `[S, h, w, 3]`
    Unfold { image: (usize, usize), y: R },
    /// `y = relu?(w*x + bias + add)`
    Conv { g: ConvGeom, w: WeightRef, bias: Option<Variant>, x: R, add: Option<R>, relu: bool, y: R },
    /// `y = scale · r / (w*x + bias + add)`, kept finite by `by`.
    Quotient {
        g: ConvGeom,
        w: WeightRef,
        bias: Option<Variant>,
        x: R,
        add: Option<R>,
        r: R,
        by: Divisor,
        scale: f32,
        y: R,
    },
    /// `dx = mul ⊙ (wᵀ*dy) + add`; `exact`: a device that rounds `dy` keeps 23 bits of it.
    ConvBack { g: ConvGeom, w: WeightRef, exact: bool, dy: R, mul: Option<R>, add: Option<R>, dx: R },
    /// `y = relu?(W·x + bias + add)`
    Linear { w: WeightRef, bias: Option<Variant>, x: R, add: Option<R>, relu: bool, y: R },
    /// `dx = mul ⊙ (Wᵀ·dy) + add`; `exact` as of `ConvBack`.
    LinearBack { w: WeightRef, exact: bool, dy: R, mul: Option<R>, add: Option<R>, dx: R },
    /// Weight `v` by which input and result correlate: the convolution's weight gradient, sample by sample.
    /// `[kernel rows, kernel columns, x channels, y channels]`
    Correlate { g: ConvGeom, x: R, dy: R, v: R },
    /// `y = v*x`, each sample by its own weight.
    ConvBy { g: ConvGeom, v: R, x: R, y: R },
    /// `dx = mul ⊙ (vᵀ*dy) + add`, each sample by its own weight.
    ConvBackBy { g: ConvGeom, v: R, dy: R, mul: Option<R>, add: Option<R>, dx: R },
    /// Maximum of each window and, when asked for, which pixel of the window was the first to hold it.
    MaxPool { g: PoolGeom, x: R, y: R, index: Option<R> },
    /// Sends `dy` to the winners and adds `add`.
    MaxPoolBack { g: PoolGeom, index: R, dy: R, add: Option<R>, dx: R },
    /// Mean of each bin.
    AvgPool { g: AvgGeom, x: R, y: R },
    /// `dx = mul ⊙ (poolᵀ dy) + add`
    AvgPoolBack { g: AvgGeom, dy: R, mul: Option<R>, add: Option<R>, dx: R },
    /// `y = f(x)`
    Unary { f: Unary, x: R, y: R },
    /// `y = r·[x passes keep] + add`
    Mask { keep: Sign, x: R, r: R, add: Option<R>, y: R },
    /// `y = relu?(a + b)`
    Add { a: R, b: R, relu: bool, y: R },
    /// `y = x ⊙ c + add`
    Multiply { x: R, c: R, add: Option<R>, y: R },
    /// `y = scale · r / (z + z2)`, kept finite by `by`.
    Divide { r: R, z: R, z2: Option<R>, by: Divisor, scale: f32, y: R },
    /// `ya = a ⊙ c` and `yb = b ⊙ c` with `c = r / (a + b)`, kept finite by `by`. With `whole`, the operand `a` is the sum
    /// `a + b` itself.
    Split { a: R, b: R, whole: bool, r: R, by: Divisor, ya: R, yb: R },
    /// `y = max(a, b)`
    Larger { a: R, b: R, y: R },
    /// `y = x / (1 + exp(−c))`
    Damp { x: R, c: R, y: R },
    /// Reorders (row, column, channel) to (channel, row, column).
    Flatten { x: Shape, from: R, y: R },
    /// Reorders (channel, row, column) to (row, column, channel) and adds `add`.
    FlattenBack { x: Shape, dy: R, add: Option<R>, dx: R },
    /// `p = softmax(logits)`
    Softmax { logits: R, p: R },
    /// Indices (u32) of the largest values of the first sample, largest first; of equal ones the first.
    TopK { p: R, k: usize, classes: R },
    /// `y[class] = p[class]` for each explained class.
    Pick { p: R, classes: R, y: R },
    /// Where a walk down starts, from the logits or probabilities `x` where it needs them.
    Seed { classes: R, seed: Seed, x: Option<R>, y: R },
    /// Gradient of AGF's head at the logits (`methods.md` 14).
    HeadGradient { logits: R, classes: R, y: R },
    /// RAP's shares of the explained class's logit from the products `q = x ⊙ W[class]` of a linear layer with biases
    /// (`methods.md` 12).
    HeadShares { q: R, classes: R, param: ParamId, y: R },
    /// Row of each explained class in a linear layer, times `scale`.
    ClassRow { w: WeightRef, classes: R, scale: f32, y: R },
    /// A vector of a layer's parameters.
    Vector { param: ParamId, vector: Vector, y: R },
    /// `y[pixel, c] = values[c]`
    Fill { values: [f32; 4], channels: usize, y: R },
    /// `y[pixel, c] = −range[upper]` of the sample in the first `channels.1` of `channels.0` channels, 0 in the others.
    Bound { range: R, upper: bool, channels: (usize, usize), y: R },
    /// `y = x + σ·(hi − lo)·n` with the range `lo..hi` and normal numbers n, which depend on seed, draw, patch and element.
    /// Lane l of the result is draw `draw + l`.
    Perturb { x: R, range: R, sigma: f32, seed: u64, draw: u32, channels: (usize, usize), y: R },
    /// `y[lane] = factors[lane mod n]·x[lane]` by n factors, [`MOST_FACTORS`] at most.
    LaneScale { x: R, factors: Arc<[f32]>, y: R },
    /// `y[lane] = add + Σ x[lane·n..(lane + 1)·n]` where x has n times as many lanes, term after term.
    LaneSum { x: R, add: Option<R>, y: R },
    /// `y[c] = scale · Σ_pixel x[pixel, c]`
    PixelSum { x: R, channels: usize, scale: f32, y: R },
    /// `y[pixel] = Σ_c x[pixel, c]·weights[c]`, or without weights the plain sum.
    ChannelSum { x: R, channels: usize, weights: Option<R>, y: R },
    /// `y[pixel, c] = x[pixel, c]·weights[c]`
    ChannelScale { x: R, channels: usize, weights: R, y: R },
    /// `y[pixel] = max_c |x[pixel, c]|`
    ChannelMax { x: R, channels: usize, y: R },
    /// `y[pixel, c] = x[pixel]`
    Spread { x: R, channels: usize, y: R },
    /// Sum of all values of each lane, and how many are not zero. `[2]`
    Totals { x: R, y: R },
    /// `y = x − [mask ≠ 0]·(Σfrom − Σto) / n`: moves a total onto the `n` values that `count` counts. `from`, `to` and
    /// `count` are results of `Totals`; without `to` its sum is 0.
    Shift { x: R, mask: R, count: R, from: R, to: Option<R>, y: R },
    /// `y = x − other·(Σx / Σother)`, x where Σother = 0. The totals are results of `Totals`.
    Contrast { x: R, other: R, total: R, other_total: R, y: R },
    /// Two-factor fit of `x` `[pixels, channels]` by the sign of a map `phi` `[pixels]` (`methods.md` 14, `fact`): what
    /// speaks for positive pixels less what speaks for negative ones. `[pixels]`
    Factor { x: R, channels: usize, phi: R, y: R },
    /// Pixels of `x`, which all samples share, that each sample's `y` is made of.
    Gather { picks: Picks, x: R, y: R },
    /// Copies a value of the batch to its place among all patches.
    Keep { x: R, y: R },
    /// Weighs the maps of all patches by `exp(p)`, scales them back and adds them where they lie (`methods.md`
    /// sections 3.2 and 3.3). A gather: each pixel sums the patches that cover it, in their order.
    Fold { maps: R, p: R, map: (usize, usize), y: R },
    /// Smallest and largest value of each lane over the first `channels.1` of every `channels.0` channels. `[2]`
    Range { x: R, channels: (usize, usize), y: R },
    /// `y = scale·resized + add`: channels `first..first + count` of `x`, resampled to the size `to`.
    Resize {
        from: Shape,
        slice: (usize, usize),
        to: (usize, usize),
        filter: Filter,
        scale: f32,
        x: R,
        add: Option<R>,
        y: R,
    },
    /// Values scaled by a range of their lane.
    Scale { by: Scaling, x: R, range: R, y: R },
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

impl<R: std::fmt::Debug> Instr<R> {
    /// Its name, and of a convolution kernel and stride: `ConvBack 3x3/1`.
    pub fn name(&self) -> String {
        let name: String = format!("{self:?}").chars().take_while(char::is_ascii_alphanumeric).collect();
        match self {
            Self::Conv { g, .. } | Self::Quotient { g, .. } | Self::ConvBack { g, .. } => {
                let Window { kernel, stride, .. } = g.window;
                format!("{name} {}x{}/{}", kernel[0], kernel[1], stride[0])
            }
            _ => name,
        }
    }
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
            I::Quotient { g, w, bias, x, add, r, by, scale, y } => { read!(x, r); in_place_opt!(add); write!(y); I::Quotient { g, w, bias, x, add, r, by, scale, y } }
            I::ConvBack { g, w, exact, dy, mul, add, dx } => { read!(dy); read_opt!(mul); in_place_opt!(add); write!(dx); I::ConvBack { g, w, exact, dy, mul, add, dx } }
            I::Linear { w, bias, x, add, relu, y } => { read!(x); in_place_opt!(add); write!(y); I::Linear { w, bias, x, add, relu, y } }
            I::LinearBack { w, exact, dy, mul, add, dx } => { read!(dy); read_opt!(mul); in_place_opt!(add); write!(dx); I::LinearBack { w, exact, dy, mul, add, dx } }
            I::Correlate { g, x, dy, v } => { read!(x, dy); write!(v); I::Correlate { g, x, dy, v } }
            I::ConvBy { g, v, x, y } => { read!(v, x); write!(y); I::ConvBy { g, v, x, y } }
            I::ConvBackBy { g, v, dy, mul, add, dx } => { read!(v, dy); read_opt!(mul); in_place_opt!(add); write!(dx); I::ConvBackBy { g, v, dy, mul, add, dx } }
            I::MaxPool { g, x, y, index } => { read!(x); write!(y); let index = index.map(|i| f(i, Write)); I::MaxPool { g, x, y, index } }
            I::MaxPoolBack { g, index, dy, add, dx } => { read!(index, dy); in_place_opt!(add); write!(dx); I::MaxPoolBack { g, index, dy, add, dx } }
            I::AvgPool { g, x, y } => { read!(x); write!(y); I::AvgPool { g, x, y } }
            I::AvgPoolBack { g, dy, mul, add, dx } => { read!(dy); read_opt!(mul); in_place_opt!(add); write!(dx); I::AvgPoolBack { g, dy, mul, add, dx } }
            I::Unary { f: function, x, y } => { read!(x); write!(y); I::Unary { f: function, x, y } }
            I::Mask { keep, x, r, add, y } => { read!(x, r); in_place_opt!(add); write!(y); I::Mask { keep, x, r, add, y } }
            I::Add { a, b, relu, y } => { read!(a, b); write!(y); I::Add { a, b, relu, y } }
            I::Multiply { x, c, add, y } => { read!(x, c); in_place_opt!(add); write!(y); I::Multiply { x, c, add, y } }
            I::Divide { r, z, z2, by, scale, y } => { read!(r, z); read_opt!(z2); write!(y); I::Divide { r, z, z2, by, scale, y } }
            I::Split { a, b, whole, r, by, ya, yb } => { read!(a, b, r); write!(ya, yb); I::Split { a, b, whole, r, by, ya, yb } }
            I::Larger { a, b, y } => { read!(a, b); write!(y); I::Larger { a, b, y } }
            I::Damp { x, c, y } => { read!(x, c); write!(y); I::Damp { x, c, y } }
            I::Flatten { x, from, y } => { read!(from); write!(y); I::Flatten { x, from, y } }
            I::FlattenBack { x, dy, add, dx } => { read!(dy); in_place_opt!(add); write!(dx); I::FlattenBack { x, dy, add, dx } }
            I::Softmax { logits, p } => { read!(logits); write!(p); I::Softmax { logits, p } }
            I::TopK { p, k, classes } => { read!(p); write!(classes); I::TopK { p, k, classes } }
            I::Pick { p, classes, y } => { read!(p, classes); write!(y); I::Pick { p, classes, y } }
            I::Seed { classes, seed, x, y } => { read!(classes); read_opt!(x); write!(y); I::Seed { classes, seed, x, y } }
            I::HeadGradient { logits, classes, y } => { read!(logits, classes); write!(y); I::HeadGradient { logits, classes, y } }
            I::HeadShares { q, classes, param, y } => { read!(q, classes); write!(y); I::HeadShares { q, classes, param, y } }
            I::ClassRow { w, classes, scale, y } => { read!(classes); write!(y); I::ClassRow { w, classes, scale, y } }
            I::Vector { param, vector, y } => { write!(y); I::Vector { param, vector, y } }
            I::Fill { values, channels, y } => { write!(y); I::Fill { values, channels, y } }
            I::Bound { range, upper, channels, y } => { read!(range); write!(y); I::Bound { range, upper, channels, y } }
            I::Perturb { x, range, sigma, seed, draw, channels, y } => { read!(x, range); write!(y); I::Perturb { x, range, sigma, seed, draw, channels, y } }
            I::LaneScale { x, factors, y } => { read!(x); write!(y); I::LaneScale { x, factors, y } }
            I::LaneSum { x, add, y } => { read!(x); in_place_opt!(add); write!(y); I::LaneSum { x, add, y } }
            I::PixelSum { x, channels, scale, y } => { read!(x); write!(y); I::PixelSum { x, channels, scale, y } }
            I::ChannelSum { x, channels, weights, y } => { read!(x); read_opt!(weights); write!(y); I::ChannelSum { x, channels, weights, y } }
            I::ChannelScale { x, channels, weights, y } => { read!(x, weights); write!(y); I::ChannelScale { x, channels, weights, y } }
            I::ChannelMax { x, channels, y } => { read!(x); write!(y); I::ChannelMax { x, channels, y } }
            I::Spread { x, channels, y } => { read!(x); write!(y); I::Spread { x, channels, y } }
            I::Totals { x, y } => { read!(x); write!(y); I::Totals { x, y } }
            I::Shift { x, mask, count, from, to, y } => { read!(x, mask, count, from); read_opt!(to); write!(y); I::Shift { x, mask, count, from, to, y } }
            I::Contrast { x, other, total, other_total, y } => { read!(x, other, total, other_total); write!(y); I::Contrast { x, other, total, other_total, y } }
            I::Factor { x, channels, phi, y } => { read!(x, phi); write!(y); I::Factor { x, channels, phi, y } }
            I::Gather { picks, x, y } => { read!(x); write!(y); I::Gather { picks, x, y } }
            I::Keep { x, y } => { read!(x); write!(y); I::Keep { x, y } }
            I::Fold { maps, p, map, y } => { read!(maps, p); write!(y); I::Fold { maps, p, map, y } }
            I::Range { x, channels, y } => { read!(x); write!(y); I::Range { x, channels, y } }
            I::Resize { from, slice, to, filter, scale, x, add, y } => { read!(x); in_place_opt!(add); write!(y); I::Resize { from, slice, to, filter, scale, x, add, y } }
            I::Scale { by, x, range, y } => { read!(x, range); write!(y); I::Scale { by, x, range, y } }
            I::Blur { size, vertical, x, y } => { read!(x); write!(y); I::Blur { size, vertical, x, y } }
            I::Overlay { size, photo, source, level, x, range, y } => { read!(x, range); write!(y); I::Overlay { size, photo, source, level, x, range, y } }
        }
    }
}
