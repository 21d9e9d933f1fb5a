//! The oracle for whole networks in `f64`: all activations and the gradient; relevance is in `relevance.rs`. Knows the
//! graph's nodes and weights; shares no code with the engine.

use super::reference::{self as layer, Average, Size, Window};
use super::to_f64;
use ucag::net::{AvgPool, Graph, NodeId, Op, Shape};

/// A network and its values for one picture.
pub struct Oracle<'g> {
    pub graph: &'g Graph,
    shapes: Vec<Shape>,
    /// Weights of each parameter in file order.
    weights: Vec<Vec<f64>>,
    biases: Vec<Vec<f64>>,
    /// Output of every node.
    pub values: Vec<Vec<f64>>,
}

pub(super) fn window(w: &ucag::net::Window) -> Window {
    Window { kernel: w.kernel, stride: w.stride, pad: w.pad }
}

pub(super) fn average(pool: &AvgPool) -> Average {
    match pool {
        AvgPool::Window(w) => Average::Window(window(w)),
        AvgPool::Adaptive(h, w) => Average::Adaptive(*h, *w),
    }
}

impl<'g> Oracle<'g> {
    /// Runs the network forward.
    pub fn new(graph: &'g Graph, (h, w): (usize, usize), input: &[f64]) -> Self {
        let file_order = |p: &ucag::net::Param| {
            let ([kh, kw], i, o) = (p.kernel, p.inputs, p.outputs);
            let is_conv =
                graph.nodes().iter().any(|n| matches!(n.op, Op::Conv { param, .. } if graph.param(param).key == p.key));
            if !is_conv {
                return to_f64(&p.weight);
            }
            let at = |f: usize| {
                let (oc, ic, tap) = (f / (i * kh * kw), f / (kh * kw) % i, f % (kh * kw));
                f64::from(p.tap(tap, ic, oc))
            };
            (0..o * i * kh * kw).map(at).collect()
        };
        let weights = graph.params().iter().map(file_order).collect();
        let biases = graph.params().iter().map(|p| to_f64(&p.bias)).collect();
        let shapes = graph.shapes(h, w).expect("a picture that is large enough");
        let mut oracle = Self { graph, shapes, weights, biases, values: vec![] };
        oracle.forward(input);
        oracle
    }

    /// Runs it again on another input of the same size.
    pub fn forward(&mut self, input: &[f64]) {
        self.values = vec![input.to_vec()];
        for node in &self.graph.nodes()[1..] {
            let from = node.inputs[0];
            let (x, size) = (&self.values[from.0], self.size(from));
            let y = match &node.op {
                Op::Input => unreachable!("only the first node is the input"),
                Op::Conv { .. } | Op::Linear { .. } => {
                    let (weight, bias) = self.parameters(&node.op);
                    layer::biased(&self.apply(&node.op, x, size, weight), bias)
                }
                Op::Relu => layer::relu(x),
                Op::MaxPool(w) => layer::max_pool(x, size, &window(w)).0,
                Op::AvgPool(pool) => layer::avg_pool(x, size, &average(pool)),
                Op::Add => layer::sum(x, &self.values[node.inputs[1].0]),
                Op::Flatten => layer::flatten(x, size),
            };
            self.values.push(y);
        }
    }

    pub fn logits(&self) -> &[f64] {
        &self.values[self.graph.output().0]
    }

    pub(super) fn size(&self, id: NodeId) -> Size {
        let s = self.shapes[id.0];
        (s.h, s.w, s.c)
    }

    pub(super) fn parameters(&self, op: &Op) -> (&[f64], &[f64]) {
        match op {
            Op::Conv { param, .. } | Op::Linear { param } => (&self.weights[param.0], &self.biases[param.0]),
            _ => unreachable!("an operation without weights"),
        }
    }

    /// `w*x`
    pub(super) fn apply(&self, op: &Op, x: &[f64], size: Size, weight: &[f64]) -> Vec<f64> {
        match op {
            Op::Conv { window: w, param } => layer::conv(x, size, weight, self.graph.param(*param).outputs, &window(w)),
            _ => layer::linear(x, weight),
        }
    }

    /// `JT_w[s]`
    pub(super) fn transposed(&self, op: &Op, s: &[f64], size: Size, weight: &[f64]) -> Vec<f64> {
        match op {
            Op::Conv { window: w, param } => {
                layer::conv_back(s, size, weight, self.graph.param(*param).outputs, &window(w))
            }
            _ => layer::linear_back(s, weight),
        }
    }

    /// Gradient of the class's logit at every node.
    pub fn gradient(&self, class: usize) -> Vec<Vec<f64>> {
        self.gradient_by(class, |y, r| if y > 0.0 { r } else { 0.0 })
    }

    /// The same with another rule for rectifiers, which is given the result and what arrives there.
    pub fn gradient_by(&self, class: usize, rectifier: impl Fn(f64, f64) -> f64) -> Vec<Vec<f64>> {
        let seed: Vec<f64> = (0..self.logits().len()).map(|j| f64::from(u8::from(j == class))).collect();
        self.gradient_from(&seed, rectifier)
    }

    /// The same from any quantity at the logits.
    pub fn gradient_from(&self, seed: &[f64], rectifier: impl Fn(f64, f64) -> f64) -> Vec<Vec<f64>> {
        self.down(self.graph.output(), seed, |id, r| {
            let node = self.graph.node(id);
            let (x, size) = (&self.values[node.inputs[0].0], self.size(node.inputs[0]));
            match &node.op {
                op @ (Op::Conv { .. } | Op::Linear { .. }) => vec![self.transposed(op, r, size, self.parameters(op).0)],
                Op::Relu => vec![self.values[id.0].iter().zip(r).map(|(y, r)| rectifier(*y, *r)).collect()],
                Op::AvgPool(pool) => vec![layer::avg_pool_back(r, size, &average(pool))],
                Op::Add => vec![r.to_vec(); 2],
                op => vec![self.rearranged(op, x, size, r)],
            }
        })
    }

    /// Operations that only move values: the winner takes all, and the order changes back.
    pub(super) fn rearranged(&self, op: &Op, x: &[f64], size: Size, r: &[f64]) -> Vec<f64> {
        match op {
            Op::MaxPool(w) => {
                let (_, index) = layer::max_pool(x, size, &window(w));
                layer::max_pool_back(r, &index, size, &window(w))
            }
            Op::Flatten => layer::flatten_back(r, size),
            _ => unreachable!("{op:?} has a rule of its own"),
        }
    }

    /// Starts with `seed` at the output of node `from`; `rule(node, arrived)` gives each input's share.
    pub fn down(&self, from: NodeId, seed: &[f64], rule: impl Fn(NodeId, &[f64]) -> Vec<Vec<f64>>) -> Vec<Vec<f64>> {
        let mut arrived: Vec<Vec<f64>> = self.values.iter().map(|v| vec![0.0; v.len()]).collect();
        arrived[from.0] = seed.to_vec();
        for id in (1..=from.0).rev().map(NodeId) {
            let shares = rule(id, &arrived[id.0]);
            for (input, share) in self.graph.node(id).inputs.iter().zip(shares) {
                arrived[input.0] = layer::sum(&arrived[input.0], &share);
            }
        }
        arrived
    }
}
