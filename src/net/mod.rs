//! The network: a flat list of nodes over a closed set of operations.

mod builder;
mod graph;
mod params;
mod tensors;

pub use builder::{Builder, TensorList};
pub use graph::{Graph, Node, NodeId};
pub use params::{Norm, PANEL, Param, ParamId, Values};
pub use tensors::{Dtype, Metadata, TensorInfo, Tensors};

use crate::error::{ErrorKind, Result};

/// Shape of one sample's activation: rows, columns, channels. Stored row-major with channels innermost (NHWC).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Rows.
    pub h: usize,
    /// Columns.
    pub w: usize,
    /// Channels.
    pub c: usize,
}

impl Shape {
    /// A shape of `h` × `w` pixels with `c` channels.
    pub const fn new(h: usize, w: usize, c: usize) -> Self {
        Self { h, w, c }
    }

    /// Number of values.
    pub const fn len(&self) -> usize {
        self.h * self.w * self.c
    }

    /// True when there is no value.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A sliding window: kernel size, stride and zero padding, each `[rows, columns]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Window {
    /// Kernel size.
    pub kernel: [usize; 2],
    /// Step between windows.
    pub stride: [usize; 2],
    /// Padding on each side.
    pub pad: [usize; 2],
}

impl Window {
    /// The same size, stride and padding on both axes.
    pub const fn square(kernel: usize, stride: usize, pad: usize) -> Self {
        Self { kernel: [kernel; 2], stride: [stride; 2], pad: [pad; 2] }
    }

    /// Number of windows over `(h, w)` pixels, rounded down; `None` when the kernel is larger than the padded input.
    pub fn output(&self, h: usize, w: usize) -> Option<(usize, usize)> {
        let axis = |n: usize, a: usize| Some((n + 2 * self.pad[a]).checked_sub(self.kernel[a])? / self.stride[a] + 1);
        Some((axis(h, 0)?, axis(w, 1)?))
    }
}

/// Average pooling, either a sliding window or torch's adaptive bins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AvgPool {
    /// Sliding window; the divisor is the whole kernel, padding included (torch's `count_include_pad`).
    Window(Window),
    /// As many bins as given; bins overlap when the input is not a multiple.
    Adaptive(usize, usize),
}

impl AvgPool {
    /// Number of bins over `(h, w)` pixels.
    pub fn output(&self, h: usize, w: usize) -> Option<(usize, usize)> {
        match self {
            Self::Window(window) => window.output(h, w),
            Self::Adaptive(bh, bw) => Some((*bh, *bw)),
        }
    }

    /// Bin `i` of `axis` (0 rows, 1 columns) over `n` pixels: first pixel, one past the last, divisor.
    pub fn bin(&self, axis: usize, i: usize, n: usize) -> (usize, usize, usize) {
        match self {
            Self::Window(w) => {
                let start = i * w.stride[axis];
                let lo = start.saturating_sub(w.pad[axis]);
                let hi = (start + w.kernel[axis]).saturating_sub(w.pad[axis]).min(n);
                (lo, hi, w.kernel[axis])
            }
            Self::Adaptive(bh, bw) => {
                let bins = if axis == 0 { *bh } else { *bw };
                let (lo, hi) = (i * n / bins, ((i + 1) * n).div_ceil(bins));
                (lo, hi, hi - lo)
            }
        }
    }
}

/// What a node computes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// The normalised image.
    Input,
    /// Convolution with bias; batch norm is already folded in.
    Conv {
        /// Geometry of the kernel.
        window: Window,
        /// Weight and bias.
        param: ParamId,
    },
    /// Fully connected layer over a flattened input.
    Linear {
        /// Weight and bias.
        param: ParamId,
    },
    /// max(x, 0).
    Relu,
    /// Maximum over a sliding window; padding never wins.
    MaxPool(Window),
    /// Average over bins.
    AvgPool(AvgPool),
    /// Sum of two inputs.
    Add,
    /// To one pixel, in torch's order (channel, row, column).
    Flatten,
}

impl Op {
    /// Shape of the output for the given inputs; the error text says what does not fit.
    fn output(&self, inputs: &[Shape], params: &[Param]) -> std::result::Result<Shape, String> {
        let too_small = |x: &Shape| format!("its input of {}×{} pixels is too small", x.h, x.w);
        match (self, inputs) {
            (Self::Conv { window, param }, [x]) => {
                let p = &params[param.0];
                if p.inputs != x.c {
                    return Err(format!("expects {} channels, gets {}", p.inputs, x.c));
                }
                let (h, w) = window.output(x.h, x.w).ok_or_else(|| too_small(x))?;
                Ok(Shape::new(h, w, p.outputs))
            }
            (Self::Linear { param }, [x]) => {
                let p = &params[param.0];
                if p.inputs != x.c || x.h * x.w != 1 {
                    return Err(format!("expects {} values, gets {}×{}×{}", p.inputs, x.h, x.w, x.c));
                }
                Ok(Shape::new(1, 1, p.outputs))
            }
            (Self::MaxPool(window), [x]) => {
                let (h, w) = window.output(x.h, x.w).ok_or_else(|| too_small(x))?;
                Ok(Shape::new(h, w, x.c))
            }
            (Self::AvgPool(pool), [x]) => {
                let (h, w) = pool.output(x.h, x.w).ok_or_else(|| too_small(x))?;
                Ok(Shape::new(h, w, x.c))
            }
            (Self::Relu, [x]) => Ok(*x),
            (Self::Flatten, [x]) => Ok(Shape::new(1, 1, x.len())),
            (Self::Add, [a, b]) if a == b => Ok(*a),
            (Self::Add, [a, b]) => Err(format!("cannot add {a:?} and {b:?}")),
            _ => Err(format!("wrong number of inputs: {}", inputs.len())),
        }
    }
}

impl Graph {
    /// Shapes of all nodes for an input of `h` × `w` pixels.
    ///
    /// # Errors
    /// When the input is smaller than the network can take; the message names the first node that cannot run.
    pub fn shapes(&self, h: usize, w: usize) -> Result<Vec<Shape>> {
        let mut shapes: Vec<Shape> = Vec::with_capacity(self.nodes().len());
        for node in self.nodes() {
            let shape = match &node.op {
                Op::Input => Shape::new(h, w, 3),
                op => {
                    let inputs: Vec<Shape> = node.inputs.iter().map(|i| shapes[i.0]).collect();
                    op.output(&inputs, self.params()).map_err(|problem| {
                        let message = format!("{problem} (network input {h}×{w} pixels)");
                        ErrorKind::Layer { name: node.name.clone(), problem: message }
                    })?
                }
            };
            shapes.push(shape);
        }
        Ok(shapes)
    }
}
