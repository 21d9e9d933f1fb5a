//! Layer-wise relevance propagation: a composite of rules on the shared walk (`methods.md` 10).

use super::{Job, Kind, RawMap, Setting, Settings};
use crate::backend::{Instr, Seed};
use crate::engine::{Bounds, Composite, Reg, Rule, Rules, Writer, walk_down};
use crate::models::Preprocess;
use crate::net::NodeId;

/// ε of the rule for fully connected layers; the other rules keep the stabiliser of the same size.
const EPSILON: Setting = Setting {
    key: "epsilon",
    kind: Kind::Number { default: 1e-6, min: 0.0, max: 1e6 },
    help: "ε of the rule for fully connected layers",
};

const BIASES: Setting =
    Setting { key: "biases", kind: Kind::Flag(true), help: "whether biases take their share of the relevance" };

const GAMMA: Setting = Setting {
    key: "gamma",
    kind: Kind::Number { default: 0.25, min: 0.0, max: 1e6 },
    help: "how much more positive weights count",
};

const RULES: Setting =
    Setting { key: "rules", kind: Kind::Text, help: "rules, as `first=flat, conv=gamma:0.1, layer4.*=epsilon`" };

/// What can be set about Zennit's composites,
pub(super) const ZENNIT: &[Setting] = &[EPSILON, BIASES];
/// about the one with the γ rule,
pub(super) const WITH_GAMMA: &[Setting] = &[EPSILON, BIASES, GAMMA];
/// and about one of the user's own.
pub(super) const WITH_RULES: &[Setting] = &[EPSILON, BIASES, RULES];

/// α of the αβ rule in Zennit's composites.
const ALPHA: f32 = 2.0;

pub(super) fn epsilon_plus(w: &mut Writer<'_>, job: &Job<'_>) -> RawMap {
    relevance(w, job, &zennit(job.settings, None, Rule::ZPlus))
}

pub(super) fn epsilon_plus_flat(w: &mut Writer<'_>, job: &Job<'_>) -> RawMap {
    relevance(w, job, &zennit(job.settings, Some(Rule::Flat), Rule::ZPlus))
}

pub(super) fn epsilon_alpha2_beta1(w: &mut Writer<'_>, job: &Job<'_>) -> RawMap {
    relevance(w, job, &zennit(job.settings, None, Rule::AlphaBeta(ALPHA)))
}

pub(super) fn epsilon_alpha2_beta1_flat(w: &mut Writer<'_>, job: &Job<'_>) -> RawMap {
    relevance(w, job, &zennit(job.settings, Some(Rule::Flat), Rule::AlphaBeta(ALPHA)))
}

pub(super) fn epsilon_gamma_box(w: &mut Writer<'_>, job: &Job<'_>) -> RawMap {
    let gamma = Rule::Gamma(job.settings.number("gamma") as f32);
    relevance(w, job, &zennit(job.settings, Some(Rule::Box(colours(&job.preprocess))), gamma))
}

/// Set A with α = 1.
pub(super) fn alpha1(w: &mut Writer<'_>, job: &Job<'_>) -> RawMap {
    relevance(w, job, &Composite::separate(1.0))
}

/// Set A with α = 2.
pub(super) fn alpha2(w: &mut Writer<'_>, job: &Job<'_>) -> RawMap {
    relevance(w, job, &Composite::separate(2.0))
}

/// Zennit's composites (`methods.md` 10.2): a rule for convolutions, and one for the first where it has its own.
pub(super) fn zennit(settings: &Settings, first: Option<Rule>, conv: Rule) -> Composite {
    let (linear, biases) = (Rule::Epsilon(settings.number("epsilon") as f32), settings.flag("biases"));
    Composite { first, linear, biases, ..Composite::epsilon_and(conv) }
}

/// What black and white become before the first layer.
pub(super) fn colours(preprocess: &Preprocess) -> Bounds {
    let colour = |value: f32| std::array::from_fn(|c| (value - preprocess.mean[c]) / preprocess.std[c]);
    Bounds::Colours(colour(0.0), colour(1.0))
}

/// The input's relevance for the logit of the class.
pub(super) fn relevance(w: &mut Writer<'_>, job: &Job<'_>, composite: &Composite) -> RawMap {
    let logits = w.value(w.graph.output());
    let seed = seed(w, job, Seed::Value, Some(logits));
    let map = at_input(w, seed, composite);
    input_map(w, map)
}

/// Where a walk down starts.
pub(super) fn seed(w: &mut Writer<'_>, job: &Job<'_>, seed: Seed, x: Option<Reg>) -> Reg {
    let y = w.class_reg(w.graph.classes());
    w.push(Instr::Seed { classes: job.classes, seed, x, y });
    y
}

/// What `r` at the logits becomes at the input, summed over the colours.
pub(super) fn at_input(w: &mut Writer<'_>, r: Reg, rules: &impl Rules) -> Reg {
    let x = down_to_input(w, (w.graph.output(), r), rules);
    colour_sum(w, x)
}

/// What a quantity at a node's output becomes at the input.
pub(super) fn down_to_input(w: &mut Writer<'_>, from: (NodeId, Reg), rules: &impl Rules) -> Reg {
    down(w, from, NodeId(0), rules)
}

/// The same at a node that all paths to the input pass through, or at the input.
pub(super) fn down(w: &mut Writer<'_>, from: (NodeId, Reg), stop: NodeId, rules: &impl Rules) -> Reg {
    match walk_down(w, from, stop, rules).at(stop) {
        Some(r) => r,
        None => unreachable!("what lies between depends on the stop"),
    }
}

/// The sum over the input's colours.
pub(super) fn colour_sum(w: &mut Writer<'_>, x: Reg) -> Reg {
    let shape = w.shape(NodeId(0));
    let map = w.class_reg(shape.h * shape.w);
    w.push(Instr::ChannelSum { x, channels: shape.c, weights: None, y: map });
    map
}

/// A map of the input.
pub(super) fn input_map(w: &Writer<'_>, map: Reg) -> RawMap {
    let shape = w.shape(NodeId(0));
    RawMap { map, size: (shape.h, shape.w) }
}
