//! Functions and tests of one number or two, by name: each has one definition, which tests and backends share.

/// A function of one number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Unary {
    /// max(x, 0), see [`rectify`].
    Positive,
    /// min(x, 0)
    Negative,
    /// |x|
    Absolute,
    /// √x
    Root,
    /// s·x
    Times(f32),
    /// x + s
    Plus(f32),
    /// 1 / (1 + exp(−s·x))
    Sigmoid(f32),
    /// tanh(s·x)
    Tanh(f32),
}

impl Unary {
    /// Its value.
    pub fn of(self, x: f32) -> f32 {
        match self {
            Self::Positive => rectify(x),
            Self::Negative => -rectify(-x),
            Self::Absolute => x.abs(),
            Self::Root => x.sqrt(),
            Self::Times(s) => s * x,
            Self::Plus(s) => x + s,
            Self::Sigmoid(s) => 1.0 / (1.0 + (-s * x).exp()),
            Self::Tanh(s) => (s * x).tanh(),
        }
    }
}

/// A test of one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// x > 0
    Positive,
    /// x < 0
    Negative,
    /// x ≠ 0
    NonZero,
}

impl Sign {
    /// Whether a number passes.
    pub fn of(self, x: f32) -> bool {
        match self {
            Self::Positive => x > 0.0,
            Self::Negative => x < 0.0,
            Self::NonZero => x != 0.0,
        }
    }
}

/// How a quotient is kept finite (`methods.md` 1.2). Always in 32 bits: 1e-6 is below the smallest normal number of 16.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Divisor {
    /// `a / (b + ε·sign(b))` with sign(0) = 1: `divs`.
    Signed(f32),
    /// `a / b`, 0 where b = 0: `div0`.
    NonZero,
    /// `a / (b + ε)`, 0 where b = 0: `div9` for ε = 1e-9.
    Shifted(f32),
}

impl Divisor {
    /// The quotient of two numbers. No branch holds a division of its own, so that loops are compiled for
    /// vectors.
    #[inline(always)]
    pub fn quotient(self, a: f32, b: f32) -> f32 {
        match self {
            Self::Signed(eps) => a / (b + if b >= 0.0 { eps } else { -eps }),
            Self::NonZero | Self::Shifted(_) if b == 0.0 => 0.0,
            Self::NonZero => a / b,
            Self::Shifted(eps) => a / if b + eps == 0.0 { eps } else { b + eps },
        }
    }
}

/// How values are scaled by a range `lo..hi` of a whole sample.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scaling {
    /// `(x − lo) / (hi − lo)`, 0 where all are equal.
    MinMax,
    /// `x / hi` by the given quotient.
    Largest(Divisor),
    /// A sum over `channels` of magnitudes, each to be scaled to 0..1: `(x − channels·lo) / (hi − lo + ε)`.
    Sum {
        /// Number of magnitudes in the sum.
        channels: usize,
        /// ε
        eps: f32,
    },
}

impl Scaling {
    /// The scaled value.
    pub fn of(self, x: f32, lo: f32, hi: f32) -> f32 {
        match self {
            Self::MinMax if hi > lo => (x - lo) / (hi - lo),
            Self::MinMax => 0.0,
            Self::Largest(divisor) => divisor.quotient(x, hi),
            Self::Sum { channels, eps } => (x - channels as f32 * lo) / (hi - lo + eps),
        }
    }
}

/// max(v, 0), but what is no number stays so, as in torch: a rectifier must not hide that a network's values overflowed.
pub fn rectify(v: f32) -> f32 {
    if v < 0.0 { 0.0 } else { v }
}
