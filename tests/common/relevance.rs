//! Relevance and excitation in `f64`, word for word from `methods.md` 5, 10 and 11.

use super::oracle::{Oracle, average};
use super::reference::{self as layer, div0, divs, negative, positive, product, sum};
use ucag::models::Preprocess;
use ucag::net::{NodeId, Op};

/// What happens at a node.
#[derive(Clone, Copy)]
pub enum Rule {
    Gradient,
    /// `x ⊙ JT[R / op(x)]` of sums, means and maxima, by the given division.
    Share(Division),
    /// The same of the inputs' positive parts.
    SharePositive(Division),
    Epsilon(f64),
    ZPlus,
    AlphaBeta(f64),
    Gamma(f64),
    /// z^B with the colours black and white as bounds.
    ColourBox,
    WSquare,
    Flat,
    /// αβ of set A.
    Separate(f64),
    /// z^B of set A, with the sample's own bounds.
    SampleBox,
    /// Excitation backprop, and whether negative scales of batch norm turn the weight.
    Excitation(bool),
    /// Another rule on negated weights.
    Negated(&'static Rule),
}

/// A division that is kept finite.
pub type Division = fn(f64, f64) -> f64;

/// Rules for a network. Rectifiers hand on what they get.
#[derive(Clone, Copy)]
pub struct Rules {
    pub first: Rule,
    pub conv: Rule,
    pub linear: Rule,
    /// The last linear layer.
    pub head: Rule,
    pub max_pool: Rule,
    pub avg_pool: Rule,
    pub add: Rule,
}

/// Stabiliser of set Z.
const EPS: f64 = 1e-6;

impl Rules {
    /// Zennit's composites.
    pub const fn zennit(first: Rule, conv: Rule) -> Self {
        let share = Rule::Share(|a, b| divs(a, b, EPS));
        let linear = Rule::Epsilon(EPS);
        Self { first, conv, linear, head: linear, max_pool: Rule::Gradient, avg_pool: share, add: share }
    }

    /// The ε rule alone, with next to no ε.
    pub const fn epsilon_of_nothing() -> Self {
        let (rule, share) = (Rule::Epsilon(1e-200), Rule::Share(|a, b| divs(a, b, 1e-200)));
        Self { linear: rule, head: rule, avg_pool: share, add: share, ..Self::zennit(rule, rule) }
    }

    /// Set A.
    pub const fn separate(alpha: f64) -> Self {
        let (rule, share) = (Rule::Separate(alpha), Rule::Share(div0));
        let first = Rule::SampleBox;
        Self { first, conv: rule, linear: rule, head: rule, max_pool: share, avg_pool: share, add: share }
    }

    /// Excitation backprop.
    pub const fn excitation(turned: bool) -> Self {
        let (rule, share) = (Rule::Excitation(turned), Rule::Share(div0));
        let tiny = Rule::Share(|a, b| a / (b + 1e-20));
        let max_pool = Rule::Gradient;
        Self { first: rule, conv: rule, linear: rule, head: rule, max_pool, avg_pool: tiny, add: share }
    }
}

/// Zennit's `EpsilonPlus`.
pub const EPSILON_PLUS: Rules = Rules::zennit(Rule::ZPlus, Rule::ZPlus);

impl Oracle<'_> {
    /// Relevance of the class's logit at every node.
    pub fn relevance(&self, class: usize, rules: Rules) -> Vec<Vec<f64>> {
        let seed = (0..self.logits().len()).map(|j| if j == class { self.logits()[j] } else { 0.0 });
        self.relevance_of(self.graph.output(), &seed.collect::<Vec<f64>>(), rules)
    }

    /// What `seed` at the output of a node becomes at every node.
    pub fn relevance_of(&self, from: NodeId, seed: &[f64], rules: Rules) -> Vec<Vec<f64>> {
        self.down(from, seed, |id, r| {
            let node = self.graph.node(id);
            match &node.op {
                Op::Conv { .. } if node.inputs[0] == NodeId(0) => self.shares(id, rules.first, r),
                Op::Conv { .. } => self.shares(id, rules.conv, r),
                Op::Linear { .. } if id == self.graph.output() => self.shares(id, rules.head, r),
                Op::Linear { .. } => self.shares(id, rules.linear, r),
                Op::MaxPool(_) => self.shares(id, rules.max_pool, r),
                Op::AvgPool(_) => self.shares(id, rules.avg_pool, r),
                Op::Add => self.shares(id, rules.add, r),
                Op::Relu => vec![r.to_vec()],
                _ => self.shares(id, Rule::Gradient, r),
            }
        })
    }

    /// What a rule gives each input of a node of what has arrived there.
    pub fn shares(&self, id: NodeId, rule: Rule, r: &[f64]) -> Vec<Vec<f64>> {
        let node = self.graph.node(id);
        let (op, inputs) = (&node.op, node.inputs.iter().map(|i| &self.values[i.0]).collect::<Vec<_>>());
        let (x, size) = (inputs[0], self.size(node.inputs[0]));
        let divided = |by: Division, z: &[f64]| -> Vec<f64> { r.iter().zip(z).map(|(r, z)| by(*r, *z)).collect() };
        match (op, rule) {
            (Op::Conv { .. } | Op::Linear { .. }, rule) => vec![self.weighted(id, rule, r, 1.0)],
            (Op::AvgPool(pool), Rule::Share(by)) => {
                let s = divided(by, &self.values[id.0]);
                vec![product(x, &layer::avg_pool_back(&s, size, &average(pool)))]
            }
            (Op::AvgPool(pool), _) => vec![layer::avg_pool_back(r, size, &average(pool))],
            (Op::MaxPool(_), Rule::Share(by)) => {
                let s = divided(by, &self.values[id.0]);
                vec![product(x, &self.rearranged(op, x, size, &s))]
            }
            (Op::Add, Rule::Share(by)) => {
                let s = divided(by, &self.values[id.0]);
                inputs.iter().map(|x| product(x, &s)).collect()
            }
            (Op::Add, Rule::SharePositive(by)) => {
                let terms = [positive(inputs[0]), positive(inputs[1])];
                let s = divided(by, &sum(&terms[0], &terms[1]));
                terms.iter().map(|x| product(x, &s)).collect()
            }
            _ => vec![self.rearranged(op, x, size, r)],
        }
    }

    /// The rules of layers with weights. `turn` is 1 or −1, a factor of the weights.
    fn weighted(&self, id: NodeId, rule: Rule, r: &[f64], turn: f64) -> Vec<f64> {
        let node = self.graph.node(id);
        let (op, x, size) = (&node.op, &self.values[node.inputs[0].0], self.size(node.inputs[0]));
        let times = |v: &[f64], s: f64| -> Vec<f64> { v.iter().map(|v| v * s).collect() };
        let (folded, bias) = self.parameters(op);
        let (w, b) = (&times(folded, turn), bias);
        let trained = &times(&self.trained(op), turn);
        let f = |w: &[f64], x: &[f64]| self.apply(op, x, size, w);
        let jt = |w: &[f64], s: &[f64]| self.transposed(op, s, size, w);
        let by = |z: &[f64], by: &dyn Fn(f64, f64) -> f64| -> Vec<f64> {
            r.iter().zip(z).map(|(r, z)| by(*r, *z)).collect()
        };
        let stable = |z: &[f64]| by(z, &|r, z| divs(r, z, EPS));
        let (xp, xn) = (&positive(x), &negative(x));
        // Two terms with one denominator.
        let joint = |u: &[f64], v: &[f64], b: &[f64], gate: &[f64]| {
            let d = layer::biased(&sum(&f(u, xp), &f(v, xn)), b);
            let s = product(&stable(&d), gate);
            sum(&product(xp, &jt(u, &s)), &product(xn, &jt(v, &s)))
        };
        let all = &vec![1.0; r.len()];
        let boxed = |w: &[f64], low: &[f64], high: &[f64], quotient: &dyn Fn(f64, f64) -> f64| {
            let (wp, wn) = (&positive(w), &negative(w));
            let d = sum(&f(w, x), &times(&sum(&f(wp, low), &f(wn, high)), -1.0));
            let s = by(&d, quotient);
            let bounds = sum(&product(low, &jt(wp, &s)), &product(high, &jt(wn, &s)));
            sum(&product(x, &jt(w, &s)), &times(&bounds, -1.0))
        };
        match rule {
            Rule::Gradient => jt(w, r),
            Rule::Epsilon(eps) => {
                let s = by(&layer::biased(&f(w, x), b), &|r, z| divs(r, z, eps));
                product(x, &jt(w, &s))
            }
            Rule::ZPlus => joint(&positive(w), &negative(w), &positive(b), all),
            Rule::AlphaBeta(alpha) => {
                let p = joint(&positive(w), &negative(w), &positive(b), all);
                let n = joint(&negative(w), &positive(w), &negative(b), all);
                sum(&times(&p, alpha), &times(&n, 1.0 - alpha))
            }
            Rule::Gamma(gamma) => {
                let more = |v: &[f64]| sum(v, &times(&positive(v), gamma));
                let less = |v: &[f64]| sum(v, &times(&negative(v), gamma));
                let z = layer::biased(&f(w, x), b);
                let gate = |sign: f64| -> Vec<f64> { z.iter().map(|z| f64::from(u8::from(sign * z > 0.0))).collect() };
                let up = joint(&more(w), &less(w), &more(b), &gate(1.0));
                sum(&up, &joint(&less(w), &more(w), &less(b), &gate(-1.0)))
            }
            Rule::ColourBox => {
                let pre = Preprocess::default();
                let colour = |value: f64| -> Vec<f64> {
                    let of = |c: usize| (value - f64::from(pre.mean[c])) / f64::from(pre.std[c]);
                    (0..x.len()).map(|i| of(i % 3)).collect()
                };
                boxed(w, &colour(0.0), &colour(1.0), &|r, z| divs(r, z, EPS))
            }
            Rule::SampleBox => {
                let low = x.iter().copied().fold(f64::INFINITY, f64::min);
                let high = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                boxed(trained, &vec![low; x.len()], &vec![high; x.len()], &|r, z| r / (z + 1e-9))
            }
            Rule::WSquare => {
                let square = product(w, w);
                jt(&square, &stable(&f(&square, &vec![1.0; x.len()])))
            }
            Rule::Flat => {
                let ones = vec![1.0; w.len()];
                jt(&ones, &stable(&f(&ones, &vec![1.0; x.len()])))
            }
            Rule::Separate(alpha) => {
                let apart = |w: &[f64], x: &[f64]| product(x, &jt(w, &by(&f(w, x), &div0)));
                let (wp, wn) = (&positive(trained), &negative(trained));
                let act = sum(&apart(wp, xp), &apart(wn, xn));
                let inh = sum(&apart(wn, xp), &apart(wp, xn));
                sum(&times(&act, alpha), &times(&inh, 1.0 - alpha))
            }
            Rule::Excitation(turned) => {
                let wp = &positive(if turned { w } else { trained });
                product(x, &jt(wp, &by(&f(wp, x), &|p, z| p / (z + 1e-20))))
            }
            Rule::Negated(rule) => self.weighted(id, *rule, r, -turn),
            Rule::Share(_) | Rule::SharePositive(_) => unreachable!("no rule for layers with weights"),
        }
    }

    /// What biases take of what arrives at a layer by the ε rule or by z⁺.
    pub fn absorbed(&self, id: NodeId, z_plus: bool, r: &[f64]) -> f64 {
        let node = self.graph.node(id);
        let (x, size) = (&self.values[node.inputs[0].0], self.size(node.inputs[0]));
        let (w, b) = self.parameters(&node.op);
        let f = |w: &[f64], x: &[f64]| self.apply(&node.op, x, size, w);
        let (z, b) = match z_plus {
            true => (sum(&f(&positive(w), &positive(x)), &f(&negative(w), &negative(x))), positive(b)),
            false => (f(w, x), b.to_vec()),
        };
        let s = layer::quotient(r, &layer::biased(&z, &b), EPS);
        s.iter().enumerate().map(|(i, s)| s * b[i % b.len()]).sum()
    }

    /// A layer's weight before batch norm was folded in.
    pub(super) fn trained(&self, op: &Op) -> Vec<f64> {
        let folded = self.parameters(op).0;
        let (Op::Conv { param, .. } | Op::Linear { param }) = op else { unreachable!("an operation without weights") };
        let param = self.graph.param(*param);
        let filter = folded.len() / param.outputs;
        let scale = |o: usize| param.norm.as_ref().map_or(1.0, |norm| f64::from(norm.scale[o]));
        folded.iter().enumerate().map(|(i, w)| w / scale(i / filter)).collect()
    }
}
