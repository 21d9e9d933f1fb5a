//! Excitation backprop, marginal and contrastive: MWP and cMWP (`methods.md` 5).

use super::lrp::{down, seed};
use super::{Job, Kind, RawMap, Setting, Settings};
use crate::backend::{Divisor, Instr, Seed, Unary, WeightSign};
use crate::engine::{Composite, Reg, Rule, Writer};
use crate::net::NodeId;

/// What can be set about excitation backprop.
pub(super) const SETTINGS: &[Setting] = &[
    Setting {
        key: "clamp_inputs",
        kind: Kind::Flag(false),
        help: "whether only positive terms of residual sums take a share",
    },
    Setting {
        key: "bn_positive",
        kind: Kind::Flag(false),
        help: "whether weights change sign where batch norm has a negative scale",
    },
];

/// The probability that a walk from the class passes through each pixel of the layer.
pub(super) fn mwp(w: &mut Writer<'_>, job: &Job<'_>) -> RawMap {
    let start = seed(w, job, Seed::One, None);
    let p = down(w, (w.graph.output(), start), job.layer, &rules(job.settings));
    channel_sum(w, job.layer, p)
}

/// The same less that of a walk from the class's negated weights, taken away where the last layer reads. What remains
/// positive shows. As much of the difference is negative as is positive, and little of it may be left at the layer: less
/// than what products that round would add.
pub(super) fn cmwp(w: &mut Writer<'_>, job: &Job<'_>) -> RawMap {
    let output = w.graph.output();
    let contrast = w.graph.node(output).inputs[0];
    let rules = Composite { exact: true, ..rules(job.settings) };
    let negated = Composite { negated: Some(output), ..rules.clone() };
    let start = seed(w, job, Seed::One, None);
    let [p, q] = [&rules, &negated].map(|rules| down(w, (output, start), contrast, rules));
    let q = w.unary(Unary::Times(-1.0), q);
    let difference = w.sum(p, q);
    let p = down(w, (contrast, difference), job.layer, &rules);
    let sum = channel_sum(w, job.layer, p);
    RawMap { map: w.unary(Unary::Positive, sum.map), ..sum }
}

fn rules(settings: &Settings) -> Composite {
    let sign = if settings.flag("bn_positive") { WeightSign::Folded } else { WeightSign::Trained };
    let rules = Composite::excitation(sign);
    match settings.flag("clamp_inputs") {
        true => Composite { add: Rule::SharePositive(Divisor::NonZero), ..rules },
        false => rules,
    }
}

fn channel_sum(w: &mut Writer<'_>, layer: NodeId, x: Reg) -> RawMap {
    let shape = w.shape(layer);
    let map = w.class_reg(shape.h * shape.w);
    w.push(Instr::ChannelSum { x, channels: shape.c, weights: None, y: map });
    RawMap { map, size: (shape.h, shape.w) }
}
