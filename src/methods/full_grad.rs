//! FullGrad: what input and biases contribute to the logit, all put into one map (`methods.md` 9).

use std::cell::{Cell, RefCell};

use super::{INPUT, Job, RawMap, gradient};
use crate::backend::{Filter, Instr, Scaling, Unary, Vector};
use crate::engine::{Audit, Composite, Layer, Reg, Rules, Walk, Writer};
use crate::net::{NodeId, Shape};

/// Stabiliser of ψ.
const EPS: f32 = 1e-6;

/// `Σ_c ψ(X ⊙ D) + Σ_l Σ_c ψ(b_l ⊙ G_l)`, with the gradients G at the outputs of all layers.
pub(super) fn full_grad(w: &mut Writer<'_>, job: &Job<'_>) -> RawMap {
    let biases = BiasTerms::default();
    let (x, d) = (w.value(INPUT), gradient::at(w, job, INPUT, &biases));
    w.at("input");
    let shape = w.shape(INPUT);
    let product = w.multiply(x, d);
    let map = add_magnitudes(w, product, shape, w.channels(INPUT), biases.map.get());
    if w.audited() {
        let expected = vec![gradient::logit_total(w, job)];
        let mut found = biases.totals.into_inner();
        found.push(w.totals(product));
        w.audit(Audit { node: "completeness".into(), expected, found, less: vec![] });
    }
    RawMap { map, size: (shape.h, shape.w) }
}

/// The ordinary gradient, which leaves what each bias contributes behind.
#[derive(Default)]
struct BiasTerms {
    /// Sum of the terms of layers with rows and columns.
    map: Cell<Option<Reg>>,
    /// What all terms sum to.
    totals: RefCell<Vec<Reg>>,
}

impl Rules for BiasTerms {
    fn node(&self, walk: &mut Walk<'_, '_>, id: NodeId, r: Reg) {
        if let Some(layer) = walk.layer(id) {
            [Vector::OwnBias, Vector::NormShift].into_iter().for_each(|bias| self.add(walk.w, layer, bias, r));
        }
        walk.apply(id, r, &Composite::gradient());
    }

    fn conserve(&self) -> bool {
        false
    }
}

impl BiasTerms {
    /// Adds the term of one bias, `g` being the gradient at the layer's output.
    fn add(&self, w: &mut Writer<'_>, layer: Layer, bias: Vector, g: Reg) {
        let values = bias.of(w.graph.param(layer.param()));
        let counts = w.audited() || matches!(layer, Layer::Conv(..));
        if !counts || values.iter().all(|b| *b == 0.0) {
            return;
        }
        let y = w.by_vector(g, layer.param(), bias);
        if w.audited() {
            self.totals.borrow_mut().push(w.totals(y));
        }
        if let Layer::Conv(geometry, _) = layer {
            let map = add_magnitudes(w, y, geometry.y, (values.len(), values.len()), self.map.get());
            self.map.set(Some(map));
        }
    }
}

/// Adds `Σ_c ψ(x)`, resized to the input: ψ shifts and scales magnitudes to 0..1, over all of a sample. `channels`: those
/// that are stored, and how many of them count.
fn add_magnitudes(w: &mut Writer<'_>, x: Reg, shape: Shape, channels: (usize, usize), add: Option<Reg>) -> Reg {
    let (input, pixels) = (w.shape(INPUT), shape.h * shape.w);
    let magnitudes = w.unary(Unary::Absolute, x);
    let range = w.range(magnitudes, channels);
    let (sum, scaled, y) = (w.class_reg(pixels), w.class_reg(pixels), w.class_reg(input.h * input.w));
    w.push(Instr::ChannelSum { x: magnitudes, channels: channels.0, weights: None, y: sum });
    w.push(Instr::Scale { by: Scaling::Sum { channels: channels.1, eps: EPS }, x: sum, range, y: scaled });
    let (from, slice, to) = (Shape { c: 1, ..shape }, (0, 1), (input.h, input.w));
    w.push(Instr::Resize { from, slice, to, filter: Filter::Aligned, scale: 1.0, x: scaled, add, y });
    y
}
