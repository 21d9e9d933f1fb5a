//! Relevance through residual sums: to each term in proportion to it.

use super::Walk;
use crate::backend::{Divisor, Instr};
use crate::engine::program::Reg;
use crate::engine::rules::{Composite, Part, Rule};
use crate::net::{NodeId, Op};

impl Walk<'_, '_> {
    /// Shares `r` among the two terms of a sum.
    pub(super) fn share_sum(&mut self, id: NodeId, composite: &Composite, by: Divisor, r: Reg) {
        let [a, b] = self.terms(id);
        let (early, late) = (a.min(b), a.max(b));
        match self.rectified(id, composite) {
            // The later term is what the sum has more than the earlier one: it need not be kept, and the layer that makes
            // it adds the earlier one in. That layer must not divide by the term, which is rounded like the sum.
            Some(relu) if self.is_first(a, b) && composite.rule(self.w.graph, late).is_of_one_sign() => {
                let [sum, term] = [relu, early].map(|node| self.w.value(node));
                self.split([late, early], [sum, term], true, by, r);
            }
            _ => {
                let values = [a, b].map(|term| self.w.value(term));
                self.share(id, values, by, r);
            }
        }
    }

    /// Shares `r` among the two terms of a sum in proportion to `values`.
    pub fn share(&mut self, id: NodeId, values: [Reg; 2], by: Divisor, r: Reg) {
        let terms @ [a, b] = self.terms(id);
        if self.is_first(a, b) {
            return self.split(terms, values, false, by, r);
        }
        let c = self.w.divide(r, values[0], Some(values[1]), by);
        for (input, x) in terms.into_iter().zip(values) {
            self.send(input, |_, add, y| Instr::Multiply { x, c, add, y });
        }
    }

    fn terms(&self, id: NodeId) -> [NodeId; 2] {
        let inputs = &self.w.graph.node(id).inputs;
        [inputs[0], inputs[1]]
    }

    /// Whether both terms are to get something, and nothing has arrived there before.
    fn is_first(&self, a: NodeId, b: NodeId) -> bool {
        a != b && [a, b].iter().all(|term| self.reach[term.0] && self.arrived[term.0].is_none())
    }

    fn split(&mut self, terms: [NodeId; 2], [a, b]: [Reg; 2], whole: bool, by: Divisor, r: Reg) {
        let [ya, yb] = terms.map(|term| self.w.class_reg(self.w.shape(term).len()));
        self.w.push(Instr::Split { a, b, whole, r, by, ya, yb });
        for (term, y) in terms.into_iter().zip([ya, yb]) {
            self.arrived[term.0] = Some(y);
            self.record(None, y);
        }
    }

    /// The rectifier behind a sum, if its value is as good as the sum's: where it differs, nothing has arrived.
    fn rectified(&self, id: NodeId, composite: &Composite) -> Option<NodeId> {
        let graph = self.w.graph;
        let [relu] = graph.readers(id) else { return None };
        let is_masked = match (&graph.node(*relu).op, composite.rule(graph, *relu)) {
            (Op::Relu, Rule::Gradient | Rule::Guided) => *relu <= self.from,
            (Op::Relu, Rule::Pass) => self.vanishes(*relu, composite),
            _ => false,
        };
        is_masked.then_some(*relu)
    }

    /// Whether nothing arrives at a node where its value is zero, because its readers share in proportion to it.
    fn vanishes(&self, id: NodeId, composite: &Composite) -> bool {
        let graph = self.w.graph;
        let proportional =
            |part: &Part| matches!(part, Part::Whole | Part::Positive | Part::Negative | Part::Magnitude);
        let vanishes = |reader: &NodeId| {
            let rule = composite.rule(graph, *reader);
            match graph.node(*reader).op {
                Op::Conv { .. } | Op::Linear { .. } => {
                    let shares = rule.shares();
                    !shares.is_empty()
                        && shares.iter().flat_map(|share| &share.terms).all(|(part, _)| proportional(part))
                }
                Op::Add => matches!(rule, Rule::Share(_) | Rule::SharePositive(_)),
                Op::AvgPool(_) => matches!(rule, Rule::Share(_)),
                Op::MaxPool(_) | Op::Flatten => self.vanishes(*reader, composite),
                Op::Relu | Op::Input => false,
            }
        };
        id < self.from && graph.readers(id).iter().all(vanishes)
    }
}
