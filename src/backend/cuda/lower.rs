//! From instructions to launches. The one place that knows which kernel serves which instruction.

use std::ops::Range;

use super::args::*;
use super::fill::{Place, Product, average, channel, head, is_plain, kind, map, point, pool};
use super::gemm::{Kind, Operands};
use super::kernels::{self as k, Kernel};
use super::tables::DeviceTables;
use super::{Cuda, Program, conv, picture};
use crate::backend::taps::{self, Direction, Phase};
use crate::backend::{Dtype, Instr, Slot};
use crate::error::Result;
use crate::grid::Weighting;
use crate::methods::Level;
use crate::net::Shape;

/// Most blocks along the second and third axis of a grid.
const MOST: usize = 65_535;

impl Cuda {
    /// Enqueues one step for some samples.
    pub(super) fn step(&mut self, program: &Program, step: usize, samples: Range<usize>) -> Result<()> {
        let none = Value::NONE;
        let bad = self.bad.pointer(0);
        let at = Place { arena: self.arena.address(0), samples: samples.clone() };
        let v = |slot: &Slot| at.value(slot);
        let opt = |slot: &Option<Slot>| slot.as_ref().map_or(none, v);
        let count = |slot: &Slot| at.count(slot);
        let elementwise = |a: Value, b: Value, c: Value, add: &Option<Slot>, y: &Slot, flag: bool, eps: f32| {
            let (add, flag) = (opt(add), u32::from(flag));
            EltwiseArgs { a, b, c, add, y: v(y), bad, count: count(y) as u32, flag, eps, unused: 0 }
        };
        match &program.steps[step].instr {
            Instr::Unfold { y, .. } => self.unfold(program, v(y), samples),
            Instr::Conv { g, w, bias, x, add, relu, y } => {
                let (add, relu) = (add.as_ref(), *relu);
                let product = Product { w, source: g.x, result: g.y, bias: *bias, x, add, relu, y };
                let weight = self.weights.conv(g, *w, Direction::Forward)?;
                match is_plain(g).then(|| kind(&product, false)).flatten() {
                    Some(kind) => self.multiply(&kind, &product, weight, &at),
                    None => self.convolve(&product, &taps::phases(g, Direction::Forward)[0], weight, &at),
                }
            }
            Instr::ConvBack { g, w, dy, mul, add, dx } => {
                let weight = self.weights.conv(g, *w, Direction::Backward)?;
                let args =
                    ConvBackArgs { source: g.y, result: g.x, dy: v(dy), mul: opt(mul), add: opt(add), dx: v(dx) };
                for phase in taps::phases(g, Direction::Backward) {
                    self.convolve_back(&args, &phase, weight, count(dx))?;
                }
                Ok(())
            }
            Instr::Linear { w, bias, x, add, relu, y } => {
                let (source, result) = (Shape::new(1, 1, x.len), Shape::new(1, 1, y.len));
                let product = Product { w, source, result, bias: *bias, x, add: add.as_ref(), relu: *relu, y };
                match kind(&product, true) {
                    Some(kind) => {
                        let weight = self.weights.linear(*w)?;
                        self.multiply(&kind, &product, weight, &at)?;
                        match relu {
                            true => self.each(&k::RELU, &elementwise(v(y), none, none, &None, y, false, 0.0)),
                            false => Ok(()),
                        }
                    }
                    None => {
                        let weight = self.weights.turned(*w)?;
                        self.convolve(&product, &point(source), weight, &at)
                    }
                }
            }
            Instr::LinearBack { w, dy, mul, add, dx } => {
                let weight = self.weights.linear(*w)?;
                let (source, result) = (Shape::new(1, 1, dy.len), Shape::new(1, 1, dx.len));
                let args = ConvBackArgs { source, result, dy: v(dy), mul: opt(mul), add: opt(add), dx: v(dx) };
                self.convolve_back(&args, &point(source), weight, count(dx))
            }
            Instr::MaxPool { g, x, y, index } => {
                let index = index.as_ref().map_or(std::ptr::null_mut(), |i| v(i).data);
                let args = PoolArgs { x: v(x), add: none, y: v(y), index, bad, ..pool(g, count(y)) };
                self.pool(&k::MAX_POOL, g.y, count(y), &args)
            }
            Instr::MaxPoolBack { g, index, dy, add, dx } => {
                let index = v(index).data;
                let args = PoolArgs { x: v(dy), add: opt(add), y: v(dx), index, bad, ..pool(g, count(dx)) };
                self.pool(&k::MAX_POOL_BACK, g.x, count(dx), &args)
            }
            Instr::AvgPool { g, x, y } => {
                let args = AverageArgs { x: v(x), y: v(y), bad, ..average(g, count(y)) };
                match (g.y.h, g.y.w) {
                    (1, 1) => self.launch(&k::AVG_POOL, [g.y.c.div_ceil(32), count(y).min(MOST), 1], &args),
                    _ => self.pool(&k::AVG_POOL, g.y, count(y), &args),
                }
            }
            Instr::AvgPoolBack { g, dy, mul, add, dx } => {
                let (mul, add) = (opt(mul), opt(add));
                let args = AverageArgs { x: v(dy), mul, add, y: v(dx), bad, ..average(g, count(dx)) };
                self.pool(&k::AVG_POOL_BACK, g.x, count(dx), &args)
            }
            Instr::Relu { x, y } => self.each(&k::RELU, &elementwise(v(x), none, none, &None, y, false, 0.0)),
            Instr::ReluBack { y, dy, add, dx } => {
                self.each(&k::RELU_BACK, &elementwise(v(y), v(dy), none, add, dx, false, 0.0))
            }
            Instr::Add { a, b, relu, y } => self.each(&k::ADD, &elementwise(v(a), v(b), none, &None, y, *relu, 0.0)),
            Instr::Divide { r, z, z2, eps, y } => {
                self.each(&k::DIVIDE, &elementwise(v(r), v(z), opt(z2), &None, y, false, *eps))
            }
            Instr::Multiply { x, c, add, y } => {
                self.each(&k::MULTIPLY, &elementwise(v(x), v(c), none, add, y, false, 0.0))
            }
            Instr::Part { x, positive, y } => {
                self.each(&k::PART, &elementwise(v(x), none, none, &None, y, *positive, 0.0))
            }
            Instr::Keep { x, y } => self.each(&k::COPY, &elementwise(v(x), none, none, &None, y, false, 0.0)),
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
            Instr::Seed { classes, value, y } => {
                let args = head(opt(value), v(y), Some(v(classes)), bad, count(y));
                self.launch(&k::SEED, [y.len.div_ceil(256), count(y).min(MOST), 1], &args)
            }
            Instr::ClassRow { w, classes, scale, y } => {
                let w = self.weights.linear(*w)? as *const half::f16;
                let args = HeadArgs { w, scale: *scale, ..head(none, v(y), Some(v(classes)), bad, count(y)) };
                self.launch(&k::CLASS_ROW, [y.len.div_ceil(256), count(y).min(MOST), 1], &args)
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
                self.launch(&k::CHANNEL_SCALE, [y.len.div_ceil(1024), count(y).min(MOST), 1], &args)
            }
            Instr::ChannelMax { x, channels, y } => {
                let args = channel(v(x), none, v(y), bad, x.len / channels, *channels, count(y));
                self.over_channels(&k::CHANNEL_MAX, &args)
            }
            Instr::Fold { maps, p, map, y } => self.fold(program, v(maps), v(p), *map, v(y)),
            Instr::Range { x, y } => {
                let args = map((1, x.len), (1, 2), v(x), none, v(y));
                self.launch(&k::MAP_RANGE, [x.lanes, 1, 1], &args)
            }
            Instr::ResizeMap { from, to, x, y } => self.map(&k::MAP_RESIZE, y, &map(*from, *to, v(x), none, v(y))),
            Instr::MinMax { x, range, y } => {
                self.map(&k::MAP_SCALE, y, &map((1, x.len), (1, x.len), v(x), v(range), v(y)))
            }
            Instr::Blur { size, vertical, x, y } => {
                let weights = crate::map::BLUR.map(|w| w as f32);
                let args = MapArgs { flag: u32::from(*vertical), weights, ..map(*size, *size, v(x), none, v(y)) };
                self.map(&k::MAP_GAUSS, y, &args)
            }
            Instr::Overlay { size, photo, level, x, range, y, .. } => {
                self.overlay(program, step, *size, *photo, *level, [v(x), v(range), v(y)])
            }
        }
    }

    fn launch<A>(&self, kernel: &Kernel<A>, grid: [usize; 3], args: &A) -> Result<()> {
        // SAFETY: operands are slots of the arena, which the plan has laid out so that results overlap no other
        // operand but a term that is added in place, or buffers that live as long as this backend or the program.
        unsafe { self.kernels.launch(kernel, grid, args) }
    }

    /// An elementwise kernel.
    fn each(&self, kernel: &Kernel<EltwiseArgs>, args: &EltwiseArgs) -> Result<()> {
        let grid = [(args.y.len as usize).div_ceil(1024), (args.count as usize).min(MOST), 1];
        self.launch(kernel, grid, args)
    }

    /// A pooling kernel that makes results of a shape.
    fn pool<A>(&self, kernel: &Kernel<A>, result: Shape, count: usize, args: &A) -> Result<()> {
        self.launch(kernel, [result.len().div_ceil(1024), count.min(MOST), 1], args)
    }

    /// A kernel that reduces channels: a warp a pixel; a thread where there are few channels.
    fn over_channels(&self, kernel: &Kernel<ChannelArgs>, args: &ChannelArgs) -> Result<()> {
        let pixels_of_block = if args.channels < 32 { 256 } else { 8 };
        self.launch(kernel, [args.pixels.div_ceil(pixels_of_block) as usize, (args.count as usize).min(MOST), 1], args)
    }

    fn flatten(
        &self,
        kernel: &Kernel<FlattenArgs>,
        shape: Shape,
        x: Value,
        add: Value,
        y: Value,
        count: usize,
    ) -> Result<()> {
        let pixels = shape.h * shape.w;
        let (channels, bad) = (shape.c as u32, self.bad.pointer(0));
        let args = FlattenArgs { x, add, y, bad, pixels: pixels as u32, channels, count: count as u32, unused: 0 };
        self.launch(kernel, [shape.c.div_ceil(32), pixels.div_ceil(32), count.min(MOST)], &args)
    }

    /// A kernel that makes maps.
    fn map(&self, kernel: &Kernel<MapArgs>, y: &Slot, args: &MapArgs) -> Result<()> {
        self.launch(kernel, [y.len.div_ceil(256), y.lanes, 1], args)
    }

    fn unfold(&self, program: &Program, y: Value, samples: Range<usize>) -> Result<()> {
        let tables = &program.tables;
        let sampling = &tables.host.resample;
        let (sh, sw) = (sampling.rows.patches[0].len(), sampling.cols.patches[0].len());
        let args = UnfoldArgs {
            image: self.picture.image.pointer(0),
            rows: tables.rows.pointer(0),
            cols: tables.cols.pointer(0),
            levels: tables.levels.pointer(0),
            y: y.data.cast(),
            image_w: sampling.image.1 as u32,
            sh: sh as u32,
            sw: sw as u32,
            channels: (y.len as usize / (sh * sw)) as u32,
            grid_cols: sampling.cols.patches.len() as u32,
            first: samples.start as u32,
            count: samples.len() as u32,
            unused: 0,
        };
        self.launch(&k::UNFOLD, [sw.div_ceil(64), sh.div_ceil(16), samples.len()], &args)
    }

    fn fold(&self, program: &Program, maps: Value, p: Value, map: (usize, usize), y: Value) -> Result<()> {
        let DeviceTables { covers, firsts, host, .. } = &program.tables;
        let plan = &host.fold;
        let args = FoldArgs {
            maps: maps.data.cast(),
            p: p.data.cast(),
            row_first: firsts[0].pointer(0),
            rows: covers[0].pointer(0),
            col_first: firsts[1].pointer(0),
            cols: covers[1].pointer(0),
            y: y.data.cast(),
            bad: self.bad.pointer(0),
            h: plan.canvas.0 as u32,
            w: plan.canvas.1 as u32,
            map_h: map.0 as u32,
            map_w: map.1 as u32,
            grid_cols: plan.cols.len() as u32,
            patches: (plan.rows.len() * plan.cols.len()) as u32,
            lanes: y.lanes,
            extra: plan.extra as u32,
            weighting: match plan.weighting {
                Weighting::One => 0,
                Weighting::Exp => 1,
                Weighting::ExpOverMax => 2,
            },
            unused: 0,
        };
        self.launch(&k::FOLD, [(plan.canvas.0 * plan.canvas.1).div_ceil(256), y.lanes as usize, 1], &args)
    }

    /// One launch a lane: each has a picture of its own.
    fn overlay(
        &self,
        program: &Program,
        step: usize,
        size: (usize, usize),
        photo: (usize, usize),
        level: Level,
        [x, range, y]: [Value; 3],
    ) -> Result<()> {
        let found = program.overlays.iter().find(|(i, _)| *i == step).zip(program.palettes.as_ref());
        let Some(((_, [rows, cols]), [layer, input])) = found else { return Ok(()) };
        let is_layer = level == Level::Layer;
        for lane in 0..y.lanes as usize {
            let args = OverlayArgs {
                map: x.data.cast::<f32>().wrapping_add(lane * x.len as usize),
                range: range.data.cast::<f32>().wrapping_add(lane * 2),
                photo: self.picture.photo.pointer(0),
                rows: rows.pointer(0),
                cols: cols.pointer(0),
                palette: if is_layer { layer } else { input }.pointer(0),
                y: y.data.wrapping_add(lane * y.len as usize),
                pitch: self.picture.pitch as u64,
                format: picture::code(self.picture.format),
                h: photo.0 as u32,
                w: photo.1 as u32,
                map_h: size.0 as u32,
                map_w: size.1 as u32,
                layer: u32::from(is_layer),
            };
            self.launch(&k::OVERLAY, [photo.1.div_ceil(32), photo.0.div_ceil(8), 1], &args)?;
        }
        Ok(())
    }

    /// A product by cuBLASLt.
    fn multiply(&mut self, kind: &Kind, product: &Product<'_>, weight: u64, at: &Place) -> Result<()> {
        let rows = at.count(product.y) * product.result.h * product.result.w;
        let address = |slot: &Slot| at.value(slot).data as u64;
        let operands = Operands {
            x: address(product.x),
            w: weight,
            bias: self.weights.bias(product.w.param, product.bias, kind.half)?,
            add: product.add.map_or(0, address),
            y: address(product.y),
        };
        // SAFETY: slots of the arena, which the plan has laid out for at least these samples, and a resident weight.
        unsafe { self.gemm.run(kind, rows, &operands) }
    }

    /// A product by an own kernel.
    fn convolve(&mut self, product: &Product<'_>, phase: &Phase, weight: u64, at: &Place) -> Result<()> {
        let count = at.count(product.y);
        let bias = self.weights.bias(product.w.param, product.bias, false)?;
        let args = ConvArgs {
            x: at.value(product.x),
            add: product.add.map_or(Value::NONE, |slot| at.value(slot)),
            y: at.value(product.y),
            w: weight as *const half::f16,
            bias: bias as *const f32,
            bad: self.bad.pointer(0),
            count: count as u32,
            relu: u32::from(product.relu),
            ..conv::arguments(phase, product.source, product.result)
        };
        let stem = conv::is_stem(phase, product.source, product.result) && product.add.is_none();
        if stem && product.y.dtype == Dtype::F16 {
            let grid = conv::stem_grid(product.result, count, self.limits.multiprocessors);
            return self.launch(&conv::STEM, grid, &args);
        }
        let pixels = count * phase.h * phase.w;
        let (kernel, blocks) = conv::choose(true, pixels, product.source.c, product.result.c, self.limits);
        self.launch(&kernel, [blocks, 1, 1], &args)
    }

    /// One phase of an input-gradient.
    fn convolve_back(&self, back: &ConvBackArgs, phase: &Phase, weight: u64, count: usize) -> Result<()> {
        let w = (weight as *const half::f16).wrapping_add(phase.weight);
        let args = ConvArgs {
            x: back.dy,
            mul: back.mul,
            add: back.add,
            y: back.dx,
            w,
            bad: self.bad.pointer(0),
            count: count as u32,
            ..conv::arguments(phase, back.source, back.result)
        };
        let pixels = count * phase.h * phase.w;
        let (source, result) = (back.source.c, back.result.c);
        let (kernel, blocks) = conv::choose(false, pixels, source, result, self.limits);
        self.launch(&kernel, [blocks, 1, 1], &args)
    }
}

/// Operands of an input-gradient.
struct ConvBackArgs {
    source: Shape,
    result: Shape,
    dy: Value,
    mul: Value,
    add: Value,
    dx: Value,
}
