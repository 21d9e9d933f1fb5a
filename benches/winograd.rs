//! How far from exact 3×3 convolutions of stride 1 are, by Winograd's tiles and as they are defined.
//!
//! Each different one of the networks, on what a rectifier leaves of normal numbers and on normal weights of He's scale,
//! against the definition in `f64`; then whole networks, one way beside the other. Writes `benches/results/winograd.md`.

#[path = "../tests/seeded/mod.rs"]
mod seeded;

use std::f64::consts::PI;
use std::fmt::Write;
use std::sync::Arc;

use safetensors::tensor::TensorView;
use ucag::backend::cpu::Cpu;
use ucag::backend::{ALIGN, Backend, ConvGeom, Dtype, Instr, Pass, Scope, Slot, Step, Tables, WeightRef};
use ucag::grid::{GridPlan, Weighting};
use ucag::models::{Model, Preprocess};
use ucag::net::{Builder, Graph, Op, ParamId, Tensors, Window};
use ucag::{Device, Explainer, Frame, Maps, Target};

const NETWORKS: [&str; 3] = ["resnet18", "resnet50", "vgg16"];
const RESULT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/results/winograd.md");

/// Side of the picture.
const SIZE: usize = 224;

/// Results of a layer that are looked at: early layers have millions, and `f64` sums are slow.
const SAMPLE: usize = 16_384;

/// How far results are from exact ones, over the root mean square of these.
struct Distance {
    rms: f64,
    max: f64,
}

impl Distance {
    fn of(found: &[f32], exact: &[(usize, f64)]) -> Self {
        let rms = |values: &[f64]| (values.iter().map(|v| v * v).sum::<f64>() / values.len() as f64).sqrt();
        let size = rms(&exact.iter().map(|(_, exact)| *exact).collect::<Vec<f64>>());
        let errors: Vec<f64> = exact.iter().map(|(at, exact)| (f64::from(found[*at]) - exact) / size).collect();
        Self { rms: rms(&errors), max: largest(errors.iter().copied()) }
    }
}

/// Every different layer, and the networks that have it.
fn layers() -> Vec<(ConvGeom, Vec<&'static str>)> {
    let mut layers: Vec<(ConvGeom, Vec<&'static str>)> = vec![];
    for name in NETWORKS {
        let (graph, _) = Model::named(name).and_then(|model| model.blueprint(1000, 1)).expect("a known network");
        let shapes = graph.shapes(SIZE, SIZE).expect("a picture that is large enough");
        for (node, y) in graph.nodes().iter().zip(&shapes) {
            let Op::Conv { window: window @ Window { kernel: [3, 3], stride: [1, 1], .. }, .. } = node.op else {
                continue;
            };
            let g = ConvGeom { window, x: shapes[node.inputs[0].0], y: *y };
            match layers.iter_mut().find(|(seen, _)| *seen == g) {
                Some((_, networks)) if networks.contains(&name) => {}
                Some((_, networks)) => networks.push(name),
                None => layers.push((g, vec![name])),
            }
        }
    }
    layers
}

/// What a layer is called in the table, and seeded by.
fn name(g: &ConvGeom) -> String {
    format!("{} → {}, {}×{}", g.x.c, g.y.c, g.x.h, g.x.w)
}

/// Normal numbers, by Box and Muller.
fn normals(key: &str, scale: f64, len: usize) -> Vec<f32> {
    let uniforms = seeded::values(key, 0, 2 * len);
    let normal = |[a, b]: &[f32; 2]| {
        // Of [−1, 1) it makes (0, 1]: no logarithm of zero.
        let radius = (-2.0 * (0.5 - 0.5 * f64::from(*a)).ln()).sqrt();
        (scale * radius * (PI * f64::from(*b)).cos()) as f32
    };
    uniforms.as_chunks::<2>().0.iter().map(normal).collect()
}

/// A graph whose parameter 1 is the convolution; parameter 0 is there because a network's input has three channels.
fn graph(g: &ConvGeom, weight: &[f32]) -> Arc<Graph> {
    let (inputs, outputs) = (g.x.c, g.y.c);
    let zeros = vec![0.0_f32; (3 * inputs).max(outputs)];
    let tensors = [
        ("first.weight", vec![inputs, 3, 1, 1], &zeros[..3 * inputs]),
        ("first.bias", vec![inputs], &zeros[..inputs]),
        ("layer.weight", vec![outputs, inputs, 3, 3], weight),
        ("layer.bias", vec![outputs], &zeros[..outputs]),
    ];
    let views = tensors.into_iter().map(|(key, shape, values)| {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        (key, TensorView::new(safetensors::Dtype::F32, shape, bytes).expect("as many values as the shape has"))
    });
    let file = Tensors::from_bytes("layer", safetensors::serialize(views, None).expect("a file")).expect("a file");
    let mut builder = Builder::new(Some(&file), |n| n);
    let input = builder.input();
    let first = builder.conv(input, "first", inputs, Window::square(1, 1, 0)).expect("a layer");
    builder.conv(first, "layer", outputs, g.window).expect("a layer");
    Arc::new(builder.finish("layer").expect("a graph").0)
}

/// The convolution as the backend computes it.
fn convolve(graph: &Arc<Graph>, g: ConvGeom, x: &[f32], winograd: bool) -> Vec<f32> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut cpu = Cpu::new(graph.clone(), threads).expect("threads").winograd(winograd);
    let slot = |offset, len| Slot { offset, len, lanes: 1, dtype: Dtype::F32, scope: Scope::Batch };
    let from = slot(0, g.x.len());
    let to = slot(from.bytes(1).next_multiple_of(ALIGN), g.y.len());
    let w = WeightRef::plain(ParamId(1));
    let instr = Instr::Conv { g, w, bias: None, x: from, add: None, relu: false, y: to };
    let plan = GridPlan::whole(1, 1);
    let tables = Tables { resample: plan.resample(&Preprocess::default()), fold: plan.fold((1, 1), Weighting::One) };
    cpu.reserve(to.offset + to.bytes(1)).expect("memory");
    let program = cpu.prepare(vec![Step { node: name(&g), instr }], tables).expect("memory");
    cpu.write(&from, bytemuck::cast_slice(x)).expect("room");
    cpu.run(&Pass { program: &program, steps: 0..1, samples: 0..1 }).expect("a run");
    let mut y = vec![0.0_f32; g.y.len()];
    cpu.read(&mut [(to, bytemuck::cast_slice_mut(&mut y))]).expect("results");
    y
}

/// One result by the definition; products of two `f32` are exact in `f64`.
fn definition(g: &ConvGeom, weight: &[f32], x: &[f32], at: usize) -> f64 {
    let (pixel, output) = (at / g.y.c, at % g.y.c);
    let filter = &weight[output * g.x.c * 9..][..g.x.c * 9];
    // Padding is zero.
    let source = |at: usize, pad: usize, size: usize| at.checked_sub(pad).filter(|at| *at < size);
    let of_tap = |tap: usize| {
        let row = source(pixel / g.y.w + tap / 3, g.window.pad[0], g.x.h)?;
        let column = source(pixel % g.y.w + tap % 3, g.window.pad[1], g.x.w)?;
        let values = &x[(row * g.x.w + column) * g.x.c..][..g.x.c];
        let products = filter[tap..].iter().step_by(9).zip(values).map(|(w, x)| f64::from(*w) * f64::from(*x));
        Some(products.sum::<f64>())
    };
    (0..9).filter_map(of_tap).sum()
}

/// How far a layer is from exact by Winograd's tiles, where the backend takes them, and without.
fn measure(g: ConvGeom) -> (Option<Distance>, Distance) {
    let key = |what: &str| format!("{what} of {}", name(&g));
    let weight = normals(&key("weight"), (2.0 / (9 * g.x.c) as f64).sqrt(), 9 * g.x.c * g.y.c);
    let mut x = normals(&key("activation"), 1.0, g.x.len());
    x.iter_mut().for_each(|v| *v = v.max(0.0));
    let place = |v: f32| ((0.5 + 0.5 * f64::from(v)) * g.y.len() as f64) as usize;
    let places = seeded::values(&key("place"), 0, SAMPLE).into_iter().map(place);
    let exact: Vec<(usize, f64)> = places.map(|at| (at, definition(&g, &weight, &x, at))).collect();
    let graph = graph(&g, &weight);
    let [winograd, direct] = [true, false].map(|winograd| convolve(&graph, g, &x, winograd));
    ((winograd != direct).then(|| Distance::of(&winograd, &exact)), Distance::of(&direct, &exact))
}

/// How far Grad-CAM's map moves, over its range, and the five largest probabilities, over the largest.
fn whole(name: &str) -> (f64, f64) {
    let network = seeded::network(name, &seeded::neutral(name), seeded::gain);
    let pixels = seeded::picture(SIZE, SIZE);
    let frame = Frame::rgb(&pixels, SIZE, SIZE).expect("a frame");
    let [with, without] = [true, false].map(|winograd| {
        let builder = Explainer::with_network(network.clone()).method("grad-cam").maps(Maps::Plain);
        let mut explainer = builder.device(Device::Cpu).winograd(winograd).build().expect("an explainer");
        explainer.explain(&frame, &Target::Top(1)).expect("an explanation")
    });
    assert_eq!(with.classes[0].class, without.classes[0].class, "{name}: another class is explained");
    let distance = |(a, b): (&f32, &f32)| f64::from(*a) - f64::from(*b);
    let (lo, hi) = without.classes[0].map().range();
    let maps = with.classes[0].map().data.iter().zip(&without.classes[0].map().data);
    let tops = with.top.iter().map(|(_, p)| p).zip(without.top.iter().map(|(_, p)| p));
    (largest(maps.map(distance)) / f64::from(hi - lo), largest(tops.map(distance)) / f64::from(without.top[0].1))
}

fn largest(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(0.0, |most, v| v.abs().max(most))
}

fn main() {
    if !std::env::args().any(|arg| arg == "--bench") {
        return; // `cargo test --benches` only sees that it builds.
    }
    std::fs::write(RESULT, report()).expect("the results' folder");
}

fn report() -> String {
    let mut text = format!(
        "# Rounding of 3×3 convolutions\n\n\
        Written by `cargo bench --bench winograd`. Every different 3×3 convolution of stride 1 at {SIZE}×{SIZE} pixels, as\n\
        the CPU backend computes it by Winograd's F(4×4, 3×3) and as it is defined: how far from `f64` sums, over the root\n\
        mean square (rms) of these, at {SAMPLE} results drawn at random. Activations are what a rectifier leaves of normal\n\
        numbers, weights are normal with He's scale √(2/(9·inputs)). *direct*: the backend takes no tiles there.\n\n\
        | inputs → outputs, rows×columns | networks | Winograd: rms | max | direct: rms | max | rms ÷ rms |\n\
        |---|---|---:|---:|---:|---:|---:|\n"
    );
    for (g, networks) in layers() {
        let (winograd, direct) = measure(g);
        let (tiled, ratio) = match winograd {
            Some(tiled) => (format!("{:.1e} | {:.1e}", tiled.rms, tiled.max), format!("{:.1}", tiled.rms / direct.rms)),
            None => ("direct | direct".into(), String::new()),
        };
        let direct = format!("{:.1e} | {:.1e}", direct.rms, direct.max);
        writeln!(text, "| {} | {} | {tiled} | {direct} | {ratio} |", name(&g), networks.join(", ")).expect("a string");
    }
    text += "\n## Whole networks\n\n\
        Seeded weights and picture of `tests/seeded`, with Winograd's tiles and without. *map*: how far Grad-CAM's moves at\n\
        most, over its range; *probabilities*: how far the five largest do, over the largest. How far maps with tiles are\n\
        from `f64` is the *difference* in [`benches/README.md`](../README.md).\n\n\
        | network | map | probabilities |\n\
        |---|---:|---:|\n";
    for name in NETWORKS {
        let (map, probabilities) = whole(name);
        writeln!(text, "| {name} | {map:.1e} | {probabilities:.1e} |").expect("a string");
    }
    text
}
