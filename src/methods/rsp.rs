//! Relative sectional propagation (`methods.md` 13): from a class activation map that is not yet summed over channels,
//! down through convolutions whose weights are the correlations of input and relevance.

use super::lrp::{colour_sum, down_to_input, input_map};
use super::{Job, RawMap, cam};
use crate::backend::{AvgGeom, ConvGeom, Divisor, Instr, Scaling, Unary};
use crate::engine::{Composite, Layer, Part, Reg, Rule, Rules, SHIFT, Walk, Writer, is_pointwise};
use crate::net::{NodeId, Op};

/// From the layer, by default the last rectifier before the last pooling.
pub(super) fn rsp(w: &mut Writer<'_>, job: &Job<'_>) -> RawMap {
    // Pooling reads x + 1e-9, of which the winner's share is all of it.
    let set_a = Composite { max_pool: Rule::Gradient, ..Composite::separate(1.0) };
    let start = seed(w, job);
    let r = down_to_input(w, (job.layer, start), &Rsp { set_a });
    let map = colour_sum(w, r);
    input_map(w, map)
}

/// `A ⊙ mean G` by its maximum. Where nothing is positive there is nothing to explain.
fn seed(w: &mut Writer<'_>, job: &Job<'_>) -> Reg {
    let (shape, x, weights) = (w.shape(job.layer), w.value(job.layer), cam::mean_gradient(w, job));
    let [t, y] = [(); 2].map(|()| w.class_reg(shape.len()));
    w.push(Instr::ChannelScale { x, channels: shape.c, weights, y: t });
    let range = w.range(t, w.channels(job.layer));
    w.push(Instr::Scale { by: Scaling::Largest(Divisor::Shifted(SHIFT)), x: t, range, y });
    y
}

/// Set A, where correlations take the place of αβ and nothing that is shared in proportion is zero.
struct Rsp {
    set_a: Composite,
}

impl Rules for Rsp {
    fn node(&self, walk: &mut Walk<'_, '_>, id: NodeId, r: Reg) {
        let node = walk.w.graph.node(id);
        match (&node.op, walk.layer(id), self.set_a.rule(walk.w.graph, id)) {
            (_, Some(Layer::Conv(g, _)), Rule::Separate(_)) => correlation(walk, node.inputs[0], g, r),
            (Op::Add, ..) => {
                let terms = [node.inputs[0], node.inputs[1]].map(|input| raised(walk, input));
                walk.share(id, terms, Divisor::NonZero, r);
            }
            (Op::AvgPool(pool), ..) => {
                let (x, y) = (raised(walk, node.inputs[0]), walk.w.shape(id));
                let (g, z) = (AvgGeom { pool: *pool, x: walk.w.shape(node.inputs[0]), y }, walk.w.reg(y.len()));
                walk.w.push(Instr::AvgPool { g, x, y: z });
                let s = walk.w.divide(r, z, None, Divisor::NonZero);
                walk.avg_pool_back(id, s, Some(x));
            }
            _ => walk.apply(id, r, &self.set_a),
        }
    }
}

/// `x⁺ + 1e-9`, which 16 bits cannot hold.
fn raised(walk: &mut Walk<'_, '_>, id: NodeId) -> Reg {
    let (x, positive) = (walk.w.value(id), walk.w.reg(walk.w.shape(id).len()));
    walk.w.push(Instr::Unary { f: Unary::Positive, x, y: positive });
    walk.w.unary(Unary::Plus(SHIFT), positive)
}

/// With `V` the correlation of x and R: `x ⊙ Vᵀ*(R / V*x)`, for positive and negative relevance apart. Larger kernels
/// count it twice and then shift all that was touched, so that the total is that of R again.
fn correlation(walk: &mut Walk<'_, '_>, input: NodeId, g: ConvGeom, r: Reg) {
    let Some(x) = walk.part(input, Part::Positive) else {
        unreachable!("only a negative part may be known to be zero")
    };
    let w = &mut *walk.w;
    let pointwise = is_pointwise(&g.window);
    let (times, weights) = (if pointwise { 1.0 } else { 2.0 }, g.window.kernel[0] * g.window.kernel[1] * g.x.c * g.y.c);
    let mut sum = None;
    for sign in [Unary::Positive, Unary::Negative] {
        let part = w.unary(sign, r);
        let size = w.unary(Unary::Absolute, part);
        let (v, z, c) = (w.class_reg(weights), w.class_reg(g.y.len()), w.class_reg(g.x.len()));
        w.push(Instr::Correlate { g, x, dy: size, v });
        w.push(Instr::ConvBy { g, v, x, y: z });
        let s = w.quotient(part, z, None, Divisor::NonZero, times);
        w.push(Instr::ConvBackBy { g, v, dy: s, mul: Some(x), add: sum, dx: c });
        sum = Some(c);
    }
    let Some(c) = sum else { unreachable!("there are two signs") };
    if pointwise {
        return walk.pass(input, c);
    }
    let (count, from, y) = (w.totals(c), w.totals(r), w.like(c));
    w.push(Instr::Shift { x: c, mask: c, count, from, to: None, y });
    walk.pass(input, y);
}
