//! What happens at a node on the way down, as data: the gradient, or a rule of layer-wise relevance propagation.
//!
//! Every rule of set Z (`methods.md` 10.1) for a weighted layer has one form. With parts `x_t` of the input and
//! variants `w_t` of the weight: `z = Σ_t w_t*x_t + b`, `s = R / stabilise(z)`, `R_in = Σ_t x_t ⊙ w_tᵀ*s`.

use crate::backend::Variant;
use crate::net::Op;

/// What to do at a node.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rule {
    /// The ordinary gradient; for max pooling this is winner-takes-all.
    Gradient,
    /// A rectifier's `max(g, 0)·[x > 0]`: what arrives must be positive too (`methods.md` 4).
    Guided,
    /// A rectifier's `max(g, 0)`: the forward pass does not matter (`methods.md` 4).
    Deconv,
    /// Hands the result's relevance on unchanged.
    Pass,
    /// A weighted layer's relevance by the given recipe.
    Weighted(Recipe),
    /// Shares relevance in proportion to each term of a sum or mean, stabilised.
    Norm(f32),
}

/// The terms of a weighted layer's rule.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Recipe {
    /// Stabiliser.
    pub eps: f32,
    /// Variant of the bias in the denominator.
    pub bias: Variant,
    /// Part of the input and variant of the weight, term by term.
    pub terms: &'static [(Part, Variant)],
}

/// Part of a layer's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// x
    Whole,
    /// max(x, 0)
    Positive,
    /// min(x, 0)
    Negative,
}

/// Zennit's stabiliser.
const EPS: f32 = 1e-6;

impl Rule {
    /// `x ⊙ wᵀ*(R / stabilise(w*x + b))`
    pub const EPSILON: Self =
        Self::Weighted(Recipe { eps: EPS, bias: Variant::Plain, terms: &[(Part::Whole, Variant::Plain)] });

    /// Denominator `w⁺*x⁺ + w⁻*x⁻ + b⁺`.
    pub const Z_PLUS: Self = Self::Weighted(Recipe {
        eps: EPS,
        bias: Variant::Positive,
        terms: &[(Part::Positive, Variant::Positive), (Part::Negative, Variant::Negative)],
    });
}

/// A rule for each kind of layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Composite {
    /// Convolutions.
    pub conv: Rule,
    /// Fully connected layers.
    pub linear: Rule,
    /// Rectifiers.
    pub relu: Rule,
    /// Average pooling.
    pub avg_pool: Rule,
    /// Residual sums.
    pub add: Rule,
}

impl Composite {
    /// The gradient everywhere.
    pub const GRADIENT: Self = Self {
        conv: Rule::Gradient,
        linear: Rule::Gradient,
        relu: Rule::Gradient,
        avg_pool: Rule::Gradient,
        add: Rule::Gradient,
    };

    /// Guided backpropagation (`methods.md` 4).
    pub const GUIDED: Self = Self { relu: Rule::Guided, ..Self::GRADIENT };

    /// The deconvolutional network (`methods.md` 4).
    pub const DECONV: Self = Self { relu: Rule::Deconv, ..Self::GRADIENT };

    /// Zennit's `EpsilonPlus`: z⁺ for convolutions, ε for fully connected layers (`methods.md` 10.2).
    pub const EPSILON_PLUS: Self = Self {
        conv: Rule::Z_PLUS,
        linear: Rule::EPSILON,
        relu: Rule::Pass,
        avg_pool: Rule::Norm(EPS),
        add: Rule::Norm(EPS),
    };

    /// The rule for one operation.
    pub fn rule(&self, op: &Op) -> Rule {
        match op {
            Op::Conv { .. } => self.conv,
            Op::Linear { .. } => self.linear,
            Op::Relu => self.relu,
            Op::AvgPool(_) => self.avg_pool,
            Op::Add => self.add,
            Op::Input | Op::MaxPool(_) | Op::Flatten => Rule::Gradient,
        }
    }
}
