//! Relevance through layers with weights: shares in proportion to sums of products (the formula of `rules.rs`).

use super::{Layer, Walk, transposed};
use crate::backend::{Instr, Unary, Variant, WeightRef, WeightSign};
use crate::engine::program::Reg;
use crate::engine::rules::{Bounds, Composite, Part, Share};
use crate::net::NodeId;

impl Walk<'_, '_> {
    /// Sends relevance on by shares.
    pub(super) fn layer_relevance(&mut self, id: NodeId, shares: &[Share], composite: &Composite, r: Reg) {
        let (Some(layer), input) = (self.layer(id), self.w.graph.node(id).inputs[0]) else { return };
        if !self.reach[input.0] {
            return;
        }
        let mut sent = false;
        for share in shares {
            let sign = if composite.negated == Some(id) { WeightSign::Negated } else { share.sign };
            // Without its bias, the sum of an active neuron may be one of zeros; beside that a stabiliser is small.
            let (param, termwise) = (layer.param(), share.termwise || !composite.biases);
            let weight = |variant| WeightRef { param, sign, variant, termwise };
            let terms: Vec<_> = share
                .terms
                .iter()
                .filter_map(|(part, v)| Some((*part, self.part(input, *part)?, weight(*v))))
                .collect();
            let gated = match share.gate {
                Some(keep) => {
                    let (x, y) = (self.w.value(id), self.w.like(r));
                    self.w.push(Instr::Mask { keep, x, r, add: None, y });
                    y
                }
                None => r,
            };
            let Some(s) = self.quotient(id, layer, &terms, share, composite.biases, gated) else { continue };
            for (part, x, w) in terms {
                let mul = (part != Part::One).then_some(x);
                self.send(input, |_, add, dx| transposed(layer, w, composite.exact, s, mul, add, dx));
                sent = true;
            }
        }
        if !sent && self.arrived[input.0].is_none() {
            // No term can be other than zero.
            let dx = self.w.class_reg(self.w.shape(input).len());
            self.w.push(Instr::Fill { values: [0.0; 4], channels: 1, y: dx });
            self.arrived[input.0] = Some(dx);
        }
    }

    /// `s = scale·r / (Σ_t w_t*x_t + b)`; `None` where there is no term.
    fn quotient(
        &mut self,
        id: NodeId,
        layer: Layer,
        terms: &[(Part, Reg, WeightRef)],
        share: &Share,
        biases: bool,
        r: Reg,
    ) -> Option<Reg> {
        let (last, terms) = terms.split_last()?;
        let bias = |z: Option<Reg>| share.bias.filter(|_| z.is_none() && biases);
        let mut z = None;
        for (_, x, w) in terms {
            z = Some(self.product(id, layer, *w, bias(z), *x, z));
        }
        let (_, x, w) = *last;
        match layer {
            // Of several classes, each has a quotient of its own by the same sum.
            Layer::Conv(g, _) if self.w.lanes_of(r) == 1 => {
                let (y, by, scale) = (self.w.like(r), share.by, share.scale);
                self.w.push(Instr::Quotient { g, w, bias: bias(z), x, add: z, r, by, scale, y });
                Some(y)
            }
            _ => {
                let z = self.product(id, layer, w, bias(z), x, z);
                Some(self.w.quotient(r, z, None, share.by, share.scale))
            }
        }
    }

    /// A part of a node's value; `None` where it is zero whatever the picture.
    pub fn part(&mut self, input: NodeId, part: Part) -> Option<Reg> {
        let non_negative = self.w.graph.non_negative(input);
        let x = self.w.value(input);
        let channels = self.w.channels(input);
        let len = self.w.shape(input).len();
        Some(match part {
            Part::Whole => x,
            Part::Positive => self.positive(input),
            Part::Magnitude if non_negative => x,
            Part::Negative if non_negative => return None,
            Part::Negative => self.w.unary(Unary::Negative, x),
            Part::Magnitude => self.w.unary(Unary::Absolute, x),
            Part::One => {
                let y = self.w.activation(len);
                self.w.push(Instr::Fill { values: [1.0; 4], channels: 1, y });
                y
            }
            Part::Lower(Bounds::Colours(low, _)) => self.colours(low, channels.0, len),
            Part::Upper(Bounds::Colours(_, high)) => self.colours(high, channels.0, len),
            Part::Lower(Bounds::Sample(_)) | Part::Upper(Bounds::Sample(_)) => {
                let (range, y) = (self.w.range(x, channels), self.w.activation(len));
                let upper = matches!(part, Part::Upper(_));
                self.w.push(Instr::Bound { range, upper, channels, y });
                y
            }
        })
    }

    /// max(x, 0) of a node's value.
    pub(super) fn positive(&mut self, input: NodeId) -> Reg {
        let x = self.w.value(input);
        if self.w.graph.non_negative(input) { x } else { self.w.unary(Unary::Positive, x) }
    }

    /// An image of one colour, negated.
    fn colours(&mut self, [r, g, b]: [f32; 3], channels: usize, len: usize) -> Reg {
        let y = self.w.activation(len);
        self.w.push(Instr::Fill { values: [-r, -g, -b, 0.0], channels, y });
        y
    }

    /// `w*x + bias + add`
    pub fn product(
        &mut self,
        id: NodeId,
        layer: Layer,
        w: WeightRef,
        bias: Option<Variant>,
        x: Reg,
        add: Option<Reg>,
    ) -> Reg {
        let y = self.w.with_lanes_of(x, self.w.shape(id).len());
        self.w.push(match layer {
            Layer::Conv(g, _) => Instr::Conv { g, w, bias, x, add, relu: false, y },
            Layer::Linear(_) => Instr::Linear { w, bias, x, add, relu: false, y },
        });
        y
    }
}
