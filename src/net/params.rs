//! Weights and biases of convolutions and linear layers, with batch norm folded in.

use std::ops::{Deref, Range};
use std::sync::Arc;

use rayon::prelude::*;

use super::tensors::Bytes;

/// Index of a [`Param`] in its graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ParamId(pub usize);

/// Numbers that are owned or lie in a mapped file.
#[derive(Debug, Clone)]
pub enum Values {
    /// Owned.
    Owned(Vec<f32>),
    /// Part of a file, checked to be aligned.
    #[allow(private_interfaces)]
    Shared {
        /// The whole file.
        bytes: Arc<Bytes>,
        /// Bytes of this tensor.
        range: Range<usize>,
    },
}

impl Deref for Values {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        match self {
            Self::Owned(values) => values,
            Self::Shared { bytes, range } => bytemuck::cast_slice(&bytes[range.clone()]),
        }
    }
}

/// What a folded batch norm did to the convolution before it: `y = scale·(w*x + bias) + shift`.
#[derive(Debug, Clone)]
pub struct Norm {
    /// `γ / sqrt(var + eps)` of each output channel.
    pub scale: Vec<f32>,
    /// `β − μ·scale` of each output channel.
    pub shift: Vec<f32>,
    /// The convolution's own bias, empty when it has none.
    pub bias: Vec<f32>,
}

/// Weight and bias of a convolution or a linear layer.
#[derive(Debug, Clone)]
pub struct Param {
    /// Tensor key without `.weight`.
    pub key: String,
    /// Input channels, or values.
    pub inputs: usize,
    /// Output channels, or values.
    pub outputs: usize,
    /// Kernel rows and columns, `[1, 1]` for a linear layer.
    pub kernel: [usize; 2],
    /// Convolution: `[kernel row, kernel column, input, output]`. Linear: `[output, input]`, as in the file.
    pub weight: Values,
    /// One value an output.
    pub bias: Vec<f32>,
    /// The batch norm that was folded in.
    pub norm: Option<Norm>,
}

impl Param {
    /// Number of trained values that this layer holds.
    pub fn len(&self) -> usize {
        self.inputs * self.outputs * self.kernel[0] * self.kernel[1] + self.outputs
    }

    /// True when the layer has no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Reorders `[o, i, kh, kw]` to `[kh, kw, i, o]`, each output channel multiplied by its `scale`.
///
/// The product is formed in `f64`, so that folding costs one rounding. Threads take blocks of inputs and go over them in
/// squares, which are read and written in whole cache lines.
pub(super) fn fold_conv(weight: &[f32], o: usize, i: usize, taps: usize, scale: Option<&[f64]>) -> Vec<f32> {
    const SIDE: usize = 16;
    let mut folded = vec![0.0; weight.len()];
    let mut blocks: Vec<Vec<&mut [f32]>> = (0..i.div_ceil(SIDE)).map(|_| Vec::with_capacity(taps)).collect();
    for plane in folded.chunks_exact_mut((i * o).max(1)) {
        blocks.iter_mut().zip(plane.chunks_mut(SIDE * o)).for_each(|(block, rows)| block.push(rows));
    }
    blocks.par_iter_mut().enumerate().for_each(|(block, planes)| {
        for first in (0..o).step_by(SIDE) {
            let outputs = first..(first + SIDE).min(o);
            for (tap, rows) in planes.iter_mut().enumerate() {
                for (ic, row) in rows.chunks_exact_mut(o).enumerate() {
                    let at = (block * SIDE + ic) * taps + tap;
                    for oc in outputs.clone() {
                        let scale = scale.map_or(1.0, |s| s[oc]);
                        row[oc] = (f64::from(weight[oc * i * taps + at]) * scale) as f32;
                    }
                }
            }
        }
    });
    folded
}
