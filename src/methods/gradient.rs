//! Gradients of the class's logit at the input (`methods.md` 4).

use super::{INPUT, Job, Kind, RawMap, Setting};
use crate::backend::{Instr, Seed, Unary};
use crate::engine::{Arrived, Composite, Reg, Rules, Writer, walk_down};
use crate::net::NodeId;

/// How the channels of a gradient become one map: a signed sum of raw gradients is not what baselines report.
pub(super) const REDUCE: Setting = Setting {
    key: "reduce",
    kind: Kind::Choice(&["max", "sum-abs", "sum"]),
    help: "over the colours: the largest absolute value, the sum of absolute values, or the signed sum",
};

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
    let product = w.multiply(input, d);
    colour_sum(w, product)
}

/// What the one-hot seed at the class's logit becomes on the way down to a node.
pub(super) fn at(w: &mut Writer<'_>, job: &Job<'_>, node: NodeId, rules: &impl Rules) -> Reg {
    reached(&walk(w, job, node, rules), node)
}

/// Gradients at the input when the network is run on `inputs`, of the input's size, one a lane; each times its factor.
pub(super) fn of_inputs(w: &mut Writer<'_>, job: &Job<'_>, inputs: Reg, factors: &[f32]) -> Reg {
    let (size, output) = ((w.shape(INPUT).h, w.shape(INPUT).w), w.graph.output());
    let one = seed(w, job);
    let d = w.nested(inputs, size, |w| {
        let y = w.class_reg(w.graph.classes());
        w.push(Instr::LaneScale { x: one, factors: factors.into(), y });
        Ok(reached(&walk_down(w, (output, y), INPUT, &Composite::gradient()), INPUT))
    });
    d.unwrap_or_else(|_| unreachable!("the network takes inputs of this size"))
}

/// Walks down to a node from the one-hot seed at the class's logit.
pub(super) fn walk(w: &mut Writer<'_>, job: &Job<'_>, stop: NodeId, rules: &impl Rules) -> Arrived {
    let one = seed(w, job);
    walk_down(w, (w.graph.output(), one), stop, rules)
}

/// 1 at the class's logit.
fn seed(w: &mut Writer<'_>, job: &Job<'_>) -> Reg {
    w.at(&w.graph.node(w.graph.output()).name);
    let y = w.class_reg(w.graph.classes());
    w.push(Instr::Seed { classes: job.classes, seed: Seed::One, x: None, y });
    y
}

/// What has arrived at the node that a walk went down to.
pub(super) fn reached(arrived: &Arrived, stop: NodeId) -> Reg {
    match arrived.at(stop) {
        Some(r) => r,
        None => unreachable!("every layer of a chain of layers reaches the output"),
    }
}

/// The class's logit, as the `Totals` of an audit.
pub(super) fn logit_total(w: &mut Writer<'_>, job: &Job<'_>) -> Reg {
    let (logits, y) = (w.value(w.graph.output()), w.class_reg(w.graph.classes()));
    w.push(Instr::Seed { classes: job.classes, seed: Seed::Value, x: Some(logits), y });
    w.totals(y)
}

fn saliency(w: &mut Writer<'_>, job: &Job<'_>, composite: &Composite) -> RawMap {
    let d = at(w, job, INPUT, composite);
    reduce(w, job, d)
}

/// The map of a gradient at the input, as the setting [`REDUCE`] says.
pub(super) fn reduce(w: &mut Writer<'_>, job: &Job<'_>, d: Reg) -> RawMap {
    match job.settings.choice(REDUCE.key) {
        "max" => map_of_input(w, |channels, y| Instr::ChannelMax { x: d, channels, y }),
        "sum-abs" => {
            let d = w.unary(Unary::Absolute, d);
            colour_sum(w, d)
        }
        _ => colour_sum(w, d),
    }
}

/// The sum over the colours.
pub(super) fn colour_sum(w: &mut Writer<'_>, x: Reg) -> RawMap {
    map_of_input(w, |channels, y| Instr::ChannelSum { x, channels, weights: None, y })
}

/// A map of the input by a reduction over its channels.
fn map_of_input(w: &mut Writer<'_>, instr: impl FnOnce(usize, Reg) -> Instr<Reg>) -> RawMap {
    let shape = w.shape(INPUT);
    let map = w.class_reg(shape.h * shape.w);
    w.push(instr(shape.c, map));
    RawMap { map, size: (shape.h, shape.w) }
}
