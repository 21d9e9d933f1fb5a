//! Relevance of whole networks: the engine against the oracle, conservation, and the identity with input × gradient.

mod common;

use std::sync::Arc;

use common::oracle::{EPSILON_PLUS, Oracle, Rules};
use common::rig::{Picture, walk};
use common::tolerance;
use ucag::backend::Divisor;
use ucag::engine::{Composite, Rule};
use ucag::net::{Graph, NodeId, Op};
use ucag::{Device, Explainer, Fit, Frame, Maps, Target};

const CASES: [(&str, &str, (usize, usize)); 4] = [
    ("resnet18", "layer2", (48, 40)),
    ("resnet50", "layer3", (45, 39)),
    ("vgg11", "features.10", (48, 40)),
    ("vgg11_bn", "features.14", (71, 33)),
];

/// The cases that conserve relevance. In a narrow bottleneck's 1×1 convolutions some results have no positive term at
/// all; by the z⁺ rule these absorb what they get.
fn conserving() -> impl Iterator<Item = (&'static str, &'static str, (usize, usize))> {
    CASES.into_iter().filter(|(model, ..)| *model != "resnet50")
}

/// A network whose layers are products of weights and inputs alone.
fn bias_free(model: &str) -> Arc<Graph> {
    let tensors = common::without_biases(common::tensors(model, common::CLASSES, common::NARROWING));
    Arc::new(common::network(&tensors).graph)
}

#[test]
fn epsilon_plus_agrees_with_the_oracle() {
    for (model, layer, size) in CASES {
        let graph = common::tiny_graph(model);
        let picture = Picture::new(size.0, size.1, 1);
        let oracle = Oracle::new(&graph, size, &picture.normalised());
        let classes = [6, 0];
        for stop in [NodeId(0), graph.layer(layer).expect("a layer")] {
            let found = walk(&graph, &picture, &classes, stop, &Composite::epsilon_and(Rule::ZPlus), true);
            let expected = |c: &usize| oracle.relevance(*c, EPSILON_PLUS)[stop.0].clone();
            let expected: Vec<f64> = classes.iter().flat_map(expected).collect();
            let what = format!("{model}, relevance at {}", graph.node(stop).name);
            common::assert_nmse(&what, &found, &expected, tolerance::RELEVANCE);
        }
    }
}

/// The method's map is the input's relevance, summed over the colours.
#[test]
fn the_map_sums_the_colours() {
    let (size, network) = ((48, 40), common::tiny("vgg11_bn"));
    let picture = Picture::new(size.0, size.1, 2);
    let graph = network.graph.clone();
    let oracle = Oracle::new(&graph, size, &picture.normalised());
    let relevance = oracle.relevance(4, EPSILON_PLUS)[0].clone();
    let expected: Vec<f64> = relevance.chunks_exact(3).map(|pixel| pixel.iter().sum()).collect();
    let builder = Explainer::with_network(network).method("lrp-epsilon-plus").maps(Maps::Plain).fit(Fit::None);
    let frame = Frame::rgb(&picture.pixels, size.0, size.1).expect("a frame");
    let found =
        builder.device(Device::Cpu).threads(2).build().and_then(|mut e| e.explain(&frame, &Target::Classes(vec![4])));
    let map = found.expect("an explanation").classes[0].map().data.clone();
    common::assert_nmse("map", &map, &expected, tolerance::RELEVANCE);
}

/// Without biases nothing is lost on the way: at every node through which all paths lead, and at the input, the
/// relevance sums to the logit.
#[test]
fn relevance_is_conserved() {
    for (model, _, size) in conserving() {
        let graph = bias_free(model);
        let picture = Picture::new(size.0, size.1, 3);
        let oracle = Oracle::new(&graph, size, &picture.normalised());
        let class = 2;
        let logit = oracle.logits()[class];
        let blocks = ["layer1", "layer2", "layer3", "layer4", "avgpool"].iter().filter_map(|n| graph.layer(n).ok());
        let chain = (0..graph.nodes().len()).map(NodeId).filter(|_| !model.starts_with("resnet"));
        for stop in blocks.chain(chain).chain([NodeId(0)]).filter(|n| *n != graph.output()) {
            let found = walk(&graph, &picture, &[class], stop, &Composite::epsilon_and(Rule::ZPlus), true);
            let sum: f64 = found.iter().map(|r| f64::from(*r)).sum();
            let lost = (sum - logit).abs() / logit.abs();
            let name = &graph.node(stop).name;
            assert!(lost < tolerance::CONSERVED, "{model}: {sum} of {logit} arrived at {name}");
        }
    }
}

/// And node by node in the oracle: each hands on what it got.
#[test]
fn every_node_conserves_in_the_oracle() {
    for (model, _, size) in conserving() {
        let graph = bias_free(model);
        let input = Picture::new(size.0, size.1, 4).normalised();
        let oracle = Oracle::new(&graph, size, &input);
        let relevance = oracle.relevance(1, EPSILON_PLUS);
        let sum = |id: NodeId| relevance[id.0].iter().sum::<f64>();
        for (i, node) in graph.nodes().iter().enumerate().skip(1) {
            // Only where no other reader adds its share to the inputs.
            if matches!(node.op, Op::Input) || node.inputs.iter().any(|n| graph.readers(*n).len() > 1) {
                continue;
            }
            let (got, gave) = (sum(NodeId(i)), node.inputs.iter().map(|n| sum(*n)).sum::<f64>());
            let lost = (got - gave).abs() / oracle.logits()[1].abs();
            assert!(lost < tolerance::CONSERVED, "{model}: {} got {got} and gave {gave}", node.name);
        }
    }
}

/// The ε rule with next to no ε, on a network of rectifiers without biases, is input × gradient.
#[test]
fn epsilon_of_nothing_is_input_times_gradient() {
    const TINY: f32 = 1e-30;
    let (rule, share) = (Rule::Epsilon(TINY), Rule::Share(Divisor::Signed(TINY)));
    let (relu, gradient) = (Rule::Pass, Composite::gradient());
    let composite = Composite { conv: rule, linear: rule, relu, avg_pool: share, add: share, ..gradient };
    for (model, _, size) in CASES {
        let graph = bias_free(model);
        let picture = Picture::new(size.0, size.1, 5);
        let input = picture.normalised();
        let oracle = Oracle::new(&graph, size, &input);
        let expected = common::reference::product(&input, &oracle.gradient(3)[0]);
        let found = walk(&graph, &picture, &[3], NodeId(0), &composite, true);
        common::assert_nmse(&format!("{model}, engine"), &found, &expected, tolerance::RELEVANCE);
        let rules = Rules { z_plus: false, eps: 1e-200 };
        let error = common::nmse(&oracle.relevance(3, rules)[0], &expected);
        assert!(error < 1e-18, "{model}, oracle: NMSE {error:.1e}");
    }
}
