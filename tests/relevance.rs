//! Relevance: every rule and every composite against the oracle, and the identity with input × gradient.

mod common;

use std::sync::Arc;

use common::oracle::Oracle;
use common::reference::{div0, divs};
use common::relevance::{self as naive, EPSILON_PLUS, Rules};
use common::rig::{Picture, program, raw_maps, walk};
use common::sparse::sparse;
use common::tolerance;
use ucag::backend::{Divisor, Instr, Unary, WeightSign};
use ucag::engine::{Bounds, Composite, Rule, walk_down};
use ucag::models::Preprocess;
use ucag::net::{NodeId, Op};
use ucag::{Device, Explainer, Fit, Frame, Maps, Target};

const CASES: [(&str, &str, (usize, usize)); 4] = [
    ("resnet18", "layer2", (48, 40)),
    ("resnet50", "layer3", (45, 39)),
    ("vgg11", "features.10", (48, 40)),
    ("vgg11_bn", "features.14", (71, 33)),
];

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

/// The ε rule with next to no ε, on a network of rectifiers without biases, is input × gradient.
#[test]
fn epsilon_of_nothing_is_input_times_gradient() {
    const TINY: f32 = 1e-30;
    let (rule, share) = (Rule::Epsilon(TINY), Rule::Share(Divisor::Signed(TINY)));
    let (relu, gradient) = (Rule::Pass, Composite::gradient());
    let composite = Composite { conv: rule, linear: rule, relu, avg_pool: share, add: share, ..gradient };
    for (model, _, size) in CASES {
        let graph = common::bias_free(model);
        let picture = Picture::new(size.0, size.1, 5);
        let input = picture.normalised();
        let oracle = Oracle::new(&graph, size, &input);
        let expected = common::reference::product(&input, &oracle.gradient(3)[0]);
        let found = walk(&graph, &picture, &[3], NodeId(0), &composite, true);
        common::assert_nmse(&format!("{model}, engine"), &found, &expected, tolerance::RELEVANCE);
        let error = common::nmse(&oracle.relevance(3, Rules::epsilon_of_nothing())[0], &expected);
        assert!(error < 1e-18, "{model}, oracle: NMSE {error:.1e}");
    }
}

/// Black and white after preprocessing.
fn colours() -> Bounds {
    let Preprocess { mean, std, .. } = Preprocess::default();
    let colour = |value: f32| std::array::from_fn(|c| (value - mean[c]) / std[c]);
    Bounds::Colours(colour(0.0), colour(1.0))
}

/// The nodes that a rule is tried at.
type Takes = fn(&Op) -> bool;

/// Rules by name: the engine's, the oracle's, and the nodes that take it.
fn rules() -> Vec<(&'static str, Rule, naive::Rule, Takes)> {
    use naive::Rule as N;
    let layers = |op: &Op| matches!(op, Op::Conv { .. } | Op::Linear { .. });
    let sums = |op: &Op| matches!(op, Op::Add | Op::AvgPool(_) | Op::MaxPool(_));
    let sample = Rule::Box(Bounds::Sample(Divisor::Shifted(1e-9)));
    vec![
        ("gradient", Rule::Gradient, N::Gradient, layers),
        ("epsilon", Rule::Epsilon(1e-6), N::Epsilon(1e-6), layers),
        ("epsilon of 0.5", Rule::Epsilon(0.5), N::Epsilon(0.5), layers),
        ("epsilon of nothing", Rule::Epsilon(0.0), N::Epsilon(0.0), layers),
        ("z-plus", Rule::ZPlus, N::ZPlus, layers),
        ("alpha-beta", Rule::AlphaBeta(2.0), N::AlphaBeta(2.0), layers),
        ("gamma", Rule::Gamma(0.25), N::Gamma(0.25), layers),
        ("w2", Rule::WSquare, N::WSquare, layers),
        ("flat", Rule::Flat, N::Flat, layers),
        ("set A, α = 1", Rule::Separate(1.0), N::Separate(1.0), layers),
        ("set A, α = 2", Rule::Separate(2.0), N::Separate(2.0), layers),
        ("box", Rule::Box(colours()), N::ColourBox, |_| false),
        ("box of the sample", sample, N::SampleBox, |_| false),
        ("excitation", Rule::Excitation(WeightSign::Trained), N::Excitation(false), |op| {
            matches!(op, Op::Linear { .. })
        }),
        ("norm", Rule::Share(Divisor::Signed(1e-6)), N::Share(|a, b| divs(a, b, 1e-6)), sums),
        ("proportional", Rule::Share(Divisor::NonZero), N::Share(div0), sums),
        ("positive terms", Rule::SharePositive(Divisor::NonZero), N::SharePositive(div0), |op| matches!(op, Op::Add)),
    ]
}

/// Every rule at every kind of node, on signed numbers that have nothing to do with a logit: `y·(y + 0.3)` of the node's
/// own result, so that no quotient by it is ill-conditioned.
#[test]
fn every_rule_agrees_with_its_definition() {
    for (model, _, size) in CASES {
        let graph = common::tiny_graph(model);
        let picture = Picture::new(size.0, size.1, 6);
        let oracle = Oracle::new(&graph, size, &picture.normalised());
        let mut tried = 0;
        for (name, rule, naive, takes) in rules() {
            // Results near zero divide by little more than the stabiliser.
            let bound = if name.starts_with("epsilon") { tolerance::CANCELLING } else { tolerance::RELEVANCE };
            let fits = |id: &NodeId| {
                let node = graph.node(*id);
                let boxed = matches!(rule, Rule::Box(_)) && node.inputs == [NodeId(0)];
                let excited = matches!(rule, Rule::Excitation(_)) && !graph.node(*id).inputs.is_empty();
                let excited = excited && matches!(node.op, Op::Conv { .. }) && graph.non_negative(node.inputs[0]);
                takes(&node.op) || boxed || excited
            };
            for id in (1..graph.nodes().len()).map(NodeId).filter(fits).step_by(2) {
                let node = graph.node(id);
                let composite = Composite { named: vec![(id, rule)], ..Composite::gradient() };
                let seed: Vec<f64> = oracle.values[id.0].iter().map(|y| y * (y + 0.3)).collect();
                let shares = oracle.shares(id, naive, &seed);
                // The way to a shortcut's source leads through the block.
                let ends = node.inputs.iter().zip(&shares).filter(|(i, _)| graph.readers(**i) == [id]);
                for (input, expected) in ends {
                    let found = program(&graph, &picture, &[0], |w, _| {
                        let (x, y) = (w.value(id), w.class_reg(seed.len()));
                        w.push(Instr::Unary { f: Unary::Plus(0.3), x, y });
                        let r = w.multiply(x, y);
                        (walk_down(w, (id, r), *input, &composite).at(*input).expect("an input"), expected.len())
                    });
                    let what = format!("{model}, {name} at {}", node.name);
                    common::assert_nmse(&what, &found, expected, bound);
                    tried += 1;
                }
            }
        }
        assert!(tried > 40, "{model}: {tried} rules at nodes");
    }
}

/// Every method of the family by definition.
fn methods() -> [(&'static str, Rules); 7] {
    use naive::Rule::{AlphaBeta, ColourBox, Flat, Gamma, ZPlus};
    [
        ("lrp-epsilon-plus", EPSILON_PLUS),
        ("lrp-epsilon-plus-flat", Rules::zennit(Flat, ZPlus)),
        ("lrp-epsilon-alpha2-beta1", Rules::zennit(AlphaBeta(2.0), AlphaBeta(2.0))),
        ("lrp-epsilon-alpha2-beta1-flat", Rules::zennit(Flat, AlphaBeta(2.0))),
        ("lrp-epsilon-gamma-box", Rules::zennit(ColourBox, Gamma(0.25))),
        ("lrp", Rules::separate(1.0)),
        ("lrp-ab", Rules::separate(2.0)),
    ]
}

#[test]
fn every_composite_agrees_with_the_oracle() {
    for (model, _, size) in CASES {
        let graph = common::tiny_graph(model);
        let picture = Picture::new(size.0, size.1, 7);
        let oracle = Oracle::new(&graph, size, &picture.normalised());
        let classes = [5, 1];
        for (method, rules) in methods() {
            let found = raw_maps(&graph, &picture, &classes, method, graph.output(), true);
            let map = |c: &usize| {
                let r = oracle.relevance(*c, rules)[0].clone();
                r.chunks_exact(3).map(|pixel| pixel.iter().sum()).collect::<Vec<f64>>()
            };
            let expected: Vec<f64> = classes.iter().flat_map(map).collect();
            // Residual sums of nearly opposite terms, whose shares are large, and the differences that α = 2 takes.
            let cancels = model == "resnet18" && ["lrp", "lrp-ab"].contains(&method) || method.contains("alpha2");
            let bound = if cancels { tolerance::CANCELLING } else { tolerance::RELEVANCE };
            common::assert_nmse(&format!("{model}, {method}"), &found, &expected, bound);
        }
    }
}

/// Where a mean's relevance is spread evenly, some arrives where a rectifier gave zero, whose value thus does not stand for
/// the sum before it.
#[test]
fn relevance_of_what_rectifiers_cut_off() {
    for (model, _, size) in CASES {
        let graph = common::tiny_graph(model);
        let picture = Picture::new(size.0, size.1, 8);
        let oracle = Oracle::new(&graph, size, &picture.normalised());
        let composite = Composite { avg_pool: Rule::Gradient, ..Composite::epsilon_and(Rule::ZPlus) };
        let found = walk(&graph, &picture, &[2], NodeId(0), &composite, true);
        let expected = oracle.relevance(2, Rules { avg_pool: naive::Rule::Gradient, ..EPSILON_PLUS });
        common::assert_nmse(model, &found, &expected[0], tolerance::NEAR_ZERO);
    }
}

/// A sum of zeros sends nothing: neighbours' products, of which Winograd's algorithm leaves traces in it, must not become
/// large by a division.
#[test]
fn sums_of_zeros_send_nothing() {
    let (graph, picture) = (Arc::new(sparse(8.0)), Picture::new(24, 20, 3));
    let [hidden, end] = ["hidden", "b"].map(|name| graph.layer(name).expect("a layer"));
    let without = sparse(0.0);
    let [oracle, unbiased] = [&*graph, &without].map(|g| Oracle::new(g, picture.size, &picture.normalised()));
    let r = &oracle.values[end.0];
    for (rule, definition) in
        [(Rule::Excitation(WeightSign::Folded), naive::Rule::Excitation(true)), (Rule::ZPlus, naive::Rule::ZPlus)]
    {
        let expected = unbiased.shares(end, definition, r).remove(0);
        let composite = Composite { named: vec![(end, rule)], biases: false, ..Composite::gradient() };
        let found = program(&graph, &picture, &[0], |w, _| {
            let r = w.value(end);
            (walk_down(w, (end, r), hidden, &composite).at(hidden).expect("an input"), expected.len())
        });
        let sent: f64 = expected.iter().sum();
        assert!(sent < 0.95 * r.iter().sum::<f64>(), "{rule:?}: no sum is one of zeros");
        common::assert_nmse(&format!("{rule:?}"), &found, &expected, tolerance::RELEVANCE);
    }
}

/// Relevance is linear in what it starts from.
#[test]
fn relevance_is_linear_in_the_seed() {
    let gamma = Composite { first: Some(Rule::Box(colours())), ..Composite::epsilon_and(Rule::Gamma(0.25)) };
    let excitation = Composite::excitation(WeightSign::Trained);
    for (model, layer, size) in CASES {
        let graph = common::tiny_graph(model);
        let picture = Picture::new(size.0, size.1, 9);
        let stop = graph.layer(layer).expect("a layer");
        let from = |stop, composite, value| walk(&graph, &picture, &[2], stop, composite, value);
        let logit = f64::from(from(graph.output(), &gamma, true)[2]);
        for composite in [&gamma, &excitation, &Composite::separate(2.0), &Composite::epsilon_and(Rule::ZPlus)] {
            let [scaled, unit] = [true, false].map(|value| from(stop, composite, value));
            let expected: Vec<f64> = unit.iter().map(|r| f64::from(*r) * logit).collect();
            common::assert_nmse(&format!("{model}, seed"), &scaled, &expected, tolerance::CANCELLING);
        }
    }
}
