//! Methods at the input that are more than one gradient: SmoothGrad, integrated gradients, FullGrad, each against its
//! definition in `f64`, and what they promise to add up to.

mod common;

use std::sync::Arc;

use common::oracle::Oracle;
use common::reference::aligned;
use common::rig::{Picture, Set, completeness, raw_maps, raw_maps_set, working_memory};
use common::tolerance;
use ucag::net::{Graph, Op, Param, Shape};
use ucag::{Device, Explainer, Fit, Frame, Maps, Target};

/// Network and picture: sides that no stride divides.
const CASES: [(&str, (usize, usize)); 4] =
    [("resnet18", (48, 40)), ("resnet50", (45, 39)), ("vgg11", (40, 48)), ("vgg11_bn", (71, 33))];

const CLASSES: [usize; 3] = [6, 1, 4];

fn maps(graph: &Arc<Graph>, picture: &Picture, method: Set<'_>) -> Vec<f32> {
    raw_maps_set(graph, picture, &CLASSES, method, graph.output(), true)
}

/// `reduce` of the colours of each pixel.
fn reduced(d: &[f64], reduce: &str) -> Vec<f64> {
    let pixel = |d: &[f64]| match reduce {
        "sum" => d.iter().sum(),
        "sum-abs" => d.iter().map(|d| d.abs()).sum(),
        _ => d.iter().fold(0.0, |m: f64, d| m.max(d.abs())),
    };
    d.chunks_exact(3).map(pixel).collect()
}

#[test]
fn reductions_agree_with_the_oracle() {
    for (model, size) in CASES {
        let graph = common::tiny_graph(model);
        let picture = Picture::new(size.0, size.1, 1);
        let oracle = Oracle::new(&graph, size, &picture.normalised());
        for reduce in ["max", "sum-abs", "sum"] {
            let gradients = CLASSES.map(|class| {
                let guided = oracle.gradient_by(class, |y, g| if y > 0.0 { g.max(0.0) } else { 0.0 });
                let deconv = oracle.gradient_by(class, |_, g| g.max(0.0));
                [oracle.gradient(class), guided, deconv].map(|d| reduced(&d[0], reduce))
            });
            for (i, method) in ["gradient", "guided", "deconv"].into_iter().enumerate() {
                let found = maps(&graph, &picture, (method, &[("reduce", reduce)]));
                let expected: Vec<f64> = gradients.iter().flat_map(|of_class| of_class[i].clone()).collect();
                common::assert_nmse(&format!("{model}, {method}, {reduce}"), &found, &expected, tolerance::GRADIENT);
            }
        }
    }
}

/// Normal number of an element, of a whole picture as the only patch: the splitmix64 finaliser over seed, draw and
/// element, then Box and Muller.
fn normal(seed: u64, draw: u64, element: usize) -> f64 {
    let mix = |z: u64| {
        let z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let bits = mix(mix(mix(seed) ^ draw) ^ element as u64);
    let [high, low] = [bits >> 32, bits & 0xffff_ffff].map(|part| part as f64);
    let (u, v) = ((high + 1.0) / 2f64.powi(32), low / 2f64.powi(32));
    (-2.0 * u.ln()).sqrt() * (2.0 * std::f64::consts::PI * v).cos()
}

#[test]
fn smoothgrad_agrees_with_the_oracle() {
    for (model, size) in CASES {
        let graph = common::tiny_graph(model);
        let picture = Picture::new(size.0, size.1, 2);
        let input = picture.normalised();
        for (draws, sigma, seed, reduce) in [(3, 0.15, 0, "max"), (2, 0.4, 7, "sum")] {
            let (low, high) = input.iter().fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(*v), h.max(*v)));
            let mut means = vec![vec![0.0; input.len()]; CLASSES.len()];
            for draw in 0..draws {
                let noisy = |(i, x): (usize, &f64)| x + sigma * (high - low) * normal(seed, draw, i);
                let oracle = Oracle::new(&graph, size, &input.iter().enumerate().map(noisy).collect::<Vec<_>>());
                for (mean, class) in means.iter_mut().zip(CLASSES) {
                    mean.iter_mut().zip(&oracle.gradient(class)[0]).for_each(|(m, d)| *m += d / draws as f64);
                }
            }
            let [d, s, seed] = [draws.to_string(), sigma.to_string(), seed.to_string()];
            let set = [("draws", d.as_str()), ("sigma", &s), ("seed", &seed), ("reduce", reduce)];
            let found = maps(&graph, &picture, ("smoothgrad", &set));
            let expected: Vec<f64> = means.iter().flat_map(|mean| reduced(mean, reduce)).collect();
            common::assert_nmse(&format!("{model}, {set:?}"), &found, &expected, tolerance::GRADIENT);
        }
    }
}

/// Without noise SmoothGrad is the gradient; another seed gives another map.
#[test]
fn noise_follows_sigma_and_seed() {
    let graph = common::tiny_graph("vgg11_bn");
    let picture = Picture::new(40, 48, 3);
    let smooth = |set: &[(&str, &str)]| common::to_f64(&maps(&graph, &picture, ("smoothgrad", set)));
    let gradient = common::to_f64(&raw_maps(&graph, &picture, &CLASSES, "gradient", graph.output(), true));
    assert!(common::max_error(&smooth(&[("sigma", "0"), ("draws", "4")]), &gradient) < tolerance::SAME_MAP);
    let seeds = ["0", "1"].map(|seed| smooth(&[("draws", "2"), ("seed", seed)]));
    assert!(seeds[0] == smooth(&[("draws", "2")]) && common::max_error(&seeds[0], &seeds[1]) > 0.01);
}

/// The Gauss–Legendre rule of three points on [0, 1].
fn three_points() -> [(f64, f64); 3] {
    let far = 0.6_f64.sqrt() / 2.0;
    [(0.5 - far, 5.0 / 18.0), (0.5, 8.0 / 18.0), (0.5 + far, 5.0 / 18.0)]
}

#[test]
fn integrated_gradients_agree_with_the_oracle() {
    for (model, size) in CASES {
        let graph = common::tiny_graph(model);
        let picture = Picture::new(size.0, size.1, 4);
        let input = picture.normalised();
        let mut expected = vec![0.0; CLASSES.len() * size.0 * size.1];
        let at = |t: f64| Oracle::new(&graph, size, &input.iter().map(|x| t * x).collect::<Vec<_>>());
        for (t, weight) in three_points() {
            let oracle = at(t);
            let products = CLASSES.into_iter().flat_map(|class| {
                let d = oracle.gradient(class)[0].clone();
                let product: Vec<f64> = d.iter().zip(&input).map(|(d, x)| weight * d * x).collect();
                reduced(&product, "sum")
            });
            expected.iter_mut().zip(products).for_each(|(e, p)| *e += p);
        }
        let set: Set<'_> = ("integrated-gradients", &[("steps", "3")]);
        let found = maps(&graph, &picture, set);
        common::assert_nmse(&format!("{model}, integrated gradients"), &found, &expected, tolerance::GRADIENT);

        let [logits, sums] = completeness(&graph, &picture, &CLASSES, set);
        let (full, nothing) = (at(1.0), at(0.0));
        for (i, class) in CLASSES.into_iter().enumerate() {
            let map: f64 = expected[i * size.0 * size.1..][..size.0 * size.1].iter().sum();
            let (logit, sum) = (full.logits()[class], map + nothing.logits()[class]);
            let size = logit.abs() + map.abs();
            assert!((logits[i] - logit).abs() < tolerance::CONSERVED * size, "{model}: {} of {logit}", logits[i]);
            assert!((sums[i] - sum).abs() < tolerance::CONSERVED * size, "{model}: {} of {sum}", sums[i]);
        }
    }
}

/// A network of rectifiers without biases has the same gradient all the way from nothing to the picture: one step is as
/// good as many, and the map sums to the logit. With biases, more steps bring the sum nearer.
#[test]
fn integrated_gradients_add_up() {
    for (model, size) in CASES {
        let picture = Picture::new(size.0, size.1, 5);
        let tensors = common::tensors(model, common::CLASSES, common::NARROWING);
        let graph = Arc::new(common::network(&common::without_biases(tensors)).graph);
        let [logits, sums] = completeness(&graph, &picture, &CLASSES, ("integrated-gradients", &[("steps", "2")]));
        let largest = logits.iter().fold(0.0, |m: f64, l| m.max(l.abs()));
        for (logit, sum) in logits.iter().zip(&sums) {
            assert!((logit - sum).abs() < tolerance::CONSERVED * largest, "{model}: {sum} of {logit}");
        }
        let gap = |steps: &str| {
            let set: Set<'_> = ("integrated-gradients", &[("steps", steps)]);
            let [logits, sums] = completeness(&common::tiny_graph(model), &picture, &CLASSES, set);
            logits.iter().zip(&sums).map(|(l, s)| (l - s).abs()).sum::<f64>()
        };
        let (few, many) = (gap("1"), gap("64"));
        println!("{model}: gap {few:.1e} with one step, {many:.1e} with 64");
        assert!(many < 0.5 * few, "{model}: gap {few:.1e} with one step, {many:.1e} with 64");
    }
}

/// The network runs again and again in the same memory: beside what a gradient takes there are the input, the input with
/// noise or scaled, and the sum. FullGrad's terms are made on the way down, so that no layer's gradient has to wait.
#[test]
fn memory_does_not_grow_with_the_number_of_runs() {
    for (model, size) in CASES {
        let graph = common::tiny_graph(model);
        let bytes = |method: Set<'_>| working_memory(&graph, size, method, graph.output());
        let (gradient, input) = (bytes(("gradient", &[])), size.0 * size.1 * 3 * 4);
        for (method, key) in [("smoothgrad", "draws"), ("integrated-gradients", "steps")] {
            let [few, many] = ["10", "40"].map(|n| bytes((method, &[(key, n)])));
            assert_eq!(few, many, "{method} on {model}");
            assert!(many < gradient + 5 * input, "{method} on {model}: {many} bytes, the gradient {gradient}");
        }
        let full = bytes(("full-grad", &[]));
        assert!(full < 2 * gradient, "full-grad on {model}: {full} bytes, the gradient {gradient}");
    }
}

/// Plain maps of some classes, made with at most so many bytes of memory, and the bytes that are moved at least.
fn explained(
    device: Device,
    model: &str,
    (method, set): Set<'_>,
    classes: &[usize],
    memory: Option<u64>,
) -> ucag::Result<(Vec<Vec<f32>>, f64)> {
    let pixels = common::picture(40, 46, 9);
    let frame = Frame::rgb(&pixels, 40, 46).expect("a frame");
    let builder = Explainer::with_network(common::tiny(model)).method(method).maps(Maps::Plain).fit(Fit::None);
    let builder = set.iter().fold(builder.device(device).threads(3), |builder, (key, value)| builder.set(*key, *value));
    let mut explainer = memory.into_iter().fold(builder, |builder, bytes| builder.memory(bytes)).build()?;
    let explanation = explainer.explain(&frame, &Target::Classes(classes.to_vec()))?;
    let maps = explanation.classes.iter().map(|class| class.map().data.clone()).collect();
    let floors = explainer.floors().expect("floors").expect("a plan");
    Ok((maps, floors.stages[0].work.bytes))
}

fn at_once_as_one_by_one(device: Device) {
    let methods: [Set<'_>; 2] = [("smoothgrad", &[("draws", "11")]), ("integrated-gradients", &[("steps", "9")])];
    for (model, method) in ["resnet18", "vgg11_bn"].into_iter().flat_map(|model| methods.map(|method| (model, method)))
    {
        let explained = |classes: &[usize], memory| explained(device, model, method, classes, memory);
        let (both, _) = explained(&[4, 1], None).expect("maps");
        let (at_once, less) = explained(&[1], None).expect("a map");
        assert!(at_once[0] == both[1], "{method:?} on {model} on {device}: another class changes the map");
        // Less than twice what suffices.
        let (scant, more) = (16..).find_map(|bits| explained(&[1], Some(1 << bits)).ok()).expect("a map");
        assert!(at_once == scant, "{method:?} on {model} on {device}: less memory changes the map");
        assert!(less < more, "{method:?} on {model} on {device}: weights are read as often");
    }
}

/// Of one class the network is run on several inputs at once, as far as memory allows, of two on one after the other. No bit
/// of a map depends on it.
#[test]
fn inputs_at_once_change_no_bit() {
    at_once_as_one_by_one(Device::Cpu);
    #[cfg(feature = "cuda")]
    if common::cuda::device().is_some() {
        at_once_as_one_by_one(Device::Cuda(0));
    }
}

/// A layer's own bias, as it shows behind a batch norm, and the batch norm's.
fn biases(param: &Param) -> Vec<Vec<f64>> {
    match &param.norm {
        None => vec![common::to_f64(&param.bias)],
        Some(norm) => {
            let own = norm.bias.iter().zip(&norm.scale).map(|(b, s)| f64::from(*b) * f64::from(*s)).collect();
            vec![own, common::to_f64(&norm.shift)]
        }
    }
}

/// FullGrad (`methods.md` 9): the map, and the sum that should be the logit.
fn full_grad(graph: &Graph, oracle: &Oracle<'_>, size: (usize, usize), class: usize) -> (Vec<f64>, f64) {
    let shapes = graph.shapes(size.0, size.1).expect("shapes");
    let gradient = oracle.gradient(class);
    let mut map = vec![0.0; size.0 * size.1];
    let mut add = |shape: Shape, term: &[f64]| {
        let magnitudes: Vec<f64> = term.iter().map(|v| v.abs()).collect();
        let low = magnitudes.iter().copied().fold(f64::MAX, f64::min);
        let high = magnitudes.iter().map(|v| v - low).fold(0.0, f64::max);
        let scaled = |v: &f64| (v - low) / (high + 1e-6);
        let sums: Vec<f64> = magnitudes.chunks_exact(shape.c).map(|pixel| pixel.iter().map(scaled).sum()).collect();
        let at = |i: usize| aligned(&sums, (shape.h, shape.w), size, (i / size.1, i % size.1));
        map.iter_mut().enumerate().for_each(|(i, m)| *m += at(i));
    };
    let product: Vec<f64> = oracle.values[0].iter().zip(&gradient[0]).map(|(x, d)| x * d).collect();
    let mut total: f64 = product.iter().sum();
    add(shapes[0], &product);
    for (i, node) in graph.nodes().iter().enumerate() {
        let (Op::Conv { param, .. } | Op::Linear { param }) = node.op else { continue };
        let term = |bias: &[f64]| -> Vec<f64> {
            gradient[i].iter().enumerate().map(|(at, g)| g * bias[at % bias.len()]).collect()
        };
        // The oracle adds the parts of a bias as their `f32` sum.
        total += term(&common::to_f64(&graph.param(param).bias)).iter().sum::<f64>();
        if let Op::Conv { .. } = node.op {
            let parts = biases(graph.param(param)).into_iter().filter(|part| !part.is_empty());
            parts.for_each(|part| add(shapes[i], &term(&part)));
        }
    }
    (map, total)
}

#[test]
fn full_grad_agrees_with_the_oracle() {
    for (model, size) in CASES {
        let graph = common::tiny_graph(model);
        let picture = Picture::new(size.0, size.1, 6);
        let oracle = Oracle::new(&graph, size, &picture.normalised());
        let found = maps(&graph, &picture, ("full-grad", &[]));
        let expected = CLASSES.map(|class| full_grad(&graph, &oracle, size, class));
        let map: Vec<f64> = expected.iter().flat_map(|(map, _)| map.clone()).collect();
        common::assert_nmse(&format!("{model}, full-grad"), &found, &map, tolerance::GRADIENT);
    }
}

/// Input and biases together make the logit.
#[test]
fn full_grad_adds_up() {
    for (model, size) in CASES {
        let graph = common::tiny_graph(model);
        let picture = Picture::new(size.0, size.1, 7);
        let oracle = Oracle::new(&graph, size, &picture.normalised());
        let [logits, sums] = completeness(&graph, &picture, &CLASSES, ("full-grad", &[]));
        for (i, class) in CLASSES.into_iter().enumerate() {
            let (logit, total) = (oracle.logits()[class], full_grad(&graph, &oracle, size, class).1);
            let [exact, found, asked] = [total, sums[i], logits[i]].map(|v| (v - logit).abs() / logit.abs());
            println!("{model}, class {class}: {exact:.1e} in f64, {found:.1e} in f32");
            assert!(exact < 1e-9, "{model}: {total} of {logit}");
            assert!(found < 1e-4 && asked < 1e-4, "{model}: {} of {logit}", sums[i]);
        }
    }
}

/// A picture of one colour, a class that reads nothing, and a layer that says nothing: all maps are finite.
#[test]
fn degenerate_pictures_and_networks_give_finite_maps() {
    let methods: [Set<'_>; 3] =
        [("smoothgrad", &[("draws", "2")]), ("integrated-gradients", &[("steps", "3")]), ("full-grad", &[])];
    for (model, silenced) in [("resnet18", "layer4.1.bn2.bias"), ("vgg11", "features.18.bias")] {
        let mut tensors = common::tensors(model, common::CLASSES, common::NARROWING);
        for (key, shape, values) in &mut tensors {
            match key.as_str() {
                key if key == silenced => values.fill(-1e6),
                "fc.weight" | "classifier.6.weight" => values[CLASSES[0] * shape[1]..][..shape[1]].fill(0.0),
                _ => {}
            }
        }
        for graph in [common::tiny_graph(model), Arc::new(common::network(&tensors).graph)] {
            let flat = Picture { size: (40, 35), pixels: vec![131; 40 * 35 * 3] };
            for (picture, method) in [flat, Picture::new(40, 35, 8)].iter().flat_map(|p| methods.map(|m| (p, m))) {
                assert!(maps(&graph, picture, method).iter().all(|v| v.is_finite()), "{method:?} on {model}");
            }
        }
    }
}
