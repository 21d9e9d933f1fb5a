//! LayerCAM of several layers, each scaled so that shallow ones count too (`methods.md` 6.5).

use super::{Job, Kind, RawMap, Setting, Settings, gradient};
use crate::backend::{Filter, Instr, Scaling, Unary};
use crate::engine::{Composite, Reg, Writer};
use crate::error::Result;
use crate::models::Network;
use crate::net::{NodeId, Shape};

/// Steepness of the scaling.
const GAMMA: f32 = 2.0;

pub(super) const LAYERS: Setting =
    Setting { key: "layers", kind: Kind::Text, help: "names with commas between: these layers, fused" };

/// The layers' names; none where a single layer is read.
pub(super) fn names(settings: &Settings) -> Vec<&str> {
    let names = settings.text(LAYERS.key).split(',').map(str::trim);
    names.filter(|name| !name.is_empty()).collect()
}

/// Whether all layers exist.
pub(super) fn check(network: &Network, settings: &Settings, _: NodeId) -> Result<()> {
    names(settings).into_iter().try_for_each(|name| network.map_layer(name).map(|_| ()))
}

/// The largest of all layers' `tanh(2·minmax(ReLU(Σ_c ReLU(G) ⊙ A)))`, at the size of the largest layer.
pub(super) fn fused_layer_cam(w: &mut Writer<'_>, job: &Job<'_>) -> RawMap {
    let known = |name: &str| w.graph.layer(name).unwrap_or_else(|_| unreachable!("`check` has found it"));
    let layers: Vec<NodeId> = names(job.settings).into_iter().map(known).collect();
    let shapes: Vec<Shape> = layers.iter().map(|layer| w.shape(*layer)).collect();
    let size = shapes.iter().fold((0, 0), |(h, w), shape| (h.max(shape.h), w.max(shape.w)));
    let stop = layers.iter().copied().min().unwrap_or(job.layer);
    let rules = Composite::gradient();
    let arrived = gradient::walk(w, job, stop, &rules);
    let mut map: Option<Reg> = None;
    for (layer, shape) in layers.into_iter().zip(shapes) {
        // A layer beside the first one, in another branch, needs a walk of its own.
        let g = arrived.at(layer).unwrap_or_else(|| gradient::at(w, job, layer, &rules));
        w.at(&w.graph.node(layer).name);
        let scaled = scaled_map(w, layer, g);
        let y = w.class_reg(size.0 * size.1);
        let (from, filter) = (Shape { c: 1, ..shape }, Filter::Bilinear);
        w.push(Instr::Resize { from, slice: (0, 1), to: size, filter, scale: 1.0, x: scaled, add: None, y });
        map = Some(match map {
            None => y,
            Some(a) => {
                let larger = w.like(y);
                w.push(Instr::Larger { a, b: y, y: larger });
                larger
            }
        });
    }
    let Some(map) = map else { unreachable!("at least one layer is named") };
    RawMap { map, size }
}

/// `tanh(2·minmax(ReLU(Σ_c ReLU(G) ⊙ A)))`
fn scaled_map(w: &mut Writer<'_>, layer: NodeId, g: Reg) -> Reg {
    let (shape, a) = (w.shape(layer), w.value(layer));
    let positive = w.unary(Unary::Positive, g);
    let product = w.multiply(a, positive);
    let sum = w.class_reg(shape.h * shape.w);
    w.push(Instr::ChannelSum { x: product, channels: shape.c, weights: None, y: sum });
    let sum = w.unary(Unary::Positive, sum);
    let (range, scaled) = (w.range(sum, (1, 1)), w.like(sum));
    w.push(Instr::Scale { by: Scaling::MinMax, x: sum, range, y: scaled });
    w.unary(Unary::Tanh(GAMMA), scaled)
}
