//! Every other instruction of the CPU backend against the `f64` oracle.

mod common;

use common::case::{ADDS, Add, Case, Operand, Oracle, SAMPLES, Write, layer, no_layer, same, weight, window};
use common::reference::{self as oracle, Average, Window};
use common::rig::Rig;
use ucag::backend::{AvgGeom, Divisor, Dtype, Instr, PoolGeom, Scope, Seed, Sign, Slot, Unary, Variant};
use ucag::net::{AvgPool, Shape};

/// Of inputs of so many lanes; backward, quantities of more lanes share the winners of one.
fn max_pool(h: usize, w: usize, c: usize, window: Window, ties: bool, lanes: usize) {
    let (size, graph) = ((h, w, c), no_layer());
    let (oh, ow) = (window.results(h, 0), window.results(w, 1));
    let g = PoolGeom { window: same(&window), x: Shape::new(h, w, c), y: Shape::new(oh, ow, c) };
    let x = Operand::random(5, lanes, g.x.len()).map(|v| if ties { (2.0 * v).round().min(0.0) } else { v });
    let name = format!("max pool {size:?} by {window:?}, ties {ties}, {lanes} lanes");
    Case {
        name: name.clone(),
        graph: graph.clone(),
        operands: vec![x.clone()],
        len: g.y.len(),
        lanes,
        add: Add::Nowhere,
        relu: false,
        write: &|o, _, y| Instr::MaxPool { g, x: o[0], y, index: None },
        oracle: &|o| oracle::max_pool(o[0], size, &window).0,
    }
    .check();

    let all = (0..SAMPLES).flat_map(|s| (0..lanes).map(move |lane| (s, lane)));
    let pooled: Vec<_> = all.map(|(s, lane)| oracle::max_pool(x.of(s, lane), size, &window)).collect();
    let winners = pooled.iter().flat_map(|(_, index)| index.clone()).collect();
    let winners = Operand { len: g.y.len(), lanes, dtype: Dtype::U8, values: winners };
    let mut rig = Rig::new(&graph, 2);
    let from = rig.slot(x.len, lanes, Dtype::F32, Scope::Batch, x.bytes(0..SAMPLES));
    let y = rig.result(g.y.len(), lanes, Dtype::F32, Scope::Batch, SAMPLES);
    let index = rig.result(g.y.len(), lanes, Dtype::U8, Scope::Batch, SAMPLES);
    let found = rig.run(Instr::MaxPool { g, x: from, y, index: Some(index) }, SAMPLES, &[y, index]);
    let values: Vec<f64> = pooled.iter().flat_map(|(y, _)| y.clone()).collect();
    assert_eq!(common::to_f64(&common::rig::floats(&found[0])), values, "{name}");
    assert_eq!(found[1], winners.bytes(0..SAMPLES), "{name}: winners");

    let more = if lanes == 1 { [1, 2, 1] } else { [lanes; 3] };
    for (lanes, add) in more.into_iter().zip(ADDS) {
        Case {
            name: format!("backward {name} {add:?}"),
            graph: graph.clone(),
            operands: vec![winners.clone(), Operand::random(6, lanes, g.y.len())],
            len: g.x.len(),
            lanes,
            add,
            relu: false,
            write: &|o, add, dx| Instr::MaxPoolBack { g, index: o[0], dy: o[1], add, dx },
            oracle: &|o| oracle::max_pool_back(o[1], o[0], size, &window),
        }
        .check();
    }
}

#[test]
fn max_pools() {
    for (ties, lanes) in [(false, 1), (true, 1), (true, 3)] {
        max_pool(8, 6, 5, window([2, 2], 2, [0, 0]), ties, lanes);
        max_pool(7, 9, 3, window([2, 2], 2, [0, 0]), ties, lanes);
        max_pool(9, 8, 17, window([3, 3], 2, [1, 1]), ties, lanes);
        max_pool(1, 1, 4, window([3, 3], 2, [1, 1]), ties, lanes);
        max_pool(5, 6, 2, window([3, 3], 1, [1, 1]), ties, lanes);
        max_pool(7, 7, 3, window([2, 2], 3, [0, 0]), ties, lanes);
        max_pool(9, 5, 130, Window { kernel: [1, 3], stride: [1, 2], pad: [0, 1] }, ties, lanes);
    }
}

#[test]
fn average_pools() {
    for (h, w, c, pool) in [
        (10, 10, 5, Average::Adaptive(7, 7)),
        (7, 9, 17, Average::Adaptive(1, 1)),
        (9, 13, 3, Average::Adaptive(4, 5)),
        (1, 2, 4, Average::Adaptive(7, 7)),
        (7, 7, 3, Average::Adaptive(7, 7)),
        (8, 7, 5, Average::Window(window([3, 3], 1, [1, 1]))),
        (9, 8, 64, Average::Window(window([2, 2], 2, [0, 0]))),
        (7, 7, 2, Average::Window(window([2, 3], 3, [1, 1]))),
    ] {
        let (size, graph) = ((h, w, c), no_layer());
        let ((oh, ow), theirs) = (
            pool.results(h, w),
            match &pool {
                Average::Window(window) => AvgPool::Window(same(window)),
                Average::Adaptive(bh, bw) => AvgPool::Adaptive(*bh, *bw),
            },
        );
        let g = AvgGeom { pool: theirs, x: Shape::new(h, w, c), y: Shape::new(oh, ow, c) };
        let name = format!("average pool {size:?} by {pool:?}");
        Case {
            name: name.clone(),
            graph: graph.clone(),
            operands: vec![Operand::random(5, 2, g.x.len())],
            len: g.y.len(),
            lanes: 2,
            add: Add::Nowhere,
            relu: false,
            write: &|o, _, y| Instr::AvgPool { g, x: o[0], y },
            oracle: &|o| oracle::avg_pool(o[0], size, &pool),
        }
        .check();
        for (lanes, add) in [1, 2, 3].into_iter().zip(ADDS) {
            let mut operands = vec![Operand::random(6, lanes, g.y.len())];
            operands.extend((lanes > 1).then(|| Operand::random(7, 1, g.x.len())));
            Case {
                name: format!("backward {name} {add:?}"),
                graph: graph.clone(),
                operands,
                len: g.x.len(),
                lanes,
                add,
                relu: false,
                write: &|o, add, dx| Instr::AvgPoolBack { g, dy: o[0], mul: o.get(1).copied(), add, dx },
                oracle: &|o| {
                    let dx = oracle::avg_pool_back(o[0], size, &pool);
                    o.get(1).map_or(dx.clone(), |mul| oracle::product(&dx, mul))
                },
            }
            .check();
        }
    }
}

/// An instruction that works element by element, with operands of the given lanes.
fn elementwise(name: &str, operands: Vec<Operand>, adds: &[Add], write: Write<'_>, oracle: Oracle<'_>) {
    let lanes = operands.iter().map(|o| o.lanes).max().unwrap_or(1);
    let (graph, len) = (no_layer(), operands[0].len);
    for add in adds {
        let operands = operands.clone();
        let name = format!("{name} of {len}, {lanes} lanes, add {add:?}");
        Case { name, graph: graph.clone(), operands, len, lanes, add: *add, relu: false, write, oracle }.check();
    }
}

/// A function's definition.
type Definition = fn(f64) -> f64;

/// Functions of one number with their definitions.
fn unary() -> [(Unary, Definition); 7] {
    [
        (Unary::Positive, |v| v.max(0.0)),
        (Unary::Negative, |v| v.min(0.0)),
        (Unary::Absolute, f64::abs),
        (Unary::Times(-2.5), |v| -2.5 * v),
        (Unary::Plus(0.75), |v| v + 0.75),
        (Unary::Sigmoid(10.0), |v| 1.0 / (1.0 + (-10.0 * v).exp())),
        (Unary::Tanh(2.0), |v| (2.0 * v).tanh()),
    ]
}

#[test]
fn elementwise_instructions() {
    let none = &[Add::Nowhere];
    for len in [1, 35, 3 * 16384 + 5] {
        let (x, y) = (Operand::random(1, 1, len), Operand::random(2, 1, len));
        let two = Operand::random(3, 2, len);
        for (f, expected) in unary() {
            let write = |o: &[Slot], _: Option<Slot>, y: Slot| Instr::Unary { f, x: o[0], y };
            let of_all = |o: &[&[f64]]| o[0].iter().map(|v| expected(*v)).collect();
            elementwise(&format!("{f:?}"), vec![x.clone()], none, &write, &of_all);
        }
        let mask = |o: &[&[f64]]| o[0].iter().zip(o[1]).map(|(y, dy)| if *y > 0.0 { *dy } else { 0.0 }).collect();
        let rectified = x.clone().map(|v| v.max(0.0));
        let keep = Sign::Positive;
        let write = |o: &[Slot], add: Option<Slot>, y: Slot| Instr::Mask { keep, x: o[0], r: o[1], add, y };
        elementwise("mask", vec![rectified, two.clone()], &ADDS, &write, &mask);
        for relu in [false, true] {
            let sum = |o: &[&[f64]]| {
                let sum = oracle::sum(o[0], o[1]);
                if relu { oracle::relu(&sum) } else { sum }
            };
            let write = |o: &[Slot], _: Option<Slot>, y: Slot| Instr::Add { a: o[0], b: o[1], relu, y };
            elementwise("add", vec![x.clone(), y.clone()], none, &write, &sum);
            elementwise("add", vec![two.clone(), y.clone()], none, &write, &sum);
        }
        let write = |o: &[Slot], add: Option<Slot>, y: Slot| Instr::Multiply { x: o[0], c: o[1], add, y };
        elementwise("multiply", vec![x.clone(), two.clone()], &ADDS, &write, &|o| oracle::product(o[0], o[1]));
        // Zeros among the divisors: sgn(0) = 1.
        let z = y.clone().map(|v| if v.abs() < 0.2 { 0.0 } else { v });
        let (by, scale) = (Divisor::Signed(0.25), 1.0);
        let write = |o: &[Slot], _: Option<Slot>, y: Slot| Instr::Divide { r: o[0], z: o[1], z2: None, by, scale, y };
        let quotient = |o: &[&[f64]]| oracle::quotient(o[0], o[1], 0.25);
        elementwise("divide", vec![two.clone(), z.clone()], none, &write, &quotient);
        let write =
            |o: &[Slot], _: Option<Slot>, y: Slot| Instr::Divide { r: o[0], z: o[1], z2: Some(o[2]), by, scale, y };
        let quotient = |o: &[&[f64]]| oracle::quotient(o[0], &oracle::sum(o[1], o[2]), 0.25);
        elementwise("divide by a sum", vec![two, z, x], none, &write, &quotient);
    }
}

#[test]
fn flattening() {
    for size in [(7, 7, 5), (1, 1, 9), (3, 2, 64)] {
        let (h, w, c) = size;
        let x = Shape::new(h, w, c);
        let write = |o: &[Slot], _: Option<Slot>, y: Slot| Instr::Flatten { x, from: o[0], y };
        let operand = |lanes| vec![Operand::random(1, lanes, x.len())];
        for lanes in [1, 2] {
            elementwise("flatten", operand(lanes), &[Add::Nowhere], &write, &|o| oracle::flatten(o[0], size));
        }
        let write = |o: &[Slot], add: Option<Slot>, dx: Slot| Instr::FlattenBack { x, dy: o[0], add, dx };
        elementwise("flatten back", operand(2), &ADDS, &write, &|o| oracle::flatten_back(o[0], size));
    }
}

#[test]
fn channel_reductions() {
    for (pixels, channels) in [(1, 1), (30, 17), (49, 130), (300, 3), (513, 16)] {
        for lanes in [1, 2] {
            let (graph, x) = (no_layer(), Operand::random(1, lanes, pixels * channels));
            let case = |name: &str, operands: &[Operand], len, write: Write<'_>, oracle: Oracle<'_>| {
                let name = format!("{name} of {pixels} pixels, {channels} channels, {lanes} lanes");
                let (graph, operands) = (graph.clone(), operands.to_vec());
                Case { name, graph, operands, len, lanes, add: Add::Nowhere, relu: false, write, oracle }.check();
            };
            let total = |o: &[&[f64]]| {
                (0..channels).map(|c| 0.75 * o[0].iter().skip(c).step_by(channels).sum::<f64>()).collect()
            };
            let write = |o: &[Slot], _: Option<Slot>, y: Slot| Instr::PixelSum { x: o[0], channels, scale: 0.75, y };
            case("sum over pixels", std::slice::from_ref(&x), channels, &write, &total);
            let write = |o: &[Slot], _: Option<Slot>, y: Slot| Instr::ChannelSum {
                x: o[0],
                channels,
                weights: o.get(1).copied(),
                y,
            };
            let sum = |o: &[&[f64]]| {
                let dot = |p: &[f64]| p.iter().enumerate().map(|(c, x)| x * o.get(1).map_or(1.0, |w| w[c])).sum();
                o[0].chunks_exact(channels).map(dot).collect()
            };
            case("sum", std::slice::from_ref(&x), pixels, &write, &sum);
            let largest = |o: &[&[f64]]| {
                let largest = |p: &[f64]| p.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
                o[0].chunks_exact(channels).map(largest).collect()
            };
            case(
                "max",
                std::slice::from_ref(&x),
                pixels,
                &|o, _, y| Instr::ChannelMax { x: o[0], channels, y },
                &largest,
            );
            // One activation, weights of each class.
            let activation = Operand::random(1, 1, pixels * channels);
            let weights = Operand::random(2, lanes, channels);
            case("weighted sum", &[activation.clone(), weights.clone()], pixels, &write, &sum);
            let scaled = |o: &[&[f64]]| o[0].iter().enumerate().map(|(i, x)| x * o[1][i % channels]).collect();
            let write =
                |o: &[Slot], _: Option<Slot>, y: Slot| Instr::ChannelScale { x: o[0], channels, weights: o[1], y };
            case("scale", &[activation, weights], pixels * channels, &write, &scaled);
            let weights = Operand::random(3, 1, channels);
            case("scale alike", &[x, weights], pixels * channels, &write, &scaled);
        }
    }
}

#[test]
fn softmax_of_any_size() {
    for scale in [1.0, 60.0, 1e4] {
        let logits = Operand::random(1, 1, 50).map(|v| f64::from((v * scale) as f32));
        let write = |o: &[Slot], _: Option<Slot>, p: Slot| Instr::Softmax { logits: o[0], p };
        elementwise("softmax", vec![logits], &[Add::Nowhere], &write, &|o| oracle::softmax(o[0]));
    }
}

/// Class indices are data of the device, shared by all samples; every lane reads its own.
#[test]
fn heads() {
    let (graph, weights, _) = layer(6, 20, None);
    let classes = [13_u32, 0, 19];
    let p = Operand::random(1, 1, 20);
    let lanes = classes.len();
    let run = |len: usize, scope: Scope, write: &dyn Fn(Slot, Slot, Slot) -> Instr<Slot>| {
        let mut rig = Rig::new(&graph, 2);
        let indices = classes.iter().flat_map(|c| c.to_le_bytes()).collect();
        let classes = rig.slot(lanes, 1, Dtype::U32, Scope::Shared, indices);
        let p = rig.slot(20, 1, Dtype::F32, Scope::Batch, p.bytes(0..SAMPLES));
        let y = rig.result(len, lanes, Dtype::F32, scope, SAMPLES);
        common::to_f64(&common::rig::floats(&rig.run(write(p, classes, y), SAMPLES, &[y])[0]))
    };
    let each = |f: &dyn Fn(usize, usize) -> Vec<f64>| -> Vec<f64> {
        let lanes = (0..SAMPLES).flat_map(|s| classes.map(|c| (s, c as usize)));
        lanes.flat_map(|(s, c)| f(s, c)).collect()
    };
    let one_hot = |class: usize, value: f64| (0..20).map(|i| if i == class { value } else { 0.0 }).collect();

    let picked = run(1, Scope::All, &|p, classes, y| Instr::Pick { p, classes, y });
    assert_eq!(picked, each(&|s, c| vec![p.of(s, 0)[c]]));
    let seeds = run(20, Scope::Batch, &|_, classes, y| Instr::Seed { classes, seed: Seed::One, x: None, y });
    assert_eq!(seeds, each(&|_, c| one_hot(c, 1.0)));
    let seeds = run(20, Scope::Batch, &|p, classes, y| Instr::Seed { classes, seed: Seed::Value, x: Some(p), y });
    assert_eq!(seeds, each(&|s, c| one_hot(c, p.of(s, 0)[c])));
    let rows =
        run(6, Scope::Batch, &|_, classes, y| Instr::ClassRow { w: weight(Variant::Plain), classes, scale: 0.25, y });
    assert_eq!(rows, each(&|_, c| weights[c * 6..(c + 1) * 6].iter().map(|w| w * 0.25).collect()));
}

/// The largest values of the first sample; of equal ones the first.
#[test]
fn top_classes() {
    let p: [f32; 7] = [0.1, 0.3, 0.0, 0.3, 0.05, 0.3, 0.2];
    for k in 1..=p.len() {
        let mut rig = Rig::new(&no_layer(), 1);
        let bytes = p.iter().chain(&[1.0; 7]).flat_map(|v| v.to_le_bytes()).collect();
        let p = rig.slot(7, 1, Dtype::F32, Scope::Batch, bytes);
        let classes = rig.result(k, 1, Dtype::U32, Scope::Shared, 1);
        let found = rig.run(Instr::TopK { p, k, classes }, 2, &[classes]);
        let found: Vec<u32> = found[0].as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
        assert_eq!(found, [1, 3, 5, 6, 0, 4, 2][..k]);
    }
}

/// What one batch leaves lies where all patches' values lie.
#[test]
fn keeping() {
    for (lanes, scope) in [(1, Scope::Shared), (1, Scope::All), (3, Scope::All)] {
        let samples = if scope == Scope::Shared { 1 } else { SAMPLES };
        let x = Operand::random(1, lanes, 11);
        let mut rig = Rig::new(&no_layer(), 2);
        let from = rig.slot(11, lanes, Dtype::F32, Scope::Batch, x.bytes(0..samples));
        let y = rig.result(11, lanes, Dtype::F32, scope, samples);
        let found = rig.run(Instr::Keep { x: from, y }, samples, &[y]);
        assert_eq!(found[0], x.bytes(0..samples));
    }
}
