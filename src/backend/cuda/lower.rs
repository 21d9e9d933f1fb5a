//! From instructions to launches. The one place that knows which kernel serves which instruction.

use std::ops::Range;

use super::args::*;
use super::conv::Read;
use super::fill::{self, Binary, Place, average, channel, head, pool};
use super::kernels::{self as k, Kernel};
use super::launch::MOST;
use super::product::{ConvBackArgs, Product, Quotient, kind, point};
use super::{Cuda, Program};
use crate::backend::{Divisor, Instr, Slot, Unary, Variant};
use crate::error::Result;
use crate::net::Shape;

impl Cuda {
    /// Enqueues one step for some samples.
    pub(super) fn step(&mut self, program: &Program, step: usize, samples: Range<usize>) -> Result<()> {
        let none = Value::NONE;
        let bad = self.bad.pointer(0);
        let all = program.tables.host.samples();
        let at = Place { arena: self.arena.address(0), samples: samples.clone(), all };
        let v = |slot: &Slot| at.value(slot);
        let opt = |slot: &Option<Slot>| slot.as_ref().map_or(none, v);
        let count = |slot: &Slot| at.count(slot);
        let elementwise = |a: &Slot, b: Value, y: &Slot| EltwiseArgs {
            a: v(a),
            b,
            y: v(y),
            bad,
            count: count(y) as u32,
            scale: 1.0,
            ..EltwiseArgs::NONE
        };
        let division = |r: &Slot, [z, z2]: [Value; 2], by: Divisor, scale: f32, y: &Slot| {
            let (code, s) = fill::divisor(by);
            EltwiseArgs { c: z2, code, s, scale, ..elementwise(r, z, y) }
        };
        let binary = |f: Binary, a: &Slot, b: &Slot, add: &Option<Slot>, y: &Slot| {
            let args = EltwiseArgs { add: opt(add), code: f as u32, ..elementwise(a, v(b), y) };
            self.each(&k::BINARY, y.len, count(y), &args)
        };
        let of_sample = |kernel: &Kernel<SampleArgs>, e: EltwiseArgs, [first, second, third]: [Value; 3], y: &Slot| {
            self.each(kernel, y.len, count(y), &SampleArgs { e, first, second, third })
        };
        let reduce = |kernel: &Kernel<ReduceArgs>, x: &Slot, (stored, own): (usize, usize), y: &Slot| {
            let (stored, own) = (stored as u32, own as u32);
            let args = ReduceArgs { x: v(x), y: v(y), bad, count: count(y) as u32, stored, own, unused: 0 };
            self.launch(kernel, [count(y), 1, 1], &args)
        };
        match &program.steps[step].instr {
            Instr::Unfold { y, .. } => self.unfold(program, v(y), samples),
            Instr::Conv { g, w, bias, x, add, relu, y } => {
                let (add, relu) = (add.as_ref(), *relu);
                let product = Product { w, source: g.x, result: g.y, bias: *bias, x, add, relu, quotient: None, y };
                self.conv(g, &product, &at)
            }
            Instr::Quotient { g, w, bias, x, add, r, by, scale, y } => {
                let (add, quotient) = (add.as_ref(), Some(Quotient { r, by: *by, scale: *scale }));
                let product = Product { w, source: g.x, result: g.y, bias: *bias, x, add, relu: false, quotient, y };
                self.conv(g, &product, &at)
            }
            Instr::ConvBack { g, w, exact, dy, mul, add, dx } => {
                let read = Read::back(*exact, g.y.c, g.x.c, self.limits);
                let (dy, mul, add, to) = (v(dy), opt(mul), opt(add), v(dx));
                let args = ConvBackArgs { source: g.y, result: g.x, read, dy, mul, add, dx: to };
                self.conv_back(g, *w, *exact, &args, count(dx))
            }
            Instr::Linear { w, bias, x, add, relu, y } => {
                let (source, result) = (Shape::new(1, 1, x.len), Shape::new(1, 1, y.len));
                let (add, quotient) = (add.as_ref(), None);
                let product = Product { w, source, result, bias: *bias, x, add, relu: *relu, quotient, y };
                match kind(&product, true, all) {
                    Some(kind) => {
                        let weight = self.weights.linear(*w)?;
                        self.multiply(&kind, &product, weight, &at)?;
                        match relu {
                            true => self.unary(fill::unary(Unary::Positive), v(y), v(y), count(y)),
                            false => Ok(()),
                        }
                    }
                    None => {
                        let weight = self.weights.turned(*w)?;
                        self.convolve(&product, &point(source), weight, &at)
                    }
                }
            }
            Instr::LinearBack { w, exact, dy, mul, add, dx } => {
                let weight = self.weights.linear(*w)?;
                let (source, result) = (Shape::new(1, 1, dy.len), Shape::new(1, 1, dx.len));
                let read = if *exact { Read::Tf32Twice } else { Read::Tf32 };
                let args = ConvBackArgs { source, result, read, dy: v(dy), mul: opt(mul), add: opt(add), dx: v(dx) };
                self.convolve_back(&args, &point(source), weight, count(dx))
            }
            Instr::MaxPool { g, x, y, index } => {
                let args = PoolArgs { x: v(x), add: none, y: v(y), index: opt(index), bad, ..pool(g, count(y)) };
                self.each(&k::MAX_POOL, g.y.len(), count(y), &args)
            }
            Instr::MaxPoolBack { g, index, dy, add, dx } => {
                let args = PoolArgs { x: v(dy), add: opt(add), y: v(dx), index: v(index), bad, ..pool(g, count(dx)) };
                self.each(&k::MAX_POOL_BACK, g.x.len(), count(dx), &args)
            }
            Instr::AvgPool { g, x, y } => {
                let args = AverageArgs { x: v(x), y: v(y), bad, ..average(g, count(y)) };
                match (g.y.h, g.y.w) {
                    (1, 1) => self.launch(&k::AVG_POOL, [g.y.c.div_ceil(32), count(y).min(MOST), 1], &args),
                    _ => self.each(&k::AVG_POOL, g.y.len(), count(y), &args),
                }
            }
            Instr::AvgPoolBack { g, dy, mul, add, dx } => {
                let (mul, add) = (opt(mul), opt(add));
                let args = AverageArgs { x: v(dy), mul, add, y: v(dx), bad, ..average(g, count(dx)) };
                self.each(&k::AVG_POOL_BACK, g.x.len(), count(dx), &args)
            }
            Instr::Unary { f, x, y } => self.unary(fill::unary(*f), v(x), v(y), count(y)),
            Instr::Gather { picks, x, y } => self.gather(program, step, picks, [v(x), v(y)], samples),
            Instr::Keep { x, y } => self.unary(fill::unary(Unary::Times(1.0)), v(x), v(y), count(y)),
            Instr::Mask { keep, x, r, add, y } => binary(fill::mask(*keep), x, r, add, y),
            Instr::Add { a, b, relu, y } => {
                binary(if *relu { Binary::AddRectified } else { Binary::Add }, a, b, &None, y)
            }
            Instr::Multiply { x, c, add, y } => binary(Binary::Multiply, x, c, add, y),
            Instr::Larger { a, b, y } => binary(Binary::Larger, a, b, &None, y),
            Instr::Damp { x, c, y } => binary(Binary::Damp, x, c, &None, y),
            Instr::Divide { r, z, z2, by, scale, y } => {
                self.each(&k::DIVIDE, y.len, count(y), &division(r, [v(z), opt(z2)], *by, *scale, y))
            }
            Instr::Split { a, b, whole, r, by, ya, yb } => {
                let (e, whole) = (division(r, [v(a), v(b)], *by, 1.0, ya), u32::from(*whole));
                self.each(&k::SPLIT, ya.len, count(ya), &SplitArgs { e, other: v(yb), whole, unused: 0 })
            }
            Instr::Totals { x, y } => reduce(&k::TOTALS, x, (1, 1), y),
            Instr::Range { x, channels, y } => reduce(&k::RANGE, x, *channels, y),
            Instr::Shift { x, mask, count, from, to, y } => {
                of_sample(&k::SHIFT, elementwise(x, v(mask), y), [v(count), v(from), opt(to)], y)
            }
            Instr::Contrast { x, other, total, other_total, y } => {
                of_sample(&k::CONTRAST, elementwise(x, v(other), y), [v(total), v(other_total), none], y)
            }
            Instr::Scale { by, x, range, y } => {
                let (code, s, scale) = fill::scaling(*by);
                let args = EltwiseArgs { code, s, scale, ..elementwise(x, none, y) };
                of_sample(&k::SCALE, args, [v(range), none, none], y)
            }
            Instr::Fill { values, channels, y } => {
                let (values, channels) = (*values, *channels as u32);
                self.fill(FillArgs { values, channels, y: v(y), ..FillArgs::NONE }, count(y))
            }
            Instr::Vector { param, vector, y } => {
                let channels = self.graph.param(*param).outputs as u32;
                let vector = self.weights.vector(*param, *vector)? as *const f32;
                self.fill(FillArgs { vector, channels, y: v(y), ..FillArgs::NONE }, count(y))
            }
            Instr::Bound { range, upper, channels: (stored, own), y } => {
                let (range, upper, channels, own) = (v(range), u32::from(*upper), *stored as u32, *own as u32);
                self.fill(FillArgs { range, upper, channels, own, y: v(y), ..FillArgs::NONE }, count(y))
            }
            Instr::Perturb { x, range, sigma, seed, draw, channels: (stored, own), y } => {
                let args = PerturbArgs {
                    x: v(x),
                    range: v(range),
                    y: v(y),
                    bad,
                    seed: *seed,
                    draw: *draw,
                    first: samples.start as u32,
                    stored: *stored as u32,
                    own: *own as u32,
                    count: count(y) as u32,
                    sigma: *sigma,
                };
                self.each(&k::PERTURB, y.len, count(y), &args)
            }
            Instr::Flatten { x, from, y } => self.flatten(&k::FLATTEN, *x, v(from), none, v(y), count(y)),
            Instr::FlattenBack { x, dy, add, dx } => {
                self.flatten(&k::FLATTEN_BACK, *x, v(dy), opt(add), v(dx), count(dx))
            }
            Instr::Softmax { logits, p } => {
                let args = head(v(logits), v(p), None, bad, count(p));
                self.launch(&k::SOFTMAX, [count(p), 1, 1], &args)
            }
            Instr::TopK { p, k, classes } => {
                let args = HeadArgs { k: *k as u32, ..head(v(p), none, Some(v(classes)), bad, 1) };
                self.launch(&k::TOP_K, [1, 1, 1], &args)
            }
            Instr::Pick { p, classes, y } => {
                let args = head(v(p), v(y), Some(v(classes)), bad, count(y));
                self.launch(&k::PICK, [count(y).div_ceil(256), 1, 1], &args)
            }
            Instr::Seed { classes, seed, x, y } => {
                let args = head(opt(x), v(y), Some(v(classes)), bad, count(y));
                self.launch(&k::SEED, [count(y), 1, 1], &HeadArgs { code: fill::seed(*seed), ..args })
            }
            Instr::HeadGradient { logits, classes, y } => {
                let args = head(v(logits), v(y), Some(v(classes)), bad, count(y));
                self.launch(&k::HEAD_GRADIENT, [count(y), 1, 1], &args)
            }
            Instr::HeadShares { q, classes, param, y } => {
                let args = head(v(q), v(y), Some(v(classes)), bad, count(y));
                let bias = self.weights.bias(*param, Some(Variant::Plain), false)? as *const f32;
                self.launch(&k::HEAD_SHARES, [count(y), 1, 1], &HeadArgs { bias, ..args })
            }
            Instr::ClassRow { w, classes, scale, y } => {
                let w = self.weights.linear(*w)? as *const half::f16;
                let args = HeadArgs { w, scale: *scale, ..head(none, v(y), Some(v(classes)), bad, count(y)) };
                self.launch(&k::CLASS_ROW, [y.len.div_ceil(256), count(y).min(MOST), 1], &args)
            }
            Instr::LaneScale { x, factors, y } => {
                let mut args = LaneArgs { e: elementwise(x, none, y), n: factors.len() as u32, ..LaneArgs::NONE };
                args.factors[..factors.len()].copy_from_slice(factors);
                self.each(&k::LANE_SCALE, y.len, count(y), &args)
            }
            Instr::LaneSum { x, add, y } => {
                let args = EltwiseArgs { add: opt(add), ..elementwise(x, none, y) };
                self.each(&k::LANE_SUM, y.len, count(y), &args)
            }
            Instr::PixelSum { x, channels, scale, y } => {
                let args = channel(v(x), none, v(y), bad, x.len / channels, *channels, count(y));
                let args = ChannelArgs { scale: *scale, ..args };
                self.launch(&k::PIXEL_SUM, [channels.div_ceil(32), count(y).min(MOST), 1], &args)
            }
            Instr::ChannelSum { x, channels, weights, y } => {
                let args = channel(v(x), opt(weights), v(y), bad, x.len / channels, *channels, count(y));
                self.over_channels(&k::CHANNEL_SUM, &args)
            }
            Instr::ChannelScale { x, channels, weights, y } => {
                let args = channel(v(x), v(weights), v(y), bad, x.len / channels, *channels, count(y));
                self.each(&k::CHANNEL_SCALE, y.len, count(y), &args)
            }
            Instr::ChannelMax { x, channels, y } => {
                let args = channel(v(x), none, v(y), bad, x.len / channels, *channels, count(y));
                self.over_channels(&k::CHANNEL_MAX, &args)
            }
            Instr::Spread { x, channels, y } => {
                let args = channel(v(x), none, v(y), bad, x.len, *channels, count(y));
                self.each(&k::CHANNEL_SPREAD, y.len, count(y), &args)
            }
            Instr::Factor { x, channels, phi, y } => {
                let args = channel(v(x), v(phi), v(y), bad, y.len, *channels, count(y));
                let means = 2 * size_of::<f32>() * channels;
                let kernel = Kernel::with_shared(k::FACTOR.name, k::FACTOR.threads, means as u32);
                self.launch(&kernel, [count(y), 1, 1], &args)
            }
            Instr::Correlate { g, x, dy, v: weight } => self.correlate(g, v(x), v(dy), v(weight), count(weight)),
            Instr::ConvBy { g, v: weight, x, y } => self.convolve_by(g, v(weight), v(x), v(y), count(y)),
            Instr::ConvBackBy { g, v: weight, dy, mul, add, dx } => {
                let (mul, add) = (opt(mul), opt(add));
                let back =
                    ConvBackArgs { source: g.y, result: g.x, read: Read::Tf32Twice, dy: v(dy), mul, add, dx: v(dx) };
                self.convolve_back_by(g, v(weight), &back, count(dx))
            }
            Instr::Resize { from, slice, to, filter, scale, x, add, y } => {
                let args = InterpolateArgs {
                    x: v(x),
                    add: opt(add),
                    y: v(y),
                    bad,
                    from_h: from.h as u32,
                    from_w: from.w as u32,
                    channels: from.c as u32,
                    first: slice.0 as u32,
                    slice: slice.1 as u32,
                    h: to.0 as u32,
                    w: to.1 as u32,
                    filter: fill::filter(*filter),
                    count: count(y) as u32,
                    scale: *scale,
                };
                self.each(&k::INTERPOLATE, y.len, count(y), &args)
            }
            Instr::Fold { maps, p, map, y } => self.fold(program, v(maps), v(p), *map, v(y)),
            Instr::Blur { size: (h, w), vertical, x, y } => {
                let (weights, vertical) = (crate::map::BLUR.map(|w| w as f32), u32::from(*vertical));
                let (from, to) = (v(x).data.cast(), v(y).data.cast());
                let args = MapArgs { x: from, y: to, h: *h as u32, w: *w as u32, vertical, weights };
                self.launch(&k::MAP_GAUSS, [y.len.div_ceil(256), y.lanes, 1], &args)
            }
            Instr::Overlay { size, photo, level, x, range, y, .. } => {
                self.overlay(program, step, *size, *photo, *level, [v(x), v(range), v(y)])
            }
        }
    }
}
