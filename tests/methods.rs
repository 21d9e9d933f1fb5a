//! Every method on every network: finite maps of the right size, whose bits depend on nothing but the picture.

mod common;

use ucag::methods::METHODS;
#[cfg(feature = "cuda")]
use ucag::methods::{Level, Method};
use ucag::models::MODELS;
use ucag::{Builder, Device, Explainer, Explanation, Fit, Frame, Grid, Maps, Network, Target};

const SIZE: (usize, usize) = (40, 47);

/// The deepest narrow network's logits lie thousands apart. There the probability that AGF starts from is 1 to the last
/// bit and has no gradient, so that the map is empty.
const CERTAIN: (&str, &str) = ("agf", "resnet152");

/// Where 16 bits cannot hold a map: the CPU's own maps with no more changed than weights rounded so move by 0.04 to 3.6.
#[cfg(feature = "cuda")]
const LOST: [(&str, &[&str]); 2] =
    [("cmwp", &["vgg16", "vgg19", "vgg16_bn", "vgg19_bn"]), ("agf", &["vgg13_bn", "vgg16_bn", "vgg19_bn"])];

/// Where 16 bits hold a map less well than elsewhere.
#[cfg(feature = "cuda")]
const FAR: [(&str, &[&str]); 3] = [
    ("vgg11", &["grad-cam", "xgrad-cam", "hires-cam", "sglrp", "agf"]),
    ("vgg16", &["agf"]),
    ("vgg13_bn", &["hires-cam", "cameras"]),
];

/// Few patches, each scaled to little more than the smallest picture that a VGG takes.
fn grid(n: usize) -> Grid {
    Grid { n, rho: Some(0.7), alpha: 1.3, ..Grid::default() }
}

#[derive(Clone, Copy)]
struct Setting {
    device: Device,
    method: &'static str,
    /// Patches along an axis.
    n: usize,
    batch: usize,
    threads: usize,
}

/// Repetitions of methods that run the network again and again: their number changes nothing about what is tested here.
const FEW: [(&str, &str); 3] = [("smoothgrad", "draws"), ("integrated-gradients", "steps"), ("cameras", "resolutions")];

fn with_few(builder: Builder, methods: &[&str]) -> Builder {
    let known = FEW.iter().filter(|(method, _)| methods.contains(method));
    known.fold(builder, |builder, (method, key)| builder.set(format!("{method}.{key}"), "2"))
}

fn explainer(network: &Network, setting: &Setting) -> Explainer {
    let builder =
        Explainer::with_network(network.clone()).method(setting.method).maps(Maps::Both).grid(grid(setting.n));
    let builder = builder.fit(Fit::None).device(setting.device).batch(setting.batch).threads(setting.threads);
    with_few(builder, &[setting.method]).build().expect("an explainer")
}

fn explain(explainer: &mut Explainer, target: &Target) -> Explanation {
    let pixels = common::picture(SIZE.0, SIZE.1, 1);
    let frame = Frame::rgb(&pixels, SIZE.0, SIZE.1).expect("a frame");
    explainer.explain(&frame, target).expect("an explanation")
}

/// Everything that an explanation says about one class, as bits.
fn bits(explanation: &Explanation, class: usize) -> Vec<u32> {
    let entry = explanation.classes.iter().find(|c| c.class == class).expect("the class was asked for");
    let maps = entry.ucag.iter().chain(&entry.plain).flat_map(|m| &m.data);
    maps.chain(&entry.patch_probabilities).chain([&entry.probability]).map(|v| v.to_bits()).collect()
}

fn check(network: &Network, method: &'static str) {
    let what = format!("{method} on {}", network.model.name);
    let setting = Setting { device: Device::Cpu, method, n: 3, batch: 1, threads: 1 };
    let mut first = explainer(network, &setting);
    let top = explain(&mut first, &Target::Top(1));
    let class = top.classes[0].class;
    assert_eq!(class, top.top[0].0, "{what}");
    assert_eq!(top.classes[0].patch_probabilities.len(), 9, "{what}");
    let maps = [&top.classes[0].ucag, &top.classes[0].plain].map(|m| m.as_ref().expect("both maps"));
    for map in maps {
        assert_eq!((map.h, map.w), SIZE, "{what}");
        assert!(map.data.iter().all(|v| v.is_finite()), "{what}: not finite");
        let (low, high) = map.range();
        assert_eq!(high == low, (method, network.model.name) == CERTAIN, "{what}: {low} to {high}");
    }
    let expected = bits(&top, class);

    // Two methods see every way to share the work; the others, which are cut up by the same plans, see another one.
    let first_two = METHODS[..2].iter().any(|m| m.name == method);
    let ways: &[_] = if first_two { &[(1, 2), (2, 1), (5, 3), (5, 3), (9, 2)] } else { &[(5, 3)] };
    for (batch, threads) in ways.iter().copied() {
        let setting = Setting { batch, threads, ..setting };
        let again = explain(&mut explainer(network, &setting), &Target::Classes(vec![class]));
        assert_eq!(bits(&again, class), expected, "{what}: batches of {batch} on {threads} threads");
    }
    // Deeper networks of a kind add layers, and none of a new kind.
    if !first_two && !["resnet18", "resnet50", "vgg11", "vgg11_bn"].contains(&network.model.name) {
        return;
    }

    let classes = [class, (class + 4) % common::CLASSES];
    let together = explain(
        &mut explainer(network, &Setting { batch: 2, threads: 2, ..setting }),
        &Target::Classes(classes.to_vec()),
    );
    for class in classes {
        let alone = explain(&mut first, &Target::Classes(vec![class]));
        assert_eq!(bits(&together, class), bits(&alone, class), "{what}: class {class} with others and alone");
    }
}

/// Twice the class's row in the last layer: twice the map of a linear method, and not that of another one.
#[test]
fn linear_methods_are_linear() {
    for name in ["resnet18", "vgg11_bn"] {
        let tensors = common::tensors(name, common::CLASSES, common::NARROWING);
        let class = 4;
        let mut doubled = tensors.clone();
        for (key, shape, values) in doubled.iter_mut().filter(|(_, shape, _)| shape[0] == common::CLASSES) {
            assert!(key.starts_with("fc.") || key.starts_with("classifier.6."), "{key} is not of the last layer");
            let row = values.len() / shape[0];
            values[class * row..][..row].iter_mut().for_each(|v| *v *= 2.0);
        }
        let [one, two] = [tensors, doubled].map(|tensors| common::network(&tensors));
        for method in METHODS {
            let setting = Setting { device: Device::Cpu, method: method.name, n: 2, batch: 1, threads: 2 };
            let map = |network: &Network| {
                let explanation = explain(&mut explainer(network, &setting), &Target::Classes(vec![class]));
                explanation.classes[0].plain.as_ref().expect("a plain map").data.clone()
            };
            let expected: Vec<f64> = map(&one).iter().map(|v| 2.0 * f64::from(*v)).collect();
            assert!(expected.iter().any(|v| *v != 0.0), "{} on {name}: nothing to tell", method.name);
            let error = common::nmse(&common::to_f64(&map(&two)), &expected);
            assert_eq!(error < 1e-6, method.linear, "{} on {name}: NMSE {error:.1e}", method.name);
        }
    }
}

/// All methods in one run, for several classes: each gives what it gives alone.
#[test]
fn several_methods_give_what_each_gives_alone() {
    for name in ["resnet18", "resnet50", "vgg11_bn"] {
        let network = common::tiny(name);
        let build = |methods: &[&str], batch| {
            let builder = Explainer::with_network(network.clone()).methods(methods.to_vec()).maps(Maps::Both);
            let builder =
                builder.grid(grid(3)).fit(Fit::None).device(Device::Cpu).overlay(true).batch(batch).threads(2);
            with_few(builder, methods).build().expect("an explainer")
        };
        let names: Vec<&str> = METHODS.iter().map(|m| m.name).collect();
        let target = Target::Classes(vec![4, 1]);
        let together = explain(&mut build(&names, 4), &target);
        assert_eq!(together.classes.len(), 2 * METHODS.len());
        for (m, method) in METHODS.iter().enumerate() {
            let alone = explain(&mut build(&[method.name], 3), &target);
            for (k, alone) in alone.classes.iter().enumerate() {
                let found = &together.classes[k * METHODS.len() + m];
                let what = format!("class {} by {} on {name}", alone.class, method.name);
                assert_eq!((found.class, found.method.name), (alone.class, method.name), "{what}");
                assert!(found.ucag == alone.ucag && found.plain == alone.plain, "{what}: maps");
                assert!(found.overlay.is_some() && found.overlay == alone.overlay, "{what}: overlay");
                assert_eq!(found.patch_probabilities, alone.patch_probabilities, "{what}");
                assert_eq!((found.probability, found.status), (alone.probability, alone.status), "{what}");
            }
        }
    }
}

/// Methods are asked for by name, once each, and at least one of them.
#[test]
fn lists_of_methods_that_make_no_sense() {
    let error = |names: &[&str]| {
        let builder = Explainer::with_network(common::tiny("resnet18")).device(Device::Cpu).methods(names.to_vec());
        builder.build().err().expect("an error").to_string()
    };
    assert_eq!(error(&[]), "method: expected one or more, found none");
    assert_eq!(error(&["guided", "deconv", "guided"]), "method: expected each once, found `guided` twice");
    assert!(error(&["guided", "tea-leaves"]).starts_with("unknown method `tea-leaves`; known: grad-cam, "));
}

/// Checks follow relevance from node to node down to the map, which they leave as it is.
#[test]
fn checks_follow_relevance_down_to_the_map() {
    for name in ["resnet18", "vgg11_bn"] {
        let network = common::tiny(name);
        let build = |check| {
            let builder = Explainer::with_network(network.clone()).methods(["grad-cam", "lrp-epsilon-plus"]);
            let builder = builder.maps(Maps::Both).grid(grid(3)).fit(Fit::None).device(Device::Cpu);
            builder.check(check).build().expect("an explainer")
        };
        let target = Target::Classes(vec![4, 1]);
        let (checked, plain) = (explain(&mut build(true), &target), explain(&mut build(false), &target));
        for (checked, plain) in checked.classes.iter().zip(&plain.classes) {
            let what = format!("class {} by {} on {name}", checked.class, checked.method.name);
            assert!(checked.ucag == plain.ucag && checked.plain == plain.plain, "{what}: maps");
            assert!(plain.checks.is_empty(), "{what}");
            assert_eq!(checked.checks.is_empty(), checked.method.name == "grad-cam", "{what}");
        }
        for entry in checked.classes.iter().filter(|entry| !entry.checks.is_empty()) {
            let what = format!("class {} on {name}", entry.class);
            let near = |a: f64, b: f64| (a - b).abs() <= 1e-5 * (1.0 + a.abs());
            let (map, last) = (entry.plain.as_ref().expect("a plain map").sum(), &entry.checks[entry.checks.len() - 1]);
            assert!(near(last.found, map), "{what}: {last:?}, the map's sum is {map}");
            // On a chain of layers what one node gives the next one gets.
            if name == "vgg11_bn" {
                let steps = entry.checks.windows(2);
                steps.for_each(|pair| assert!(near(pair[0].found, pair[1].expected), "{what}: {pair:?}"));
            }
            // What the biases take is lost, and nothing is at rectifiers.
            let lost = |part: &str| -> Vec<f64> {
                let named = entry.checks.iter().filter(|check| check.node.contains(part));
                named.map(|check| check.lost).collect()
            };
            assert!(entry.checks.iter().any(|check| check.lost.abs() > 1e-3), "{what}");
            assert!(lost("relu").iter().all(|lost| *lost == 0.0), "{what}");
        }
        let first = |class: usize| checked.classes[2 * class + 1].checks[0].expected;
        assert_ne!(first(0), first(1), "{name}");
    }
}

/// Contrasts come into nodes with next to nothing: what is lost is told beside what the walk began with.
#[test]
fn checks_of_contrasts_are_told_beside_what_they_began_with() {
    let builder = Explainer::with_network(common::tiny("vgg11_bn")).method("clrp").maps(Maps::Plain);
    let mut explainer = builder.fit(Fit::None).device(Device::Cpu).check(true).build().expect("an explainer");
    let checks = explain(&mut explainer, &Target::Classes(vec![4])).classes.remove(0).checks;
    let begin = checks[0].expected.abs();
    for check in &checks {
        let lost = check.expected - check.found;
        assert!((check.lost - lost / begin).abs() <= 1e-9, "{check:?} of {begin}");
    }
    // Beside what comes in it would mean nothing.
    assert!(checks.iter().any(|check| check.expected.abs() < 1e-3 * begin), "nothing is contrasted: {checks:?}");
}

/// The same on a GPU, on which emulated networks take their time: maps near the CPU's, and the same bits with other
/// classes in other batches.
#[cfg(feature = "cuda")]
fn check_on_gpu(network: &Network, method: &'static str) {
    use common::spearman::spearman;
    use common::{assert_nmse, to_f64, tolerance};

    let what = format!("{method} on {} on a GPU", network.model.name);
    // As few patches as show batches that do not divide them; where methods are asked for as many as on the CPU.
    let n = if std::env::var_os("UCAG_TEST_METHODS").is_some() { 3 } else { 2 };
    let setting = Setting { device: Device::Cuda(0), method, n, batch: 1, threads: 1 };
    let classes = |list: &[usize]| Target::Classes(list.to_vec());
    let found = explain(&mut explainer(network, &setting), &classes(&[3]));
    let together = explain(&mut explainer(network, &Setting { batch: n * n / 2 + 1, ..setting }), &classes(&[5, 3]));
    assert!(bits(&found, 3) == bits(&together, 3), "{what}: a class with others and alone");
    let on_cpu = Setting { device: Device::Cpu, batch: 4, threads: 2, ..setting };
    let expected = explain(&mut explainer(network, &on_cpu), &classes(&[3]));
    let maps = |e: &Explanation| [&e.classes[0].ucag, &e.classes[0].plain].map(|m| m.clone().expect("both maps").data);
    for (kind, (want, got)) in ["ucag", "plain"].into_iter().zip(maps(&expected).into_iter().zip(maps(&found))) {
        let (error, least) = match method {
            "gradient" | "input-x-gradient" | "smoothgrad" | "integrated-gradients" => {
                if network.model.name.starts_with("vgg") {
                    (tolerance::HALF_CHAIN, 0.9)
                } else {
                    (tolerance::HALF_GRADIENT, 0.97)
                }
            }
            _ if FAR.iter().any(|(name, methods)| *name == network.model.name && methods.contains(&method)) => {
                (tolerance::HALF_MAP_FAR, 0.99)
            }
            _ => (tolerance::HALF_MAP, 0.99),
        };
        assert_nmse(&format!("{what}, {kind}"), &got, &to_f64(&want), error);
        // A layer's plain map is four numbers here, whose ranks mean nothing where two are nearly equal.
        let few = kind == "plain" && Method::named(method).expect("a method").level == Level::Layer;
        // Nor do they where all values are equal, as where a method finds nothing that speaks for the class.
        let flat = |map: &[f32]| map.iter().all(|v| *v == map[0]);
        let rank = spearman(&want, &got);
        assert!(few || rank >= least || flat(&want) && flat(&got), "{what}, {kind}: Spearman {rank}");
    }
}

#[cfg(feature = "cuda")]
#[test]
fn every_method_on_every_network_on_a_gpu() {
    if common::cuda::device().is_none() {
        return;
    }
    for model in MODELS {
        let tensors = common::tensors(model.name, common::CLASSES, common::NARROWING);
        let network = common::network(&common::clear_of_zero(tensors));
        methods_on_gpu(model.name).iter().for_each(|method| check_on_gpu(&network, method.name));
    }
}

/// What `UCAG_TEST_METHODS` names, which may be `all`: that takes the emulator hours. Without it what runs in minutes: the
/// first two methods, which walk to a layer and to the input, on every network; all on one ResNet and on one VGG, whose head
/// allows no closed forms; on bottlenecks those that treat 1×1 convolutions in a way of their own. They share all kernels,
/// and every kernel is tested by itself.
#[cfg(feature = "cuda")]
fn methods_on_gpu(network: &str) -> Vec<Method> {
    if let Ok(list) = std::env::var("UCAG_TEST_METHODS") {
        let known = |name: &str| name == "all" || METHODS.iter().any(|m| m.name == name);
        assert!(list.split(',').all(known), "UCAG_TEST_METHODS: expected `all` or methods, found `{list}`");
        let named = |m: &&Method| {
            let wanted = list == "all" || list.split(',').any(|name| name == m.name);
            wanted && !LOST.iter().any(|(method, networks)| *method == m.name && networks.contains(&network))
        };
        return METHODS.iter().filter(named).copied().collect();
    }
    let runs = |m: &Method| match network {
        "resnet18" | "vgg11_bn" => true,
        "resnet50" => METHODS[..2].contains(m) || ["rap", "rsp", "agf"].contains(&m.name),
        _ => METHODS[..2].contains(m),
    };
    METHODS.iter().copied().filter(runs).collect()
}

/// One test per method would do; the networks are split so that they share the cores.
fn check_networks(family: &str) {
    for model in MODELS.iter().filter(|m| m.name.starts_with(family)) {
        let network = common::tiny(model.name);
        METHODS.iter().for_each(|method| check(&network, method.name));
    }
}

#[test]
fn every_method_on_every_resnet() {
    check_networks("resnet");
}

#[test]
fn every_method_on_every_vgg() {
    check_networks("vgg");
}

/// No network escapes the two tests above.
#[test]
fn every_network_is_checked() {
    assert!(MODELS.iter().all(|m| m.name.starts_with("resnet") || m.name.starts_with("vgg")));
}

/// Every network recognises itself from its tensors.
#[test]
fn every_network_is_recognised() {
    for model in MODELS {
        assert_eq!(common::tiny(model.name).model.name, model.name);
    }
}
