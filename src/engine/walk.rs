//! The one walk down the network. Gradients, relevance and excitation differ only in what happens at a node.

mod layers;
mod sums;

use super::program::{Audit, Reg, Writer};
use super::rules::{Composite, Rule};
use crate::backend::{AvgGeom, ConvGeom, Instr, PoolGeom, Sign, Unary, WeightRef};
use crate::net::{NodeId, Op, ParamId, Window};

/// What happens at each node.
pub trait Rules {
    /// Sends what has arrived at a node's output, `r`, on to its inputs.
    fn node(&self, walk: &mut Walk<'_, '_>, id: NodeId, r: Reg);

    /// Whether a node should send on as much as has arrived there: relevance, but no gradient.
    fn conserve(&self) -> bool {
        true
    }
}

impl Rules for Composite {
    fn node(&self, walk: &mut Walk<'_, '_>, id: NodeId, r: Reg) {
        walk.apply(id, r, self);
    }

    fn conserve(&self) -> bool {
        self.conv != Rule::Gradient
    }
}

/// What has arrived at each node's output.
pub struct Arrived(Vec<Option<Reg>>);

impl Arrived {
    /// What has arrived at a node, one lane a class; `None` where nothing comes.
    pub fn at(&self, id: NodeId) -> Option<Reg> {
        self.0[id.0]
    }
}

/// Writes the walk from a quantity at the output of node `from` down to `stop`.
pub fn walk_down(w: &mut Writer<'_>, from: (NodeId, Reg), stop: NodeId, rules: &impl Rules) -> Arrived {
    let graph = w.graph;
    let mut reach = vec![false; graph.nodes().len()];
    reach[stop.0] = true;
    for (i, node) in graph.nodes().iter().enumerate() {
        reach[i] |= node.inputs.iter().any(|input| reach[input.0]);
    }
    let audited = w.audited() && rules.conserve();
    let mut walk = Walk { w, from: from.0, reach, arrived: vec![None; graph.nodes().len()], audited, sent: vec![] };
    walk.arrived[from.0.0] = Some(from.1);
    for id in (stop.0 + 1..=from.0.0).rev().map(NodeId) {
        if let Some(r) = walk.arrived[id.0] {
            walk.w.at(&graph.node(id).name);
            let before = audited.then(|| walk.w.totals(r));
            rules.node(&mut walk, id, r);
            if let Some(expected) = before {
                let (less, found) = std::mem::take(&mut walk.sent).into_iter().unzip::<_, _, Vec<_>, Vec<_>>();
                let (less, node) = (less.into_iter().flatten().collect(), graph.node(id).name.clone());
                walk.w.audit(Audit { node, expected: vec![expected], found, less });
            }
        }
    }
    Arrived(walk.arrived)
}

/// A walk on its way.
pub struct Walk<'w, 'g> {
    /// The program.
    pub w: &'w mut Writer<'g>,
    /// Where it started.
    from: NodeId,
    /// Nodes on a path from the stop to the output.
    reach: Vec<bool>,
    /// Sum of what a node's readers have sent so far.
    arrived: Vec<Option<Reg>>,
    /// Whether what comes in and goes out is written down.
    audited: bool,
    /// Of an audited node: totals at the inputs before and after its shares.
    sent: Vec<(Option<Reg>, Reg)>,
}

/// A layer with weights.
#[derive(Debug, Clone, Copy)]
pub enum Layer {
    /// A convolution.
    Conv(ConvGeom, ParamId),
    /// A fully connected layer.
    Linear(ParamId),
}

impl Layer {
    /// Its parameters.
    pub fn param(&self) -> ParamId {
        match self {
            Self::Conv(_, param) | Self::Linear(param) => *param,
        }
    }
}

impl Walk<'_, '_> {
    /// Applies the rule that a composite has for a node.
    pub fn apply(&mut self, id: NodeId, r: Reg, composite: &Composite) {
        let rule = composite.rule(self.w.graph, id);
        let node = self.w.graph.node(id);
        let input = node.inputs[0];
        let shares = rule.shares();
        match (&node.op, rule) {
            (Op::Conv { .. } | Op::Linear { .. }, Rule::Pass) if self.w.shape(id) == self.w.shape(input) => {
                self.pass(input, r);
            }
            (Op::Conv { .. } | Op::Linear { .. }, _) if shares.is_empty() => self.layer_gradient(id, r),
            (Op::Conv { .. } | Op::Linear { .. }, _) => self.layer_relevance(id, &shares, composite, r),
            (Op::Relu, Rule::Gradient | Rule::Guided) => {
                let r = if rule == Rule::Guided { self.w.unary(Unary::Positive, r) } else { r };
                let x = self.w.value(id);
                self.send(input, |_, add, y| Instr::Mask { keep: Sign::Positive, x, r, add, y });
            }
            (Op::Relu, Rule::Deconv) => {
                let r = self.w.unary(Unary::Positive, r);
                self.pass(input, r);
            }
            (Op::MaxPool(window), rule) => {
                let r = match rule {
                    // Relevance stays with the winner, which is the maximum; what belongs to a zero is dropped.
                    Rule::Share(by) => {
                        let z = self.w.value(id);
                        let s = self.w.divide(r, z, None, by);
                        self.w.multiply(z, s)
                    }
                    _ => r,
                };
                self.max_pool_back(id, *window, r);
            }
            (Op::AvgPool(_), Rule::Share(by)) => {
                let z = self.w.value(id);
                let (s, x) = (self.w.divide(r, z, None, by), self.w.value(input));
                self.avg_pool_back(id, s, Some(x));
            }
            (Op::AvgPool(_), _) => self.avg_pool_back(id, r, None),
            (Op::Add, Rule::Share(by)) => self.share_sum(id, composite, by, r),
            (Op::Add, Rule::SharePositive(by)) => {
                let terms = [input, node.inputs[1]].map(|i| self.positive(i));
                self.share(id, terms, by, r);
            }
            (Op::Add, Rule::Only(term)) => self.pass(node.inputs[term], r),
            (Op::Flatten, _) if self.w.shape(input).h * self.w.shape(input).w > 1 => {
                let x = self.w.shape(input);
                self.send(input, |_, add, dx| Instr::FlattenBack { x, dy: r, add, dx });
            }
            _ => node.inputs.clone().into_iter().for_each(|input| self.pass(input, r)),
        }
    }

    /// The layer that a node is, where it has weights.
    pub fn layer(&self, id: NodeId) -> Option<Layer> {
        let node = self.w.graph.node(id);
        match &node.op {
            Op::Conv { window, param } => {
                let g = ConvGeom { window: *window, x: self.w.shape(node.inputs[0]), y: self.w.shape(id) };
                Some(Layer::Conv(g, *param))
            }
            Op::Linear { param } => Some(Layer::Linear(*param)),
            _ => None,
        }
    }

    /// Whether anything that reads the stop lies at or below a node.
    pub fn reaches(&self, id: NodeId) -> bool {
        self.reach[id.0]
    }

    /// Sends a node a share that `instr` computes; it adds what has arrived there before.
    pub fn send(&mut self, to: NodeId, instr: impl FnOnce(&mut Self, Option<Reg>, Reg) -> Instr<Reg>) {
        if !self.reach[to.0] {
            return;
        }
        let add = self.arrived[to.0];
        let before = add.filter(|_| self.audited).map(|add| self.w.totals(add));
        let dx = self.w.class_reg(self.w.shape(to).len());
        let instr = instr(self, add, dx);
        self.w.push(instr);
        self.arrived[to.0] = Some(dx);
        self.record(before, dx);
    }

    /// Sends a node all of `r`.
    pub fn pass(&mut self, to: NodeId, r: Reg) {
        if !self.reach[to.0] {
            return;
        }
        let before = self.arrived[to.0].filter(|_| self.audited).map(|add| self.w.totals(add));
        let sum = match self.arrived[to.0] {
            None => r,
            Some(a) => self.w.sum(a, r),
        };
        self.arrived[to.0] = Some(sum);
        self.record(before, sum);
    }

    fn record(&mut self, before: Option<Reg>, after: Reg) {
        if self.audited {
            let after = self.w.totals(after);
            self.sent.push((before, after));
        }
    }

    /// Sends what has arrived at a max pooling to the winners.
    pub fn max_pool_back(&mut self, id: NodeId, window: Window, dy: Reg) {
        let input = self.w.graph.node(id).inputs[0];
        let g = PoolGeom { window, x: self.w.shape(input), y: self.w.shape(id) };
        let index = self.w.winners(id);
        self.send(input, |_, add, dx| Instr::MaxPoolBack { g, index, dy, add, dx });
    }

    /// Spreads what has arrived at an average pooling, times `mul`.
    pub fn avg_pool_back(&mut self, id: NodeId, dy: Reg, mul: Option<Reg>) {
        let node = self.w.graph.node(id);
        let (Op::AvgPool(pool), input) = (&node.op, node.inputs[0]) else { return };
        let g = AvgGeom { pool: *pool, x: self.w.shape(input), y: self.w.shape(id) };
        self.send(input, |_, add, dx| Instr::AvgPoolBack { g, dy, mul, add, dx });
    }

    fn layer_gradient(&mut self, id: NodeId, dy: Reg) {
        let (Some(layer), input) = (self.layer(id), self.w.graph.node(id).inputs[0]) else { return };
        self.send(input, |_, add, dx| transposed(layer, WeightRef::plain(layer.param()), false, dy, None, add, dx));
    }
}

/// `mul ⊙ wᵀ*dy + add`
pub fn transposed(
    layer: Layer,
    w: WeightRef,
    exact: bool,
    dy: Reg,
    mul: Option<Reg>,
    add: Option<Reg>,
    dx: Reg,
) -> Instr<Reg> {
    match layer {
        Layer::Conv(g, _) => Instr::ConvBack { g, w, exact, dy, mul, add, dx },
        Layer::Linear(_) => Instr::LinearBack { w, exact, dy, mul, add, dx },
    }
}
