//! What happens at a node on the way down, as data: the gradient, or a rule of layer-wise relevance propagation.
//!
//! Every rule for a weighted layer (`methods.md` 10.1, 10.4) is a sum of *shares* of one form. With parts `x_t` of the
//! input and variants `w_t` of the weight: `z = Σ_t w_t*x_t + b`, `s = scale·R / z`, `R_in = Σ_t x_t ⊙ w_tᵀ*s`.

use crate::backend::{Divisor, Sign, Variant, WeightSign};
use crate::net::{Graph, NodeId, Op, Window};

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
    /// Shares relevance in proportion to each term of a sum, mean or maximum.
    Share(Divisor),
    /// The same for the terms of a residual sum, of which only the positive parts count.
    SharePositive(Divisor),
    /// Hands all to one term of a residual sum: that of the layers (0) or of the shortcut (1).
    Only(usize),
    /// ε: in proportion to the terms of `w*x + b`, stabilised.
    Epsilon(f32),
    /// z⁺: in proportion to the positive terms.
    ZPlus,
    /// αβ: α times by the positive terms less α − 1 times by the negative ones.
    AlphaBeta(f32),
    /// γ: positive weights count 1 + γ times; the sign of the result decides which terms do.
    Gamma(f32),
    /// z^B, for inputs within bounds.
    Box(Bounds),
    /// w²: in proportion to the squared weights, whatever the input.
    WSquare,
    /// The same to all inputs.
    Flat,
    /// αβ of set A: each product normalised apart, biases ignored, weights as trained.
    Separate(f32),
    /// Excitation backprop: in proportion to `w⁺*x` (`methods.md` 5).
    Excitation(WeightSign),
    /// In proportion to `|w|*|x|`, whatever the sign.
    Magnitude,
}

/// Bounds of a layer's input.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bounds {
    /// Lowest and highest value of each colour.
    Colours([f32; 3], [f32; 3]),
    /// The sample's own smallest and largest value.
    Sample(Divisor),
}

/// One share of a weighted layer's rule; see the module's formula.
#[derive(Debug, Clone, PartialEq)]
pub struct Share {
    /// Factor of all.
    pub scale: f32,
    /// How the quotient is kept finite.
    pub by: Divisor,
    /// Results that take part, by the sign of `w*x + b`.
    pub gate: Option<Sign>,
    /// Variant of the bias in the denominator.
    pub bias: Option<Variant>,
    /// Sign of the weight.
    pub sign: WeightSign,
    /// Whether sums are formed term by term, as [`WeightRef`](crate::backend::WeightRef) has it: where there is no stabiliser.
    /// Not where the sum is the layer's own result, which relevance must find as the forward pass has left it.
    pub termwise: bool,
    /// Part of the input and variant of the weight, term by term.
    pub terms: Vec<(Part, Variant)>,
}

/// Part of a layer's input.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Part {
    /// x
    Whole,
    /// max(x, 0)
    Positive,
    /// min(x, 0)
    Negative,
    /// |x|
    Magnitude,
    /// 1
    One,
    /// Less the lower bound.
    Lower(Bounds),
    /// Less the upper bound.
    Upper(Bounds),
}

/// Zennit's stabiliser.
pub const EPS: f32 = 1e-6;

/// Excitation backprop's.
const EXCITATION: Divisor = Divisor::Shifted(1e-20);

/// The shift of `div9`.
pub const SHIFT: f32 = 1e-9;

impl Rule {
    /// The shares of a weighted layer; none for a rule that is not for such layers.
    pub fn shares(&self) -> Vec<Share> {
        use Part::{Lower, Magnitude, Negative, One, Positive, Upper, Whole};
        use Variant as V;
        let (by, gate, sign) = (Divisor::Signed(EPS), None, WeightSign::Folded);
        let stable = |scale, bias, terms: &[(Part, V)]| {
            let (termwise, terms) = (false, terms.to_vec());
            Share { scale, by, gate, bias, sign, termwise, terms }
        };
        let apart = |scale, by, part, variant| {
            let terms = vec![(part, variant)];
            Share { scale, by, gate: None, bias: None, sign: WeightSign::Trained, termwise: true, terms }
        };
        let positive = |scale| stable(scale, Some(V::Positive), &[(Positive, V::Positive), (Negative, V::Negative)]);
        let negative = |scale| stable(scale, Some(V::Negative), &[(Positive, V::Negative), (Negative, V::Positive)]);
        match *self {
            Self::Epsilon(eps) => {
                let share = stable(1.0, Some(V::Plain), &[(Whole, V::Plain)]);
                vec![Share { by: stabilised(eps), ..share }]
            }
            Self::ZPlus => vec![positive(1.0)],
            Self::AlphaBeta(alpha) => vec![positive(alpha), negative(1.0 - alpha)],
            Self::Gamma(gamma) => {
                let (more, less) = (V::MorePositive(gamma.to_bits()), V::MoreNegative(gamma.to_bits()));
                let gated = |gate, share| Share { gate: Some(gate), ..share };
                vec![
                    gated(Sign::Positive, stable(1.0, Some(more), &[(Positive, more), (Negative, less)])),
                    gated(Sign::Negative, stable(1.0, Some(less), &[(Positive, less), (Negative, more)])),
                ]
            }
            Self::Box(bounds) => {
                let terms = [(Whole, V::Plain), (Lower(bounds), V::Positive), (Upper(bounds), V::Negative)];
                let (by, sign, termwise) = match bounds {
                    Bounds::Colours(..) => (by, sign, false),
                    Bounds::Sample(by) => (by, WeightSign::Trained, true),
                };
                vec![Share { by, sign, termwise, ..stable(1.0, None, &terms) }]
            }
            Self::WSquare => vec![stable(1.0, None, &[(One, V::Square)])],
            Self::Flat => vec![stable(1.0, None, &[(One, V::One)])],
            Self::Separate(alpha) => {
                let apart = |scale, part, variant| apart(scale, Divisor::NonZero, part, variant);
                vec![
                    apart(alpha, Positive, V::Positive),
                    apart(alpha, Negative, V::Negative),
                    apart(1.0 - alpha, Positive, V::Negative),
                    apart(1.0 - alpha, Negative, V::Positive),
                ]
            }
            Self::Excitation(sign) => vec![Share { sign, ..apart(1.0, EXCITATION, Whole, V::Positive) }],
            Self::Magnitude => vec![apart(1.0, Divisor::Shifted(SHIFT), Magnitude, V::Absolute)],
            Self::Gradient | Self::Guided | Self::Deconv | Self::Pass => vec![],
            Self::Share(_) | Self::SharePositive(_) | Self::Only(_) => vec![],
        }
        .into_iter()
        .filter(|share| share.scale != 0.0)
        .collect()
    }

    /// Whether a weighted layer's relevance is divided by sums of products of one sign only, which cancel nothing.
    pub fn is_of_one_sign(&self) -> bool {
        matches!(self, Self::ZPlus | Self::AlphaBeta(_) | Self::Separate(_) | Self::Excitation(_) | Self::Magnitude)
    }
}

/// Zennit's stabiliser of any size; with none, what would be divided by zero is dropped.
pub fn stabilised(eps: f32) -> Divisor {
    if eps > 0.0 { Divisor::Signed(eps) } else { Divisor::NonZero }
}

/// A rule for each kind of layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Composite {
    /// Rules of nodes that are named; they go before all others.
    pub named: Vec<(NodeId, Rule)>,
    /// The network's first convolution, where it has a rule of its own.
    pub first: Option<Rule>,
    /// 1×1 convolutions, where they have a rule of their own.
    pub pointwise: Option<Rule>,
    /// Convolutions.
    pub conv: Rule,
    /// Fully connected layers.
    pub linear: Rule,
    /// Rectifiers.
    pub relu: Rule,
    /// Max pooling.
    pub max_pool: Rule,
    /// Average pooling.
    pub avg_pool: Rule,
    /// Residual sums.
    pub add: Rule,
    /// Whether biases count in denominators.
    pub biases: bool,
    /// A layer whose weights are negated.
    pub negated: Option<NodeId>,
    /// Whether relevance must go through layers unrounded, because nearly all of it cancels later.
    pub exact: bool,
}

impl Composite {
    /// The gradient everywhere.
    pub const fn gradient() -> Self {
        Self {
            named: vec![],
            first: None,
            pointwise: None,
            conv: Rule::Gradient,
            linear: Rule::Gradient,
            relu: Rule::Gradient,
            max_pool: Rule::Gradient,
            avg_pool: Rule::Gradient,
            add: Rule::Gradient,
            biases: true,
            negated: None,
            exact: false,
        }
    }

    /// Guided backpropagation (`methods.md` 4).
    pub fn guided() -> Self {
        Self { relu: Rule::Guided, ..Self::gradient() }
    }

    /// The deconvolutional network (`methods.md` 4).
    pub fn deconv() -> Self {
        Self { relu: Rule::Deconv, ..Self::gradient() }
    }

    /// Zennit's composites: a rule for convolutions, ε for fully connected layers (`methods.md` 10.2).
    pub fn epsilon_and(conv: Rule) -> Self {
        Self {
            conv,
            linear: Rule::Epsilon(EPS),
            relu: Rule::Pass,
            avg_pool: Rule::Share(Divisor::Signed(EPS)),
            add: Rule::Share(Divisor::Signed(EPS)),
            ..Self::gradient()
        }
    }

    /// Excitation backprop (`methods.md` 5); weights as trained or with batch norm folded in. A rectifier's mask changes
    /// nothing: where an activation is zero, nothing arrives.
    pub fn excitation(sign: WeightSign) -> Self {
        Self {
            conv: Rule::Excitation(sign),
            linear: Rule::Excitation(sign),
            relu: Rule::Pass,
            avg_pool: Rule::Share(EXCITATION),
            add: Rule::Share(Divisor::NonZero),
            ..Self::gradient()
        }
    }

    /// Set A: αβ with α (`methods.md` 10.4).
    pub fn separate(alpha: f32) -> Self {
        let proportional = Rule::Share(Divisor::NonZero);
        Self {
            first: Some(Rule::Box(Bounds::Sample(Divisor::Shifted(SHIFT)))),
            conv: Rule::Separate(alpha),
            linear: Rule::Separate(alpha),
            relu: Rule::Pass,
            max_pool: proportional,
            avg_pool: proportional,
            add: proportional,
            ..Self::gradient()
        }
    }

    /// The rule for one node.
    pub fn rule(&self, graph: &Graph, id: NodeId) -> Rule {
        if let Some((_, rule)) = self.named.iter().find(|(named, _)| *named == id) {
            return *rule;
        }
        let node = graph.node(id);
        match &node.op {
            Op::Conv { window, .. } => {
                let first = self.first.filter(|_| node.inputs == [NodeId(0)]);
                let pointwise = self.pointwise.filter(|_| is_pointwise(window));
                first.or(pointwise).unwrap_or(self.conv)
            }
            Op::Linear { .. } => self.linear,
            Op::Relu => self.relu,
            Op::MaxPool(_) => self.max_pool,
            Op::AvgPool(_) => self.avg_pool,
            Op::Add => self.add,
            Op::Input | Op::Flatten => Rule::Gradient,
        }
    }
}

/// Whether a convolution reads single pixels.
pub fn is_pointwise(window: &Window) -> bool {
    window.kernel == [1, 1]
}
