//! Relative attributing propagation (`methods.md` 12): relevance goes through weights of either sign as a size; then all
//! that was touched is shifted alike, so that the total is restored and the least relevant turns negative.

use super::lrp::{colour_sum, down_to_input, input_map, seed};
use super::{Job, Kind, RawMap, Setting};
use crate::backend::{Divisor, Instr, Seed, Sign, Unary, Variant, WeightRef};
use crate::engine::{Composite, Layer, Part, Reg, Rule, Rules, Walk, Writer, transposed};
use crate::net::{NodeId, Op};

/// What can be set about RAP.
pub(super) const SETTINGS: &[Setting] = &[
    Setting {
        key: "variant",
        kind: Kind::Choice(&["agf", "orig"]),
        help: "1×1 convolutions by magnitude, as AGF's authors have it, or all as RAP's own do, from a one-hot head",
    },
    Setting {
        key: "symmetric",
        kind: Kind::Flag(false),
        help: "convolutions treat negative relevance as linear layers do",
    },
];

/// RAP, in the form of AGF's authors or of its own.
pub(super) fn rap(w: &mut Writer<'_>, job: &Job<'_>) -> RawMap {
    let original = job.settings.choice("variant") == "orig";
    let pointwise = (!original).then_some(Rule::Magnitude);
    let set_a = Composite { pointwise, ..Composite::separate(1.0) };
    let rules = Rap { set_a, symmetric: job.settings.flag("symmetric") };
    let output = w.graph.output();
    let start = if original {
        shares_of_the_logit(w, job)
    } else {
        let logits = w.value(output);
        (output, seed(w, job, Seed::Value, Some(logits)))
    };
    let r = down_to_input(w, start, &rules);
    let map = colour_sum(w, r);
    input_map(w, map)
}

/// The last layer's inputs by the sizes of their products with the class's weights.
fn shares_of_the_logit(w: &mut Writer<'_>, job: &Job<'_>) -> (NodeId, Reg) {
    let head = w.graph.node(w.graph.output());
    let (Op::Linear { param }, input) = (&head.op, head.inputs[0]) else {
        unreachable!("every network ends with a linear layer")
    };
    let (x, row) = (w.value(input), w.class_reg(w.shape(input).len()));
    w.push(Instr::ClassRow { w: WeightRef::plain(*param), classes: job.classes, scale: 1.0, y: row });
    let q = w.multiply(x, row);
    let y = w.like(q);
    w.push(Instr::HeadShares { q, classes: job.classes, param: *param, y });
    (input, y)
}

/// Set A, where the bipolar rule takes the place of αβ.
struct Rap {
    set_a: Composite,
    /// Whether what is negative goes through agreeing weights in convolutions too, as it does in linear layers.
    symmetric: bool,
}

impl Rules for Rap {
    fn node(&self, walk: &mut Walk<'_, '_>, id: NodeId, r: Reg) {
        match (walk.layer(id), self.set_a.rule(walk.w.graph, id)) {
            (Some(layer), Rule::Separate(_)) => self.bipolar(walk, id, layer, r),
            _ => walk.apply(id, r, &self.set_a),
        }
    }
}

impl Rap {
    /// For either sign of the input, `a` being the weights of that sign and `b` those of the other, `P = a*x` and
    /// `Q = −b*x`.
    fn bipolar(&self, walk: &mut Walk<'_, '_>, id: NodeId, layer: Layer, r: Reg) {
        let input = walk.w.graph.node(id).inputs[0];
        for (part, agreeing, opposing) in [
            (Part::Positive, Variant::Positive, Variant::Negative),
            (Part::Negative, Variant::Negative, Variant::Positive),
        ] {
            let Some(x) = walk.part(input, part) else { continue };
            let [a, b] = [agreeing, opposing].map(|variant| WeightRef::trained(layer.param(), variant));
            let (p, minus_q) = (walk.product(id, layer, a, None, x, None), walk.product(id, layer, b, None, x, None));
            let w = &mut *walk.w;
            let q = w.unary(Unary::Times(-1.0), minus_q);
            let apart = !self.symmetric && matches!(layer, Layer::Conv(..));
            let first = if apart { w.unary(Unary::Positive, r) } else { r };
            let by_a = w.divide(first, p, None, Divisor::NonZero);
            let rest = apart.then(|| {
                let negative = w.unary(Unary::Negative, r);
                w.divide(negative, minus_q, None, Divisor::NonZero)
            });
            let (joint, by_b) = (w.quotient(r, p, Some(q), Divisor::NonZero, -1.0), w.like(r));
            w.push(Instr::Mask { keep: Sign::NonZero, x: q, r: joint, add: rest, y: by_b });
            let [through_a, c, shifted] = [(); 3].map(|()| w.class_reg(w.shape(input).len()));
            w.push(transposed(layer, a, false, by_a, Some(x), None, through_a));
            w.push(transposed(layer, b, false, by_b, Some(x), Some(through_a), c));
            let (from, to) = (w.totals(c), w.totals(r));
            w.push(Instr::Shift { x: c, mask: c, count: from, from, to: Some(to), y: shifted });
            walk.pass(input, shifted);
        }
    }
}
