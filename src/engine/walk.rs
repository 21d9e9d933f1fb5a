//! The one walk down the network. Gradients and relevance differ only in the rule at a node.

use super::program::{Reg, Writer};
use super::rules::{Composite, Part, Recipe, Rule};
use crate::backend::{AvgGeom, ConvGeom, Instr, PoolGeom, Variant, WeightRef};
use crate::net::{NodeId, Op, ParamId, Window};

/// Writes the walk from `seed`, a quantity at the network's output, down to `stop`. Returns that quantity there, one
/// lane a class, or `None` when the output does not depend on `stop`.
pub fn walk_down(w: &mut Writer<'_>, seed: Reg, stop: NodeId, composite: &Composite) -> Option<Reg> {
    let graph = w.graph;
    let mut reach = vec![false; graph.nodes().len()];
    reach[stop.0] = true;
    for (i, node) in graph.nodes().iter().enumerate() {
        reach[i] |= node.inputs.iter().any(|input| reach[input.0]);
    }
    let mut walk = Walk { w, reach, arrived: vec![None; graph.nodes().len()] };
    walk.arrived[graph.output().0] = Some(seed);
    for id in (stop.0 + 1..graph.nodes().len()).rev().map(NodeId) {
        if let Some(dy) = walk.arrived[id.0].take() {
            walk.node(id, dy, composite.rule(&graph.node(id).op));
        }
    }
    walk.arrived[stop.0]
}

struct Walk<'w, 'g> {
    w: &'w mut Writer<'g>,
    /// Nodes on a path from the stop to the output.
    reach: Vec<bool>,
    /// Sum of what a node's readers have sent so far.
    arrived: Vec<Option<Reg>>,
}

/// A layer with weights.
#[derive(Clone, Copy)]
enum Layer {
    Conv(Window, ParamId),
    Linear(ParamId),
}

impl Walk<'_, '_> {
    fn node(&mut self, id: NodeId, dy: Reg, rule: Rule) {
        let node = self.w.graph.node(id);
        self.w.at(&node.name);
        let input = node.inputs[0];
        match (&node.op, rule) {
            (Op::Conv { window, param }, Rule::Gradient) => self.layer_gradient(id, Layer::Conv(*window, *param), dy),
            (Op::Linear { param }, Rule::Gradient) => self.layer_gradient(id, Layer::Linear(*param), dy),
            (Op::Conv { window, param }, Rule::Weighted(r)) => {
                self.layer_relevance(id, Layer::Conv(*window, *param), &r, dy);
            }
            (Op::Linear { param }, Rule::Weighted(r)) => self.layer_relevance(id, Layer::Linear(*param), &r, dy),
            (Op::Relu, Rule::Gradient | Rule::Guided) => {
                let dy = if rule == Rule::Guided { self.w.part(dy, true) } else { dy };
                let y = self.w.value(id);
                self.send(input, |_, add, dx| Instr::ReluBack { y, dy, add, dx });
            }
            (Op::Relu, Rule::Deconv) => {
                let dx = self.w.part(dy, true);
                self.pass(input, dx);
            }
            (Op::MaxPool(window), _) => {
                let g = PoolGeom { window: *window, x: self.w.shape(input), y: self.w.shape(id) };
                let index = self.w.winners(id);
                self.send(input, |_, add, dx| Instr::MaxPoolBack { g, index, dy, add, dx });
            }
            (Op::AvgPool(pool), rule) => {
                let g = AvgGeom { pool: *pool, x: self.w.shape(input), y: self.w.shape(id) };
                let (dy, mul) = match rule {
                    Rule::Norm(eps) => {
                        let z = self.w.value(id);
                        (self.w.divide(dy, z, None, eps), Some(self.w.value(input)))
                    }
                    _ => (dy, None),
                };
                self.send(input, |_, add, dx| Instr::AvgPoolBack { g, dy, mul, add, dx });
            }
            (Op::Add, Rule::Norm(eps)) => {
                let terms = [input, node.inputs[1]].map(|i| self.w.value(i));
                let c = self.w.divide(dy, terms[0], Some(terms[1]), eps);
                for (input, x) in node.inputs.clone().into_iter().zip(terms) {
                    self.send(input, |_, add, y| Instr::Multiply { x, c, add, y });
                }
            }
            (Op::Flatten, _) if self.w.shape(input).h * self.w.shape(input).w > 1 => {
                let x = self.w.shape(input);
                self.send(input, |_, add, dx| Instr::FlattenBack { x, dy, add, dx });
            }
            _ => node.inputs.clone().into_iter().for_each(|input| self.pass(input, dy)),
        }
    }

    /// Sends a node a share that `instr` computes; it adds what has arrived there before.
    fn send(&mut self, to: NodeId, instr: impl FnOnce(&mut Self, Option<Reg>, Reg) -> Instr<Reg>) {
        if !self.reach[to.0] {
            return;
        }
        let add = self.arrived[to.0];
        let dx = self.w.class_reg(self.w.shape(to).len());
        let instr = instr(self, add, dx);
        self.w.push(instr);
        self.arrived[to.0] = Some(dx);
    }

    /// Sends a node all of `dy`.
    fn pass(&mut self, to: NodeId, dy: Reg) {
        if !self.reach[to.0] {
            return;
        }
        match self.arrived[to.0] {
            None => self.arrived[to.0] = Some(dy),
            Some(a) => {
                let y = self.w.class_reg(self.w.shape(to).len());
                self.w.push(Instr::Add { a, b: dy, relu: false, y });
                self.arrived[to.0] = Some(y);
            }
        }
    }

    fn layer_gradient(&mut self, id: NodeId, layer: Layer, dy: Reg) {
        let input = self.w.graph.node(id).inputs[0];
        self.send(input, |walk, add, dx| walk.transposed(id, layer, Variant::Plain, dy, None, add, dx));
    }

    /// Relevance by a recipe; see the module's formula in `rules.rs`.
    fn layer_relevance(&mut self, id: NodeId, layer: Layer, recipe: &Recipe, dy: Reg) {
        let input = self.w.graph.node(id).inputs[0];
        let x = self.w.value(input);
        let non_negative = self.w.graph.non_negative(input);
        let mut terms = vec![];
        for (part, variant) in recipe.terms {
            let x = match part {
                Part::Whole => x,
                Part::Positive if non_negative => x,
                Part::Negative if non_negative => continue,
                part => self.w.part(x, *part == Part::Positive),
            };
            terms.push((x, *variant));
        }
        let mut z = None;
        for (x, variant) in &terms {
            let bias = z.is_none().then_some(recipe.bias);
            z = Some(self.product(id, layer, *variant, bias, *x, z));
        }
        let Some(z) = z else { return };
        let s = self.w.divide(dy, z, None, recipe.eps);
        for (x, variant) in terms {
            self.send(input, |walk, add, dx| walk.transposed(id, layer, variant, s, Some(x), add, dx));
        }
    }

    fn product(
        &mut self,
        id: NodeId,
        layer: Layer,
        variant: Variant,
        bias: Option<Variant>,
        x: Reg,
        add: Option<Reg>,
    ) -> Reg {
        let y = self.w.reg(self.w.shape(id).len());
        let instr = match layer {
            Layer::Conv(window, param) => {
                let (g, w) = (self.geometry(id, window), WeightRef { param, variant });
                Instr::Conv { g, w, bias, x, add, relu: false, y }
            }
            Layer::Linear(param) => Instr::Linear { w: WeightRef { param, variant }, bias, x, add, relu: false, y },
        };
        self.w.push(instr);
        y
    }

    #[allow(clippy::too_many_arguments)]
    fn transposed(
        &self,
        id: NodeId,
        layer: Layer,
        variant: Variant,
        dy: Reg,
        mul: Option<Reg>,
        add: Option<Reg>,
        dx: Reg,
    ) -> Instr<Reg> {
        match layer {
            Layer::Conv(window, param) => {
                let g = self.geometry(id, window);
                Instr::ConvBack { g, w: WeightRef { param, variant }, dy, mul, add, dx }
            }
            Layer::Linear(param) => Instr::LinearBack { w: WeightRef { param, variant }, dy, mul, add, dx },
        }
    }

    fn geometry(&self, id: NodeId, window: Window) -> ConvGeom {
        let input = self.w.graph.node(id).inputs[0];
        ConvGeom { window, x: self.w.shape(input), y: self.w.shape(id) }
    }
}
