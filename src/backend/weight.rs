//! Views of a layer's parameters, as rules and bounds want them.

use crate::net::{Param, ParamId};

/// A view of a weight, element by element.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Variant {
    /// w
    Plain,
    /// max(w, 0)
    Positive,
    /// min(w, 0)
    Negative,
    /// |w|
    Absolute,
    /// w²
    Square,
    /// 1
    One,
    /// w + γ·max(w, 0); γ as bits, so that views can be compared
    MorePositive(u32),
    /// w + γ·min(w, 0)
    MoreNegative(u32),
}

impl Variant {
    /// The variant of one value.
    pub fn of(self, w: f32) -> f32 {
        match self {
            Self::Plain => w,
            Self::Positive => w.max(0.0),
            Self::Negative => w.min(0.0),
            Self::Absolute => w.abs(),
            Self::Square => w * w,
            Self::One => 1.0,
            Self::MorePositive(gamma) => w + f32::from_bits(gamma) * w.max(0.0),
            Self::MoreNegative(gamma) => w + f32::from_bits(gamma) * w.min(0.0),
        }
    }
}

/// Sign that a weight has before its variant is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WeightSign {
    /// That of the weight with batch norm folded in.
    Folded,
    /// That of the convolution's own weight: where batch norm has a negative scale, the opposite (`methods.md` 10.5).
    Trained,
    /// The opposite of all.
    Negated,
}

/// A weight in one of its variants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WeightRef {
    /// The layer's parameters.
    pub param: ParamId,
    /// The sign first,
    pub sign: WeightSign,
    /// then the view.
    pub variant: Variant,
    /// Whether every sum is formed term by term, so that a sum of zeros is exactly zero: for rules that divide by such sums
    /// without a stabiliser, or count what is not zero.
    pub termwise: bool,
}

impl WeightRef {
    /// A weight as it is.
    pub const fn plain(param: ParamId) -> Self {
        Self { param, sign: WeightSign::Folded, variant: Variant::Plain, termwise: false }
    }

    /// A weight as it was trained, for rules that divide by its sums without a stabiliser.
    pub const fn trained(param: ParamId, variant: Variant) -> Self {
        Self { param, sign: WeightSign::Trained, variant, termwise: true }
    }

    /// The same numbers, however their products are summed.
    #[cfg(feature = "cuda")]
    pub(crate) fn values(self) -> Self {
        Self { termwise: false, ..self }
    }

    /// Whether it is the parameter's own memory.
    pub fn is_plain(&self) -> bool {
        (self.sign, self.variant) == (WeightSign::Folded, Variant::Plain)
    }

    /// The view of one weight `w` of an output channel.
    pub fn of(&self, param: &Param, output: usize, w: f32) -> f32 {
        self.variant.of(self.turn(param, output) * w)
    }

    /// Puts what is seen of some weights of an output channel in their place.
    pub fn see(&self, param: &Param, output: usize, weights: &mut [f32]) {
        if self.is_plain() {
            return;
        }
        let turn = self.turn(param, output);
        // One loop for each of the common ones, so that it is compiled for vectors.
        match self.variant {
            Variant::Positive => weights.iter_mut().for_each(|w| *w = (turn * *w).max(0.0)),
            Variant::Negative => weights.iter_mut().for_each(|w| *w = (turn * *w).min(0.0)),
            variant => weights.iter_mut().for_each(|w| *w = variant.of(turn * *w)),
        }
    }

    /// What weights of an output channel are multiplied by before their variant is taken: 1 or −1.
    pub fn turn(&self, param: &Param, output: usize) -> f32 {
        let turned = match self.sign {
            WeightSign::Folded => false,
            WeightSign::Trained => param.norm.as_ref().is_some_and(|norm| norm.scale[output] < 0.0),
            WeightSign::Negated => true,
        };
        if turned { -1.0 } else { 1.0 }
    }
}

/// A vector of a layer's parameters, one number an output channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Vector {
    /// The bias of the layer itself, as it shows in the result: scaled by a folded batch norm. Zeros where it has none.
    OwnBias,
    /// What a folded batch norm adds: `β − μγ/√(var + ε)`. Zeros where there is none.
    NormShift,
    /// What a folded batch norm multiplies the convolution's own result by: `γ/√(var + ε)`. Ones where there is none.
    NormScale,
}

impl Vector {
    /// Its values.
    pub fn of(self, param: &Param) -> Vec<f32> {
        let zeros = || vec![0.0; param.outputs];
        match (self, &param.norm) {
            (Self::OwnBias, None) => param.bias.clone(),
            (Self::OwnBias, Some(norm)) if norm.bias.is_empty() => zeros(),
            (Self::OwnBias, Some(norm)) => norm.bias.iter().zip(&norm.scale).map(|(b, s)| b * s).collect(),
            (Self::NormShift, None) => zeros(),
            (Self::NormShift, Some(norm)) => norm.shift.clone(),
            (Self::NormScale, None) => vec![1.0; param.outputs],
            (Self::NormScale, Some(norm)) => norm.scale.clone(),
        }
    }
}
