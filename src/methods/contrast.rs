//! Relevance of a class less that of what speaks for others: CLRP and SGLRP (`methods.md` 11). Two walks by the rules of
//! set A, the second scaled to the total of the first: `R_t − R_o·(ΣR_t / ΣR_o)`.

use super::lrp::{colour_sum, down, down_to_input, input_map, seed};
use super::{Job, Kind, RawMap, Setting};
use crate::backend::{Instr, Seed, Unary};
use crate::engine::{Composite, Reg, Writer};

/// What can be set about CLRP.
pub(super) const CLRP: &[Setting] = &[Setting {
    key: "variant",
    kind: Kind::Choice(&["paper", "authors", "negated"]),
    help: "against the class's logit spread over the others, their own logits, or the class with weights negated",
}];

/// CLRP in the paper's form, that of its authors' code (of which only what is positive shows), or CLRP2.
pub(super) fn clrp(w: &mut Writer<'_>, job: &Job<'_>) -> RawMap {
    let logits = w.value(w.graph.output());
    let rules = Composite::separate(1.0);
    let map = match job.settings.choice("variant") {
        "authors" => {
            let map = contrast(w, job, logits, [Seed::Magnitude, Seed::OtherMagnitudes], &rules);
            w.unary(Unary::Positive, map)
        }
        "negated" => {
            let negated = Composite { negated: Some(w.graph.output()), ..rules };
            contrast(w, job, logits, [Seed::Magnitude; 2], &negated)
        }
        _ => contrast(w, job, logits, [Seed::Value, Seed::Others], &rules),
    };
    input_map(w, map)
}

/// SGLRP: what starts is the gradient of the softmax at the logits.
pub(super) fn sglrp(w: &mut Writer<'_>, job: &Job<'_>) -> RawMap {
    let (logits, p) = (w.value(w.graph.output()), w.reg(w.graph.classes()));
    w.push(Instr::Softmax { logits, p });
    let map = contrast(w, job, p, [Seed::Softmax, Seed::OtherSoftmax], &Composite::separate(1.0));
    input_map(w, map)
}

/// The contrast of what two seeds become at the input, the second by the rules `others`, which differ in the last layer
/// at most. Summing over the colours first changes no total.
///
/// It is taken below the last layer and once more at the input: walks are linear, so that this changes nothing but what
/// rounding does. Two maps that are nearly alike would leave little but that, as would products that round, since parts of
/// either sign meet in deep networks.
fn contrast(w: &mut Writer<'_>, job: &Job<'_>, x: Reg, seeds: [Seed; 2], others: &Composite) -> Reg {
    let others = Composite { exact: true, ..others.clone() };
    let rules = Composite { negated: None, ..others.clone() };
    let output = w.graph.output();
    let last = w.graph.node(output).inputs[0];
    let [r, other] = [(seeds[0], &rules), (seeds[1], &others)].map(|(kind, rules)| {
        let start = seed(w, job, kind, Some(x));
        down(w, (output, start), last, rules)
    });
    let r = difference(w, r, other);
    let [r, other] = [r, other].map(|r| {
        let x = down_to_input(w, (last, r), &rules);
        colour_sum(w, x)
    });
    difference(w, r, other)
}

/// `x − other·(Σx / Σother)`
fn difference(w: &mut Writer<'_>, x: Reg, other: Reg) -> Reg {
    let [total, other_total] = [x, other].map(|r| w.totals(r));
    let y = w.like(x);
    w.push(Instr::Contrast { x, other, total, other_total, y });
    y
}
