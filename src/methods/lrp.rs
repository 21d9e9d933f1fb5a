//! Layer-wise relevance propagation: a composite of rules on the shared walk (`methods.md` 10).

use super::{Job, RawMap};
use crate::backend::{Instr, Seed};
use crate::engine::{Composite, Rule, Writer, walk_down};
use crate::net::NodeId;

pub(super) fn epsilon_plus(w: &mut Writer<'_>, job: &Job<'_>) -> RawMap {
    relevance(w, job, &Composite::epsilon_and(Rule::ZPlus))
}

/// Starts with the logit at the class, sums the input's relevance over the colour channels.
fn relevance(w: &mut Writer<'_>, job: &Job<'_>, composite: &Composite) -> RawMap {
    let (input, output) = (NodeId(0), w.graph.output());
    let logits = w.value(output);
    let seed = w.class_reg(w.graph.classes());
    w.push(Instr::Seed { classes: job.classes, seed: Seed::Value, x: Some(logits), y: seed });
    let shape = w.shape(input);
    let map = w.class_reg(shape.h * shape.w);
    match walk_down(w, (output, seed), input, composite).at(input) {
        Some(x) => w.push(Instr::ChannelSum { x, channels: shape.c, weights: None, y: map }),
        None => unreachable!("the output depends on the input"),
    }
    RawMap { map, size: (shape.h, shape.w) }
}
