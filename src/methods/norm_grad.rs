//! NormGrad: how strongly each pixel would change the weights of a layer put in place of the identity, or those of a
//! layer itself (`methods.md` 8).

use super::{Job, Kind, RawMap, Setting, Settings, gradient};
use crate::backend::{AvgGeom, Instr, Unary, Vector};
use crate::engine::{Composite, Reg, Writer};
use crate::error::{ErrorKind, Result};
use crate::models::Network;
use crate::net::{AvgPool, NodeId, Op, Shape};

pub(super) const FORM: Setting = Setting {
    key: "form",
    kind: Kind::Choice(&["identity", "bias", "scaling", "selective", "kernel"]),
    help: "|A||G|, |G|, |A⊙G|, |max(0, A⊙G)|, or |x||G| with a convolution's patches x of its input",
};

/// Whether the layer has what the form reads.
pub(super) fn check(network: &Network, settings: &Settings, layer: NodeId) -> Result<()> {
    let node = network.graph.node(layer);
    if settings.choice(FORM.key) != "kernel" || matches!(node.op, Op::Conv { .. }) {
        return Ok(());
    }
    let problem = format!("`kernel` expects a layer that is a convolution, found `{}`", node.name);
    Err(ErrorKind::Setting { method: "norm-grad", key: FORM.key.into(), problem }.into())
}

pub(super) fn norm_grad(w: &mut Writer<'_>, job: &Job<'_>) -> RawMap {
    let (form, shape) = (job.settings.choice(FORM.key), w.shape(job.layer));
    let g = gradient::at(w, job, job.layer, &Composite::gradient());
    w.at(&w.graph.node(job.layer).name);
    let squares = match form {
        "scaling" | "selective" => {
            let a = w.value(job.layer);
            let product = w.multiply(a, g);
            let part = if form == "selective" { w.unary(Unary::Positive, product) } else { product };
            squares(w, part, shape)
        }
        "kernel" => {
            let g = before_norm(w, job.layer, g);
            squares(w, g, shape)
        }
        _ => squares(w, g, shape),
    };
    let norm = w.unary(Unary::Root, squares);
    let map = match form {
        "identity" | "kernel" => {
            let of_layer = if form == "kernel" { patch_squares(w, job.layer) } else { own_squares(w, job.layer) };
            let other = w.unary(Unary::Root, of_layer);
            w.multiply(other, norm)
        }
        _ => norm,
    };
    RawMap { map, size: (shape.h, shape.w) }
}

/// The gradient at a convolution's own result, given that behind the batch norm which is folded into it.
fn before_norm(w: &mut Writer<'_>, conv: NodeId, g: Reg) -> Reg {
    let Op::Conv { param, .. } = w.graph.node(conv).op else {
        unreachable!("`check` has seen that it is a convolution")
    };
    w.by_vector(g, param, Vector::NormScale)
}

/// Sum of squares over the channels.
fn squares(w: &mut Writer<'_>, x: Reg, shape: Shape) -> Reg {
    let (product, y) = (w.with_lanes_of(x, shape.len()), w.with_lanes_of(x, shape.h * shape.w));
    w.push(Instr::Multiply { x, c: x, add: None, y: product });
    w.push(Instr::ChannelSum { x: product, channels: shape.c, weights: None, y });
    y
}

/// That of a node's value.
fn own_squares(w: &mut Writer<'_>, node: NodeId) -> Reg {
    let a = w.value(node);
    squares(w, a, w.shape(node))
}

/// Sum of squares over each patch of its input that a convolution reads: the mean over a window, times its size.
fn patch_squares(w: &mut Writer<'_>, conv: NodeId) -> Reg {
    let node = w.graph.node(conv);
    let Op::Conv { window, .. } = node.op else { unreachable!("`check` has seen that it is a convolution") };
    let (from, to) = (w.shape(node.inputs[0]), w.shape(conv));
    let x = own_squares(w, node.inputs[0]);
    let y = w.reg(to.h * to.w);
    let g = AvgGeom { pool: AvgPool::Window(window), x: Shape { c: 1, ..from }, y: Shape { c: 1, ..to } };
    w.push(Instr::AvgPool { g, x, y });
    w.unary(Unary::Times((window.kernel[0] * window.kernel[1]) as f32), y)
}
