//! Logits and maps of every method against references in `f64`, on seeded random weights of full width and on the
//! bundled ones, and resampling against Pillow and torch. Bounds: three times the reference's own distance between
//! `f32` and `f64`, at least 1e-5 (`tests/golden/README.md`).

mod seeded;

use std::collections::HashMap;
use std::sync::Arc;

use safetensors::SafeTensors;
use serde_json::Value;
use ucag::backend::cpu::Cpu;
use ucag::backend::{Backend, Dtype, Instr, Pass, Scope, Slot, Step, Tables};
use ucag::grid::{GridPlan, Weighting};
use ucag::models::{Model, Preprocess};
use ucag::{Device, Explainer, Explanation, Fit, Frame, Grid, Maps, Mode, Network, Target, Working};

/// What is never asked below, as a part of the range.
const FLOOR: f64 = 1e-5;

struct Golden {
    bytes: Vec<u8>,
    metadata: HashMap<String, String>,
}

impl Golden {
    fn open(name: &str) -> Self {
        let path = format!("{}/tests/golden/{name}.safetensors", env!("CARGO_MANIFEST_DIR"));
        let bytes = std::fs::read(path).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        Self { metadata: header.metadata().clone().unwrap(), bytes }
    }

    fn json(&self, key: &str) -> Value {
        serde_json::from_str(&self.metadata[key]).unwrap()
    }

    fn tensors(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.bytes).unwrap()
    }

    /// Shape and values as `f64`.
    fn get(&self, name: &str) -> (Vec<usize>, Vec<f64>) {
        let tensors = self.tensors();
        let t = tensors.tensor(name).unwrap();
        let values = match t.dtype() {
            safetensors::Dtype::F64 => t.data().as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
            safetensors::Dtype::F32 => {
                t.data().as_chunks().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect()
            }
            safetensors::Dtype::U8 => t.data().iter().map(|b| f64::from(*b)).collect(),
            other => panic!("{name}: unexpected {other:?}"),
        };
        (t.shape().to_vec(), values)
    }

    fn image(&self, name: &str) -> (usize, usize, Vec<u8>) {
        let (shape, values) = self.get(name);
        (shape[0], shape[1], values.iter().map(|v| *v as u8).collect())
    }

    fn network(&self, name: &str) -> Network {
        let gains = self.json("gains");
        let tensors = self.tensors();
        let running = tensors.names().into_iter().filter(|n| n.contains(".running_"));
        let stored = running.map(|n| (n.to_string(), self.get(n).1.iter().map(|v| *v as f32).collect())).collect();
        seeded::network(name, &stored, |key, _| gains[key].as_i64().unwrap() as i32)
    }
}

/// Largest difference over the range, and L2 difference over the L2 norm.
fn distance(got: &[f32], want: &[f64]) -> (f64, f64) {
    assert_eq!(got.len(), want.len());
    let (lo, hi) = want.iter().fold((f64::MAX, f64::MIN), |(lo, hi), v| (lo.min(*v), hi.max(*v)));
    let differences: Vec<f64> = got.iter().zip(want).map(|(g, w)| f64::from(*g) - w).collect();
    let max = differences.iter().fold(0.0_f64, |m, d| m.max(d.abs()));
    let norm = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
    (max / (hi - lo), norm(&differences) / norm(want))
}

/// Says how far a map is from its reference; an error where that is farther than its bound.
fn check(what: &str, got: &[f32], want: &[f64], own: &Value) -> Result<(), String> {
    let (max, l2) = distance(got, want);
    let bound = |key: &str| (3.0 * own[key].as_f64().unwrap()).max(FLOOR);
    let text = format!("{what}: max {max:.2e} (bound {:.2e}), L2 {l2:.2e} (bound {:.2e})", bound("max"), bound("l2"));
    println!("{text}");
    if max <= bound("max") && l2 <= bound("l2") { Ok(()) } else { Err(text) }
}

/// One picture, one method, plain or under UCAG: map and probabilities of the patches. An unknown method is an error.
fn case_matches(golden: &Golden, network: &Network, case: &Value) -> Result<Explanation, String> {
    let text = |key: &str| case[key].as_str().unwrap();
    let what = format!("{} {}", network.model.name, text("tensor"));
    let (h, w, pixels) = golden.image(&format!("image/{}", text("image")));
    let plain = text("mode") == "plain";
    let mode = if text("mode") == "release" { Mode::Release } else { Mode::Paper };
    let alpha = case["alpha"].as_f64().unwrap_or(Grid::default().alpha);
    let grid = Grid { mode, n: case["grid"].as_u64().unwrap() as usize, rho: case["rho"].as_f64(), alpha };
    let mut builder = Explainer::with_network(network.clone())
        .method(text("method"))
        .layer(text("layer"))
        .grid(grid)
        .maps(if plain { Maps::Plain } else { Maps::Ucag })
        .fit(Fit::None)
        .device(Device::Cpu);
    for (key, value) in case["set"].as_object().into_iter().flatten() {
        builder = builder.set(key, value.as_str().unwrap());
    }
    let mut explainer = builder.build().map_err(|e| format!("{what}: {e}"))?;
    let class = case["class"].as_u64().unwrap() as usize;
    let explanation = explainer.explain(&Frame::rgb(&pixels, h, w).unwrap(), &Target::Classes(vec![class])).unwrap();
    let of_class = &explanation.classes[0];
    let map = of_class.map();
    let (shape, want) = golden.get(text("tensor"));
    assert_eq!([map.h, map.w], shape[..], "{what}");
    check(&what, &map.data, &want, case)?;
    let p = if plain { vec![of_class.probability] } else { of_class.patch_probabilities.clone() };
    let (lo, hi) = p.iter().fold((f32::MAX, f32::MIN), |(lo, hi), v| (lo.min(*v), hi.max(*v)));
    for (got, want) in [lo, hi].into_iter().zip(case["p"].as_array().unwrap()) {
        let want = want.as_f64().unwrap();
        if (f64::from(got) - want).abs() >= 1e-4 {
            return Err(format!("{what}: probability {got}, expected {want}"));
        }
    }
    Ok(explanation)
}

/// All maps of one golden file.
fn all_match(golden: &Golden, network: &Network) {
    let results = golden
        .json("cases")
        .as_array()
        .unwrap()
        .iter()
        // Where the reference is as far from itself as its whole range, nothing can be told.
        .filter(|case| case["max"].as_f64().is_none_or(|own| 3.0 * own < 1.0))
        .map(|case| case_matches(golden, network, case))
        .collect::<Vec<_>>();
    let wrong: Vec<String> = results.into_iter().filter_map(Result::err).collect();
    assert!(wrong.is_empty(), "farther from the reference than the bound:\n{}", wrong.join("\n"));
}

/// Logits of one picture, and the probability of its top class.
fn logits_match(golden: &Golden, image: &str, (top, p): (usize, f32)) {
    let want = &golden.json("logits")[image];
    assert_eq!(Some(top as u64), want["class"].as_u64(), "top class of {image}");
    // A softmax changes by at most half of what its logits change by.
    let (_, logits) = golden.get(&format!("logits/{image}"));
    let range = logits.iter().fold(f64::MIN, |m, v| m.max(*v)) - logits.iter().fold(f64::MAX, |m, v| m.min(*v));
    let bound = (3.0 * want["max"].as_f64().unwrap()).max(FLOOR) * range / 2.0;
    let error = (f64::from(p) - want["p"].as_f64().unwrap()).abs();
    assert!(error <= bound, "probability {p} of {image}, expected {want} within {bound:.1e}");
}

fn network_matches(name: &str) {
    let golden = Golden::open(name);
    let network = golden.network(name);
    for case in golden.json("cases").as_array().unwrap() {
        let explanation = case_matches(&golden, &network, case).unwrap();
        logits_match(&golden, case["image"].as_str().unwrap(), explanation.top[0]);
    }
    all_match(&Golden::open(&format!("methods-{name}")), &network);
}

#[test]
fn resnet18_matches_references() {
    network_matches("resnet18");
}

#[test]
fn resnet50_matches_references() {
    network_matches("resnet50");
}

#[test]
fn vgg16_matches_references() {
    network_matches("vgg16");
}

#[test]
fn vgg11_bn_matches_references() {
    network_matches("vgg11_bn");
}

#[test]
fn bundled_weights_match_references() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/weights/vgg16-everyday.safetensors");
    all_match(&Golden::open("methods-everyday"), &Network::open(path, None).unwrap());
}

#[test]
fn working_images_equal_pillows() {
    let golden = Golden::open("resize");
    for case in golden.json("resize").as_array().unwrap() {
        let (h, w, pixels) = golden.image(case["in"].as_str().unwrap());
        let (oh, ow, want) = golden.image(case["out"].as_str().unwrap());
        let got = ucag::resize(&pixels, (h, w), (oh, ow));
        let differing = got.iter().zip(&want).filter(|(g, w)| g != w).count();
        assert!(
            got.len() == want.len() && differing == 0,
            "{w}×{h} to {ow}×{oh}: {differing} of {} differ",
            want.len()
        );
    }
}

#[test]
fn patches_equal_torchs() {
    let golden = Golden::open("resize");
    let raw = Preprocess { mean: [0.0; 3], std: [1.0 / 255.0; 3], size: 224 };
    for case in golden.json("unfold").as_array().unwrap() {
        let (h, w, image) = golden.image(case["in"].as_str().unwrap());
        let (shape, want) = golden.get(case["out"].as_str().unwrap());
        let mode = if case["mode"] == "release" { Mode::Release } else { Mode::Paper };
        let number = |key: &str| case[key].as_f64();
        let grid =
            Grid { mode, n: number("grid").unwrap() as usize, rho: number("rho"), alpha: number("alpha").unwrap() };
        let plan = GridPlan::new(grid, h, w).unwrap();
        assert_eq!([plan.scaled().0, plan.scaled().1], shape[2..], "{case}");
        assert_eq!(plan.patches(), shape[0], "{case}");
        let got = unfold(&plan, &raw, &image);
        let (rows, columns) = (shape[2], shape[3]);
        for (i, want) in want.iter().enumerate() {
            let (x, y, c, patch) = (i % columns, i / columns % rows, i / columns / rows % 3, i / columns / rows / 3);
            let got = got[((patch * rows + y) * columns + x) * 3 + c];
            assert!(
                (f64::from(got) - want).abs() < 1e-4,
                "{case}: patch {patch}, ({y}, {x}, {c}): {got}, expected {want}"
            );
        }
    }
}

/// All patches of an image, `[patch, row, column, channel]`, by the CPU backend.
fn unfold(plan: &GridPlan, preprocess: &Preprocess, image: &[u8]) -> Vec<f32> {
    let (graph, _) = Model::named("resnet18").unwrap().blueprint(10, 8).unwrap();
    let mut cpu = Cpu::new(Arc::new(graph), 2).unwrap();
    let len = plan.scaled().0 * plan.scaled().1 * 3;
    let y = Slot { offset: 0, len, lanes: 1, dtype: Dtype::F32, scope: Scope::Batch };
    let steps = vec![Step { node: "unfold".into(), instr: Instr::Unfold { image: plan.image, y } }];
    let tables = Tables { resample: plan.resample(preprocess), fold: plan.fold((1, 1), Weighting::One) };
    let mut values = vec![0.0_f32; len * plan.patches()];
    cpu.reserve(values.len() * 4).unwrap();
    let program = cpu.prepare(steps, tables).unwrap();
    let frame = Frame::rgb(image, plan.image.0, plan.image.1).unwrap();
    cpu.show(&frame, &Working::new(plan.image, Fit::None, 1).unwrap(), false).unwrap();
    cpu.run(&Pass { program: &program, steps: 0..1, samples: 0..plan.patches() }).unwrap();
    cpu.read(&mut [(y, bytemuck::cast_slice_mut(&mut values))]).unwrap();
    values
}
