//! Gradients of whole networks: the engine's against the oracle's, and the oracle's against finite differences.

mod common;

use std::sync::Arc;

use common::oracle::Oracle;
use common::relevance::Rules;
use common::rig::{Picture, raw_maps, walk};
use common::{Random, tolerance};
use ucag::engine::Composite;
use ucag::net::{NodeId, Op};
use ucag::{Device, Explainer, Fit, Frame, Maps, Target};

/// Network, a layer in its middle, picture: sides that no stride divides.
const CASES: [(&str, &str, (usize, usize)); 5] = [
    ("resnet18", "layer2", (48, 40)),
    ("resnet18", "layer3.0.bn1", (37, 51)),
    ("resnet50", "layer3", (45, 39)),
    ("vgg11", "features.10", (48, 40)),
    ("vgg11_bn", "features.14", (71, 33)),
];

#[test]
fn engine_agrees_with_the_oracle() {
    for (model, layer, size) in CASES {
        let graph = common::tiny_graph(model);
        let picture = Picture::new(size.0, size.1, 1);
        let oracle = Oracle::new(&graph, size, &picture.normalised());
        let classes = [5, 2, 5];
        for stop in [NodeId(0), graph.layer(layer).expect("a layer")] {
            let found = walk(&graph, &picture, &classes, stop, &Composite::gradient(), false);
            let expected: Vec<f64> = classes.iter().flat_map(|c| oracle.gradient(*c)[stop.0].clone()).collect();
            let what = format!("{model}, gradient at {}", graph.node(stop).name);
            common::assert_nmse(&what, &found, &expected, tolerance::GRADIENT);
        }
    }
}

/// Central differences of two widths. Where they disagree a kink lies between, and there is no derivative to compare.
#[test]
fn oracle_agrees_with_finite_differences() {
    const WIDTHS: [f64; 2] = [1e-4, 5e-5];
    const PROBES: usize = 12;
    for (model, _, size) in CASES {
        let graph = common::tiny_graph(model);
        let input = Picture::new(size.0, size.1, 2).normalised();
        let mut oracle = Oracle::new(&graph, size, &input);
        let class = 3;
        let gradient = oracle.gradient(class)[0].clone();
        let scale = gradient.iter().map(|g| g.abs()).fold(0.0, f64::max);
        let mut compared = 0;
        for probe in 0..PROBES {
            let at = Random::named(model, 9).bits(probe) as usize % input.len();
            let [wide, narrow] = WIDTHS.map(|width| {
                let mut logit = |shift: f64| {
                    let mut moved = input.clone();
                    moved[at] += shift;
                    oracle.forward(&moved);
                    oracle.logits()[class]
                };
                (logit(width) - logit(-width)) / (2.0 * width)
            });
            if (wide - narrow).abs() > 0.1 * tolerance::DIFFERENCES * scale {
                continue;
            }
            compared += 1;
            let error = (narrow - gradient[at]).abs() / scale;
            assert!(error <= tolerance::DIFFERENCES, "{model}: input {at} differs by {error:.1e}");
        }
        assert!(compared > PROBES / 3, "{model}: kinks left only {compared} probes");
    }
}

/// A class at an input-level method, by definition (`methods.md` 4).
fn defined(method: &str, oracle: &Oracle, class: usize) -> Vec<f64> {
    let d = match method {
        "guided" => oracle.gradient_by(class, |y, g| if y > 0.0 { g.max(0.0) } else { 0.0 }),
        "deconv" => oracle.gradient_by(class, |_, g| g.max(0.0)),
        _ => oracle.gradient(class),
    };
    let pixels = d[0].chunks_exact(3).zip(oracle.values[0].chunks_exact(3));
    let largest = |d: &[f64]| d.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
    let inner = |d: &[f64], x: &[f64]| d.iter().zip(x).map(|(d, x)| d * x).sum();
    pixels.map(|(d, x)| if method == "input-x-gradient" { inner(d, x) } else { largest(d) }).collect()
}

#[test]
fn input_methods_agree_with_the_oracle() {
    for (model, _, size) in CASES {
        let graph = common::tiny_graph(model);
        let picture = Picture::new(size.0, size.1, 5);
        let oracle = Oracle::new(&graph, size, &picture.normalised());
        let classes = [6, 1, 4];
        for method in ["gradient", "guided", "deconv", "input-x-gradient"] {
            let found = raw_maps(&graph, &picture, &classes, method, graph.output(), true);
            let expected: Vec<f64> = classes.iter().flat_map(|c| defined(method, &oracle, *c)).collect();
            common::assert_nmse(&format!("{model}, {method}"), &found, &expected, tolerance::GRADIENT);
        }
    }
}

/// Guided backpropagation and the deconvolutional network let nothing negative through a rectifier, and the former
/// nothing where the rectifier gave nothing.
#[test]
fn rectifiers_let_only_positive_signals_through() {
    for (model, _, size) in CASES {
        let graph = common::tiny_graph(model);
        let picture = Picture::new(size.0, size.1, 6);
        let oracle = Oracle::new(&graph, size, &picture.normalised());
        let nodes = graph.nodes().iter().enumerate().filter(|(_, node)| matches!(node.op, Op::Relu));
        for (relu, input) in nodes.map(|(i, node)| (NodeId(i), node.inputs[0])).step_by(3) {
            for composite in [Composite::guided(), Composite::deconv()] {
                let found = walk(&graph, &picture, &[2], input, &composite, false);
                let name = &graph.node(relu).name;
                assert!(found.iter().all(|d| *d >= 0.0), "{model}: {name} lets negative signals through");
                assert!(found.iter().any(|d| *d > 0.0), "{model}: {name} lets nothing through");
                let silent = |(y, d): (&f64, &f32)| *y > 1e-6 || *d == 0.0 || composite == Composite::deconv();
                let masked = oracle.values[relu.0].iter().zip(&found).all(silent);
                assert!(masked, "{model}: {name} lets signals through where it gave nothing");
            }
        }
    }
}

/// Without biases a network of rectifiers is homogeneous: input × gradient is the ε rule with no ε, and sums to the
/// logit.
#[test]
fn input_times_gradient_without_biases() {
    for (model, _, size) in CASES {
        let graph = common::bias_free(model);
        let picture = Picture::new(size.0, size.1, 7);
        let oracle = Oracle::new(&graph, size, &picture.normalised());
        let class = 3;
        let found = raw_maps(&graph, &picture, &[class], "input-x-gradient", graph.output(), true);
        let relevance = &oracle.relevance(class, Rules::epsilon_of_nothing())[0];
        let expected: Vec<f64> = relevance.chunks_exact(3).map(|pixel| pixel.iter().sum()).collect();
        common::assert_nmse(&format!("{model}, relevance"), &found, &expected, tolerance::GRADIENT);
        let (sum, logit) = (found.iter().map(|r| f64::from(*r)).sum::<f64>(), oracle.logits()[class]);
        assert!((sum - logit).abs() < tolerance::CONSERVED * logit.abs(), "{model}: {sum} of {logit}");
    }
}

/// The closed form of a pooled linear head gives what the walk down gives.
#[test]
fn closed_forms_equal_the_walk() {
    for model in ["resnet18", "resnet50"] {
        let pixels = common::picture(64, 50, 3);
        let frame = Frame::rgb(&pixels, 64, 50).expect("a frame");
        let map = |closed: bool| {
            let builder = Explainer::with_network(common::tiny(model)).closed_forms(closed).fit(Fit::None);
            let mut explainer = builder.maps(Maps::Plain).device(Device::Cpu).threads(2).build().expect("an explainer");
            let explanation = explainer.explain(&frame, &Target::Classes(vec![4])).expect("an explanation");
            common::to_f64(&explanation.classes[0].map().data)
        };
        let error = common::max_error(&map(true), &map(false));
        assert!(error < tolerance::SAME_MAP, "{model}: maps differ by {error:.1e}");
    }
}

/// Grad-CAM by definition: channels weighed by their mean gradient, summed, and resized.
#[test]
fn grad_cam_agrees_with_the_oracle() {
    for (model, size) in [("resnet18", (64, 50)), ("vgg11", (50, 64))] {
        let network = common::tiny(model);
        let graph = Arc::new(network.graph.clone());
        let layer = network.layer;
        let picture = Picture::new(size.0, size.1, 4);
        let oracle = Oracle::new(&graph, size, &picture.normalised());
        let shape = graph.shapes(size.0, size.1).expect("shapes")[layer.0];
        let (gradient, activation) = (oracle.gradient(1)[layer.0].clone(), &oracle.values[layer.0]);
        let pixels = (shape.h * shape.w) as f64;
        let weight = |c: usize| gradient.iter().skip(c).step_by(shape.c).sum::<f64>() / pixels;
        let weights: Vec<f64> = (0..shape.c).map(weight).collect();
        let dot = |pixel: &[f64]| pixel.iter().zip(&weights).map(|(a, w)| a * w).sum();
        let cam: Vec<f64> = activation.chunks_exact(shape.c).map(dot).collect();
        let at = |i: usize| common::reference::bilinear(&cam, (shape.h, shape.w), size, (i / size.1, i % size.1));
        let expected: Vec<f64> = (0..size.0 * size.1).map(at).collect();

        let builder = Explainer::with_network(network).fit(Fit::None).maps(Maps::Plain).device(Device::Cpu).threads(2);
        let frame = Frame::rgb(&picture.pixels, size.0, size.1).expect("a frame");
        let found = builder.build().and_then(|mut e| e.explain(&frame, &Target::Classes(vec![1])));
        let found = found.expect("an explanation");
        let what = format!("{model}, Grad-CAM at {}", graph.node(layer).name);
        common::assert_nmse(&what, &found.classes[0].map().data, &expected, tolerance::GRADIENT);
    }
}
