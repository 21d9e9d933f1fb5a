//! CAMERAS: activations and gradients of one layer at several resolutions, averaged at the input's size before they are
//! multiplied (`methods.md` 6.7).

use super::{INPUT, Job, Kind, RawMap, Setting, gradient};
use crate::backend::{Filter, Instr, Scaling, Sign, Unary};
use crate::engine::{Composite, Reg, Writer};
use crate::net::Shape;

pub(super) const RESOLUTIONS: Setting = Setting {
    key: "resolutions",
    kind: Kind::Count { default: 8, min: 1, max: 16 },
    help: "how many: 1, 1 + 100/224, 1 + 200/224, … times the input's",
};

pub(super) const AGREEING: Setting = Setting {
    key: "agreeing",
    kind: Kind::Flag(false),
    help: "leaves out resolutions at which the network's top class is not that of the input as it is",
};

/// Channels that are brought to the input's size at a time: all of a wide layer's would take a gigabyte.
const SLICE: usize = 64;

/// Activation and gradient of a layer at one resolution.
#[derive(Clone, Copy)]
struct Sight {
    shape: Shape,
    activation: Reg,
    gradient: Reg,
}

pub(super) fn cameras(w: &mut Writer<'_>, job: &Job<'_>) -> RawMap {
    let (input, channels) = (w.shape(INPUT), w.shape(job.layer).c);
    let mut sights = vec![see(w, job)];
    let first = job.settings.flag(AGREEING.key).then(|| scaled_logits(w));
    sights.extend((1..job.settings.count(RESOLUTIONS.key)).map(|r| {
        scaled_up(w, r, |w| {
            let sight = see(w, job);
            first.map_or(sight, |first| sight.where_agreed(w, first))
        })
    }));
    w.at(&w.graph.node(job.layer).name);
    let mut map: Option<Reg> = None;
    for first in (0..channels).step_by(SLICE) {
        let slice = (first, SLICE.min(channels - first));
        let activation = mean(w, &sights, slice, |sight| sight.activation);
        let gradient = mean(w, &sights, slice, |sight| sight.gradient);
        let product = w.multiply(activation, gradient);
        let sum = w.class_reg(input.h * input.w);
        w.push(Instr::ChannelSum { x: product, channels: slice.1, weights: None, y: sum });
        map = Some(map.map_or(sum, |map| w.sum(map, sum)));
    }
    let Some(map) = map else { unreachable!("a layer has channels") };
    let positive = w.unary(Unary::Positive, map);
    let (range, y) = (w.range(positive, (1, 1)), w.class_reg(input.h * input.w));
    w.push(Instr::Scale { by: Scaling::MinMax, x: positive, range, y });
    RawMap { map: y, size: (input.h, input.w) }
}

/// Activation and gradient of the layer in the run that is being written.
fn see(w: &mut Writer<'_>, job: &Job<'_>) -> Sight {
    let (shape, activation) = (w.shape(job.layer), w.value(job.layer));
    Sight { shape, activation, gradient: gradient::at(w, job, job.layer, &Composite::gradient()) }
}

/// Runs the network on the input scaled up for resolution `r`: what is 224 pixels becomes 224 + 100·r.
fn scaled_up(w: &mut Writer<'_>, r: usize, look: impl FnOnce(&mut Writer<'_>) -> Sight) -> Sight {
    let (from, x) = (w.shape(INPUT), w.value(INPUT));
    let scaled = |n: usize| (n * (224 + 100 * r) + 112) / 224;
    let to = (scaled(from.h), scaled(from.w));
    let (slice, y) = ((0, from.c), w.activation(to.0 * to.1 * from.c));
    w.at("input");
    w.push(Instr::Resize { from, slice, to, filter: Filter::Bicubic, scale: 1.0, x, add: None, y });
    w.nested(y, to, |w| Ok(look(w))).unwrap_or_else(|_| unreachable!("no input is too large for a network"))
}

/// The logits scaled to 0..1, of which the top class's is 1.
fn scaled_logits(w: &mut Writer<'_>) -> Reg {
    let logits = w.value(w.graph.output());
    let (range, y) = (w.range(logits, (1, 1)), w.like(logits));
    w.push(Instr::Scale { by: Scaling::MinMax, x: logits, range, y });
    y
}

impl Sight {
    /// The sight where the network's top class is the one of `first`, and zeros elsewhere: what is left out changes a mean
    /// by a factor, which scaling to 0..1 takes out again.
    fn where_agreed(self, w: &mut Writer<'_>, first: Reg) -> Self {
        let scaled = scaled_logits(w);
        // 0 where one class is on top in both, negative where none is.
        let both = w.sum(scaled, first);
        let (largest, agreed) = (w.with_lanes_of(both, 1), w.with_lanes_of(both, 1));
        w.push(Instr::ChannelMax { x: both, channels: w.graph.classes(), y: largest });
        let short = w.unary(Unary::Plus(-2.0), largest);
        let [one, minus] = [1.0, -1.0].map(|v| {
            let y = w.like(short);
            w.push(Instr::Fill { values: [v; 4], channels: 1, y });
            y
        });
        w.push(Instr::Mask { keep: Sign::NonZero, x: short, r: minus, add: Some(one), y: agreed });
        let [activation, gradient] = [self.activation, self.gradient].map(|x| {
            let y = w.like(x);
            w.push(Instr::ChannelScale { x, channels: 1, weights: agreed, y });
            y
        });
        Self { activation, gradient, ..self }
    }
}

/// Mean over all resolutions of a slice of channels at the input's size.
fn mean(w: &mut Writer<'_>, sights: &[Sight], slice: (usize, usize), of: impl Fn(&Sight) -> Reg) -> Reg {
    let to = (w.shape(INPUT).h, w.shape(INPUT).w);
    let mut sum = None;
    for sight in sights {
        let y = w.with_lanes_of(of(sight), to.0 * to.1 * slice.1);
        let (from, x, scale) = (sight.shape, of(sight), 1.0 / sights.len() as f32);
        w.push(Instr::Resize { from, slice, to, filter: Filter::Bilinear, scale, x, add: sum, y });
        sum = Some(y);
    }
    sum.unwrap_or_else(|| unreachable!("there is at least one resolution"))
}
