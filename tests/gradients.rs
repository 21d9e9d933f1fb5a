//! Gradients of whole networks: the engine's against the oracle's, and the oracle's against finite differences.

mod common;

use std::sync::Arc;

use common::oracle::Oracle;
use common::rig::{Picture, walk};
use common::{Random, tolerance};
use ucag::engine::Composite;
use ucag::net::NodeId;
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
            let found = walk(&graph, &picture, &classes, stop, &Composite::GRADIENT, false);
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
