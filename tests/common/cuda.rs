//! The CUDA device that tests run on: a GPU, or the emulator of `tests/emulator` where it is put in its place.

use std::sync::{Arc, OnceLock};

use ucag::backend::cuda::Cuda;
use ucag::net::Graph;

/// What the tests run on, said once by each test program. Without a device there is nothing to run, which is said too,
/// and is a failure where `UCAG_TEST_CUDA=required`.
pub fn device() -> Option<&'static str> {
    static DEVICE: OnceLock<Option<String>> = OnceLock::new();
    let find = || {
        let first = |gpus: Vec<ucag::Gpu>| match gpus.into_iter().next() {
            Some(gpu) => (gpu.name, gpu.problem),
            None => ("no GPU".into(), Some("there is none".into())),
        };
        let found = ucag::gpus().map(first);
        let problem = match found {
            Ok((name, None)) => {
                eprintln!("CUDA tests run on: {name}{}", if is_emulated(&name) { " (emulated)" } else { "" });
                return Some(name);
            }
            Ok((name, Some(problem))) => format!("{name}: {problem}"),
            Err(problem) => problem.to_string(),
        };
        assert!(std::env::var_os("UCAG_TEST_CUDA").is_none_or(|v| v != "required"), "no CUDA device: {problem}");
        eprintln!("CUDA tests are SKIPPED: {problem}");
        None
    };
    DEVICE.get_or_init(find).as_deref()
}

/// Whether the device of that name is the emulator.
pub fn is_emulated(name: &str) -> bool {
    name.contains("emulat")
}

/// A backend on that device.
pub fn backend(graph: &Arc<Graph>) -> Option<Cuda> {
    device()?;
    Some(Cuda::new(graph.clone(), 0).expect("a backend on a device that was found"))
}
