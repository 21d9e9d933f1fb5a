//! What the tests share: seeded numbers, tolerances, a writer of safetensors files, tiny networks, the oracles.

// Each test binary uses a part of this.
#![allow(dead_code)]

mod agf;
mod bipolar;
pub mod case;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod oracle;
pub mod reference;
pub mod relevance;
pub mod rig;
pub mod sparse;
pub mod spearman;

use std::sync::Arc;

use ucag::models::{Model, Network};
use ucag::net::{Graph, Tensors};

/// Bounds on what the CPU backend may differ from the `f64` oracle, as normalised mean squared errors.
pub mod tolerance {
    /// One instruction: a few roundings of `f32` (2⁻²⁴ relative, squared 4e-15); sums of many products by Winograd's
    /// tiles come to 1.4e-12.
    pub const OP: f64 = 4e-12;
    /// A gradient through a whole network.
    pub const GRADIENT: f64 = 1e-11;
    /// Relevance through a whole network: quotients of sums that may nearly cancel.
    pub const RELEVANCE: f64 = 1e-11;
    /// Relevance where large shares of opposite sign meet.
    pub const CANCELLING: f64 = 1e-9;
    /// Weights whose denominators are sums of both signs, which may come near zero.
    pub const NEAR_ZERO: f64 = 1e-7;
    /// Relevance that should be conserved, relative to what there was.
    pub const CONSERVED: f64 = 1e-4;
    /// Maps that reach the same numbers on two ways, relative to the largest of them.
    pub const SAME_MAP: f64 = 1e-5;
    /// Oracle against finite differences, relative to the largest derivative.
    pub const DIFFERENCES: f64 = 1e-6;
    /// One instruction on a device that stores weights, and operands or results, in `f16`: roundings of 2⁻¹¹ relative,
    /// whose mean square is 8e-8 each.
    pub const HALF_OP: f64 = 1e-6;
    /// An exact product there, by weights that `f16` holds: roundings of `f32` alone, to which tensor cores add by cutting
    /// off. An operand rounded to TF32 would come to 2e-8.
    pub const EXACT_PRODUCT: f64 = 1e-10;
    /// A map through a whole network whose activations are stored in `f16`: in narrow networks much of a map cancels,
    /// and a near tie in a max pooling that falls the other way moves relevance.
    pub const HALF_MAP: f64 = 5e-3;
    /// The same where it was found farther off. The CPU's own maps with no more changed than weights rounded to `f16` move
    /// by up to 5.1e-3 (`hires-cam`), 6.0e-3 (`sglrp`) and 1.1e-1 (`agf`) on the narrow VGG-11.
    pub const HALF_MAP_FAR: f64 = 1e-2;
    /// The same for the gradient at the input, which jumps where rounding opens or closes a rectifier. The `f64` oracle
    /// with no more changed than weights and activations rounded to `f16` moves by up to 1.6e-2.
    pub const HALF_GRADIENT: f64 = 2e-2;
    /// The same where no shortcut leads around rectifiers: the oracle moves by up to 1.4e-1 on narrow VGGs.
    pub const HALF_CHAIN: f64 = 1.5e-1;
}

/// A generator of numbers that depend on a seed and an index only.
#[derive(Clone, Copy)]
pub struct Random(pub u64);

impl Random {
    /// Seeded by a text and a number.
    pub fn named(name: &str, seed: u64) -> Self {
        Self(name.bytes().fold(seed, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)))
    }

    /// Number `i`, 64 random bits.
    pub fn bits(self, i: usize) -> u64 {
        let mut z = self.0.wrapping_add((i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Number `i` in [−1, 1), exact in `f32`.
    pub fn unit(self, i: usize) -> f32 {
        (self.bits(i) >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    /// `n` numbers in [−1, 1).
    pub fn units(self, n: usize) -> Vec<f32> {
        (0..n).map(|i| self.unit(i)).collect()
    }

    /// `n` bytes.
    pub fn bytes(self, n: usize) -> Vec<u8> {
        (0..n).map(|i| (self.bits(i) >> 56) as u8).collect()
    }
}

pub fn to_f64(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| f64::from(*v)).collect()
}

/// Squared distance relative to the expected values' square.
pub fn nmse(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len(), "sizes differ");
    let error: f64 = found.iter().zip(expected).map(|(f, e)| (f - e) * (f - e)).sum();
    let norm: f64 = expected.iter().map(|e| e * e).sum();
    if error == 0.0 { 0.0 } else { error / norm }
}

/// Largest distance relative to the largest expected value.
pub fn max_error(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len(), "sizes differ");
    let error = found.iter().zip(expected).map(|(f, e)| (f - e).abs()).fold(0.0, f64::max);
    if error == 0.0 { 0.0 } else { error / expected.iter().map(|e| e.abs()).fold(0.0, f64::max) }
}

/// Panics unless the error is at most `bound`; one that is no number is too large.
pub fn assert_nmse(what: &str, found: &[f32], expected: &[f64], bound: f64) {
    let error = nmse(&to_f64(found), expected);
    println!("{error:.1e} {what}");
    assert!(error <= bound, "{what}: NMSE {error:.2e}, expected at most {bound:.0e}");
}

/// One tensor of `f32`: key, shape, values.
pub type Tensor = (String, Vec<usize>, Vec<f32>);

/// The bytes of a safetensors file around any header.
pub fn file(header: &str, data: &[u8]) -> Vec<u8> {
    let header = header.to_string() + &" ".repeat(header.len().next_multiple_of(8) - header.len());
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// A well-formed safetensors file.
pub fn safetensors(tensors: &[Tensor], metadata: &[(&str, &str)]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        let entries = metadata.iter().map(|(k, v)| (k.to_string(), serde_json::Value::from(*v)));
        header.insert("__metadata__".into(), serde_json::Value::Object(entries.collect()));
    }
    let mut data: Vec<u8> = vec![];
    for (key, shape, values) in tensors {
        let start = data.len();
        data.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        let entry = serde_json::json!({ "dtype": "F32", "shape": shape, "data_offsets": [start, data.len()] });
        header.insert(key.clone(), entry);
    }
    file(&serde_json::Value::Object(header).to_string(), &data)
}

/// Classes of the tiny networks.
pub const CLASSES: usize = 7;

/// What the tiny networks' channel counts are divided by.
pub const NARROWING: usize = 8;

/// Tensors of a narrow network: gains like He's, so that activations stay near 1; some batch norm scales negative.
pub fn tensors(model: &str, classes: usize, narrowing: usize) -> Vec<Tensor> {
    let (_, list) = Model::named(model).and_then(|m| m.blueprint(classes, narrowing)).expect("a known network");
    let norms: Vec<String> = list.iter().filter_map(|(k, _)| Some(k.strip_suffix(".running_var")?.into())).collect();
    let fill = |(key, shape): (String, Vec<usize>)| {
        let random = Random::named(&key, 1).units(shape.iter().product());
        let (stem, kind) = key.rsplit_once('.').expect("keys have a stem and a kind");
        let is_norm = norms.iter().any(|n| n == stem);
        let inputs: usize = shape.iter().skip(1).product();
        let he = (6.0 / inputs as f32).sqrt();
        let value = |(i, r): (usize, f32)| match kind {
            "running_var" => 1.0 + 0.5 * r,
            "running_mean" => 0.2 * r,
            "weight" if is_norm => (0.8 + 0.3 * r) * if i % 3 == 1 { -1.0 } else { 1.0 },
            "weight" => he * r,
            _ => 0.1 * r,
        };
        let values = random.into_iter().enumerate().map(value).collect();
        (key, shape, values)
    };
    list.into_iter().map(fill).collect()
}

/// The same without biases, and without the means and shifts of batch norms: layers are sums of products alone.
pub fn without_biases(mut tensors: Vec<Tensor>) -> Vec<Tensor> {
    for (key, _, values) in &mut tensors {
        if key.ends_with(".bias") || key.ends_with(".running_mean") {
            values.fill(0.0);
        }
    }
    tensors
}

/// The same with residual sums that stay clear of zero: their terms vary little around 1, in every fifth channel around −1.
/// Where terms nearly cancel, shares are huge, and roundings to 16 bits decide the map.
pub fn clear_of_zero(mut tensors: Vec<Tensor>) -> Vec<Tensor> {
    let last = if tensors.iter().any(|(key, ..)| key.contains(".bn3.")) { ".bn3." } else { ".bn2." };
    for (key, _, values) in &mut tensors {
        if key.contains(last) || key.contains(".downsample.1.") {
            let middle = |i: usize| if i % 5 == 4 { -1.0 } else { 1.0 };
            match key.rsplit('.').next() {
                Some("weight") => values.iter_mut().for_each(|v| *v *= 0.05),
                Some("bias") => values.iter_mut().enumerate().for_each(|(i, v)| *v += middle(i)),
                _ => {}
            }
        }
    }
    tensors
}

/// A narrow network whose layers are products of weights and inputs alone.
pub fn bias_free(model: &str) -> Arc<Graph> {
    Arc::new(network(&without_biases(tensors(model, CLASSES, NARROWING))).graph)
}

/// A network of the given tensors.
pub fn network(tensors: &[Tensor]) -> Network {
    let tensors = Tensors::from_bytes("tiny", safetensors(tensors, &[])).expect("a well-formed file");
    Network::from_tensors(&tensors, None).expect("a fitting file")
}

/// A narrow network with a few classes.
pub fn tiny(model: &str) -> Network {
    network(&tensors(model, CLASSES, NARROWING))
}

/// Its graph alone, to be shared with a backend.
pub fn tiny_graph(model: &str) -> Arc<Graph> {
    Arc::new(tiny(model).graph)
}

/// A picture of `h` × `w` pixels: smooth shapes with some noise, so that neighbouring patches differ.
pub fn picture(h: usize, w: usize, seed: u64) -> Vec<u8> {
    let noise = Random(seed);
    let value = |i: usize| {
        let (y, x, c) = ((i / 3 / w) as f32, (i / 3 % w) as f32, (i % 3) as f32);
        let wave = (0.31 * y + c).sin() + (0.23 * x - 0.17 * y + 2.0 * c).cos();
        (127.0 + 50.0 * wave + 25.0 * noise.unit(i)) as u8
    };
    (0..h * w * 3).map(value).collect()
}
