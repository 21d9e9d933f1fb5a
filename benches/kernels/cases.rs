//! What is timed: every instruction of the networks' explanations, with the shapes that it has there.

use ucag::backend::{
    AvgGeom, ConvGeom, Divisor, Dtype, Filter, Instr, MOST_FACTORS, PoolGeom, Scaling, Scope, Seed, Sign, Slot, Unary,
    Variant, WeightRef,
};
use ucag::grid::GridPlan;
use ucag::methods::Level;
use ucag::net::{Graph, Op, ParamId, Shape};

use crate::case::{Arena, Case, Setting};
use crate::choice::{Limits, product};

/// Networks and their numbers of classes. The last one is there for what no vector divides: pixels of three channels,
/// ten classes.
pub const NETWORKS: [(&str, usize); 3] = [("resnet50", 1000), ("vgg16", 1000), (UNEVEN, 10)];
const UNEVEN: &str = "resnet18";
/// In place of a kernel that depends on the shape.
const PRODUCT: &str = "";
/// Samples of a walk down the network.
const FEW: usize = 4;

/// The cases of a network in a setting: convolutions that differ in anything, of other layers those not `seen` before.
pub fn cases(graph: &Graph, network: &'static str, setting: &Setting, limits: Limits, seen: &mut Vec<Op>) -> Vec<Case> {
    let plan = setting.plan();
    let (side, _) = plan.scaled();
    let mut shapes = graph.shapes(side, side).unwrap();
    let mut convs = vec![];
    let mut list = List { network, limits, all: plan.patches(), cases: vec![] };
    if network != UNEVEN {
        shapes[0].c = 4;
    }
    let (head, mut own_weight) = (seen.is_empty(), network == UNEVEN);
    if head {
        list.of_pictures(&plan, shapes[0], setting.photo);
    }
    for (node, y) in graph.nodes().iter().zip(&shapes) {
        let (name, y) = (node.name.as_str(), *y);
        let x = node.inputs.first().map_or(y, |input| shapes[input.0]);
        match node.op {
            Op::Conv { window, param } if network != UNEVEN || x.c == 3 => {
                let (g, residual) = (ConvGeom { window, x, y }, name.ends_with("bn3"));
                if !convs.contains(&(g, residual)) {
                    let only_forward = convs.contains(&(g, !residual));
                    list.of_convolution(name, g, param, residual, only_forward);
                    // One in the middle of the network stands for all.
                    if g.x.c == g.y.c && g.window.kernel == [3, 3] && !own_weight {
                        list.of_own_weight(name, g);
                        own_weight = true;
                    }
                    convs.push((g, residual));
                }
            }
            Op::Linear { param } => {
                let last = y.c == graph.classes();
                list.of_linear(name, x.c, y.c, param, last);
                if last && head {
                    list.of_head(name, x, y, param);
                }
            }
            // Of a single pixel it is nothing.
            Op::Flatten if x.h * x.w == 1 => {}
            _ if network == UNEVEN || seen.contains(&node.op) => {}
            _ => {
                seen.push(node.op.clone());
                list.of_layer(name, &node.op, x, y);
            }
        }
    }
    list.cases
}

struct List {
    network: &'static str,
    limits: Limits,
    /// Number of patches.
    all: usize,
    cases: Vec<Case>,
}

impl List {
    /// `kernel`: unless it is a product; `shape`: of what the id names; `write` is given its length.
    fn add(
        &mut self,
        kernel: &'static str,
        what: &str,
        shape: Shape,
        samples: usize,
        write: impl FnOnce(&mut Arena, usize) -> Instr<Slot>,
    ) {
        let mut arena = Arena { end: 0, samples };
        let instr = write(&mut arena, shape.len());
        let kernel = product(&instr, samples, self.limits).unwrap_or(kernel);
        let id = format!("{} {what}, {samples} of {}x{}x{}", self.network, shape.h, shape.w, shape.c);
        self.cases.push(Case { kernel, id, instr, samples, end: arena.end });
    }

    fn of_convolution(&mut self, name: &str, g: ConvGeom, param: ParamId, residual: bool, only_forward: bool) {
        let w = WeightRef::plain(param);
        self.add(PRODUCT, &format!("{name} to {}", g.y.c), g.x, self.all, |m, len| {
            let add = residual.then(|| m.half(g.y.len()));
            Instr::Conv { g, w, bias: Some(Variant::Plain), x: m.half(len), add, relu: true, y: m.half(g.y.len()) }
        });
        if !only_forward {
            self.add(PRODUCT, &format!("{name} to {}", g.x.c), g.y, FEW, |m, len| Instr::ConvBack {
                g,
                w,
                exact: false,
                dy: m.float(len),
                mul: None,
                add: None,
                dx: m.float(g.x.len()),
            });
        }
    }

    fn of_linear(&mut self, name: &str, inputs: usize, outputs: usize, param: ParamId, last: bool) {
        let (w, all) = (WeightRef::plain(param), self.all);
        let [from, to] = [inputs, outputs].map(|c| Shape::new(1, 1, c));
        self.add(PRODUCT, &format!("{name} to {outputs}"), from, all, |m, len| {
            let y = if last { m.float(outputs) } else { m.half(outputs) };
            Instr::Linear { w, bias: Some(Variant::Plain), x: m.half(len), add: None, relu: !last, y }
        });
        self.add(PRODUCT, &format!("{name} to {inputs}"), to, all, |m, len| Instr::LinearBack {
            w,
            exact: false,
            dy: m.float(len),
            mul: None,
            add: None,
            dx: m.float(inputs),
        });
    }

    fn of_head(&mut self, name: &str, from: Shape, to: Shape, param: ParamId) {
        let (w, all) = (WeightRef::plain(param), self.all);
        let classes = |m: &mut Arena, k| m.shared(k, Dtype::U32);
        self.add("softmax", "logits", to, all, |m, n| Instr::Softmax { logits: m.float(n), p: m.float(n) });
        self.add("top_k", "p", to, 1, |m, n| Instr::TopK { p: m.float(n), k: 5, classes: classes(m, 5) });
        self.add("pick", "p", to, all, |m, n| Instr::Pick { p: m.float(n), classes: classes(m, 1), y: m.float(1) });
        self.add("seed", "logits", to, all, |m, n| Instr::Seed {
            classes: classes(m, 1),
            seed: Seed::One,
            x: None,
            y: m.float(n),
        });
        self.add("head_gradient", "logits", to, all, |m, n| Instr::HeadGradient {
            logits: m.float(n),
            classes: classes(m, 1),
            y: m.float(n),
        });
        self.add("head_shares", name, from, all, |m, n| Instr::HeadShares {
            q: m.float(n),
            classes: classes(m, 1),
            param,
            y: m.float(n),
        });
        self.add("class_row", name, from, all, |m, n| Instr::ClassRow {
            w,
            classes: classes(m, 1),
            scale: 0.5,
            y: m.float(n),
        });
    }

    fn of_layer(&mut self, name: &str, op: &Op, x: Shape, y: Shape) {
        let (all, to, channels) = (self.all, y.len(), x.c);
        match *op {
            Op::Add => self.add("eltwise_binary", name, y, all, |m, n| Instr::Add {
                a: m.half(n),
                b: m.half(n),
                relu: true,
                y: m.half(n),
            }),
            Op::Relu => {
                self.of_elements(name, y);
                self.of_samples(name, y);
            }
            Op::MaxPool(window) => {
                let g = PoolGeom { window, x, y };
                let index = |m: &mut Arena| m.slot(to, Dtype::U8, Scope::Batch);
                self.add("max_pool", name, x, all, |m, n| Instr::MaxPool {
                    g,
                    x: m.half(n),
                    y: m.half(to),
                    index: Some(index(m)),
                });
                self.add("max_pool_back", name, x, FEW, |m, n| Instr::MaxPoolBack {
                    g,
                    index: index(m),
                    dy: m.float(to),
                    add: None,
                    dx: m.float(n),
                });
            }
            Op::AvgPool(pool) => {
                let g = AvgGeom { pool, x, y };
                self.add("avg_pool", name, x, all, |m, n| Instr::AvgPool { g, x: m.half(n), y: m.half(to) });
                self.add("avg_pool_back", name, x, all, |m, n| Instr::AvgPoolBack {
                    g,
                    dy: m.float(to),
                    mul: None,
                    add: None,
                    dx: m.float(n),
                });
                self.add("pixel_sum", "gradient", x, all, |m, n| Instr::PixelSum {
                    x: m.float(n),
                    channels,
                    scale: 0.5,
                    y: m.float(channels),
                });
                self.add("channel_scale", "gradient", x, all, |m, n| {
                    let weights = m.float(channels);
                    Instr::ChannelScale { x: m.float(n), channels, weights, y: m.float(n) }
                });
                self.add("channel_spread", "map", x, all, |m, n| Instr::Spread {
                    x: m.float(n / channels),
                    channels,
                    y: m.float(n),
                });
                self.add("factor", "activation", x, all, |m, n| {
                    let (phi, y) = (m.float(n / channels), m.float(n / channels));
                    Instr::Factor { x: m.half(n), channels, phi, y }
                });
                self.add("interpolate", "activation", x, FEW, |m, n| {
                    let to = (8 * x.h, 8 * x.w);
                    let (slice, filter) = ((0, 16), Filter::Bilinear);
                    let y = m.float(16 * to.0 * to.1);
                    Instr::Resize { from: x, slice, to, filter, scale: 1.0, x: m.half(n), add: None, y }
                });
                self.add("channel_sum", "activation", x, all, |m, n| {
                    let weights = Some(m.float(channels));
                    Instr::ChannelSum { x: m.half(n), channels, weights, y: m.float(n / channels) }
                });
            }
            Op::Flatten => {
                self.add("flatten", name, x, all, |m, n| Instr::Flatten { x, from: m.half(n), y: m.half(n) });
                self.add("flatten_back", name, x, all, |m, n| Instr::FlattenBack {
                    x,
                    dy: m.float(n),
                    add: None,
                    dx: m.float(n),
                });
            }
            Op::Input | Op::Conv { .. } | Op::Linear { .. } => {}
        }
    }

    /// Functions of a few numbers.
    fn of_elements(&mut self, name: &str, shape: Shape) {
        self.add("eltwise_unary", name, shape, self.all, |m, n| Instr::Unary {
            f: Unary::Positive,
            x: m.half(n),
            y: m.half(n),
        });
        self.add("eltwise_binary", name, shape, FEW, |m, n| Instr::Mask {
            keep: Sign::Positive,
            x: m.half(n),
            r: m.float(n),
            add: None,
            y: m.float(n),
        });
        self.add("eltwise_divide", name, shape, FEW, |m, n| Instr::Divide {
            r: m.float(n),
            z: m.float(n),
            z2: Some(m.float(n)),
            by: Divisor::Signed(1e-6),
            scale: 1.0,
            y: m.float(n),
        });
        self.add("fill", name, shape, FEW, |m, n| Instr::Fill { values: [1.0; 4], channels: 1, y: m.half(n) });
    }

    /// Numbers of whole samples, and elements changed by them.
    fn of_samples(&mut self, name: &str, shape: Shape) {
        self.add("totals", name, shape, FEW, |m, n| Instr::Totals { x: m.float(n), y: m.float(2) });
        self.add("shift", name, shape, FEW, |m, n| {
            let [count, from] = [m.float(2), m.float(2)];
            Instr::Shift { x: m.float(n), mask: m.float(n), count, from, to: None, y: m.float(n) }
        });
        self.add("contrast", name, shape, FEW, |m, n| {
            let [total, other_total] = [m.float(2), m.float(2)];
            Instr::Contrast { x: m.float(n), other: m.float(n), total, other_total, y: m.float(n) }
        });
    }

    /// A convolution by each sample's own weight.
    fn of_own_weight(&mut self, name: &str, g: ConvGeom) {
        let weight = g.window.kernel[0] * g.window.kernel[1] * g.x.c * g.y.c;
        self.add("correlate", &format!("{name} to {}", g.y.c), g.x, FEW, |m, n| Instr::Correlate {
            g,
            x: m.half(n),
            dy: m.float(g.y.len()),
            v: m.float(weight),
        });
        self.add("conv_by", &format!("{name} to {}", g.y.c), g.x, FEW, |m, n| Instr::ConvBy {
            g,
            v: m.float(weight),
            x: m.half(n),
            y: m.float(g.y.len()),
        });
        self.add("conv_back_by", &format!("{name} to {}", g.x.c), g.y, FEW, |m, n| {
            let (v, dx) = (m.float(weight), m.float(g.x.len()));
            Instr::ConvBackBy { g, v, dy: m.float(n), mul: None, add: None, dx }
        });
    }

    /// From the working image to patches, from their maps to the overlay.
    fn of_pictures(&mut self, plan: &GridPlan, x: Shape, photo: (usize, usize)) {
        let (all, size, channels) = (self.all, plan.image, x.c);
        let whole = Shape::new(size.0, size.1, 1);
        self.add("unfold", "patches", x, all, |m, n| Instr::Unfold { image: size, y: m.half(n) });
        self.add("channel_sum", "image gradient", x, FEW, |m, n| Instr::ChannelSum {
            x: m.float(n),
            channels,
            weights: None,
            y: m.float(n / channels),
        });
        self.add("channel_max", "image gradient", x, FEW, |m, n| Instr::ChannelMax {
            x: m.float(n),
            channels,
            y: m.float(n / channels),
        });
        self.add("perturb", "patches", x, all, |m, n| {
            let (range, channels) = (m.float(2), (channels, 3));
            Instr::Perturb { x: m.half(n), range, sigma: 0.15, seed: 1, draw: 0, channels, y: m.half(n) }
        });
        self.add("lane_scale", "image", x, FEW, |m, n| Instr::LaneScale {
            x: m.half(n),
            factors: [0.5].into(),
            y: m.half(n),
        });
        self.add("lane_sum", "image gradient", x, FEW, |m, n| {
            let terms = Slot { len: n, lanes: MOST_FACTORS, ..m.float(MOST_FACTORS * n) };
            Instr::LaneSum { x: terms, add: Some(m.float(n)), y: m.float(n) }
        });
        self.add("eltwise_unary", "maps", Shape { c: 1, ..x }, all, |m, n| Instr::Keep { x: m.float(n), y: m.kept(n) });
        for maps in [Shape::new(11, 11, 1), Shape { c: 1, ..x }] {
            self.add("fold", "maps", maps, all, |m, n| {
                let map = (maps.h, maps.w);
                Instr::Fold { maps: m.kept(n), p: m.kept(1), map, y: m.shared(whole.len(), Dtype::F32) }
            });
        }
        let map = |m: &mut Arena, n| m.shared(n, Dtype::F32);
        self.add("interpolate", "map", Shape { c: 1, ..x }, 1, |m, n| {
            let (from, slice, filter) = (Shape { c: 1, ..x }, (0, 1), Filter::Bilinear);
            let y = map(m, whole.len());
            Instr::Resize { from, slice, to: size, filter, scale: 1.0, x: map(m, n), add: None, y }
        });
        self.add("range", "map", whole, 1, |m, n| Instr::Range { x: map(m, n), channels: (1, 1), y: map(m, 2) });
        self.add("range", "patches", x, all, |m, n| Instr::Range {
            x: m.half(n),
            channels: (channels, 3),
            y: m.float(2),
        });
        self.add("scale", "map", whole, 1, |m, n| {
            let (x, range) = (map(m, n), map(m, 2));
            Instr::Scale { by: Scaling::MinMax, x, range, y: map(m, n) }
        });
        for (vertical, what) in [(false, "map across"), (true, "map down")] {
            self.add("map_gauss", what, whole, 1, |m, n| Instr::Blur { size, vertical, x: map(m, n), y: map(m, n) });
        }
        self.add("overlay", "photo", Shape::new(photo.0, photo.1, 3), 1, |m, n| {
            let source = [0.0, 0.0, photo.0 as f64, photo.1 as f64];
            let (x, range) = (map(m, whole.len()), map(m, 2));
            Instr::Overlay { size, photo, source, level: Level::Layer, x, range, y: m.shared(n, Dtype::U8) }
        });
    }
}
