//! What relevance conserves: nothing is lost but what biases take.

mod common;

use std::sync::Arc;

use common::oracle::Oracle;
use common::relevance::EPSILON_PLUS;
use common::rig::{Picture, programs, raw_maps, walk};
use common::{bias_free, tolerance};
use ucag::backend::{Instr, Seed};
use ucag::engine::{Composite, Rule, Writer, walk_down};
use ucag::methods::METHODS;
use ucag::net::{Graph, NodeId, Op};

/// Networks and pictures that conserve relevance. In a narrow bottleneck's 1×1 convolutions some results have no positive
/// term at all; by the z⁺ rule these absorb what they get.
const CASES: [(&str, (usize, usize)); 3] = [("resnet18", (48, 40)), ("vgg11", (48, 40)), ("vgg11_bn", (71, 33))];

/// Without biases nothing is lost on the way: at every node through which all paths lead, and at the input, the
/// relevance sums to the logit.
#[test]
fn relevance_is_conserved() {
    for (model, size) in CASES {
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
    for (model, size) in CASES {
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

/// Where no bias takes a share, and for set A in any case, a map sums to its logit: on networks without residual sums, of
/// whose large shares `f32` keeps too few digits.
#[test]
fn maps_sum_to_the_logit() {
    for (model, size) in CASES.into_iter().filter(|(model, _)| model.starts_with("vgg")) {
        let free = bias_free(model);
        let picture = Picture::new(size.0, size.1, 8);
        for method in METHODS.iter().map(|m| m.name).filter(|name| name.starts_with("lrp")) {
            let graph = if method == "lrp" { common::tiny_graph(model) } else { free.clone() };
            let logit = Oracle::new(&graph, size, &picture.normalised()).logits()[3];
            let map = raw_maps(&graph, &picture, &[3], method, graph.output(), true);
            let sum: f64 = map.iter().map(|r| f64::from(*r)).sum();
            assert!((sum - logit).abs() < tolerance::CONSERVED * logit.abs(), "{model}, {method}: {sum} of {logit}");
        }
    }
}

/// What the walk's audits say: nothing is lost but what biases take.
#[test]
fn audits_show_what_biases_take() {
    let sums = |graph: &Arc<Graph>, picture: &Picture| {
        let (mut nodes, mut counts) = (vec![], vec![]);
        let totals = programs(graph, picture, &[3], |w: &mut Writer<'_>, classes| {
            let (x, y) = (w.value(graph.output()), w.class_reg(graph.classes()));
            w.push(Instr::Seed { classes, seed: Seed::Value, x: Some(x), y });
            w.audit_all();
            walk_down(w, (graph.output(), y), NodeId(0), &Composite::epsilon_and(Rule::ZPlus));
            let mut regs = vec![];
            for audit in w.take_audits() {
                nodes.push(graph.layer(&audit.node).expect("a node"));
                counts.push([audit.expected.len(), audit.found.len(), audit.less.len()]);
                regs.extend(audit.expected.into_iter().chain(audit.found).chain(audit.less).map(|reg| (reg, 2)));
            }
            regs
        });
        let mut totals = totals.into_iter().map(|total| f64::from(total[0]));
        let lost = counts.into_iter().map(|counts| {
            let [expected, found, less] = counts.map(|n| totals.by_ref().take(n).sum::<f64>());
            expected - (found - less)
        });
        nodes.into_iter().zip(lost.collect::<Vec<_>>()).collect::<Vec<(NodeId, f64)>>()
    };
    for (model, size) in CASES {
        let picture = Picture::new(size.0, size.1, 10);
        for graph in [bias_free(model), common::tiny_graph(model)] {
            let oracle = Oracle::new(&graph, size, &picture.normalised());
            let (relevance, logit) = (oracle.relevance(3, EPSILON_PLUS), oracle.logits()[3]);
            let audits = sums(&graph, &picture);
            assert_eq!(audits.len(), graph.nodes().len() - 1, "{model}: every node but the input");
            let mut taken = 0.0;
            for (id, lost) in audits {
                let node = graph.node(id);
                let absorbed = match node.op {
                    Op::Conv { .. } => oracle.absorbed(id, true, &relevance[id.0]),
                    Op::Linear { .. } => oracle.absorbed(id, false, &relevance[id.0]),
                    _ => 0.0,
                };
                taken += absorbed.abs();
                let error = (lost - absorbed).abs() / logit.abs();
                assert!(error < tolerance::CONSERVED, "{model}, {}: lost {lost}, biases took {absorbed}", node.name);
            }
            let biased = graph.params().iter().any(|p| p.bias.iter().any(|b| *b != 0.0));
            assert_eq!(taken > 0.05 * logit.abs(), biased, "{model}: biases took {taken} of {logit}");
        }
    }
}
