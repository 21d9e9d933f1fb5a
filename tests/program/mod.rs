//! A folder to run the program in, with a tiny network, and what its runs are asked.

// Each test binary uses a part of this.
#![allow(dead_code)]

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::{Command, Output};

use safetensors::{Dtype, tensor::TensorView};
use tempfile::TempDir;
use ucag::models::Model;

pub const LABELS: &[&str] = &["tabby cat", "tiger cat", "dog", "golden retriever", "bear", "cat"];

/// A folder with weights and photos.
pub struct Place {
    pub folder: TempDir,
}

impl Place {
    pub fn new() -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap() };
        std::fs::write(place.path("net.safetensors"), weights(false)).unwrap();
        place.photo("photo.png");
        place
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn photo(&self, name: &str) {
        let colour = |x: u32, y: u32| image::Rgb([(x * 3) as u8, (y * 5) as u8, ((x * y) % 251) as u8]);
        image::RgbImage::from_fn(80, 60, colour).save(self.path(name)).unwrap();
    }

    /// `explain` with settings that are fast.
    pub fn explain(&self, arguments: &[&str]) -> Output {
        let fast = ["explain", "--device", "cpu", "--grid", "2", "--rho", "0.6", "--alpha", "1"];
        self.run(&[&fast, arguments].concat())
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ucag-fast"));
        command.current_dir(self.folder.path()).env("UCAG_WEIGHTS", "net.safetensors").args(arguments);
        command
    }

    /// Names in a folder, sorted; hidden ones too.
    pub fn files(&self, folder: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.path(folder)).unwrap();
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// A narrow ResNet-18; with a `dead` head no class has evidence.
pub fn weights(dead: bool) -> Vec<u8> {
    let (_, list) = Model::named("resnet18").unwrap().blueprint(LABELS.len(), 16).unwrap();
    let mut state = 1u32;
    let mut draw = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = list
        .into_iter()
        .map(|(key, shape)| {
            let count: usize = shape.iter().product();
            let gain = (3.0 / shape[1..].iter().product::<usize>() as f32).sqrt();
            let value = |v: f32| match shape.len() {
                1 if key.ends_with("weight") || key.ends_with("var") => 1.0 + 0.2 * v,
                1 => 0.1 * v,
                2 if dead => 0.0,
                _ => gain * v,
            };
            let bytes = (0..count).flat_map(|_| value(draw()).to_le_bytes()).collect();
            (key, shape, bytes)
        })
        .collect();
    let views = tensors.iter().map(|(k, s, b)| (k.as_str(), TensorView::new(Dtype::F32, s.clone(), b).unwrap()));
    let metadata = [("ucag.size", "64".into()), ("ucag.labels", serde_json::to_string(LABELS).unwrap())];
    let metadata: HashMap<String, String> = metadata.map(|(k, v)| (k.to_string(), v)).into();
    safetensors::serialize(views, Some(metadata)).unwrap()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[track_caller]
pub fn fine(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    text(&output.stdout)
}

/// The run failed, said so in the agreed form and named `words`.
#[track_caller]
pub fn failed(output: &Output, words: &[&str]) {
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{errors}");
    assert!(errors.starts_with("ucag-fast: error: "), "{errors}");
    assert!(!errors.contains("panicked"), "{errors}");
    for word in words {
        assert!(errors.contains(word), "expected `{word}` in: {errors}");
    }
}
