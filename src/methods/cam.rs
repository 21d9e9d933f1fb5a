//! Class activation maps: activations `A` of one layer, weighted by what follows from the gradient `G` of the class's
//! logit there, and summed over the channels (`methods.md` 6).

use super::{Job, Kind, RawMap, Setting, fused, gradient};
use crate::backend::{Divisor, Instr, Scaling, Unary, WeightRef};
use crate::engine::{Composite, Reg, Writer};
use crate::net::{AvgPool, Graph, NodeId, Op, ParamId};

/// Which third-order term Grad-CAM++ has.
pub(super) const FORM: Setting = Setting {
    key: "form",
    kind: Kind::Choice(&["s", "t"]),
    help: "third-order term: ΣA·G³ with the gradient of each pixel, or one Σ(A·G³) a channel",
};

/// Whether WGrad-CAM's weights are scaled.
pub(super) const MIN_MAX: Setting =
    Setting { key: "minmax", kind: Kind::Flag(false), help: "scale the channels' weights to 0..1" };

/// Stabilisers of Grad-CAM++'s two forms.
const EPS_PLUS: [f32; 2] = [1e-6, 1e-7];

/// Stabiliser of XGrad-CAM.
const EPS_X: f32 = 1e-7;

/// Grad-CAM: `a_c = mean G` (`methods.md` 6.1).
pub(super) fn grad_cam(w: &mut Writer<'_>, job: &Job<'_>) -> RawMap {
    let weights = mean_gradient(w, job);
    weighted_sum(w, job, Weights::Channels(weights))
}

/// `mean G` of each channel.
pub(super) fn mean_gradient(w: &mut Writer<'_>, job: &Job<'_>) -> Reg {
    match layer_gradient(w, job) {
        Weights::Channels(g) => g,
        Weights::Elements(g) => pixel_sum(w, job, g, 1.0 / pixels(w, job)),
    }
}

/// HiResCAM: `Σ_c G ⊙ A`, Grad-CAM without the mean (`methods.md` 2).
pub(super) fn hires_cam(w: &mut Writer<'_>, job: &Job<'_>) -> RawMap {
    let weights = layer_gradient(w, job);
    weighted_sum(w, job, weights)
}

/// LayerCAM: `Σ_c ReLU(G) ⊙ A` of one layer, or several layers fused (`methods.md` 6.5).
pub(super) fn layer_cam(w: &mut Writer<'_>, job: &Job<'_>) -> RawMap {
    if !fused::names(job.settings).is_empty() {
        return fused::fused_layer_cam(w, job);
    }
    let weights = match layer_gradient(w, job) {
        Weights::Channels(g) => Weights::Channels(w.unary(Unary::Positive, g)),
        Weights::Elements(g) => Weights::Elements(w.unary(Unary::Positive, g)),
    };
    weighted_sum(w, job, weights)
}

/// XGrad-CAM: `a_c = Σ G ⊙ A / ΣA`, stabilised (`methods.md` 6.3). For a gradient that is the same at all pixels that is
/// the gradient itself (`methods.md` 2).
pub(super) fn xgrad_cam(w: &mut Writer<'_>, job: &Job<'_>) -> RawMap {
    let weights = match layer_gradient(w, job) {
        Weights::Channels(g) => g,
        Weights::Elements(g) => {
            let a = w.value(job.layer);
            let product = w.multiply(a, g);
            let (weighted, plain) = (pixel_sum(w, job, product, 1.0), pixel_sum(w, job, a, 1.0));
            w.divide(weighted, plain, None, Divisor::Signed(EPS_X))
        }
    };
    weighted_sum(w, job, Weights::Channels(weights))
}

/// WGrad-CAM: `a_c = mean G ⊙ A` (`methods.md` 6.4).
pub(super) fn wgrad_cam(w: &mut Writer<'_>, job: &Job<'_>) -> RawMap {
    let (a, mean) = (w.value(job.layer), 1.0 / pixels(w, job));
    let weights = match layer_gradient(w, job) {
        Weights::Channels(g) => {
            let a = pixel_sum(w, job, a, mean);
            w.multiply(a, g)
        }
        Weights::Elements(g) => {
            let product = w.multiply(a, g);
            pixel_sum(w, job, product, mean)
        }
    };
    let weights = if job.settings.flag(MIN_MAX.key) {
        let (range, y) = (w.range(weights, (1, 1)), w.like(weights));
        w.push(Instr::Scale { by: Scaling::MinMax, x: weights, range, y });
        y
    } else {
        weights
    };
    weighted_sum(w, job, Weights::Channels(weights))
}

/// Grad-CAM++ (`methods.md` 6.2): `a_c = Σ α ⊙ ReLU(G)`, `α = G² / stabilise(2·G² + B)`. Only pixels with G > 0 count,
/// so with `P = ReLU(G)` this is `a_c = Σ P³ / stabilise(2·P² + B)`. Form S: `B = ΣA·P³` pixel by pixel. Form T:
/// `B = Σ A·G³`, one number a channel; where all pixels have the same gradient, that is the same.
pub(super) fn grad_cam_plus_plus(w: &mut Writer<'_>, job: &Job<'_>) -> RawMap {
    let (form_t, channels) = (job.settings.choice(FORM.key) == "t", w.shape(job.layer).c);
    let [eps_s, eps_t] = EPS_PLUS;
    let gradient = layer_gradient(w, job);
    let (g, repeated) = match gradient {
        Weights::Channels(g) => (g, pixels(w, job)),
        Weights::Elements(g) => (g, 1.0),
    };
    let a = w.value(job.layer);
    let p = w.unary(Unary::Positive, g);
    let square = w.multiply(p, p);
    let cube = w.multiply(square, p);
    let (twice, third) = (w.like(square), w.like(cube));
    w.push(Instr::Add { a: square, b: square, relu: false, y: twice });
    let (x, weights) = match gradient {
        Weights::Elements(g) if form_t => {
            let product = w.multiply(a, g);
            let square = w.multiply(g, g);
            let product = w.multiply(product, square);
            let ones = w.reg(w.shape(job.layer).len());
            w.push(Instr::Fill { values: [1.0; 4], channels: 1, y: ones });
            (ones, pixel_sum(w, job, product, 1.0))
        }
        _ => (cube, pixel_sum(w, job, a, 1.0)),
    };
    w.push(Instr::ChannelScale { x, channels, weights, y: third });
    let by = Divisor::Signed(if form_t { eps_t } else { eps_s });
    let terms = w.divide(cube, twice, Some(third), by);
    let weights = pixel_sum(w, job, terms, repeated);
    weighted_sum(w, job, Weights::Channels(weights))
}

/// What activations are weighted by.
#[derive(Clone, Copy)]
enum Weights {
    /// One number a channel.
    Channels(Reg),
    /// One number an element.
    Elements(Reg),
}

/// Gradient of each class's logit at the layer.
fn layer_gradient(w: &mut Writer<'_>, job: &Job<'_>) -> Weights {
    match pooled_head(w.graph, job.layer).filter(|_| job.closed_forms) {
        // The gradient of a pooled linear head is the class's row, spread evenly over the pixels (`methods.md` 2).
        Some(param) => {
            let y = w.class_reg(w.shape(job.layer).c);
            w.push(Instr::ClassRow {
                w: WeightRef::plain(param),
                classes: job.classes,
                scale: 1.0 / pixels(w, job),
                y,
            });
            Weights::Channels(y)
        }
        None => Weights::Elements(gradient::at(w, job, job.layer, &Composite::gradient())),
    }
}

fn pixels(w: &Writer<'_>, job: &Job<'_>) -> f32 {
    let shape = w.shape(job.layer);
    (shape.h * shape.w) as f32
}

/// `scale · Σ x` over the pixels of each channel.
fn pixel_sum(w: &mut Writer<'_>, job: &Job<'_>, x: Reg, scale: f32) -> Reg {
    let channels = w.shape(job.layer).c;
    let y = w.with_lanes_of(x, channels);
    w.push(Instr::PixelSum { x, channels, scale, y });
    y
}

/// Sum over the channels of the weighted activations.
fn weighted_sum(w: &mut Writer<'_>, job: &Job<'_>, weights: Weights) -> RawMap {
    let (shape, a) = (w.shape(job.layer), w.value(job.layer));
    let (x, weights) = match weights {
        Weights::Channels(weights) => (a, Some(weights)),
        Weights::Elements(weights) => (w.multiply(a, weights), None),
    };
    let map = w.class_reg(shape.h * shape.w);
    w.push(Instr::ChannelSum { x, channels: shape.c, weights, y: map });
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
