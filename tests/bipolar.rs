//! RAP, RSP and AGF: each against its definition in `f64`, what they conserve, and degenerate inputs.

mod common;

use std::sync::Arc;

use common::oracle::Oracle;
use common::rig::{Picture, program, raw_maps, raw_maps_set};
use common::sparse::sparse;
use common::{Random, tolerance};
use ucag::models::Network;
use ucag::net::{AvgPool, Builder, Graph, NodeId, Tensors, Window};

/// Network and picture: sides that no stride divides, and at which the bins of VGG's pooling overlap.
const CASES: [(&str, (usize, usize)); 4] =
    [("resnet18", (48, 40)), ("resnet50", (45, 39)), ("vgg11", (48, 72)), ("vgg11_bn", (71, 33))];

const CLASSES: [usize; 3] = [6, 0, 6];

/// The colours' sum.
fn summed(relevance: &[f64]) -> Vec<f64> {
    relevance.chunks_exact(3).map(|pixel| pixel.iter().sum()).collect()
}

fn check(what: &str, found: &[f32], expected: impl Fn(usize) -> Vec<f64>) {
    let expected: Vec<f64> = CLASSES.iter().flat_map(|class| expected(*class)).collect();
    assert!(expected.iter().all(|v| v.is_finite()), "{what}: the oracle is not finite");
    common::assert_nmse(what, found, &expected, tolerance::RELEVANCE);
}

struct Setting {
    name: &'static str,
    graph: Arc<Graph>,
    layer: NodeId,
    picture: Picture,
    input: Vec<f64>,
}

impl Setting {
    fn of(name: &'static str, network: Network, (h, w): (usize, usize)) -> Self {
        let picture = Picture::new(h, w, 1);
        let input = picture.normalised();
        Self { name, layer: network.layer, graph: Arc::new(network.graph), picture, input }
    }

    fn all() -> impl Iterator<Item = Self> {
        CASES.into_iter().map(|(name, size)| Self::of(name, common::tiny(name), size))
    }

    /// The oracle with the engine's own activations. Shares of a sum whose terms nearly cancel are as large as the last
    /// bits of these terms make them, so that on other activations, however near, even `f64` gives another map.
    fn oracle(&self) -> Oracle<'_> {
        let mut oracle = Oracle::new(&self.graph, self.picture.size, &self.input);
        let nodes = (0..self.graph.nodes().len()).map(NodeId);
        for node in nodes.clone() {
            let values = program(&self.graph, &self.picture, &[0], |w, _| {
                // All are asked for, so that no program fuses what another one does not.
                nodes.clone().for_each(|node| _ = w.value(node));
                (w.value(node), w.shape(node).len())
            });
            let exact = std::mem::replace(&mut oracle.values[node.0], common::to_f64(&values));
            let what = format!("{} of {}", self.graph.node(node).name, self.name);
            common::assert_nmse(&what, &values, &exact, tolerance::GRADIENT);
        }
        oracle
    }

    fn maps(&self, method: &str, set: &[(&str, &str)]) -> Vec<f32> {
        raw_maps_set(&self.graph, &self.picture, &CLASSES, (method, set), self.layer, false)
    }

    fn check_rap(&self) {
        let oracle = self.oracle();
        for (variant, symmetric) in [("agf", "false"), ("orig", "false"), ("agf", "true"), ("orig", "true")] {
            let found = self.maps("rap", &[("variant", variant), ("symmetric", symmetric)]);
            let what = format!("RAP on {}, variant {variant}, symmetric {symmetric}", self.name);
            check(&what, &found, |c| summed(&oracle.rap(c, variant == "orig", symmetric == "true")[0]));
        }
    }

    fn check_rsp(&self, layer: NodeId) {
        let oracle = self.oracle();
        let found = raw_maps(&self.graph, &self.picture, &CLASSES, "rsp", layer, false);
        let what = format!("RSP on {} from {}", self.name, self.graph.node(layer).name);
        check(&what, &found, |c| summed(&oracle.rsp(layer, c)[0]));
    }

    fn check_agf(&self) {
        let oracle = self.oracle();
        let whole = common::to_f64(&self.maps("agf", &[]));
        let cases: [&[&str]; 9] = [
            &[],
            &["a"],
            &["fx"],
            &["fdx"],
            &["m"],
            &["regulariser"],
            &["grad_cam"],
            &["grad_cam", "fdx", "regulariser"],
            &["a", "fx", "fdx", "m"],
        ];
        for changed in cases {
            let set: Vec<(&str, &str)> =
                changed.iter().map(|key| (*key, if *key == "grad_cam" { "true" } else { "false" })).collect();
            let found = self.maps("agf", &set);
            let what = format!("AGF on {} with {set:?}", self.name);
            check(&what, &found, |c| {
                let phi = &oracle.agf(c, changed)[0];
                let top = phi.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                summed(phi).iter().map(|v| v / top).collect()
            });
            let change = common::nmse(&common::to_f64(&found), &whole);
            assert!(
                changed.is_empty() || change > 1e3 * tolerance::RELEVANCE,
                "{what}: changes it by {change:.1e} only"
            );
        }
    }
}

#[test]
fn rap_agrees_with_its_definition() {
    Setting::all().for_each(|setting| setting.check_rap());
}

#[test]
fn rsp_agrees_with_its_definition() {
    for setting in Setting::all() {
        setting.check_rsp(setting.layer);
        if let Ok(pool) = setting.graph.layer("avgpool") {
            setting.check_rsp(pool);
        }
    }
}

#[test]
fn agf_agrees_with_its_definition() {
    Setting::all().for_each(|setting| setting.check_agf());
}

/// A network whose hidden layers read values of both signs.
fn signed() -> Setting {
    let shapes: [(&str, &[usize]); 4] =
        [("a", &[4, 3, 3, 3]), ("b", &[6, 4, 3, 3]), ("c", &[5, 6, 1, 1]), ("d", &[common::CLASSES, 5])];
    let tensors = shapes.iter().flat_map(|(key, shape)| {
        let values = |kind: &str, n| Random::named(&format!("{key}.{kind}"), 1).units(n);
        let weight = (format!("{key}.weight"), shape.to_vec(), values("weight", shape.iter().product()));
        [weight, (format!("{key}.bias"), vec![shape[0]], values("bias", shape[0]))]
    });
    let tensors: Vec<_> = tensors.collect();
    let tensors = Tensors::from_bytes("signed", common::safetensors(&tensors, &[])).expect("a well-formed file");
    let mut b = Builder::new(Some(&tensors), |n| n);
    let input = b.input();
    let a = b.conv(input, "a", 4, Window::square(3, 2, 1)).expect("a convolution");
    let x = b.conv(a, "b", 6, Window::square(3, 1, 1)).expect("a convolution");
    let x = b.conv(x, "c", 5, Window::square(1, 1, 0)).expect("a convolution");
    let relu = b.relu(x, "relu");
    let x = b.avg_pool(relu, "avgpool", AvgPool::Adaptive(1, 1));
    let x = b.flatten(x, "flatten", 1);
    b.linear(x, "d", common::CLASSES).expect("a linear layer");
    let (graph, _) = b.finish("signed").expect("a fitting file");
    let picture = Picture::new(13, 10, 2);
    let input = picture.normalised();
    Setting { name: "signed", graph: Arc::new(graph), layer: relu, picture, input }
}

#[test]
fn hidden_layers_may_read_negative_values() {
    let setting = signed();
    setting.check_rap();
    setting.check_rsp(setting.layer);
    setting.check_agf();
}

/// Sums of zeros beside others, which must not be left with traces of these.
#[test]
fn sums_may_be_of_zeros() {
    let (graph, picture) = (Arc::new(sparse(8.0)), Picture::new(24, 20, 3));
    let (layer, input) = (graph.layer("relu").expect("a layer"), picture.normalised());
    let setting = Setting { name: "sparse", graph, layer, picture, input };
    setting.check_rap();
}

/// What each method starts with arrives at the input: its shifts restore totals, all else shares in proportion.
#[test]
fn totals_are_kept() {
    for setting in Setting::all() {
        let oracle = setting.oracle();
        let total = |values: &[f64]| values.iter().sum::<f64>();
        let kept = |what: &str, found: &[f32], expected: &dyn Fn(usize) -> f64| {
            for (map, class) in found.chunks_exact(found.len() / CLASSES.len()).zip(CLASSES) {
                let map = common::to_f64(map);
                let size: f64 = map.iter().map(|v| v.abs()).sum();
                let error = (total(&map) - expected(class)).abs() / size;
                assert!(error < tolerance::CONSERVED, "{what} on {}: class {class} loses {error:.1e}", setting.name);
            }
        };
        for variant in ["agf", "orig"] {
            let found = setting.maps("rap", &[("variant", variant)]);
            kept("RAP", &found, &|class| oracle.logits()[class]);
        }
        let found = setting.maps("rsp", &[]);
        kept("RSP", &found, &|class| total(&oracle.rsp(setting.layer, class)[setting.layer.0]));
        let features = setting.graph.node(setting.graph.output()).inputs[0];
        let found = setting.maps("agf", &[("raw", "true")]);
        kept("AGF", &found, &|class| total(&oracle.agf(class, &[])[features.0]));
    }
}

/// Nothing to explain, a class that no neuron speaks for, a layer that says nothing: no number is lost.
#[test]
fn nothing_gives_an_empty_map() {
    for (model, head, silenced) in
        [("resnet18", "fc", "layer4.1.bn2.bias"), ("vgg11", "classifier.6", "features.18.bias")]
    {
        for dead_layer in [false, true] {
            let mut tensors = common::tensors(model, common::CLASSES, common::NARROWING);
            for (key, _, values) in &mut tensors {
                if key.strip_prefix(head).is_some_and(|kind| kind == ".weight" || kind == ".bias") {
                    values.fill(0.0);
                }
                if dead_layer && key == silenced {
                    values.fill(-1e6);
                }
            }
            let setting = Setting::of(model, common::network(&tensors), (48, 40));
            for (method, set) in [("rap", ("variant", "agf")), ("rap", ("variant", "orig")), ("agf", ("raw", "true"))] {
                let map = setting.maps(method, &[set]);
                assert!(map.iter().all(|v| *v == 0.0), "{method} on {model}, dead layer: {dead_layer}");
            }
            for method in ["rsp", "agf"] {
                let map = setting.maps(method, &[]);
                assert!(map.iter().all(|v| *v == 0.0), "{method} on {model}, dead layer: {dead_layer}");
            }
        }
    }
}

/// A layer within that says nothing, above which biases still speak.
#[test]
fn dead_layers_within_give_finite_maps() {
    for (model, silenced) in [("resnet50", "layer3.2.bn2.bias"), ("vgg11_bn", "features.9.bias")] {
        let mut tensors = common::tensors(model, common::CLASSES, common::NARROWING);
        tensors.iter_mut().filter(|(key, ..)| key == silenced).for_each(|(_, _, values)| values.fill(-1e6));
        let setting = Setting::of(model, common::network(&tensors), (48, 40));
        for method in ["rap", "rsp", "agf"] {
            assert!(setting.maps(method, &[]).iter().all(|v| v.is_finite()), "{method} on {model}");
        }
    }
}
