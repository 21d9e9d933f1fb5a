//! Files and frames that are broken, or lie: each is an error that names what is wrong, never a panic.

mod common;

use common::{CLASSES, NARROWING, Random, Tensor, file, safetensors};
use proptest::prelude::*;
use ucag::models::Model;
use ucag::net::Tensors;
use ucag::{Device, Explainer, Fit, Frame, Network, PixelFormat, Target, Working};

/// What loading these bytes says.
fn refusal(bytes: Vec<u8>, model: Option<&str>) -> String {
    let model = model.map(|m| Model::named(m).expect("a known network"));
    let loaded = Tensors::from_bytes("odd.safetensors", bytes).and_then(|t| Network::from_tensors(&t, model));
    let message = loaded.expect_err("a broken file was accepted").to_string();
    assert!(message.contains("odd.safetensors") || message.contains("ucag."), "names no object: {message}");
    message
}

/// Panics unless the message has all parts.
fn assert_says(message: &str, parts: &[&str]) {
    parts.iter().for_each(|part| assert!(message.contains(part), "no `{part}` in: {message}"));
}

fn resnet() -> Vec<Tensor> {
    common::tensors("resnet18", CLASSES, 16)
}

/// The tensors of a network with one of them changed.
fn changed(key: &str, change: impl Fn(&mut Tensor)) -> Vec<u8> {
    let mut tensors = resnet();
    change(tensors.iter_mut().find(|t| t.0 == key).expect("the key"));
    safetensors(&tensors, &[])
}

#[test]
fn no_safetensors() {
    let valid = safetensors(&resnet(), &[]);
    let huge = [&u64::MAX.to_le_bytes()[..], b"{}"].concat();
    let large = [&(1_u64 << 40).to_le_bytes()[..], &[b' '; 64]].concat();
    for (what, bytes) in [
        ("empty", vec![]),
        ("seven bytes", vec![1; 7]),
        ("a header only announced", 100_u64.to_le_bytes().to_vec()),
        ("a huge header", huge),
        ("a large header", large),
        ("no JSON", file("tensors, tensors", &[])),
        ("JSON of another kind", file("[1, 2]", &[])),
        ("no UTF-8", [&8_u64.to_le_bytes()[..], &[0xff; 8]].concat()),
        ("nested without end", file(&"[".repeat(100_000), &[])),
        ("no tensors", file("{}", &[])),
        ("cut in the header", valid[..20].to_vec()),
        ("cut in the data", valid[..valid.len() - 1].to_vec()),
        ("too long", [&valid[..], &[0; 4]].concat()),
        ("a picture", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\0".to_vec()),
    ] {
        let message = refusal(bytes, None);
        assert!(message.starts_with("weights odd.safetensors: "), "{what}: {message}");
    }
}

#[test]
fn lying_headers() {
    let entry = |shape: &str, from: usize, to: u64| {
        format!(r#"{{"dtype":"F32","shape":{shape},"data_offsets":[{from},{to}]}}"#)
    };
    let one = |entry: String| format!(r#"{{"fc.weight":{entry}}}"#);
    for (what, header) in [
        ("beyond the file", one(entry("[4]", 0, 16))),
        ("far beyond the file", one(entry("[4611686018427387903]", 0, u64::MAX - 3))),
        ("backwards", one(entry("[1]", 8, 4))),
        ("not from the start", one(entry("[1]", 4, 8))),
        ("shape larger than the bytes", one(entry("[3]", 0, 8))),
        ("shape smaller than the bytes", one(entry("[1]", 0, 8))),
        ("shape without end", one(entry("[18446744073709551615,18446744073709551615]", 0, 8))),
        ("product that wraps to the bytes", one(entry("[4294967296,4294967296,2]", 0, 8))),
        ("negative axis", one(entry("[-2]", 0, 8))),
        ("fractional axis", one(entry("[2.5]", 0, 8))),
        ("overlapping", format!(r#"{{"a":{},"b":{}}}"#, entry("[2]", 0, 8), entry("[1]", 4, 8))),
        ("twice the same", format!(r#"{{"a":{},"b":{}}}"#, entry("[2]", 0, 8), entry("[2]", 0, 8))),
        ("unknown type", one(r#"{"dtype":"F13","shape":[2],"data_offsets":[0,8]}"#.into())),
        ("no shape", one(r#"{"dtype":"F32","data_offsets":[0,8]}"#.into())),
        ("metadata that is no text", r#"{"__metadata__":{"a":1}}"#.into()),
    ] {
        let message = refusal(file(&header, &[0; 8]), None);
        assert!(message.starts_with("weights odd.safetensors: "), "{what}: {message}");
    }
}

#[test]
fn files_that_are_none() {
    let directory = tempfile::tempdir().expect("a directory");
    let empty = directory.path().join("empty.safetensors");
    std::fs::write(&empty, []).expect("a file");
    let absent = directory.path().join("absent.safetensors");
    for (path, part) in [(directory.path(), "no regular file"), (&empty, "empty file"), (&absent, "")] {
        let message = Network::open(path, None).expect_err("no file").to_string();
        assert_says(&message, &[&path.display().to_string(), part]);
        let message = Explainer::builder(path).build().err().expect("no file").to_string();
        assert_says(&message, &[&path.display().to_string(), part]);
    }
}

#[test]
fn values_that_cannot_be_used() {
    for (value, name) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")] {
        for key in ["conv1.weight", "layer2.0.bn1.weight", "fc.bias"] {
            let message = refusal(changed(key, |t| t.2[3] = value), None);
            assert_says(&message, &[key, "value 3", name, "finite"]);
        }
    }
    let message = refusal(changed("bn1.running_var", |t| t.2[2] = -0.5), None);
    assert_says(&message, &["bn1.running_var", "value 2", "-0.5", "negative variance"]);
}

/// Types that hold numbers, but no weights of a network.
#[test]
fn wrong_types() {
    for (name, bytes) in [("I64", 8), ("F64", 8), ("I32", 4), ("U8", 1), ("BOOL", 1)] {
        let tensors = resnet();
        let shape = &tensors.iter().find(|t| t.0 == "fc.bias").expect("the key").1;
        let rest: Vec<Tensor> = tensors.iter().filter(|t| t.0 != "fc.bias").cloned().collect();
        let valid = safetensors(&rest, &[]);
        let length = usize::from_le_bytes(valid[..8].try_into().expect("8 bytes"));
        let (header, data) = (&valid[8..8 + length], &valid[8 + length..]);
        let end = data.len() + bytes * shape[0];
        let header = std::str::from_utf8(header).expect("text").trim().strip_suffix('}').expect("an object");
        let entry = format!(r#"{{"dtype":"{name}","shape":{shape:?},"data_offsets":[{},{end}]}}"#, data.len());
        let odd = file(&format!(r#"{header},"fc.bias":{entry}}}"#), &[data, &vec![0; end - data.len()]].concat());
        assert_says(&refusal(odd, None), &["fc.bias", "F16", &format!("found {name}")]);
    }
}

#[test]
fn tensors_that_do_not_fit() {
    // Another network's weights, recognised or forced.
    let stranger: Tensor = ("encoder.layer.0.weight".into(), vec![2], vec![0.0; 2]);
    let message = refusal(safetensors(&[stranger], &[]), None);
    assert_says(&message, &["resnet18", "vgg16", "1 tensors", "encoder.layer.0.weight"]);
    let message = refusal(safetensors(&resnet(), &[]), Some("vgg11"));
    assert_says(&message, &["do not fit vgg11", "missing", "features.0.weight", "unexpected", "bn1.bias"]);
    let message = refusal(safetensors(&resnet(), &[]), Some("resnet34"));
    assert_says(&message, &["do not fit resnet34", "missing", "layer1.2."]);

    let lacking: Vec<Tensor> = resnet().into_iter().filter(|t| t.0 != "layer3.1.bn2.bias").collect();
    let message = refusal(safetensors(&lacking, &[]), Some("resnet18"));
    assert_says(&message, &["1 missing: layer3.1.bn2.bias"]);
    // Whichever key is missing, alone: its layer is named. A head may have any number of linear layers, so that what
    // is left of one of them counts as unexpected.
    for model in ["resnet18", "vgg11_bn"] {
        let all = common::tensors(model, CLASSES, 64);
        for (i, (key, ..)) in all.iter().enumerate() {
            let lacking: Vec<Tensor> = [&all[..i], &all[i + 1..]].concat();
            let stem = key.rsplit_once('.').expect("keys have a stem").0;
            let parts = if stem.starts_with("classifier") { ["", stem] } else { ["missing", key.as_str()] };
            assert_says(&refusal(safetensors(&lacking, &[]), Some(model)), &["do not fit", parts[0], parts[1]]);
        }
    }
    let mut more = resnet();
    more.push(("fc.extra".into(), vec![1], vec![0.0]));
    assert_says(&refusal(safetensors(&more, &[]), None), &["1 unexpected: fc.extra"]);
    for shape in [vec![], vec![0], vec![0, 4, 3, 3], vec![4, 0, 3, 3], vec![1; 9], vec![4, 4, 5, 3], vec![1 << 21]] {
        let reshape = |t: &mut Tensor| (t.2, t.1) = (vec![0.5; shape.iter().product()], shape.clone());
        let message = refusal(changed("layer1.0.conv1.weight", reshape), None);
        assert_says(&message, &["resnet18", "layer1.0.conv1.weight", &format!("found {shape:?}")]);
    }
    // A width that fits its layer, but neither the next one nor the skip connection.
    let widen = |t: &mut Tensor| (t.1[0], t.2) = (t.1[0] + 1, vec![0.5; t.2.len() / t.1[0] * (t.1[0] + 1)]);
    assert_says(&refusal(changed("layer1.0.conv2.weight", widen), None), &["mis-shaped", "layer1.0.bn2.weight"]);
    let none = |t: &mut Tensor| (t.1[0], t.2) = (0, vec![]);
    assert_says(&refusal(changed("fc.weight", none), None), &["fc.weight", "found [0, "]);
}

#[test]
fn unusable_metadata() {
    let vgg = common::tensors("vgg11", CLASSES, NARROWING);
    for (tensors, key, value, parts) in [
        (&vgg, "ucag.mean", "0.5, 0.5", &["ucag.mean", "0.5, 0.5"][..]),
        (&vgg, "ucag.mean", "[0.5, 0.5]", &["ucag.mean"]),
        (&vgg, "ucag.std", "[0, 1, 1]", &["ucag.std", "positive"]),
        (&vgg, "ucag.std", "[1e99, 1, 1]", &["ucag.std"]),
        (&vgg, "ucag.size", "0", &["ucag.size"]),
        (&vgg, "ucag.size", "-5", &["ucag.size", "-5"]),
        (&vgg, "ucag.labels", r#"["cat", "dog"]"#, &["ucag.labels", "expected 7", "found 2"]),
        (&vgg, "ucag.labels", "cat", &["ucag.labels"]),
        (&vgg, "ucag.head", "tail", &["ucag.head", "gap-linear", "tail"]),
        (&resnet(), "ucag.variant", "odd", &["ucag.variant", "stride-in-1x1", "odd"]),
    ] {
        assert_says(&refusal(safetensors(tensors, &[(key, value)]), None), parts);
    }
    let bytes = safetensors(&vgg, &[("ucag.layer", "layer9")]);
    let tensors = Tensors::from_bytes("odd.safetensors", bytes).expect("a well-formed file");
    let message = Network::from_tensors(&tensors, None).expect_err("no such layer").to_string();
    assert_says(&message, &["unknown layer", "layer9", "features.0"]);
}

/// Weights that are finite, but whose products are not.
#[test]
fn networks_that_overflow() {
    let network = |key: &str| {
        let bytes = changed(key, |t| t.2.fill(1e38));
        Network::from_tensors(&Tensors::from_bytes("large", bytes).expect("a file"), None).expect("a network")
    };
    let pixels = common::picture(40, 40, 1);
    for key in ["conv1.weight", "layer3.0.conv2.weight", "fc.weight"] {
        let mut explainer =
            Explainer::with_network(network(key)).fit(Fit::None).device(Device::Cpu).build().expect("an explainer");
        let frame = Frame::rgb(&pixels, 40, 40).expect("a frame");
        let message = explainer.explain(&frame, &Target::Top(1)).expect_err("infinite").to_string();
        assert_says(&message, &["non-finite", "node `"]);
    }
}

/// Pictures too small for the network, down to a single pixel.
#[test]
fn small_pictures() {
    for (model, method) in [("resnet18", "grad-cam"), ("resnet50", "lrp-epsilon-plus"), ("vgg11", "lrp-epsilon-plus")] {
        let builder = Explainer::with_network(common::tiny(model)).method(method).fit(Fit::None);
        let mut explainer = builder.maps(ucag::Maps::Plain).device(Device::Cpu).build().expect("an explainer");
        for (h, w) in [(1, 1), (1, 9), (2, 3), (8, 8), (15, 17), (31, 33)] {
            let pixels = common::picture(h, w, 1);
            let frame = Frame::rgb(&pixels, h, w).expect("a frame");
            match explainer.explain(&frame, &Target::Top(1)) {
                Ok(explanation) => assert_eq!(explanation.classes[0].map().data.len(), h * w),
                Err(error) => assert_says(&error.to_string(), &["too small", &format!("{h}×{w} pixels")]),
            }
        }
    }
}

#[test]
fn frames_that_lie() {
    let pixels = [0; 60];
    let refused = |h, w, stride, format| {
        let message = Frame::new(&pixels, h, w, stride, format).expect_err("a broken frame").to_string();
        assert_says(&message, &["image frame: expected"]);
    };
    refused(0, 4, 12, PixelFormat::Rgb);
    refused(4, 0, 12, PixelFormat::Rgb);
    refused(4, 4, 11, PixelFormat::Rgb);
    refused(4, 4, 15, PixelFormat::Rgba);
    refused(5, 4, 13, PixelFormat::Rgb);
    refused(1, 61, 61, PixelFormat::Gray);
    refused(1, usize::MAX, usize::MAX, PixelFormat::Rgb);
    refused(usize::MAX, 1, 3, PixelFormat::Rgb);
    refused(usize::MAX, usize::MAX, usize::MAX, PixelFormat::Bgr);
    // The last row needs no padding.
    assert!(Frame::new(&pixels, 4, 4, 16, PixelFormat::Rgb).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes(bytes: Vec<u8>, length in 0..200_u64, json in "[\\[{\"a:0,}\\]]{0,60}") {
        refusal(bytes, None);
        refusal([&length.to_le_bytes()[..], json.as_bytes()].concat(), None);
    }

    /// Any byte of a good file may change: it is refused, or makes a network that explains or says why not.
    #[test]
    fn mutated_files(seed: u64, changes in 1..6_usize) {
        let mut bytes = mutable();
        let length = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
        for i in 0..changes {
            // Most changes hit the header, which is what is parsed.
            let random = Random(seed).bits(2 * i) as usize;
            let range = if random % 8 < 7 { length + 8 } else { bytes.len() };
            bytes[(random >> 8) % range] = Random(seed).bits(2 * i + 1) as u8;
        }
        let loaded = Tensors::from_bytes("odd", bytes).and_then(|t| Network::from_tensors(&t, None));
        match loaded {
            Err(error) => prop_assert!(!error.to_string().is_empty()),
            Ok(network) => {
                let pixels = common::picture(32, 32, seed);
                let frame = Frame::rgb(&pixels, 32, 32).expect("a frame");
                let builder = Explainer::with_network(network).fit(Fit::None).maps(ucag::Maps::Plain).threads(1);
                let _ = builder.device(Device::Cpu).build().and_then(|mut e| e.explain(&frame, &Target::Top(1)));
            }
        }
    }

    #[test]
    fn any_frame(h in 0..30_usize, w in 0..30_usize, stride in 0..130_usize, len in 0..3000_usize, size in 0..40_usize) {
        let pixels = vec![7; len];
        for format in [PixelFormat::Rgb, PixelFormat::Bgr, PixelFormat::Rgba, PixelFormat::Gray] {
            let Ok(frame) = Frame::new(&pixels, h, w, stride, format) else { continue };
            for fit in [Fit::Fit, Fit::Squash, Fit::Crop, Fit::None] {
                if let Ok(working) = Working::new(frame.size(), fit, size) {
                    prop_assert_eq!(working.pixels(&frame).len(), working.h * working.w * 3);
                }
            }
        }
    }
}

/// A small good file with metadata.
fn mutable() -> Vec<u8> {
    static FILE: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    let make = || safetensors(&common::tensors("vgg11", 4, 64), &[("ucag.mean", "[0.5,0.5,0.5]"), ("ucag.size", "32")]);
    FILE.get_or_init(make).clone()
}
