//! Gradients of the class's logit at the input (`methods.md` 4).

use super::{Job, RawMap};
use crate::backend::{Instr, Seed};
use crate::engine::{Composite, Reg, Writer, walk_down};
use crate::net::NodeId;

/// The ordinary gradient's saliency.
pub(super) fn gradient(w: &mut Writer<'_>, job: &Job<'_>) -> RawMap {
    saliency(w, job, &Composite::gradient())
}

/// Guided backpropagation.
pub(super) fn guided(w: &mut Writer<'_>, job: &Job<'_>) -> RawMap {
    saliency(w, job, &Composite::guided())
}

/// The deconvolutional network.
pub(super) fn deconv(w: &mut Writer<'_>, job: &Job<'_>) -> RawMap {
    saliency(w, job, &Composite::deconv())
}

/// `X ⊙ D` of the ordinary gradient, summed over the colours.
pub(super) fn input_times_gradient(w: &mut Writer<'_>, job: &Job<'_>) -> RawMap {
    let (input, d) = (w.value(INPUT), at(w, job, INPUT, &Composite::gradient()));
    let x = w.multiply(input, d);
    reduce(w, |channels, y| Instr::ChannelSum { x, channels, weights: None, y })
}

/// What the one-hot seed at the class's logit becomes on the way down to a node.
pub(super) fn at(w: &mut Writer<'_>, job: &Job<'_>, node: NodeId, composite: &Composite) -> Reg {
    let seed = w.class_reg(w.graph.classes());
    w.push(Instr::Seed { classes: job.classes, seed: Seed::One, x: None, y: seed });
    match walk_down(w, (w.graph.output(), seed), node, composite).at(node) {
        Some(d) => d,
        None => unreachable!("every layer of a chain of layers reaches the output"),
    }
}

const INPUT: NodeId = NodeId(0);

/// `max_c |D|`: a signed sum of raw gradients is not what baselines report.
fn saliency(w: &mut Writer<'_>, job: &Job<'_>, composite: &Composite) -> RawMap {
    let x = at(w, job, INPUT, composite);
    reduce(w, |channels, y| Instr::ChannelMax { x, channels, y })
}

/// A map of the input by a reduction over its channels.
fn reduce(w: &mut Writer<'_>, instr: impl FnOnce(usize, Reg) -> Instr<Reg>) -> RawMap {
    let shape = w.shape(INPUT);
    let map = w.class_reg(shape.h * shape.w);
    w.push(instr(shape.c, map));
    RawMap { map, size: (shape.h, shape.w) }
}
