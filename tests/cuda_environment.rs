//! The program where something about the GPU is missing, too old or broken: always a message that says what, never a
//! panic or a part of a file. On the stand-in driver of `tests/emulator`, which takes its properties from the environment.
#![cfg(feature = "cuda")]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// A folder with weights and two photos, and the folder of the emulator's libraries.
struct Place {
    folder: TempDir,
    emulator: PathBuf,
}

const DRIVER: &str = "libcuda.so.1";
const KERNELS: &str = "libucag_emulated_kernels.so";
const PRODUCTS: &str = "libcublasLt.so.13";

impl Place {
    /// `None` where tests run on a GPU, or on nothing.
    fn new() -> Option<Self> {
        let name = common::cuda::device()?;
        if !common::cuda::is_emulated(name) {
            eprintln!("tests of faults are SKIPPED: {name} is no emulator");
            return None;
        }
        let paths = std::env::var_os("LD_LIBRARY_PATH").expect("where the emulator was found");
        let emulator = std::env::split_paths(&paths).find(|p| p.join(KERNELS).exists()).expect("its folder");
        let place = Self { folder: tempfile::tempdir().expect("a folder"), emulator };
        let tensors = common::tensors("resnet50", common::CLASSES, 16);
        let weights = common::safetensors(&tensors, &[("ucag.size", "33")]);
        std::fs::write(place.path("net.safetensors"), weights).expect("weights");
        for (name, seed) in [("a.png", 1), ("b.png", 2)] {
            let pixels = common::picture(40, 50, seed);
            image::RgbImage::from_raw(50, 40, pixels).expect("a photo").save(place.path(name)).expect("a photo");
        }
        Some(place)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A folder of the place with copies of the emulator's libraries.
    fn libraries(&self, folder: &str, names: &[&str]) -> PathBuf {
        let folder = self.path(folder);
        std::fs::create_dir(&folder).expect("a folder");
        for name in names {
            std::fs::copy(self.emulator.join(name), folder.join(name)).expect("a library");
        }
        folder
    }

    fn run(&self, libraries: &Path, variables: &[(&str, &str)], arguments: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ucag-fast"));
        command.current_dir(self.folder.path()).args(arguments.split_whitespace());
        command.env("UCAG_WEIGHTS", "net.safetensors").env("UCAG_EMU_LEAKS", "1").env("LD_LIBRARY_PATH", libraries);
        let output = command.envs(variables.iter().copied()).output().expect("the program");
        let errors = text(&output.stderr);
        for word in ["panicked", "never freed", "cuda emulator: "] {
            assert!(!errors.contains(word), "{arguments}, {variables:?}: {errors}");
        }
        output
    }

    /// The program on the emulator.
    fn emulated(&self, variables: &[(&str, &str)], arguments: &str) -> Output {
        self.run(&self.emulator, variables, arguments)
    }

    /// Names in a folder, sorted.
    fn files(&self, folder: &str) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.path(folder)) else { return vec![] };
        let mut names: Vec<String> =
            entries.map(|e| e.expect("an entry").file_name().into_string().expect("text")).collect();
        names.sort();
        names
    }

    /// Explains on GPU 0 and on whatever there is; `devices` says why the CPU is taken.
    #[track_caller]
    fn falls_back(&self, libraries: &Path, variables: &[(&str, &str)], words: &[&str]) {
        let run = |arguments: &str| self.run(libraries, variables, arguments);
        failed(&run(&format!("{EXPLAIN} --out refused --device cuda")), words);
        failed(&run(&format!("{EXPLAIN} --out refused --precision f16")), words);
        failed(&run("bench --frames 1 --warmup 0 --plain --device cuda"), words);
        assert!(self.files("refused").is_empty());
        let line = fine(&run(&format!("{EXPLAIN} --out cpu --json")));
        assert!(line.contains(r#""device":"cpu""#), "{line}");
    }

    /// The same, where `devices` sees it too.
    #[track_caller]
    fn is_unusable(&self, libraries: &Path, variables: &[(&str, &str)], words: &[&str]) {
        self.falls_back(libraries, variables, words);
        let listed = fine(&self.run(libraries, variables, "devices"));
        assert!(listed.starts_with("cpu     f32, ") && listed.lines().count() == 2, "{listed}");
        assert_says(&listed, words);
    }
}

/// Fast settings.
const EXPLAIN: &str = "explain a.png --grid 2 --rho 0.8 --alpha 1";

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}

#[track_caller]
fn assert_says(text: &str, words: &[&str]) {
    assert!(words.iter().all(|word| text.contains(word)), "expected {words:?} in: {text}");
}

#[track_caller]
fn fine(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    text(&output.stdout)
}

/// The run failed and said so.
#[track_caller]
fn failed(output: &Output, words: &[&str]) {
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{errors}");
    assert!(errors.starts_with("ucag-fast: error: "), "{errors}");
    assert_says(&errors, words);
}

#[test]
fn drivers_and_devices_that_do_not_do() {
    let Some(place) = Place::new() else { return };
    let none = place.libraries("none", &[]);
    place.is_unusable(&none, &[], &["no NVIDIA driver is installed (libcuda.so.1 was not found)"]);
    // What container images without a driver have in its place.
    let hollow = place.libraries("hollow", &[]);
    std::fs::write(hollow.join(DRIVER), "").expect("an empty file");
    place.is_unusable(&hollow, &[], &["no NVIDIA driver is installed"]);

    let emulator = place.emulator.clone();
    let is_unusable = |variable, value, words: &[&str]| place.is_unusable(&emulator, &[(variable, value)], words);
    is_unusable(
        "UCAG_EMU_DRIVER",
        "12080",
        &["expected a driver for CUDA 13.0 (r580) or newer, found one for CUDA 12.8"],
    );
    is_unusable("UCAG_EMU_DEVICES", "0", &["the driver finds no GPU: no CUDA-capable device is detected"]);
    is_unusable(
        "UCAG_EMU_COMPUTE",
        "75",
        &["expected compute capability 8.0 or newer, found 7.5 (CUDA emulator (CPU))"],
    );
    is_unusable("UCAG_EMU_FAIL", "cuInit:1:999", &["the driver finds no GPU: unknown error (CUDA_ERROR_UNKNOWN)"]);

    let run = |arguments: &str| place.emulated(&[], &format!("{EXPLAIN} --out refused {arguments}"));
    failed(&run("--device cuda:1"), &["device cuda:1: expected a number below 1, the number of GPUs"]);
    failed(&run("--device cuda --precision f32"), &["precision: cuda:0 stores activations in f16, not in f32"]);
    failed(&run("--device cpu --precision f16"), &["precision: cpu stores activations in f32, not in f16"]);
    assert!(place.files("refused").is_empty());
    assert_says(&fine(&place.emulated(&[], "devices")), &["cuda:0  f16, CUDA emulator (CPU), compute capability 8.0"]);
}

#[test]
fn libraries_that_are_missing() {
    let Some(place) = Place::new() else { return };
    let bare = place.libraries("bare", &[DRIVER, KERNELS]);
    place.is_unusable(&bare, &[], &["cuBLASLt was not found: looked for libcublasLt.so.13"]);
    // A library of kernels without any.
    let other = place.emulator.join(PRODUCTS).display().to_string();
    let words = ["device cuda:0: loading kernel ", " of kernels/", "named symbol not found (CUDA_ERROR_NOT_FOUND)"];
    place.falls_back(&place.emulator, &[("UCAG_EMU_KERNELS", &other)], &words);
}

#[test]
fn memory_that_does_not_suffice() {
    let Some(place) = Place::new() else { return };
    let run = |memory, arguments: &str| {
        let arguments = format!("explain a.png --out o --device cuda --grid 2 --rho 0.8 --alpha 1 {arguments}");
        place.emulated(&[("UCAG_EMU_MEMORY", memory)], &arguments)
    };
    failed(&run("20", ""), &["memory: scratch memory for matrix products on cuda:0 needs 32 MiB", "MiB are available"]);
    failed(&run("48", "--size 2000"), &["memory: resnet50 of 2500×2000 pixels, one patch at a time, needs"]);
    failed(
        &run("48", "--size 2000 --memory 100G"),
        &["memory: the plan on cuda:0 needs", "but only 47 MiB are available"],
    );
    assert!(place.files("o").is_empty());
    fine(&run("48", ""));
    assert_eq!(place.files("o"), ["a.json", "a.overlay.png"]);
}

/// One photo's fault does not concern the next one, unless the device is lost.
#[test]
fn faults_of_one_photo() {
    let Some(place) = Place::new() else { return };
    let run = |fault: &str, out: &str, arguments: &str| {
        let arguments = format!("{EXPLAIN} b.png --emit npy,json --device cuda --out {out} {arguments}");
        place.emulated(&[("UCAG_EMU_FAIL", fault)], &arguments)
    };
    let all = ["a.json", "a.npy", "b.json", "b.npy"];
    fine(&run("none:1:1", "good", ""));
    assert_eq!(place.files("good"), all);
    let map = |folder: &str, name: &str| std::fs::read(place.path(folder).join(name)).expect("a map");

    for (i, fault) in ["cuLaunchKernel:9:1", "cuMemcpyHtoD:4:1", "cublasLtMatmulAlgo:2:15"].iter().enumerate() {
        let out = format!("once-{i}");
        let output = run(fault, &out, "");
        failed(&output, &["image a.png: device cuda:0: "]);
        assert_eq!(text(&output.stderr).lines().count(), 1, "{}", text(&output.stderr));
        assert_eq!(place.files(&out), all[2..], "{fault}");
        assert!(map(&out, "b.npy") == map("good", "b.npy"), "{fault}");
    }
    for fault in ["cuLaunchKernel:9:719", "cuStreamSynchronize:80:700"] {
        // Memory is lost with the device.
        let variables = [("UCAG_EMU_FAIL", fault), ("UCAG_EMU_LEAKS", "0")];
        let output = place.emulated(&variables, &format!("{EXPLAIN} b.png --device cuda --out lost"));
        failed(&output, &["image a.png: device cuda:0: ", "image b.png: device cuda:0: "]);
        assert!(place.files("lost").is_empty(), "{fault}");
    }
    for (i, call) in
        ["cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiate", "cuGraphUpload"].iter().enumerate()
    {
        let (fault, out) = (format!("{call}:1:801"), format!("steps-{i}"));
        let output = run(&fault, &out, "");
        fine(&output);
        assert_says(
            &text(&output.stderr),
            &["warning: explanations run step by step: device cuda:0: ", "NOT_SUPPORTED"],
        );
        assert!(["a.npy", "b.npy"].iter().all(|name| map(&out, name) == map("good", name)), "{fault}");
        assert_eq!(text(&run(&fault, &out, "--quiet").stderr), "");
    }
    let fault = [("UCAG_EMU_FAIL", "cuStreamBeginCapture:1:801")];
    let report = fine(&place.emulated(&fault, "bench a.png --frames 1 --warmup 1 --plain --device cuda --json"));
    assert_says(&report, &["step by step", "CUDA_ERROR_NOT_SUPPORTED"]);
}
