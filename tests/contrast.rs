//! Contrastive relevance and excitation backprop: each method against its definition, and what its definition promises.

mod common;

use std::sync::Arc;

use common::oracle::Oracle;
use common::reference::{div0, softmax};
use common::relevance::{Rule, Rules};
use common::rig::{Picture, raw_maps, raw_maps_set};
use common::tolerance;
use ucag::methods::{LayerUse, Method};
use ucag::net::{Graph, NodeId};

/// Networks and pictures: sides that no stride divides.
const CASES: [(&str, (usize, usize)); 4] =
    [("resnet18", (48, 40)), ("resnet50", (45, 39)), ("vgg11", (48, 40)), ("vgg11_bn", (71, 33))];

/// A network and where excitation is read.
fn network(model: &str) -> (Arc<Graph>, NodeId) {
    let network = common::tiny(model);
    let layer = LayerUse::Earlier.default(&network).expect("a layer");
    (Arc::new(network.graph), layer)
}

fn channel_sum(values: &[f64], channels: usize) -> Vec<f64> {
    values.chunks_exact(channels).map(|pixel| pixel.iter().sum()).collect()
}

/// What starts at the class and what at the others, and by which rules the others go (`methods.md` 11).
fn seeds(method: (&str, &str), logits: &[f64], k: usize) -> ([Vec<f64>; 2], Rules) {
    let set_a = Rules::separate(1.0);
    let (p, n) = (softmax(logits), logits.len());
    let rest: f64 = (0..n).filter(|j| *j != k).map(|j| p[j]).sum();
    let at = |target: f64, others: &dyn Fn(usize) -> f64| {
        let target = (0..n).map(|j| if j == k { target } else { 0.0 }).collect();
        [target, (0..n).map(|j| if j == k { 0.0 } else { others(j) }).collect()]
    };
    match method {
        ("sglrp", _) => (at(p[k] * rest + 1e-8, &|j| p[k] * p[j]), set_a),
        ("clrp", "authors") => (at(logits[k].abs(), &|j| logits[j].abs()), set_a),
        ("clrp", "negated") => {
            let [target, _] = at(logits[k].abs(), &|_| 0.0);
            ([target.clone(), target], Rules { head: Rule::Negated(&Rule::Separate(1.0)), ..set_a })
        }
        _ => (at(logits[k], &|_| logits[k] / (n - 1) as f64), set_a),
    }
}

/// A difference agrees with the oracle's, relative to what it was taken from: on small networks little of that remains,
/// but far more than rounding would leave.
fn assert_near(what: &str, found: &[f32], expected: &[f64], target: &[f64]) {
    let zeros = vec![0.0; target.len()];
    let distance = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
    let norm = distance(target, &zeros);
    let (error, remains) = (distance(&common::to_f64(found), expected) / norm, distance(expected, &zeros) / norm);
    println!("{error:.1e} of {remains:.1e} {what}");
    assert!(error <= tolerance::OP && remains >= 10.0 * error, "{what}: off by {error:.1e} of {remains:.1e}");
}

#[test]
fn contrastive_relevance_agrees_with_the_oracle() {
    for (model, size) in CASES {
        let (graph, _) = network(model);
        let picture = Picture::new(size.0, size.1, 1);
        let oracle = Oracle::new(&graph, size, &picture.normalised());
        let classes = [5, 1];
        for method in [("clrp", "paper"), ("clrp", "authors"), ("clrp", "negated"), ("sglrp", "")] {
            let map = |k: usize| -> Vec<f64> {
                let ([target, others], rules) = seeds(method, oracle.logits(), k);
                let input = |seed: &[f64], rules| channel_sum(&oracle.relevance_of(graph.output(), seed, rules)[0], 3);
                let (t, o) = (input(&target, Rules::separate(1.0)), input(&others, rules));
                let ratio = div0(t.iter().sum(), o.iter().sum());
                let difference = t.iter().zip(&o).map(|(t, o)| t - o * ratio);
                difference.map(|r| if method.1 == "authors" { r.max(0.0) } else { r }).collect()
            };
            let set = if method.0 == "clrp" { vec![("variant", method.1)] } else { vec![] };
            let found = raw_maps_set(&graph, &picture, &classes, (method.0, &set), graph.output(), true);
            for (k, found) in classes.iter().zip(found.chunks_exact(size.0 * size.1)) {
                common::assert_nmse(&format!("{model}, {method:?}"), found, &map(*k), tolerance::CANCELLING);
            }
        }
    }
}

/// Totals are matched, so that a signed map sums to nothing.
#[test]
fn contrasts_sum_to_nothing() {
    for (model, size) in CASES {
        let (graph, _) = network(model);
        let picture = Picture::new(size.0, size.1, 2);
        for method in ["clrp", "sglrp"] {
            let map = common::to_f64(&raw_maps(&graph, &picture, &[3], method, graph.output(), true));
            let (sum, size): (f64, f64) = (map.iter().sum(), map.iter().map(|r| r.abs()).sum());
            assert!(size > 0.0 && sum.abs() < tolerance::CONSERVED * size, "{model}, {method}: {sum} of {size}");
        }
    }
}

/// MWP or cMWP (`methods.md` 5) at a layer, and MWP.
fn excitation(oracle: &Oracle, method: &str, rules: Rules, k: usize, layer: NodeId) -> [Vec<f64>; 2] {
    let output = oracle.graph.output();
    let seed: Vec<f64> = (0..oracle.logits().len()).map(|j| f64::from(u8::from(j == k))).collect();
    let channels = oracle.graph.shapes(64, 64).expect("shapes")[layer.0].c;
    let marginal = channel_sum(&oracle.relevance_of(output, &seed, rules)[layer.0], channels);
    if method == "mwp" {
        return [marginal.clone(), marginal];
    }
    let contrast = oracle.graph.node(output).inputs[0];
    let p = &oracle.relevance_of(output, &seed, rules)[contrast.0];
    let q = &oracle.relevance_of(output, &seed, Rules { head: Rule::Negated(&Rule::Excitation(false)), ..rules });
    let difference: Vec<f64> = p.iter().zip(&q[contrast.0]).map(|(p, q)| p - q).collect();
    let sum = channel_sum(&oracle.relevance_of(contrast, &difference, rules)[layer.0], channels);
    [sum.into_iter().map(|s| s.max(0.0)).collect(), marginal]
}

#[test]
fn excitation_agrees_with_the_oracle() {
    let plain = Rules::excitation(false);
    let settings: [(&[(&str, &str)], Rules); 3] = [
        (&[], plain),
        (&[("clamp_inputs", "true")], Rules { add: Rule::SharePositive(div0), ..plain }),
        (&[("bn_positive", "true")], Rules::excitation(true)),
    ];
    for (model, size) in CASES {
        let (graph, default) = network(model);
        let picture = Picture::new(size.0, size.1, 3);
        let oracle = Oracle::new(&graph, size, &picture.normalised());
        let lower = graph.layer(if model.starts_with("resnet") { "layer2" } else { "features.5" }).expect("a layer");
        for (layer, method) in [(default, "mwp"), (lower, "mwp"), (default, "cmwp"), (lower, "cmwp")] {
            for (set, rules) in settings {
                let classes = [0, 4];
                let found = raw_maps_set(&graph, &picture, &classes, (method, set), layer, true);
                for (k, found) in classes.iter().zip(found.chunks_exact(found.len() / 2)) {
                    let [expected, marginal] = excitation(&oracle, method, rules, *k, layer);
                    let what = format!("{model}, {method} {set:?} at {}", graph.node(layer).name);
                    assert_near(&what, found, &expected, &marginal);
                }
            }
        }
    }
}

/// A walk from the class ends somewhere: all of its probability arrives, whichever option holds.
#[test]
fn excitation_is_conserved() {
    for (model, size) in CASES.into_iter().filter(|(model, _)| *model != "resnet50") {
        let (graph, layer) = network(model);
        let picture = Picture::new(size.0, size.1, 4);
        for set in [("clamp_inputs", "false"), ("clamp_inputs", "true"), ("bn_positive", "true")] {
            let map = raw_maps_set(&graph, &picture, &[6], ("mwp", &[set]), layer, true);
            let sum: f64 = map.iter().map(|p| f64::from(*p)).sum();
            assert!((sum - 1.0).abs() < tolerance::CONSERVED, "{model}, {set:?}: {sum} arrived");
            let plain = !model.starts_with("resnet") || set == ("clamp_inputs", "true");
            assert!(!plain || map.iter().all(|p| *p >= 0.0), "{model}, {set:?}: a negative probability");
        }
    }
}

/// The default layers of `methods.md` 5.
#[test]
fn excitation_is_read_at_the_stage_before_the_last() {
    for (method, model, layer) in [("mwp", "vgg16", "features.23"), ("cmwp", "resnet50", "layer3")] {
        let network = common::tiny(model);
        let default = Method::named(method).and_then(|m| m.layer.default(&network)).expect("a layer");
        assert_eq!(default, network.graph.layer(layer).expect("a layer"), "{method} on {model}");
    }
}
