//! Networks as their files describe them: sizes, heads, storage types, names of layers.

mod common;

use common::{CLASSES, NARROWING, Tensor, picture, safetensors, tensors};
use half::{bf16, f16};
use ucag::models::{MODELS, Model};
use ucag::net::Tensors;
use ucag::{Device, Explainer, Explanation, Fit, Frame, Maps, Network, Target};

/// Numbers of trained values that torchvision documents.
const TORCHVISION: [(&str, usize); 13] = [
    ("resnet18", 11_689_512),
    ("resnet34", 21_797_672),
    ("resnet50", 25_557_032),
    ("resnet101", 44_549_160),
    ("resnet152", 60_192_808),
    ("vgg11", 132_863_336),
    ("vgg13", 133_047_848),
    ("vgg16", 138_357_544),
    ("vgg19", 143_667_240),
    ("vgg11_bn", 132_868_840),
    ("vgg13_bn", 133_053_736),
    ("vgg16_bn", 138_365_992),
    ("vgg19_bn", 143_678_248),
];

#[test]
fn networks_have_torchvisions_sizes() {
    assert_eq!(MODELS.len(), TORCHVISION.len());
    for (name, expected) in TORCHVISION {
        let (_, list) = Model::named(name).unwrap().blueprint(1000, 1).unwrap();
        let trained = list.iter().filter(|(key, _)| !key.contains(".running_"));
        let values: usize = trained.map(|(_, shape)| shape.iter().product::<usize>()).sum();
        assert_eq!(values, expected, "{name}");
    }
}

fn load(tensors: &[Tensor], metadata: &[(&str, &str)]) -> ucag::Result<Network> {
    Network::from_tensors(&Tensors::from_bytes("file", safetensors(tensors, metadata)).unwrap(), None)
}

fn explain(network: Network, side: usize) -> Explanation {
    let mut explainer =
        Explainer::with_network(network).maps(Maps::Plain).fit(Fit::None).device(Device::Cpu).build().unwrap();
    let pixels = picture(side, side, 5);
    explainer.explain(&Frame::rgb(&pixels, side, side).unwrap(), &Target::Top(1)).unwrap()
}

fn renamed(tensors: Vec<Tensor>, names: &[(&str, &str)]) -> Vec<Tensor> {
    let rename =
        |(key, shape, values): Tensor| match names.iter().find_map(|(old, new)| Some((key.strip_prefix(old)?, new))) {
            Some((rest, new)) => (format!("{new}{rest}"), shape, values),
            None => (key, shape, values),
        };
    tensors.into_iter().map(rename).collect()
}

/// Head of a VGG-11 with the features kept: linear layers of the given widths.
fn with_head(widths: &[usize], name: impl Fn(usize) -> String) -> Vec<Tensor> {
    let mut file = tensors("vgg11", CLASSES, NARROWING);
    file.retain(|(key, _, _)| key.starts_with("features."));
    for (i, pair) in widths.windows(2).enumerate() {
        let random = |len: usize, seed: u64| common::Random::named(&name(i), seed).units(len);
        file.push((format!("{}.weight", name(i)), vec![pair[1], pair[0]], random(pair[0] * pair[1], 1)));
        file.push((format!("{}.bias", name(i)), vec![pair[1]], random(pair[1], 2)));
    }
    file
}

#[test]
fn timms_vgg_equals_torchvisions_at_its_own_size() {
    let names = [("classifier.0", "pre_logits.fc1"), ("classifier.3", "pre_logits.fc2"), ("classifier.6", "head.fc")];
    let mut timm = renamed(tensors("vgg11", CLASSES, NARROWING), &names);
    for (key, shape, _) in &mut timm {
        match key.as_str() {
            "pre_logits.fc1.weight" => *shape = vec![shape[0], shape[1] / 49, 7, 7],
            "pre_logits.fc2.weight" => shape.extend([1, 1]),
            _ => {}
        }
    }
    let network = load(&timm, &[]).unwrap();
    assert_eq!(network.model.name, "vgg11");
    let (ours, theirs) = (explain(common::tiny("vgg11"), 224), explain(network, 224));
    assert_eq!(ours.top[0].0, theirs.top[0].0);
    let difference = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let (a, b) = (ours.classes[0].map(), theirs.classes[0].map());
    assert!(difference(&a.data, &b.data) <= 1e-5 * a.range().1.abs().max(a.range().0.abs()));
}

#[test]
fn heads_are_read_off_the_tensors() {
    let numbered = |i: usize| format!("classifier.{}", 2 * i);
    let channels = 512 / NARROWING;
    for (widths, metadata, last_pool) in [
        (vec![channels * 49, 10, 9, 8, CLASSES], None, true),
        (vec![channels * 4, CLASSES], None, true),
        (vec![channels, CLASSES], None, true),
        (vec![channels, CLASSES], Some("pool-gap-linear"), true),
        (vec![channels, 12, CLASSES], Some("gap-linear"), false),
    ] {
        let metadata: Vec<(&str, &str)> = metadata.iter().map(|head| ("ucag.head", *head)).collect();
        let network = load(&with_head(&widths, numbered), &metadata).unwrap();
        assert_eq!(network.graph.classes(), CLASSES);
        assert_eq!(network.graph.layer("features.20").is_ok(), last_pool, "{widths:?} {metadata:?}");
        explain(network, 64);
    }
    let plain =
        load(&with_head(&[channels, CLASSES], |_| "classifier".into()), &[("ucag.head", "gap-linear")]).unwrap();
    assert_eq!(explain(plain, 64).top.len(), 5);
    let odd = load(&with_head(&[channels * 50, CLASSES], numbered), &[]).unwrap_err().to_string();
    assert!(odd.contains("classifier.0.weight (expected") && odd.contains("found"), "{odd}");
}

#[test]
fn half_precision_files_load() {
    let file = tensors("resnet18", CLASSES, NARROWING);
    let store = |dtype: safetensors::Dtype, bytes: fn(f32) -> [u8; 2]| {
        let stored: Vec<_> =
            file.iter().map(|(_, _, v)| v.iter().flat_map(|v| bytes(*v)).collect::<Vec<u8>>()).collect();
        let views = file.iter().zip(&stored).map(|((key, shape, _), bytes)| {
            (key.as_str(), safetensors::tensor::TensorView::new(dtype, shape.clone(), bytes).unwrap())
        });
        let bytes = safetensors::serialize(views, None).unwrap();
        Network::from_tensors(&Tensors::from_bytes("half", bytes).unwrap(), None).unwrap()
    };
    let rounded = |round: fn(f32) -> f32| {
        let mut file = file.clone();
        file.iter_mut().for_each(|(_, _, values)| values.iter_mut().for_each(|v| *v = round(*v)));
        load(&file, &[]).unwrap()
    };
    let same = |a: Network, b: Network| {
        assert_eq!(explain(a, 64).classes[0].plain, explain(b, 64).classes[0].plain);
    };
    same(store(safetensors::Dtype::F16, |v| f16::from_f32(v).to_le_bytes()), rounded(|v| f16::from_f32(v).to_f32()));
    same(store(safetensors::Dtype::BF16, |v| bf16::from_f32(v).to_le_bytes()), rounded(|v| bf16::from_f32(v).to_f32()));
}

#[test]
fn layers_have_torchs_names() {
    let graph = common::tiny("resnet50").graph;
    let name = |layer: &str| graph.node(graph.layer(layer).unwrap()).name.clone();
    assert_eq!(name("layer4"), "layer4.2.relu3");
    assert_eq!(name("layer1.0"), "layer1.0.relu3");
    assert_eq!(name("layer2.0.downsample.1"), "layer2.0.downsample.1");
    let error = |layer: &str| graph.layer(layer).unwrap_err().to_string();
    assert!(
        error("layer4.2.conv3").contains("batch norm is folded") && error("layer4.2.conv3").contains("layer4.2.bn3")
    );
    assert!(error("layer4.7").contains("layer4.2"), "names near by are listed");
    assert!(error("x").contains("maxpool"), "all names are listed where none is near");
}
