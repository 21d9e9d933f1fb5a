//! Attribution guided factorization (`methods.md` 14): a class map Φ and the gradient of a softened head walk down
//! together. The map goes by the sizes of products, and takes up what gradient and activations say about its sign.

use super::lrp::{colour_sum, down_to_input, input_map};
use super::{Job, Kind, RawMap, Setting, Settings};
use crate::backend::{Divisor, Instr, Scaling, Sign, Unary, Variant, WeightRef};
use crate::engine::{
    Arrived, Bounds, Composite, Layer, Part, Reg, Rule, Rules, SHIFT, Walk, Writer, is_pointwise, transposed, walk_down,
};
use crate::net::{NodeId, Op, Shape};

const BY: Divisor = Divisor::Shifted(SHIFT);

/// Slope of the sigmoid before factorisation.
const SLOPE: f32 = 10.0;

/// What can be set about AGF.
pub(super) const SETTINGS: &[Setting] = &[
    Setting { key: "raw", kind: Kind::Flag(false), help: "leaves out the division by the largest value" },
    Setting { key: "a", kind: Kind::Flag(true), help: "adds A, what ones in place of activations would receive" },
    Setting { key: "fx", kind: Kind::Flag(true), help: "adds Fx, the factorisation of the activations" },
    Setting { key: "fdx", kind: Kind::Flag(true), help: "adds Fdx, the factorisation of the gradient" },
    Setting {
        key: "m",
        kind: Kind::Flag(true),
        help: "adds M, the positive mean of activation times gradient, to convolutions",
    },
    Setting { key: "regulariser", kind: Kind::Flag(true), help: "divides Fx + M, or what replaces it, by 1 + exp(-C)" },
    Setting {
        key: "grad_cam",
        kind: Kind::Flag(false),
        help: "Grad-CAM's map in place of Fx + M, whatever `fx` and `m` are",
    },
];

/// AGF, by default scaled by its largest value.
pub(super) fn agf(w: &mut Writer<'_>, job: &Job<'_>) -> RawMap {
    let (input, output) = (NodeId(0), w.graph.output());
    let features = w.graph.node(output).inputs[0];
    let Some(first) = w.graph.readers(input).first().copied() else { unreachable!("something reads the input") };
    let (logits, seed) = (w.value(output), w.class_reg(w.graph.classes()));
    w.push(Instr::HeadGradient { logits, classes: job.classes, y: seed });
    let gradient = walk_down(w, (output, seed), first, &Composite::gradient());
    let rules = Agf { composite: composite(), gradient, settings: job.settings };
    let (x, g) = (w.value(features), rules.gradient_at(features));
    let start = w.multiply(x, g);
    let mut phi = down_to_input(w, (features, start), &rules);
    if !job.settings.flag("raw") {
        let (range, y) = (w.range(phi, w.channels(input)), w.like(phi));
        w.push(Instr::Scale { by: Scaling::Largest(Divisor::NonZero), x: phi, range, y });
        phi = y;
    }
    let map = colour_sum(w, phi);
    input_map(w, map)
}

/// What is the same everywhere: layers by the sizes of products, sums and pools in proportion.
fn composite() -> Composite {
    let proportional = Rule::Share(BY);
    Composite {
        first: Some(Rule::Box(Bounds::Sample(BY))),
        conv: Rule::Magnitude,
        linear: Rule::Magnitude,
        max_pool: proportional,
        avg_pool: proportional,
        add: proportional,
        ..Composite::gradient()
    }
}

/// The class map's rules.
struct Agf<'a> {
    composite: Composite,
    /// The gradient at every node.
    gradient: Arrived,
    /// Which terms are in.
    settings: &'a Settings,
}

impl Rules for Agf<'_> {
    fn node(&self, walk: &mut Walk<'_, '_>, id: NodeId, r: Reg) {
        let graph = walk.w.graph;
        let flattened = matches!(graph.node(graph.node(id).inputs[0]).op, Op::Flatten);
        match (walk.layer(id), self.composite.rule(graph, id)) {
            (Some(layer @ Layer::Conv(g, _)), Rule::Magnitude) if !is_pointwise(&g.window) => {
                self.conv(walk, id, layer, r);
            }
            (Some(layer), Rule::Magnitude) if flattened => self.after_flatten(walk, id, layer, r),
            _ => walk.apply(id, r, &self.composite),
        }
    }
}

impl Agf<'_> {
    fn gradient_at(&self, id: NodeId) -> Reg {
        match self.gradient.at(id) {
            Some(g) => g,
            None => unreachable!("every layer above the first has a gradient"),
        }
    }

    /// A convolution that reads more than single pixels: `((Fx + M)/(1 + exp(−C)) + Fdx + A) ⊙ [C ≠ 0]` joins C.
    fn conv(&self, walk: &mut Walk<'_, '_>, id: NodeId, layer: Layer, phi: Reg) {
        let input = walk.w.graph.node(id).inputs[0];
        let (shape, dy) = (walk.w.shape(input), self.gradient_at(id));
        let c = by_size(walk, id, layer, Part::Magnitude, phi);
        // Only the sign of the mean over channels matters.
        let sign = channel_sum(walk.w, shape, c);
        let [a, fdx, by_cam] = ["a", "fdx", "grad_cam"].map(|key| self.settings.flag(key));
        // The gradient that comes from where Φ is not zero.
        let gm = (fdx || by_cam).then(|| {
            let masked = mask(walk.w, phi, dy);
            back(walk, input, layer, masked, None)
        });
        let mut rest = a.then(|| by_size(walk, id, layer, Part::One, phi));
        if let Some(gm) = gm.filter(|_| fdx) {
            let fit = factor(walk.w, shape, gm, sign);
            let fit = spread(walk.w, shape, fit);
            rest = Some(joined(walk.w, rest, fit));
        }
        let map = match gm.filter(|_| by_cam) {
            Some(gm) => {
                let x = walk.w.value(input);
                Some(positive_cam(walk.w, shape, x, gm))
            }
            None => self.residual(walk, input, layer, dy, sign),
        };
        if let Some(map) = map {
            let mut x = spread(walk.w, shape, map);
            if self.settings.flag("regulariser") {
                let y = walk.w.like(x);
                walk.w.push(Instr::Damp { x, c, y });
                x = y;
            }
            rest = Some(joined(walk.w, rest, x));
        }
        let Some(rest) = rest else { return walk.pass(input, c) };
        let rest = mask(walk.w, c, rest);
        join(walk, input, c, rest);
    }

    /// `Fx + M`, as far as they are in.
    fn residual(&self, walk: &mut Walk<'_, '_>, input: NodeId, layer: Layer, dy: Reg, sign: Reg) -> Option<Reg> {
        let (shape, x) = (walk.w.shape(input), walk.w.value(input));
        let fx = self.settings.flag("fx").then(|| factor(walk.w, shape, x, sign));
        if !self.settings.flag("m") {
            return fx;
        }
        let weighted = back(walk, input, layer, dy, Some(x));
        let m = positive_mean(walk.w, shape, weighted);
        let m = over_largest(walk.w, flat(shape), m);
        Some(joined(walk.w, fx, m))
    }

    /// The first linear layer over several pixels: what M says about these joins C.
    fn after_flatten(&self, walk: &mut Walk<'_, '_>, id: NodeId, layer: Layer, phi: Reg) {
        let flat = walk.w.graph.node(id).inputs[0];
        let shape = walk.w.shape(walk.w.graph.node(flat).inputs[0]);
        let c = by_size(walk, id, layer, Part::Magnitude, phi);
        let x = walk.w.value(flat);
        let weighted = back(walk, flat, layer, self.gradient_at(id), Some(x));
        let w = &mut *walk.w;
        let [pixels, m] = [(); 2].map(|()| w.class_reg(shape.len()));
        w.push(Instr::FlattenBack { x: shape, dy: weighted, add: None, dx: pixels });
        let mean = positive_mean(w, shape, pixels);
        let wide = spread(w, shape, mean);
        w.push(Instr::Flatten { x: shape, from: wide, y: m });
        let m = mask(w, c, m);
        let m = over_largest(w, shape, m);
        join(walk, flat, c, m);
    }
}

/// `p ⊙ |w|ᵀ*(Φ / |w|*p)` for a part p of the layer's input: the sizes of its values, or ones.
fn by_size(walk: &mut Walk<'_, '_>, id: NodeId, layer: Layer, part: Part, phi: Reg) -> Reg {
    let input = walk.w.graph.node(id).inputs[0];
    let Some(p) = walk.part(input, part) else { unreachable!("only a negative part may be known to be zero") };
    let w = WeightRef::trained(layer.param(), Variant::Absolute);
    let z = walk.product(id, layer, w, None, p, None);
    let s = walk.w.divide(phi, z, None, BY);
    let y = walk.w.class_reg(walk.w.shape(input).len());
    walk.w.push(transposed(layer, w, false, s, (part != Part::One).then_some(p), None, y));
    y
}

/// `mul ⊙ wᵀ*dy`
fn back(walk: &mut Walk<'_, '_>, input: NodeId, layer: Layer, dy: Reg, mul: Option<Reg>) -> Reg {
    let dx = walk.w.class_reg(walk.w.shape(input).len());
    walk.w.push(transposed(layer, WeightRef::plain(layer.param()), false, dy, mul, None, dx));
    dx
}

/// Sends `C + R`, shifted where C is not zero, so that its total is C's.
fn join(walk: &mut Walk<'_, '_>, input: NodeId, c: Reg, r: Reg) {
    let (count, from) = (walk.w.totals(c), walk.w.totals(r));
    let (x, y) = (walk.w.sum(c, r), walk.w.like(c));
    walk.w.push(Instr::Shift { x, mask: c, count, from, to: None, y });
    walk.pass(input, y);
}

/// What `x`, scaled to be either small or large, says for the pixels where `sign` is positive and against the others: `fact`.
fn factor(w: &mut Writer<'_>, shape: Shape, x: Reg, sign: Reg) -> Reg {
    let scaled = over_largest(w, shape, x);
    let (x, y) = (w.unary(Unary::Sigmoid(SLOPE), scaled), w.like(sign));
    w.push(Instr::Factor { x, channels: shape.c, phi: sign, y });
    w.unary(Unary::Positive, y)
}

/// `x / max x`
fn over_largest(w: &mut Writer<'_>, shape: Shape, x: Reg) -> Reg {
    let (range, y) = (w.range(x, (shape.c, shape.c)), w.with_lanes_of(x, shape.len()));
    w.push(Instr::Scale { by: Scaling::Largest(BY), x, range, y });
    y
}

/// Sum over the channels of each pixel.
fn channel_sum(w: &mut Writer<'_>, shape: Shape, x: Reg) -> Reg {
    let y = w.with_lanes_of(x, shape.h * shape.w);
    w.push(Instr::ChannelSum { x, channels: shape.c, weights: None, y });
    y
}

/// Mean over the channels of each pixel where it is positive.
fn positive_mean(w: &mut Writer<'_>, shape: Shape, x: Reg) -> Reg {
    let sum = channel_sum(w, shape, x);
    positive_share(w, shape, sum)
}

/// Grad-CAM of activations and their gradient where it is positive, as a mean over the channels.
fn positive_cam(w: &mut Writer<'_>, shape: Shape, x: Reg, g: Reg) -> Reg {
    let pixels = shape.h * shape.w;
    let weights = w.with_lanes_of(g, shape.c);
    w.push(Instr::PixelSum { x: g, channels: shape.c, scale: 1.0 / pixels as f32, y: weights });
    let sum = w.with_lanes_of(g, pixels);
    w.push(Instr::ChannelSum { x, channels: shape.c, weights: Some(weights), y: sum });
    positive_share(w, shape, sum)
}

/// What a sum over the channels is in the mean, where it is positive.
fn positive_share(w: &mut Writer<'_>, shape: Shape, sum: Reg) -> Reg {
    let mean = w.unary(Unary::Times(1.0 / shape.c as f32), sum);
    w.unary(Unary::Positive, mean)
}

/// The same for all channels of a pixel.
fn spread(w: &mut Writer<'_>, shape: Shape, x: Reg) -> Reg {
    let y = w.with_lanes_of(x, shape.len());
    w.push(Instr::Spread { x, channels: shape.c, y });
    y
}

/// The shape of one number a pixel.
fn flat(shape: Shape) -> Shape {
    Shape { c: 1, ..shape }
}

/// `r·[x ≠ 0]`
fn mask(w: &mut Writer<'_>, x: Reg, r: Reg) -> Reg {
    let y = w.like(r);
    w.push(Instr::Mask { keep: Sign::NonZero, x, r, add: None, y });
    y
}

fn joined(w: &mut Writer<'_>, a: Option<Reg>, b: Reg) -> Reg {
    match a {
        Some(a) => w.sum(a, b),
        None => b,
    }
}
