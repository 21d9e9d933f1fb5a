//! The forward pass: what of the network a program needs, with epilogues fused, inputs gathered for a mosaic, and values
//! that are cut out of one.

use super::{Reg, Writer};
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

    /// An input as the operation of a node sees it, and its shape.
    fn input(&mut self, node: NodeId, i: usize) -> (Reg, Shape) {
        let input = self.graph.node(node).inputs[i];
        let x = self.value(input);
        match self.mosaic.as_ref().and_then(|mosaic| mosaic.picks(node, i)).cloned() {
            None => (x, self.shape(input)),
            Some(picks) => (self.gather(x, &picks), picks.to),
        }
    }

    fn gather(&mut self, x: Reg, picks: &Picks) -> Reg {
        let y = self.activation(picks.to.len());
        self.push(Instr::Gather { picks: picks.clone(), x, y });
        y
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
        }
        self.steps.extend(rest);
    }

    fn nodes(&self) -> impl DoubleEndedIterator<Item = NodeId> + use<> {
        (0..self.graph.nodes().len()).map(NodeId)
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
        let window = |window: &Window| self.mosaic.as_ref().and_then(|mosaic| mosaic.window(node)).unwrap_or(*window);
        let op = match &graph.node(node).op {
            Op::Conv { window: w, param } => Op::Conv { window: window(w), param: *param },
            Op::MaxPool(w) => Op::MaxPool(window(w)),
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
