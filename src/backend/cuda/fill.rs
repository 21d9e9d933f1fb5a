//! Arguments of kernels, filled in from shapes and slots.

use std::ops::Range;

use super::args::*;
use super::gemm::Kind;
use crate::backend::taps::Phase;
use crate::backend::{AvgGeom, ConvGeom, Dtype, PoolGeom, Scope, Slot, Variant, WeightRef};
use crate::net::{AvgPool, Shape, Window};

/// Samples for which the algorithms of matrix products are chosen.
const TYPICAL_SAMPLES: usize = 32;

/// Where a product's weight comes from and which kernels can compute it.
pub(super) struct Product<'a> {
    pub w: &'a WeightRef,
    pub source: Shape,
    pub result: Shape,
    pub bias: Option<Variant>,
    pub x: &'a Slot,
    pub add: Option<&'a Slot>,
    pub relu: bool,
    pub y: &'a Slot,
}

/// Where slots are, for some samples.
pub(super) struct Place {
    pub arena: u64,
    pub samples: Range<usize>,
}

impl Place {
    pub fn value(&self, slot: &Slot) -> Value {
        let first = if slot.scope == Scope::All { slot.bytes(self.samples.start) } else { 0 };
        Value {
            data: (self.arena + (slot.offset + first) as u64) as *mut u8,
            len: slot.len as u64,
            half: u32::from(slot.dtype == Dtype::F16),
            lanes: slot.lanes as u32,
        }
    }

    /// Lanes of all samples.
    pub fn count(&self, slot: &Slot) -> usize {
        match slot.scope {
            Scope::Shared => slot.lanes,
            Scope::Batch | Scope::All => slot.lanes * self.samples.len(),
        }
    }
}

/// A convolution that is a plain matrix product over pixels.
pub(super) fn is_plain(g: &ConvGeom) -> bool {
    g.window == Window::square(1, 1, 0)
}

/// The matrix product that a layer is, where cuBLASLt can load its rows in whole vectors.
///
/// The library's rectifier turns what is no number into 0 and tells nobody of overflows. Convolutions lie between own
/// kernels, which see infinities; chains of linear layers (`linear`) do not, so they are rectified by an own kernel.
pub(super) fn kind(product: &Product<'_>, linear: bool) -> Option<Kind> {
    let (inputs, outputs) = (product.source.c, product.result.c);
    let whole = inputs.is_multiple_of(8) && outputs.is_multiple_of(8);
    whole.then(|| Kind {
        typical_rows: product.result.h * product.result.w * TYPICAL_SAMPLES,
        outputs,
        inputs,
        transposed: linear,
        half: product.y.dtype == Dtype::F16,
        bias: product.bias.is_some(),
        add: product.add.is_some(),
        relu: product.relu && !linear,
    })
}

/// A linear layer as a convolution of a single pixel.
pub(super) fn point(source: Shape) -> Phase {
    let one = [1, 1];
    Phase { origin: [0, 0], step: one, h: 1, w: 1, stride: one, first: [0, 0], taps: one, weight: 0, depth: source.c }
}

fn window_args(window: &Window) -> [i32; 6] {
    let [kernel, stride, pad] = [window.kernel, window.stride, window.pad].map(|axis| axis.map(|n| n as i32));
    [kernel[0], kernel[1], stride[0], stride[1], pad[0], pad[1]]
}

pub(super) fn pool(g: &PoolGeom, count: usize) -> PoolArgs {
    let [kernel_y, kernel_x, stride_y, stride_x, pad_y, pad_x] = window_args(&g.window);
    let ([xh, xw, yh, yw, c], count) = (sizes(g.x, g.y), count as u32);
    let none = PoolArgs::NONE;
    PoolArgs { xh, xw, yh, yw, c, kernel_y, kernel_x, stride_y, stride_x, pad_y, pad_x, count, ..none }
}

pub(super) fn average(g: &AvgGeom, count: usize) -> AverageArgs {
    let (window, adaptive) = match &g.pool {
        AvgPool::Window(window) => (*window, 0),
        AvgPool::Adaptive(..) => (Window::square(1, 1, 0), 1),
    };
    let [kernel_y, kernel_x, stride_y, stride_x, pad_y, pad_x] = window_args(&window);
    let ([xh, xw, yh, yw, c], count) = (sizes(g.x, g.y), count as u32);
    let none = AverageArgs::NONE;
    AverageArgs { xh, xw, yh, yw, c, kernel_y, kernel_x, stride_y, stride_x, pad_y, pad_x, adaptive, count, ..none }
}

/// Rows and columns of a pooling's input and result, and their channels.
fn sizes(x: Shape, y: Shape) -> [i32; 5] {
    [x.h, x.w, y.h, y.w, y.c].map(|n| n as i32)
}

pub(super) fn head(x: Value, y: Value, classes: Option<Value>, bad: *mut u32, count: usize) -> HeadArgs {
    let classes = classes.map_or(std::ptr::null_mut(), |c| c.data.cast());
    HeadArgs { x, y, classes, w: std::ptr::null(), bad, count: count as u32, k: 0, scale: 1.0, unused: 0 }
}

pub(super) fn channel(
    x: Value,
    weights: Value,
    y: Value,
    bad: *mut u32,
    pixels: usize,
    channels: usize,
    count: usize,
) -> ChannelArgs {
    let (pixels, channels, count) = (pixels as u32, channels as u32, count as u32);
    ChannelArgs { x, weights, y, bad, pixels, channels, count, scale: 1.0 }
}

pub(super) fn map(from: (usize, usize), to: (usize, usize), x: Value, range: Value, y: Value) -> MapArgs {
    MapArgs {
        x: x.data.cast(),
        range: range.data.cast(),
        y: y.data.cast(),
        from_h: from.0 as u32,
        from_w: from.1 as u32,
        h: to.0 as u32,
        w: to.1 as u32,
        lanes: x.lanes,
        flag: 0,
        weights: [0.0; 5],
        unused: 0,
    }
}
