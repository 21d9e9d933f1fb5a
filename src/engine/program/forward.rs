//! The forward pass: what of the network a program needs, with epilogues fused, inputs gathered for a mosaic, and values
//! that are cut out of one.

use super::{Reg, Sum, Writer};
use crate::backend::{AvgGeom, ConvGeom, Instr, Picks, PoolGeom, Slot, Step, Unary, Variant, WeightRef};
use crate::net::{NodeId, Op, Shape, Window};

impl Writer<'_> {
    /// Where a node's value lies that outlives the program.
    pub(in crate::engine) fn put(&mut self, node: NodeId, slot: Slot) {
        let reg = self.fixed(slot);
        self.values.insert(node, reg);
    }

    /// Lets a node's value be cut out of its mosaic, which lies in a slot.
    pub(in crate::engine) fn give(&mut self, node: NodeId, slot: Slot, cut: Picks) {
        let mosaic = self.fixed(slot);
        self.given.insert(node, (mosaic, cut));
    }

    /// The sums that the steps written so far form of values.
    pub(in crate::engine) fn sums(&self) -> Vec<Sum> {
        let is = |node: &NodeId, layer| matches!(self.graph.node(*node).op, Op::Conv { param, .. } if param == layer);
        let sum = |step: &Step<Reg>| match step.instr {
            Instr::Conv { w, bias, x, add: None, relu: false, y, .. }
            | Instr::Quotient { w, bias, x, add: None, y, .. } => {
                let node = self.nodes().find(|node| is(node, w.param))?;
                let input = self.resolve(self.graph.node(node).inputs[0]);
                (self.values.get(&input) == Some(&x)).then_some(Sum { node, w, bias, y })
            }
            _ => None,
        };
        self.steps.iter().filter_map(sum).collect()
    }

    /// Lets a sum be formed during the forward pass and lie in a slot.
    pub(in crate::engine) fn form(&mut self, sum: &Sum, slot: Slot) {
        self.value(self.graph.node(sum.node).inputs[0]);
        let y = self.fixed(slot);
        self.formed.push((*sum, y));
    }

    /// Lets a sum be cut out of its mosaic, which lies in a slot.
    pub(in crate::engine) fn give_sum(&mut self, sum: &Sum, slot: Slot, picks: Picks) {
        let forms = |step: &Step<Reg>| match step.instr {
            Instr::Conv { y, .. } | Instr::Quotient { y, .. } => y == sum.y,
            _ => false,
        };
        let Some(at) = self.steps.iter().position(forms) else { return };
        let (x, node) = (self.fixed(slot), self.steps[at].node.clone());
        match self.steps[at].instr {
            Instr::Quotient { r, by, scale, y, .. } => {
                let z = self.reg(picks.to.len());
                self.steps[at].instr = Instr::Divide { r, z, z2: None, by, scale, y };
                self.steps.insert(at, Step { node, instr: Instr::Gather { picks, x, y: z } });
            }
            _ => self.steps[at].instr = Instr::Gather { picks, x, y: sum.y },
        }
    }

    /// An input as the operation of a node sees it, and its shape.
    fn input(&mut self, node: NodeId, i: usize) -> (Reg, Shape) {
        let input = self.graph.node(node).inputs[i];
        let x = self.value(input);
        let Some(picks) = self.mosaic.as_ref().and_then(|mosaic| mosaic.picks(node, i)).cloned() else {
            return (x, self.shape(input));
        };
        let shape = picks.to;
        if let Some(view) = self.views.get(&(node, i)) {
            return (*view, shape);
        }
        let y = self.activation(shape.len());
        self.push(Instr::Gather { picks, x, y });
        self.views.insert((node, i), y);
        (y, shape)
    }

    /// The window of a node's operation on its input as it sees it.
    fn window(&self, node: NodeId, window: &Window) -> Window {
        self.mosaic.as_ref().and_then(|mosaic| mosaic.window(node)).unwrap_or(*window)
    }

    /// Puts the forward pass, as far as values were asked for, before the steps written so far.
    pub fn forward(&mut self) {
        let rest = self.steps.split_off(self.start);
        let asked: Vec<bool> =
            self.nodes().map(|n| self.values.contains_key(&n) || self.winners.contains_key(&n)).collect();
        let mut needed = asked.clone();
        for node in self.nodes().rev().filter(|n| self.resolve(*n) == *n) {
            if needed[node.0] && !self.given.contains_key(&node) {
                self.graph.node(node).inputs.iter().for_each(|i| needed[self.resolve(*i).0] = true);
            }
        }
        let mut done = vec![false; needed.len()];
        for node in self.nodes() {
            if needed[node.0] && !done[node.0] {
                self.forward_node(node, &asked, &mut done);
            }
            let formed: Vec<(Sum, Reg)> = self.formed.iter().filter(|(sum, _)| sum.node == node).copied().collect();
            formed.into_iter().for_each(|(sum, y)| self.form_sum(&sum, y));
        }
        self.steps.extend(rest);
    }

    fn nodes(&self) -> impl DoubleEndedIterator<Item = NodeId> + use<> {
        (0..self.graph.nodes().len()).map(NodeId)
    }

    fn form_sum(&mut self, sum: &Sum, y: Reg) {
        let graph = self.graph;
        let Op::Conv { window, .. } = &graph.node(sum.node).op else { return };
        self.at(&graph.node(sum.node).name);
        let (x, shape) = self.input(sum.node, 0);
        let g = ConvGeom { window: self.window(sum.node, window), x: shape, y: self.shape(sum.node) };
        self.push(Instr::Conv { g, w: sum.w, bias: sum.bias, x, add: None, relu: false, y });
    }

    /// Writes one node together with the nodes after it that fuse into it.
    fn forward_node(&mut self, node: NodeId, asked: &[bool], done: &mut [bool]) {
        let graph = self.graph;
        self.at(&graph.node(node).name);
        if let Some((x, picks)) = self.given.get(&node).cloned() {
            done[node.0] = true;
            let y = self.value(node);
            return self.push(Instr::Gather { picks, x, y });
        }
        let inputs = &graph.node(node).inputs;
        let (mut last, mut add, mut relu) = (node, None, false);
        let only_reader = |n: NodeId| match graph.readers(n) {
            [reader] if !asked[n.0] => Some(*reader),
            _ => None,
        };
        if matches!(graph.node(node).op, Op::Conv { .. } | Op::Linear { .. } | Op::Add) {
            while let Some(reader) = only_reader(last) {
                match graph.node(reader).op {
                    Op::Relu => (last, relu) = (reader, true),
                    // The other term must exist already; the later one of two convolutions takes the earlier one in.
                    Op::Add if last == node && !matches!(graph.node(node).op, Op::Add) => {
                        let terms = &graph.node(reader).inputs;
                        let other = terms.iter().position(|i| *i != last);
                        let as_is = |i| self.mosaic.as_ref().is_none_or(|mosaic| mosaic.picks(reader, i).is_none());
                        match other.filter(|o| done[self.resolve(terms[*o]).0] && as_is(1 - o)) {
                            Some(other) => (last, add) = (reader, Some(self.input(reader, other).0)),
                            None => break,
                        }
                    }
                    _ => break,
                }
                done[last.0] = true;
                if relu {
                    break;
                }
            }
        }
        done[node.0] = true;
        let op = match &graph.node(node).op {
            Op::Conv { window, param } => Op::Conv { window: self.window(node, window), param: *param },
            Op::MaxPool(window) => Op::MaxPool(self.window(node, window)),
            op => op.clone(),
        };
        let x = (!inputs.is_empty()).then(|| self.input(node, 0));
        let out = self.shape(node);
        let bias = Some(Variant::Plain);
        let instr = match (op, x) {
            (Op::Conv { window, param }, Some((x, shape))) => {
                let g = ConvGeom { window, x: shape, y: out };
                Instr::Conv { g, w: WeightRef::plain(param), bias, x, add, relu, y: self.value(last) }
            }
            (Op::Linear { param }, Some((x, _))) => {
                Instr::Linear { w: WeightRef::plain(param), bias, x, add, relu, y: self.value(last) }
            }
            (Op::Relu, Some((x, _))) => Instr::Unary { f: Unary::Positive, x, y: self.value(node) },
            (Op::MaxPool(window), Some((x, shape))) => {
                let g = PoolGeom { window, x: shape, y: out };
                let index = self.winners.get(&node).copied();
                Instr::MaxPool { g, x, y: self.value(node), index }
            }
            (Op::AvgPool(pool), Some((x, shape))) => {
                let g = AvgGeom { pool, x: shape, y: out };
                Instr::AvgPool { g, x, y: self.value(node) }
            }
            (Op::Add, Some((a, _))) => Instr::Add { a, b: self.input(node, 1).0, relu, y: self.value(last) },
            (Op::Flatten, Some((from, x))) => Instr::Flatten { x, from, y: self.value(node) },
            (_, _) => return, // the input, which the caller has written
        };
        self.push(instr);
    }

    /// Puts the unfolding of a working image of `image` (rows, columns) first, where the network's input is needed.
    pub fn unfold(&mut self, image: (usize, usize)) {
        if !self.values.contains_key(&NodeId(0)) {
            return;
        }
        let y = self.value(NodeId(0));
        self.steps.insert(0, Step { node: "unfold".into(), instr: Instr::Unfold { image, y } });
    }
}
