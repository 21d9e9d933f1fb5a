//! CAMERAS: activations and gradients of one layer at several resolutions, averaged at the input's size before they are
//! multiplied (`methods.md` 6.7).

use super::{INPUT, Job, Kind, RawMap, Setting, gradient};
use crate::backend::{Filter, Instr, Scaling, Unary};
use crate::engine::{Composite, Reg, Writer};
use crate::net::Shape;

pub(super) const RESOLUTIONS: Setting = Setting {
    key: "resolutions",
    kind: Kind::Count { default: 8, min: 1, max: 16 },
    help: "how many: 1, 1 + 100/224, 1 + 200/224, … times the input's",
};

/// Channels that are brought to the input's size at a time: all of a wide layer's would take a gigabyte.
const SLICE: usize = 64;

/// Activation and gradient of a layer at one resolution.
struct Sight {
    shape: Shape,
    activation: Reg,
    gradient: Reg,
}

pub(super) fn cameras(w: &mut Writer<'_>, job: &Job<'_>) -> RawMap {
    let (input, channels) = (w.shape(INPUT), w.shape(job.layer).c);
    let sights: Vec<Sight> = (0..job.settings.count(RESOLUTIONS.key)).map(|r| look(w, job, r)).collect();
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

/// Runs the network on the input as it is, or scaled up for resolution `r`: what is 224 pixels becomes 224 + 100·r.
fn look(w: &mut Writer<'_>, job: &Job<'_>, r: usize) -> Sight {
    let see = |w: &mut Writer<'_>| {
        let (shape, activation) = (w.shape(job.layer), w.value(job.layer));
        Sight { shape, activation, gradient: gradient::at(w, job, job.layer, &Composite::gradient()) }
    };
    if r == 0 {
        return see(w);
    }
    let (from, x) = (w.shape(INPUT), w.value(INPUT));
    let scaled = |n: usize| (n * (224 + 100 * r) + 112) / 224;
    let to = (scaled(from.h), scaled(from.w));
    let (slice, y) = ((0, from.c), w.activation(to.0 * to.1 * from.c));
    w.at("input");
    w.push(Instr::Resize { from, slice, to, filter: Filter::Bicubic, scale: 1.0, x, add: None, y });
    w.nested(y, to, |w| Ok(see(w))).unwrap_or_else(|_| unreachable!("no input is too large for a network"))
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
