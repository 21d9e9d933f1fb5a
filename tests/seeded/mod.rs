//! Networks with seeded random weights, made without Python: value `i` of tensor `key` is a hash of both, in [−1, 1),
//! times a power of two. `tests/golden/golden_nets.py` makes the same numbers.

use std::collections::HashMap;

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use ucag::Network;
use ucag::models::Model;
use ucag::net::Tensors;

/// Value `i` of tensor `key`: splitmix64 seeded with the key's FNV-1a hash, its upper 24 bits.
pub fn values(key: &str, gain: i32, len: usize) -> Vec<f32> {
    let seed = key.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    let scale = 2.0_f32.powi(gain);
    let value = |i: u64| {
        let z = seed.wrapping_add((i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        let z = z ^ (z >> 31);
        ((z >> 40) as f32 / (1 << 23) as f32 - 1.0) * scale
    };
    (0..len as u64).map(value).collect()
}

/// A network of full width; `stored` gives tensors that are not hashed, `gain` the power of two of the others.
pub fn network(name: &str, stored: &HashMap<String, Vec<f32>>, gain: impl Fn(&str, &[usize]) -> i32) -> Network {
    let model = Model::named(name).unwrap();
    let (_, list) = model.blueprint(1000, 1).unwrap();
    let tensor = |(key, shape): &(String, Vec<usize>)| {
        let len = shape.iter().product();
        let values = stored.get(key).cloned().unwrap_or_else(|| values(key, gain(key, shape), len));
        (key.clone(), shape.clone(), bytemuck::cast_slice::<f32, u8>(&values).to_vec())
    };
    let tensors: Vec<_> = list.iter().map(tensor).collect();
    let views = tensors
        .iter()
        .map(|(key, shape, bytes)| (key.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    let bytes = safetensors::serialize(views, None).unwrap();
    drop(tensors);
    Network::from_tensors(&Tensors::from_bytes(name, bytes).unwrap(), Some(model)).unwrap()
}

/// Powers of two that keep activations of a deep network in a moderate range.
#[allow(dead_code)]
pub fn gain(key: &str, shape: &[usize]) -> i32 {
    let fan_in: usize = shape[1..].iter().product();
    match (key.ends_with(".weight"), shape.len()) {
        (true, 1) => 0,
        (true, _) => (0.5 * (6.0 / fan_in as f64).log2()).round() as i32,
        (false, _) => -3,
    }
}

/// Statistics of batch norms that change nothing, for networks without stored ones.
#[allow(dead_code)]
pub fn neutral(name: &str) -> HashMap<String, Vec<f32>> {
    let (_, list) = Model::named(name).unwrap().blueprint(1000, 1).unwrap();
    let statistic = |key: &str| match key.rsplit_once('.')?.1 {
        "running_mean" => Some(0.0),
        "running_var" => Some(1.0),
        _ => None,
    };
    list.into_iter().filter_map(|(key, shape)| Some((key.clone(), vec![statistic(&key)?; shape[0]]))).collect()
}

/// A picture of noise on a slope.
#[allow(dead_code)]
pub fn picture(h: usize, w: usize) -> Vec<u8> {
    let noise = values("picture", 5, h * w * 3);
    let slope = |i: usize| (i / 3 % w * 191 / w + 32) as f32;
    noise.iter().enumerate().map(|(i, n)| (slope(i) + n) as u8).collect()
}
