//! Arguments of kernels, filled in from shapes and slots.

use std::ops::Range;

use super::args::*;
use crate::backend::{AvgGeom, Divisor, Dtype, Filter, PoolGeom, Scaling, Scope, Seed, Sign, Slot, Unary};
use crate::net::{AvgPool, Shape, Window};

/// Where slots are, for some samples.
pub(super) struct Place {
    pub arena: u64,
    pub samples: Range<usize>,
    /// Samples of all batches.
    pub all: usize,
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
    HeadArgs { x, y, classes, bad, count: count as u32, scale: 1.0, ..HeadArgs::NONE }
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

/// Codes of `kernels/eltwise.cu`, in the order of its cases, with the function's parameter.
pub(super) fn unary(f: Unary) -> (u32, f32) {
    match f {
        Unary::Positive => (0, 0.0),
        Unary::Negative => (1, 0.0),
        Unary::Absolute => (2, 0.0),
        Unary::Root => (3, 0.0),
        Unary::Times(s) => (4, s),
        Unary::Plus(s) => (5, s),
        Unary::Sigmoid(s) => (6, s),
        Unary::Tanh(s) => (7, s),
    }
}

/// The same for functions of two numbers.
#[derive(Clone, Copy)]
pub(super) enum Binary {
    Add = 0,
    AddRectified = 1,
    Multiply = 2,
    Larger = 3,
    Damp = 4,
    MaskPositive = 5,
    MaskNegative = 6,
    MaskNonZero = 7,
}

pub(super) fn mask(keep: Sign) -> Binary {
    match keep {
        Sign::Positive => Binary::MaskPositive,
        Sign::Negative => Binary::MaskNegative,
        Sign::NonZero => Binary::MaskNonZero,
    }
}

/// Code of `Divisor` in `kernels/common.cuh` and its ε.
pub(super) fn divisor(by: Divisor) -> (u32, f32) {
    match by {
        Divisor::Signed(eps) => (0, eps),
        Divisor::NonZero => (1, 0.0),
        Divisor::Shifted(eps) => (2, eps),
    }
}

/// Code of `scale` in `kernels/sample.cu`, its ε, and what the lower end is multiplied by.
pub(super) fn scaling(by: Scaling) -> (u32, f32, f32) {
    match by {
        Scaling::MinMax => (0, 0.0, 1.0),
        Scaling::Sum { channels, eps } => (1, eps, channels as f32),
        Scaling::Largest(by) => (2 + divisor(by).0, divisor(by).1, 1.0),
    }
}

/// Code of `Seed` in `kernels/head.cu`.
pub(super) fn seed(seed: Seed) -> u32 {
    match seed {
        Seed::One => 0,
        Seed::Value => 1,
        Seed::Others => 2,
        Seed::Magnitude => 3,
        Seed::OtherMagnitudes => 4,
        Seed::Softmax => 5,
        Seed::OtherSoftmax => 6,
    }
}

/// Code of `Filter` in `kernels/interpolate.cu`.
pub(super) fn filter(filter: Filter) -> u32 {
    match filter {
        Filter::Bilinear => 0,
        Filter::Aligned => 1,
        Filter::Bicubic => 2,
    }
}
