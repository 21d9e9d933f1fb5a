//! Weights and biases of convolutions and linear layers, with batch norm folded in.

use std::ops::{Deref, Range};
use std::sync::Arc;

use rayon::prelude::*;

use super::tensors::Bytes;
use crate::aligned::Aligned;

/// Index of a [`Param`] in its graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ParamId(pub usize);

/// Numbers that are owned or lie in a mapped file.
#[derive(Debug, Clone)]
pub enum Values {
    /// Owned.
    Owned(Vec<f32>),
    /// Owned, beginning at a page.
    #[allow(private_interfaces)]
    Aligned(Aligned),
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
            Self::Aligned(values) => values,
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

/// Output channels of a convolution whose weights lie side by side.
pub const PANEL: usize = 32;

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
    /// Convolution: panels of [`PANEL`] outputs, each `[kernel row, kernel column, input, output]`; those beyond the last
    /// output are zero. Linear: `[output, input]`, as in the file.
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

    /// The weights of some of a convolution's outputs: `[kernel row, kernel column, input, PANEL]`.
    pub fn panel(&self, index: usize) -> &[f32] {
        let len = self.kernel[0] * self.kernel[1] * self.inputs * PANEL;
        &self.weight[index * len..][..len]
    }

    /// One weight of a convolution, `tap` being `row·columns + column` of the kernel.
    pub fn tap(&self, tap: usize, input: usize, output: usize) -> f32 {
        self.panel(output / PANEL)[(tap * self.inputs + input) * PANEL + output % PANEL]
    }

    /// True when the layer has no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Reorders `[o, i, kh, kw]` to panels `[kh, kw, i, PANEL]`, each output channel multiplied by its `scale`.
///
/// The product is formed in `f64`, so that folding costs one rounding. Threads take panels and go over the inputs in
/// blocks, which are read in whole cache lines.
pub(super) fn fold_conv(weight: &[f32], o: usize, i: usize, taps: usize, scale: Option<&[f64]>) -> Aligned {
    const BLOCK: usize = 16;
    if weight.is_empty() {
        return Aligned::default();
    }
    let mut folded = Aligned::zeros(o.next_multiple_of(PANEL) * i * taps);
    folded.par_chunks_mut(i * taps * PANEL).enumerate().for_each(|(panel, out)| {
        let outputs = panel * PANEL..((panel + 1) * PANEL).min(o);
        let scales: Vec<f64> = outputs.clone().map(|oc| scale.map_or(1.0, |s| s[oc])).collect();
        let filters = &weight[outputs.start * i * taps..outputs.end * i * taps];
        for first in (0..i).step_by(BLOCK) {
            for tap in 0..taps {
                for ic in first..(first + BLOCK).min(i) {
                    let column = filters[ic * taps + tap..].iter().step_by(i * taps);
                    let row = out[(tap * i + ic) * PANEL..].iter_mut();
                    row.zip(column.zip(&scales)).for_each(|(to, (w, s))| *to = (f64::from(*w) * s) as f32);
                }
            }
        }
    });
    folded
}
