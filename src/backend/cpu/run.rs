//! From instructions to the functions that compute them.

use super::conv::ConvKey;
use super::epilogue::Epilogue;
use super::linear::Weight;
use super::operands::{Base, Operands};
use super::{Batch, Cpu, correlate, elementwise, head, layers, linear, maps, noise, reduce, resample, resize};
use crate::backend::taps::Direction;
use crate::backend::{ConvGeom, Instr, Slot, Variant, WeightRef, rectify};

impl Cpu {
    /// Runs one instruction on a batch.
    pub(super) fn step(&self, instr: &Instr<Slot>, operands: &Operands<'_>, batch: &Batch<'_>) {
        let w = &self.workers;
        let samples = batch.tables.samples();
        // The plan keeps the slots of values that are alive at the same time apart, so an instruction's results are
        // disjoint from its operands. The one exception is `add`, which `base!` resolves.
        macro_rules! view {
            ($slot:expr) => {
                // SAFETY: results of this instruction lie elsewhere.
                unsafe { operands.view($slot) }
            };
        }
        macro_rules! view_opt {
            ($slot:expr) => {
                $slot.as_ref().map(|slot| view!(slot))
            };
        }
        macro_rules! target {
            ($slot:expr) => {
                // SAFETY: operands and other results of this instruction lie elsewhere.
                unsafe { operands.target($slot) }
            };
        }
        // The term to add lies where the result goes, elsewhere, or nowhere.
        macro_rules! base {
            ($add:expr, $y:expr) => {
                match $add {
                    None => Base::Zero,
                    Some(add) if add == $y => Base::InPlace,
                    Some(add) => Base::From(view!(add)),
                }
            };
        }
        let conv = |g: &ConvGeom, weight: &WeightRef, direction| {
            let key = ConvKey { g: *g, weight: *weight, direction, samples };
            (&self.convs[&key], self.graph.param(weight.param))
        };
        let biases = |weight: &WeightRef, variant: &Option<Variant>| {
            variant.map(|variant| (self.graph.param(weight.param).bias.as_slice(), variant))
        };
        let linear_weight = |view: &WeightRef| Weight { param: self.graph.param(view.param), view: *view };
        match instr {
            Instr::Unfold { y, .. } => resample::unfold(w, batch, target!(y)),
            Instr::Conv { g, w: weight, bias, x, add, relu, y } => {
                let (kernel, param) = conv(g, weight, Direction::Forward);
                let epilogue = Epilogue::Forward { bias: biases(weight, bias), relu: *relu };
                kernel.run(w, param, view!(x), epilogue, base!(add, y), target!(y));
            }
            Instr::Quotient { g, w: weight, bias, x, add, r, by, scale, y } => {
                let (kernel, param) = conv(g, weight, Direction::Forward);
                let epilogue = Epilogue::Quotient { bias: biases(weight, bias), r: view!(r), by: *by, scale: *scale };
                kernel.run(w, param, view!(x), epilogue, base!(add, y), target!(y));
            }
            Instr::ConvBack { g, w: weight, dy, mul, add, dx, .. } => {
                let (kernel, param) = conv(g, weight, Direction::Backward);
                let epilogue = Epilogue::Backward { mul: view_opt!(mul) };
                kernel.run(w, param, view!(dy), epilogue, base!(add, dx), target!(dx));
            }
            Instr::Linear { w: weight, bias, x, add, relu, y } => {
                let bias = biases(weight, bias);
                linear::forward(w, linear_weight(weight), view!(x), bias, base!(add, y), *relu, target!(y));
            }
            Instr::LinearBack { w: weight, dy, mul, add, dx, .. } => {
                linear::backward(w, linear_weight(weight), view!(dy), view_opt!(mul), base!(add, dx), target!(dx));
            }
            Instr::MaxPool { g, x, y, index } => {
                // SAFETY: operands and other results of this instruction lie elsewhere.
                let index = index.as_ref().map(|slot| unsafe { operands.bytes_mut(slot) });
                layers::max_pool(w, g, view!(x), target!(y), index);
            }
            Instr::MaxPoolBack { g, index, dy, add, dx } => {
                // SAFETY: results of this instruction lie elsewhere.
                let winners = unsafe { operands.bytes(index) };
                layers::max_pool_back(w, g, winners, view!(dy), base!(add, dx), target!(dx));
            }
            Instr::AvgPool { g, x, y } => layers::avg_pool(w, g, view!(x), target!(y)),
            Instr::AvgPoolBack { g, dy, mul, add, dx } => {
                layers::avg_pool_back(w, g, view!(dy), view_opt!(mul), base!(add, dx), target!(dx));
            }
            Instr::Unary { f, x, y } => elementwise::unary(w, view!(x), target!(y), *f),
            Instr::Mask { keep, x, r, add, y } => {
                let (x, r, base, y) = (view!(x), view!(r), base!(add, y), target!(y));
                elementwise::mask(w, *keep, x, r, base, y);
            }
            Instr::Add { a, b, relu, y } => {
                let (a, b, zero, y) = (view!(a), view!(b), Base::Zero, target!(y));
                match relu {
                    true => elementwise::binary(w, a, b, zero, y, |a, b| rectify(a + b)),
                    false => elementwise::binary(w, a, b, zero, y, |a, b| a + b),
                }
            }
            Instr::Flatten { x, from, y } => layers::flatten(w, *x, view!(from), target!(y)),
            Instr::FlattenBack { x, dy, add, dx } => {
                layers::flatten_back(w, *x, view!(dy), base!(add, dx), target!(dx))
            }
            Instr::Divide { r, z, z2, by, scale, y } => {
                elementwise::divide(w, view!(r), (view!(z), view_opt!(z2)), *by, *scale, target!(y));
            }
            Instr::Split { a, b, whole, r, by, ya, yb } => {
                let (terms, results) = ([view!(a), view!(b)], [target!(ya), target!(yb)]);
                match whole {
                    false => elementwise::split(w, terms, |a, b| [a, b, a + b], view!(r), *by, results),
                    true => elementwise::split(w, terms, |sum, b| [sum - b, b, sum], view!(r), *by, results),
                }
            }
            Instr::Larger { a, b, y } => {
                elementwise::binary(w, view!(a), view!(b), Base::Zero, target!(y), f32::max);
            }
            Instr::Damp { x, c, y } => {
                let damp = |x: f32, c: f32| x / (1.0 + (-c).exp());
                elementwise::binary(w, view!(x), view!(c), Base::Zero, target!(y), damp);
            }
            Instr::Multiply { x, c, add, y } => {
                elementwise::binary(w, view!(x), view!(c), base!(add, y), target!(y), |x, c| x * c);
            }
            Instr::Softmax { logits, p } => head::softmax(view!(logits), target!(p)),
            Instr::TopK { p, k, classes } => head::top_k(view!(p), *k, target!(classes)),
            Instr::Pick { p, classes, y } => head::pick(view!(p), view!(classes), target!(y)),
            Instr::Seed { classes, seed, x, y } => head::seed(*seed, view!(classes), view_opt!(x), target!(y)),
            Instr::HeadGradient { logits, classes, y } => {
                head::gradient(view!(logits), view!(classes), target!(y));
            }
            Instr::HeadShares { q, classes, param, y } => {
                head::shares(&self.graph.param(*param).bias, view!(q), view!(classes), target!(y));
            }
            Instr::Vector { param, vector, y } => {
                let values = &self.vectors[&(*param, *vector)];
                target!(y).data.chunks_exact_mut(values.len()).for_each(|y| y.copy_from_slice(values));
            }
            Instr::Fill { values, channels, y } => elementwise::fill(w, &values[..*channels], target!(y)),
            Instr::Bound { range, upper, channels, y } => {
                elementwise::bound(w, view!(range), *upper, *channels, target!(y));
            }
            Instr::Perturb { x, range, sigma, seed, draw, channels, y } => {
                let noise = noise::Noise { sigma: *sigma, seed: *seed, draw: *draw, first: batch.first };
                noise::perturb(w, &noise, *channels, view!(x), view!(range), target!(y));
            }
            Instr::LaneScale { x, factors, y } => elementwise::lane_scale(w, factors, view!(x), target!(y)),
            Instr::LaneSum { x, add, y } => reduce::lane_sum(w, view!(x), base!(add, y), target!(y)),
            Instr::PixelSum { x, channels, scale, y } => reduce::pixel_sum(w, *channels, *scale, view!(x), target!(y)),
            Instr::ClassRow { w: weight, classes, scale, y } => {
                head::class_row(linear_weight(weight), view!(classes), *scale, target!(y));
            }
            Instr::ChannelSum { x, channels, weights, y } => {
                reduce::channel_sum(w, *channels, view!(x), view_opt!(weights), target!(y));
            }
            Instr::ChannelScale { x, channels, weights, y } => {
                elementwise::channel_scale(w, *channels, view!(x), view!(weights), target!(y));
            }
            Instr::ChannelMax { x, channels, y } => reduce::channel_max(w, *channels, view!(x), target!(y)),
            Instr::Spread { x, channels, y } => elementwise::spread(w, *channels, view!(x), target!(y)),
            Instr::Totals { x, y } => reduce::totals(w, view!(x), target!(y)),
            Instr::Shift { x, mask, count, from, to, y } => {
                let totals = [Some(view!(count)), Some(view!(from)), view_opt!(to)];
                elementwise::shift(w, view!(x), view!(mask), totals, target!(y));
            }
            Instr::Contrast { x, other, total, other_total, y } => {
                let totals = [view!(total), view!(other_total)];
                elementwise::contrast(w, view!(x), view!(other), totals, target!(y));
            }
            Instr::Factor { x, channels, phi, y } => reduce::factor(w, *channels, view!(x), view!(phi), target!(y)),
            Instr::Correlate { g, x, dy, v } => correlate::correlate(w, g, view!(x), view!(dy), target!(v)),
            Instr::ConvBy { g, v, x, y } => correlate::forward(w, g, view!(v), view!(x), target!(y)),
            Instr::ConvBackBy { g, v, dy, mul, add, dx } => {
                let (mul, base) = (view_opt!(mul), base!(add, dx));
                correlate::backward(w, g, view!(v), view!(dy), mul, base, target!(dx));
            }
            Instr::Gather { picks, x, y } => resample::gather(w, picks, batch.first, view!(x), target!(y)),
            Instr::Keep { x, y } => target!(y).data.copy_from_slice(view!(x).data),
            Instr::Fold { maps, p, map, y } => {
                resample::fold(w, &batch.tables.fold, view!(maps), view!(p), *map, target!(y));
            }
            Instr::Range { x, channels, y } => reduce::range(w, *channels, view!(x), target!(y)),
            Instr::Resize { from, slice, to, filter, scale, x, add, y } => {
                let resize = resize::Resize { from: *from, slice: *slice, to: *to, filter: *filter, scale: *scale };
                resize.run(w, view!(x), base!(add, y), target!(y));
            }
            Instr::Scale { by, x, range, y } => elementwise::scale(w, *by, view!(x), view!(range), target!(y)),
            Instr::Blur { size, vertical, x, y } => maps::blur(*size, *vertical, view!(x), target!(y)),
            Instr::Overlay { size, photo, source, level, x, y, .. } => {
                // SAFETY: operands and other results of this instruction lie elsewhere.
                let pictures = unsafe { operands.bytes_mut(y) };
                let x = view!(x);
                w.pool.install(|| maps::overlay(batch.photo, *photo, *source, *size, *level, x, pictures));
            }
        }
    }
}
