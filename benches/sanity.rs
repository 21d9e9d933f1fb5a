//! Model-parameter randomisation (Adebayo et al., NeurIPS 2018): what of each method's map outlives the weights?
//!
//! Layers of the bundled network get new weights from the top down, uniform in ±1/√inputs as torch initialises them. A
//! method that explains the class must change; Spearman's rank correlation with the map of the trained network says how
//! much. Writes `benches/results/sanity.md`.

#[allow(dead_code)]
#[path = "../tests/seeded/mod.rs"]
mod seeded;
#[path = "../tests/common/spearman.rs"]
mod spearman;

use std::fmt::Write;

use safetensors::{Dtype, SafeTensors};
use spearman::spearman;
use ucag::io::Photo;
use ucag::methods::METHODS;
use ucag::net::Tensors;
use ucag::{Device, Explainer, Explanation, Maps, Network, Target};

const WEIGHTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/weights/vgg16-everyday.safetensors");
const PHOTOS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/weights/photos");
const RESULT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/results/sanity.md");

/// Side of the picture; repetitions of methods that run the network again and again.
const SIZE: usize = 112;
const FEW: [(&str, &str); 3] =
    [("smoothgrad.draws", "8"), ("integrated-gradients.steps", "8"), ("cameras.resolutions", "4")];

/// Most that may be left of a map after all layers.
const BOUND: f64 = 0.5;

/// The file with the given layers' weights drawn anew.
fn randomised(bytes: &[u8], layers: &[String]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let start = 8 + u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..start]).expect("a header");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let mut fresh = vec![];
    for layer in layers {
        let weight = file.tensor(&format!("{layer}.weight")).expect("a weight");
        let inputs: usize = weight.shape()[1..].iter().product();
        for kind in ["weight", "bias"] {
            let key = format!("{layer}.{kind}");
            let Ok(tensor) = file.tensor(&key) else { continue };
            let from = start + header[&key]["data_offsets"][0].as_u64().expect("an offset") as usize;
            let count = tensor.shape().iter().product();
            let limit = 1.0 / (inputs as f32).sqrt();
            let values: Vec<f32> = seeded::values(&key, 0, count).into_iter().map(|v| limit * v).collect();
            fresh.push((from, tensor.dtype(), values));
        }
    }
    for (from, dtype, values) in fresh {
        let raw: Vec<u8> = match dtype {
            Dtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Dtype::F16 => values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect(),
            Dtype::BF16 => values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect(),
            other => panic!("tensors of {other:?}"),
        };
        bytes[from..from + raw.len()].copy_from_slice(&raw);
    }
    bytes
}

/// All methods' plain maps of one class.
fn explain(bytes: &[u8], photo: &Photo, target: &Target) -> Explanation {
    let network = Tensors::from_bytes("bundled", bytes.to_vec()).and_then(|t| Network::from_tensors(&t, None));
    let builder = Explainer::with_network(network.expect("a network")).methods(METHODS.iter().map(|m| m.name));
    let builder = FEW.iter().fold(builder, |builder, (key, value)| builder.set(*key, *value));
    let builder = builder.maps(Maps::Plain).size(SIZE).device(Device::Cpu);
    builder.build().and_then(|mut e| e.explain(&photo.frame(), target)).expect("an explanation")
}

fn main() {
    if !std::env::args().any(|arg| arg == "--bench") {
        return; // `cargo test --benches` only sees that it builds.
    }
    let bytes = std::fs::read(WEIGHTS).expect("the bundled weights");
    let photos = ["chelsea.png", "flower.jpg"].map(|name| Photo::open(format!("{PHOTOS}/{name}")).expect("a photo"));
    let network = Network::open(WEIGHTS, None).expect("the bundled network");
    let mut layers: Vec<String> = network.graph.params().iter().map(|p| p.key.clone()).collect();
    layers.reverse();
    let stages = [1, layers.len() / 4, layers.len() / 2, layers.len()];
    let originals = photos.each_ref().map(|photo| explain(&bytes, photo, &Target::Top(1)));
    let mut left = vec![vec![]; METHODS.len()];
    let mut logits = [0.0; 2];
    for count in stages {
        let changed = randomised(&bytes, &layers[..count]);
        let explained: Vec<Explanation> = photos
            .iter()
            .zip(&originals)
            .map(|(photo, original)| explain(&changed, photo, &Target::Classes(vec![original.classes[0].class])))
            .collect();
        // What `lrp` conserves.
        let lrp = METHODS.iter().position(|m| m.name == "lrp").expect("the method");
        logits = [0, 1].map(|photo| explained[photo].classes[lrp].map().data.iter().sum::<f32>());
        for (method, left) in left.iter_mut().enumerate() {
            let rank = |(a, b): (&Explanation, &Explanation)| {
                spearman(&a.classes[method].map().data, &b.classes[method].map().data)
            };
            let ranks: Vec<f64> = originals.iter().zip(&explained).map(rank).collect();
            left.push(ranks.iter().sum::<f64>() / ranks.len() as f64);
        }
    }
    std::fs::write(RESULT, report(&stages, &left, logits)).expect("the results' folder");
}

fn report(stages: &[usize], left: &[Vec<f64>], logits: [f32; 2]) -> String {
    let mut text = String::from("# Maps of randomised networks\n\n");
    text += "Written by `cargo bench --bench sanity`. Layers of the bundled VGG-16 get new weights from the top down; the table\n\
        gives Spearman's rank correlation of each method's plain map with that of the trained network, the mean over two\n\
        photographs, after so many layers. A constant map correlates with nothing: 0.\n\n";
    text += "Guided backpropagation outlives its weights, as Adebayo et al. found: it draws edges. Relevance has the sign of the\n\
        class's logit, ";
    write!(text, "in the end {:.3} and {:.3}", logits[0], logits[1]).expect("a string");
    text += ": where that has turned, a map that depends on the weights for little\n\
        but its sign (`lrp-ab`, `rap`) becomes its own opposite.\n\n| method |";
    stages.iter().for_each(|count| write!(text, " {count} |").expect("a string"));
    text += &format!(" magnitude below {BOUND} |\n|---|{}---|\n", "---:|".repeat(stages.len()));
    for (method, left) in METHODS.iter().zip(left) {
        write!(text, "| `{}` |", method.name).expect("a string");
        left.iter()
            .for_each(|rank| write!(text, " {:.2} |", if rank.is_nan() { 0.0 } else { *rank }).expect("a string"));
        let last = left.last().copied().unwrap_or_default();
        text += if last.is_nan() || last.abs() < BOUND { " yes |\n" } else { " **no** |\n" };
    }
    text
}
