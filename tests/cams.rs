//! Class activation maps: each method against its definition in `f64`, and what its definition promises.

mod common;

use std::sync::Arc;

use common::oracle::Oracle;
use common::reference::divs;
use common::rig::{Picture, Set, raw_maps_set};
use common::tolerance;
use ucag::methods::{Family, METHODS};
use ucag::net::{Graph, NodeId};

/// Network, a layer above a rectifier, picture: sides that no stride divides.
const CASES: [(&str, &str, (usize, usize)); 6] = [
    ("resnet18", "layer4", (64, 50)),
    ("resnet18", "layer2", (37, 51)),
    ("resnet50", "layer3", (45, 39)),
    ("vgg11", "features.19", (50, 64)),
    ("vgg11", "features.10", (48, 40)),
    ("vgg11_bn", "features.14", (71, 33)),
];

/// What else can be set about methods that read one layer at one resolution.
const FORMS: [Set<'_>; 5] = [
    ("grad-cam++", &[("form", "t")]),
    ("wgrad-cam", &[("minmax", "true")]),
    ("norm-grad", &[("form", "bias")]),
    ("norm-grad", &[("form", "scaling")]),
    ("norm-grad", &[("form", "selective")]),
];

fn cams() -> impl Iterator<Item = Set<'static>> {
    let plain = METHODS.iter().filter(|m| m.family == Family::Cam).map(|m| (m.name, [].as_slice()));
    plain.chain(FORMS)
}

/// A method by definition (`methods.md` 6), from activations and gradient of the layer, `[pixels, channels]`.
fn defined((method, set): Set<'_>, a: &[f64], g: &[f64], channels: usize) -> Vec<f64> {
    let form = set.first().map_or("", |(_, value)| *value);
    if method == "norm-grad" {
        return norm_grad(form, a, g, channels);
    }
    let pixels = a.len() / channels;
    let sum = |c: usize, term: &dyn Fn(f64, f64) -> f64| -> f64 {
        (0..pixels).map(|p| term(a[p * channels + c], g[p * channels + c])).sum()
    };
    let weight = |pixel: usize, c: usize| match method {
        "grad-cam++" if form == "t" => {
            let third = sum(c, &|a, g| a * g.powi(3));
            let alpha = |g: f64| {
                let denominator = 2.0 * g * g + third;
                divs(g * g, if denominator == 0.0 { 1.0 } else { denominator }, 1e-7)
            };
            sum(c, &|_, g| alpha(g) * g.max(0.0))
        }
        "wgrad-cam" if form == "true" => {
            let weights: Vec<f64> = (0..channels).map(|c| sum(c, &|a, g| a * g) / pixels as f64).collect();
            let (low, high) = weights.iter().fold((f64::MAX, f64::MIN), |(l, h), w| (l.min(*w), h.max(*w)));
            (weights[c] - low) / (high - low)
        }
        "grad-cam" => sum(c, &|_, g| g) / pixels as f64,
        "grad-cam++" => {
            let total = sum(c, &|a, _| a);
            let alpha = |g: f64| if g == 0.0 { 0.0 } else { divs(g * g, 2.0 * g * g + total * g.powi(3), 1e-6) };
            sum(c, &|_, g| alpha(g) * g.max(0.0))
        }
        "xgrad-cam" => divs(sum(c, &|a, g| a * g), sum(c, &|a, _| a), 1e-7),
        "wgrad-cam" => sum(c, &|a, g| a * g) / pixels as f64,
        "hires-cam" => g[pixel * channels + c],
        "layer-cam" => g[pixel * channels + c].max(0.0),
        _ => panic!("{method} has no definition here"),
    };
    (0..pixels).map(|p| (0..channels).map(|c| weight(p, c) * a[p * channels + c]).sum()).collect()
}

/// NormGrad (`methods.md` 8).
fn norm_grad(form: &str, a: &[f64], g: &[f64], channels: usize) -> Vec<f64> {
    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
    let map = |(a, g): (&[f64], &[f64])| match form {
        "bias" => norm(&mut g.iter().copied()),
        "scaling" => norm(&mut a.iter().zip(g).map(|(a, g)| a * g)),
        "selective" => norm(&mut a.iter().zip(g).map(|(a, g)| (a * g).max(0.0))),
        _ => norm(&mut a.iter().copied()) * norm(&mut g.iter().copied()),
    };
    a.chunks_exact(channels).zip(g.chunks_exact(channels)).map(map).collect()
}

struct Setting {
    graph: Arc<Graph>,
    layer: NodeId,
    picture: Picture,
}

impl Setting {
    fn new((model, layer, (h, w)): (&str, &str, (usize, usize)), seed: u64) -> Self {
        let graph = common::tiny_graph(model);
        let layer = graph.layer(layer).expect("a layer");
        Self { graph, layer, picture: Picture::new(h, w, seed) }
    }

    fn maps(&self, method: Set<'_>, classes: &[usize], closed_forms: bool) -> Vec<f32> {
        raw_maps_set(&self.graph, &self.picture, classes, method, self.layer, closed_forms)
    }

    fn expected(&self, method: Set<'_>, classes: &[usize]) -> Vec<f64> {
        let size = self.picture.size;
        let oracle = Oracle::new(&self.graph, size, &self.picture.normalised());
        let channels = self.graph.shapes(size.0, size.1).expect("shapes")[self.layer.0].c;
        let a = &oracle.values[self.layer.0];
        classes.iter().flat_map(|c| defined(method, a, &oracle.gradient(*c)[self.layer.0], channels)).collect()
    }
}

fn sum(map: &[f32]) -> f64 {
    map.iter().map(|v| f64::from(*v)).sum()
}

#[test]
fn maps_agree_with_their_definitions() {
    for case in CASES {
        let setting = Setting::new(case, 1);
        for method in cams().filter(|(name, _)| *name != "cameras") {
            let classes = [5, 2, 5];
            let expected = setting.expected(method, &classes);
            for closed_forms in [true, false] {
                let found = setting.maps(method, &classes, closed_forms);
                let what = format!("{method:?} on {} at {}, closed forms: {closed_forms}", case.0, case.1);
                // Form T's denominators are sums of both signs, which may nearly cancel.
                let bound = if method.1 == [("form", "t")] { tolerance::NEAR_ZERO } else { tolerance::GRADIENT };
                common::assert_nmse(&what, &found, &expected, bound);
            }
        }
    }
}

/// Where activations have both signs, denominators may vanish; the maps stay finite.
#[test]
fn signed_layers_give_finite_maps() {
    for (model, layer) in [("resnet18", "layer3.0.bn1"), ("resnet50", "layer2.1.bn3"), ("vgg11", "features.8")] {
        let setting = Setting::new((model, layer, (48, 40)), 2);
        for method in cams() {
            let maps = setting.maps(method, &[0, 3], true);
            assert!(maps.iter().all(|v| v.is_finite()), "{method:?} on {model} at {layer}");
        }
    }
}

/// XGrad-CAM's weights are chosen so that its map sums to gradient × activation, as HiResCAM's does.
#[test]
fn xgrad_cam_sums_to_gradient_times_activation() {
    for case in CASES {
        let setting = Setting::new(case, 3);
        for class in [1, 6] {
            let [x, hires] = ["xgrad-cam", "hires-cam"].map(|name| setting.maps((name, &[]), &[class], false));
            let size: f64 = hires.iter().map(|v| f64::from(v.abs())).sum();
            assert!((sum(&x) - sum(&hires)).abs() < tolerance::SAME_MAP * size, "{case:?}");
        }
    }
}

/// Under a pooled linear head the gradient is the same at every pixel: Grad-CAM, XGrad-CAM and HiResCAM are one map
/// (`methods.md` 2), and the plain logit is its sum and the bias.
#[test]
fn pooled_heads_make_cams_equal() {
    for closed_forms in [true, false] {
        let setting = Setting::new(("resnet18", "layer4", (70, 45)), 4);
        let oracle = Oracle::new(&setting.graph, setting.picture.size, &setting.picture.normalised());
        let grad_cam = setting.maps(("grad-cam", &[]), &[4], closed_forms);
        for method in ["xgrad-cam", "hires-cam"] {
            let found = setting.maps((method, &[]), &[4], closed_forms);
            common::assert_nmse(method, &found, &common::to_f64(&grad_cam), tolerance::GRADIENT);
        }
        let bias = f64::from(setting.graph.params().last().expect("a layer").bias[4]);
        let logit = oracle.logits()[4];
        assert!((sum(&grad_cam) + bias - logit).abs() < tolerance::CONSERVED * logit.abs());
    }
}

/// Grad-CAM++'s two forms differ under a pooled linear head by their stabilisers alone, which are small beside the
/// squared gradients of this one; elsewhere they are two methods.
#[test]
fn forms_of_grad_cam_plus_plus_meet_under_a_pooled_head() {
    let difference = |layer, closed_forms| {
        let setting = Setting::new(("resnet18", layer, (70, 45)), 4);
        let [s, t] = ["s", "t"].map(|form| setting.maps(("grad-cam++", &[("form", form)]), &[4], closed_forms));
        common::nmse(&common::to_f64(&t), &common::to_f64(&s))
    };
    for closed_forms in [true, false] {
        let (pooled, other) = (difference("layer4", closed_forms), difference("layer2", closed_forms));
        assert!(pooled < 1e-5 && other > 1e-2, "{pooled:.1e} and {other:.1e}");
    }
}

/// Only positive gradients count in Grad-CAM++ and LayerCAM.
#[test]
fn positive_methods_are_positive() {
    for case in CASES {
        let setting = Setting::new(case, 5);
        for method in ["grad-cam++", "layer-cam"] {
            let map = setting.maps((method, &[]), &[0, 1, 2], true);
            assert!(map.iter().all(|v| *v >= 0.0), "{method}: {case:?}");
            assert!(map.iter().any(|v| *v > 0.0), "{method}: {case:?}");
        }
    }
}

/// Quotients of zero by zero are zero: a class that reads nothing, and a layer that says nothing.
#[test]
fn nothing_gives_an_empty_map() {
    const CLASS: usize = 3;
    for (model, head, silenced) in
        [("resnet18", "fc.weight", "layer4.1.bn2.bias"), ("vgg11", "classifier.6.weight", "features.18.bias")]
    {
        for dead_layer in [false, true] {
            let mut tensors = common::tensors(model, common::CLASSES, common::NARROWING);
            for (key, shape, values) in &mut tensors {
                if !dead_layer && key == head {
                    values[CLASS * shape[1]..][..shape[1]].fill(0.0);
                }
                if dead_layer && key == silenced {
                    values.fill(-1e6);
                }
            }
            let network = common::network(&tensors);
            let (graph, picture) = (Arc::new(network.graph), Picture::new(48, 40, 6));
            for (method, closed_forms) in cams().flat_map(|m| [(m, false), (m, true)]) {
                let map = raw_maps_set(&graph, &picture, &[CLASS], method, network.layer, closed_forms);
                assert!(map.iter().all(|v| v.is_finite()), "{method:?} on {model}, dead layer: {dead_layer}");
                // The bias form reads the gradient alone, which a dead layer may have.
                let empty = !dead_layer || method.1 != [("form", "bias")];
                assert!(!empty || map.iter().all(|v| *v == 0.0), "{method:?} on {model}, dead layer: {dead_layer}");
            }
        }
    }
}
