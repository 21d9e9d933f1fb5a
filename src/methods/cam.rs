//! Class activation maps: channels of one layer, weighted and summed.

use super::{Job, RawMap, gradient};
use crate::backend::{Instr, Variant, WeightRef};
use crate::engine::{Composite, Writer};
use crate::net::{AvgPool, Graph, NodeId, Op, ParamId};

/// Grad-CAM: each channel weighs its mean gradient of the class's logit (`methods.md` 6.1).
pub(super) fn grad_cam(w: &mut Writer<'_>, job: &Job) -> RawMap {
    let shape = w.shape(job.layer);
    let weights = match pooled_head(w.graph, job.layer).filter(|_| job.closed_forms) {
        // The gradient of a pooled linear head is the class's row, spread evenly over the pixels (`methods.md` 2).
        Some(param) => {
            let y = w.class_reg(shape.c);
            let weight = WeightRef { param, variant: Variant::Plain };
            let scale = 1.0 / (shape.h * shape.w) as f32;
            w.push(Instr::ClassRow { w: weight, classes: job.classes, scale, y });
            y
        }
        None => {
            let y = w.class_reg(shape.c);
            let x = gradient::at(w, job, job.layer, &Composite::GRADIENT);
            w.push(Instr::PixelMean { x, channels: shape.c, y });
            y
        }
    };
    let x = w.value(job.layer);
    let map = w.class_reg(shape.h * shape.w);
    w.push(Instr::ChannelSum { x, channels: shape.c, weights: Some(weights), y: map });
    RawMap { map, size: (shape.h, shape.w) }
}

/// The linear layer of a head that is nothing but global average pool and one linear layer.
fn pooled_head(graph: &Graph, layer: NodeId) -> Option<ParamId> {
    let next = |id: NodeId| match graph.readers(id) {
        [reader] => Some(*reader),
        _ => None,
    };
    let pool = next(layer)?;
    let flatten = next(pool)?;
    let linear = next(flatten)?;
    match (&graph.node(pool).op, &graph.node(flatten).op, &graph.node(linear).op) {
        (Op::AvgPool(AvgPool::Adaptive(1, 1)), Op::Flatten, Op::Linear { param }) if linear == graph.output() => {
            Some(*param)
        }
        _ => None,
    }
}
