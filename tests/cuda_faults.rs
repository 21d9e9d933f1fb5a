//! What can go wrong with a GPU while it computes, made to happen by the stand-in driver of `tests/emulator`: each fault
//! is a clear error of its own, loses no memory, and leaves the library usable. The stand-in ends the process when it
//! finds a write beyond an allocation.
#![cfg(feature = "cuda")]

mod common;

use std::ffi::{CString, c_char, c_int};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use libloading::Library;
use ucag::{Builder, Device, ErrorKind, Explainer, Explanation, Fit, Frame, Grid, Network, PixelFormat, Target};

/// The stand-in driver that is loaded already. Its faults hit the whole process, so one test at a time has it.
struct Emulator {
    library: Library,
    _alone: MutexGuard<'static, ()>,
}

impl Emulator {
    /// `None` where tests run on a GPU, or on nothing.
    fn open() -> Option<Self> {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let name = common::cuda::device()?;
        if !common::cuda::is_emulated(name) {
            eprintln!("tests of faults are SKIPPED: {name} is no emulator");
            return None;
        }
        // SAFETY: the loader gives the library that is in use.
        let library = unsafe { Library::new("libcuda.so.1") }.expect("the emulator");
        Some(Self { library, _alone: alone })
    }

    /// Makes the nth next call of the entry points whose names begin so return a code.
    fn fail(&self, call: &str, nth: usize, code: c_int) {
        self.set(CString::new(call).expect("a name").as_ptr(), nth as c_int, code);
    }

    /// Forgets all such wishes and brings a lost device back.
    fn heal(&self) {
        self.set(std::ptr::null(), 0, 0);
    }

    fn set(&self, call: *const c_char, nth: c_int, code: c_int) {
        type Fail = unsafe extern "C" fn(*const c_char, c_int, c_int);
        // SAFETY: the function has this type, see `tests/emulator/driver/errors.cpp`.
        unsafe { self.library.get::<Fail>(b"emu_fail").expect("emu_fail")(call, nth, code) }
    }

    /// Whether the one wish there is has come true.
    fn has_failed(&self, call: &str) -> bool {
        type Failure = unsafe extern "C" fn(*const c_char) -> c_int;
        let name = CString::new(call).expect("a name");
        // SAFETY: as above. A wish that is still there comes true at one of these calls.
        let code = || unsafe { self.library.get::<Failure>(b"emu_failure").expect("emu_failure")(name.as_ptr()) };
        (0..MOST_CALLS).all(|_| code() == 0)
    }

    /// Live bytes and live allocations.
    fn memory(&self) -> [u64; 2] {
        type Report = unsafe extern "C" fn(*mut u64);
        let mut counts = [0; 4];
        // SAFETY: as above; it fills four numbers.
        unsafe { self.library.get::<Report>(b"emu_report").expect("emu_report")(counts.as_mut_ptr()) };
        [counts[0], counts[1]]
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        self.heal();
    }
}

/// No test calls anything more often.
const MOST_CALLS: usize = 2000;

const INVALID_VALUE: c_int = 1;
const OUT_OF_MEMORY: c_int = 2;
const NOT_SUPPORTED: c_int = 801;

fn builder() -> Builder {
    static NETWORK: OnceLock<Network> = OnceLock::new();
    let make = || common::network(&common::tensors("resnet50", common::CLASSES, 16));
    let network = NETWORK.get_or_init(make).clone();
    let grid = Grid { n: 1, rho: Some(1.0), alpha: 1.0, ..Grid::default() };
    Explainer::with_network(network).grid(grid).fit(Fit::None).overlay(true).threads(1).device(Device::Cuda(0))
}

fn explain(explainer: &mut Explainer, side: usize) -> ucag::Result<Explanation> {
    let pixels = common::picture(side, side, 1);
    explainer.explain(&Frame::rgb(&pixels, side, side)?, &Target::Top(1))
}

/// A map and an overlay as bits, three times: made step by step, while it is recorded, and by a replay.
fn thrice(explainer: &mut Explainer, side: usize) -> ucag::Result<Vec<u32>> {
    let mut rounds = vec![];
    for _ in 0..3 {
        let explanation = explain(explainer, side)?;
        let class = &explanation.classes[0];
        let overlay = class.overlay.iter().flat_map(|o| &o.pixels).map(|v| u32::from(*v));
        rounds.push(class.map().data.iter().map(|v| v.to_bits()).chain(overlay).collect::<Vec<u32>>());
    }
    assert!(rounds[0] == rounds[1] && rounds[1] == rounds[2], "rounds differ");
    Ok(rounds.swap_remove(0))
}

const SIDE: usize = 16;

fn expected() -> Vec<u32> {
    let mut explainer = builder().build().expect("an explainer");
    let bits = thrice(&mut explainer, SIDE).expect("an explanation");
    assert_eq!(explainer.note(), None);
    bits
}

#[track_caller]
fn assert_says(message: &str, words: &[&str]) {
    assert!(words.iter().all(|word| message.contains(word)), "expected {words:?} in: {message}");
}

/// Calls that an explanation needs, from opening the device to reading the map, with what a failure says.
const NEEDED: &[(&str, c_int, &str)] = &[
    ("cuInit", 100, "finds no GPU: no CUDA-capable device"),
    ("cuDriverGetVersion", INVALID_VALUE, "does not tell its version"),
    ("cuDeviceGetCount", INVALID_VALUE, "finds no GPU"),
    ("cuDevicePrimaryCtxRetain", OUT_OF_MEMORY, "opening it failed: out of memory"),
    ("cuDeviceGetAttribute", INVALID_VALUE, "failed: invalid argument"),
    ("cuStreamCreate", OUT_OF_MEMORY, "opening it failed: out of memory"),
    ("cuModuleLoadData", 218, "loading the code of kernels/"),
    ("cuModuleGetFunction", 500, "loading kernel "),
    ("cuFuncSetAttribute", INVALID_VALUE, "bytes of shared memory failed"),
    ("cuMemGetInfo", INVALID_VALUE, "asking for its free memory failed"),
    ("cuMemAlloc", INVALID_VALUE, " bytes for "),
    ("cuMemHostAlloc", OUT_OF_MEMORY, "bytes of pinned memory of the host failed"),
    ("cuMemcpyHtoDAsync", INVALID_VALUE, "copying to the device failed"),
    ("cuMemcpyDtoHAsync", INVALID_VALUE, "copying from the device failed"),
    ("cuMemsetD8Async", INVALID_VALUE, "clearing memory failed"),
    ("cuLaunchKernel", INVALID_VALUE, "launching "),
    ("cuStreamSynchronize", 999, "unknown error (CUDA_ERROR_UNKNOWN)"),
    ("cuEventCreate", OUT_OF_MEMORY, "creating an event failed"),
    ("cuEventRecord", INVALID_VALUE, "marking an event failed"),
    ("cuEventElapsedTime", INVALID_VALUE, "reading a time failed"),
    ("cuGraphLaunch", INVALID_VALUE, "launching the recording failed"),
    ("cublasLtCreate", 1, "starting cuBLASLt"),
    ("cublasLtMatmulDescCreate", 3, "by cuBLASLt failed: CUBLAS_STATUS_ALLOC_FAILED"),
    ("cublasLtMatrixLayoutCreate", 3, "by cuBLASLt failed: CUBLAS_STATUS_ALLOC_FAILED"),
    ("cublasLtMatmulPreferenceCreate", 3, "by cuBLASLt failed: CUBLAS_STATUS_ALLOC_FAILED"),
    ("cublasLtMatmulAlgoGetHeuristic", 15, "choosing how to compute"),
    ("cublasLtMatmul", 13, "by cuBLASLt failed: CUBLAS_STATUS_"),
];

/// Each call fails, early and late: an error that says so, or, where it was being recorded, the same map step by step.
/// Afterwards the same explainer works, and no memory is lost.
#[test]
fn any_call_may_fail() {
    let Some(emulator) = Emulator::open() else { return };
    let expected = expected();
    let before = emulator.memory();
    for (call, code, words) in NEEDED {
        let mut nth = 1;
        loop {
            emulator.fail(call, nth, *code);
            let mut built = builder().build();
            let outcome = match &mut built {
                Ok(explainer) => thrice(explainer, SIDE),
                Err(_) => Ok(vec![]),
            };
            let has_failed = emulator.has_failed(call);
            emulator.heal();
            let what = format!("{call}, call {nth}");
            let message = match (&built, &outcome) {
                (Err(error), _) | (_, Err(error)) => Some(error.to_string()),
                (Ok(explainer), Ok(bits)) => {
                    assert!(*bits == expected, "{what}: another map");
                    explainer.note().map(str::to_string)
                }
            };
            assert_eq!(message.is_some(), has_failed, "{what}: {message:?}");
            message.iter().for_each(|message| assert_says(message, &["device cuda", words]));
            if let Ok(explainer) = &mut built {
                assert!(thrice(explainer, SIDE).expect(&what) == expected, "{what}: another map afterwards");
            }
            drop(built);
            assert_eq!(emulator.memory(), before, "{what}: memory was lost");
            if !has_failed {
                break;
            }
            nth *= 5;
        }
        assert!(nth > 1, "{call} was not called");
    }
}

/// Recording is refused, or fails half-way: the map comes all the same, and the reason is told.
#[test]
fn recording_may_be_refused() {
    let Some(emulator) = Emulator::open() else { return };
    let expected = expected();
    let before = emulator.memory();
    for (call, nth, code, words) in [
        ("cuStreamBeginCapture", 1, NOT_SUPPORTED, "beginning to record"),
        ("cuStreamEndCapture", 1, NOT_SUPPORTED, "recording failed"),
        ("cuGraphInstantiate", 1, NOT_SUPPORTED, "recording failed"),
        ("cuGraphUpload", 1, NOT_SUPPORTED, "uploading the recording"),
        ("cuMemsetD8Async", 1, NOT_SUPPORTED, "clearing memory"),
        ("cuEventRecord", 1, NOT_SUPPORTED, "marking an event"),
        // Two are launched before, to make the working image.
        ("cuLaunchKernel", 3, NOT_SUPPORTED, "launching unfold"),
        ("cuLaunchKernel", 30, NOT_SUPPORTED, "launching "),
        ("cublasLtMatmulDescCreate", 9, 15, "by cuBLASLt"),
    ] {
        let mut explainer = builder().build().expect("an explainer");
        explain(&mut explainer, SIDE).expect("an explanation step by step");
        emulator.fail(call, nth, code);
        assert!(thrice(&mut explainer, SIDE).expect(call) == expected, "{call}: another map");
        assert!(emulator.has_failed(call), "{call} was not called");
        let note = explainer.note().expect(call);
        assert_says(note, &["step by step: device cuda:0: ", words, "NOT_SUPPORTED"]);
        assert!(thrice(&mut explainer, SIDE).expect(call) == expected, "{call}: another map afterwards");
        assert!(explainer.note().is_some(), "{call}");
        // Another plan has a recording of its own.
        thrice(&mut explainer, SIDE + 1).expect(call);
        assert_eq!(explainer.note(), None, "{call}");
        drop(explainer);
        assert_eq!(emulator.memory(), before, "{call}: memory was lost");
    }
}

/// Whatever memory is for, that there is too little says how much is needed and how much is there.
#[test]
fn memory_may_run_out() {
    let Some(emulator) = Emulator::open() else { return };
    let before = emulator.memory();
    let mut purposes = vec![];
    for nth in 1.. {
        emulator.fail("cuMemAlloc", nth, OUT_OF_MEMORY);
        let outcome = builder().build().and_then(|mut explainer| thrice(&mut explainer, SIDE));
        emulator.heal();
        assert_eq!(emulator.memory(), before, "allocation {nth}: memory was lost");
        let Err(error) = outcome else { break };
        let ErrorKind::Memory { what, need, have } = error.kind() else { panic!("{error}") };
        assert!(*need > 0 && *have > 0, "{error}");
        assert_says(&error.to_string(), &["memory: ", " on cuda:0 needs ", " MiB, but only ", " MiB are available"]);
        purposes.push(what.clone());
    }
    for purpose in ["the plan", "the weights of conv1", "the frame", "tables of", "scratch memory", "a palette"] {
        assert!(purposes.iter().any(|p| p.starts_with(purpose)), "{purpose}: {purposes:?}");
    }
    let mut explainer = builder().build().expect("an explainer");
    explain(&mut explainer, SIDE).expect("an explanation");
    emulator.fail("cuMemAlloc", 1, OUT_OF_MEMORY);
    assert_says(&explainer.floors().expect_err("no memory").to_string(), &["matrices to measure with on cuda:0"]);
    assert!(explainer.floors().expect("memory").is_some());
}

/// A picture that is too large does no harm to what was planned and recorded before it.
#[test]
fn smaller_pictures_work_after_one_that_was_too_large() {
    let Some(emulator) = Emulator::open() else { return };
    let before = emulator.memory();
    // With an overlay every other width of a picture would need another recording anyway.
    let mut explainer = builder().overlay(false).build().expect("an explainer");
    let expected = thrice(&mut explainer, SIDE).expect("an explanation");
    let (mut nth, mut is_planned) = (1, false);
    loop {
        assert!(thrice(&mut explainer, SIDE).expect("an explanation") == expected, "allocation {nth}: another map");
        emulator.fail("cuMemAlloc", nth, OUT_OF_MEMORY);
        let large = explain(&mut explainer, 2 * SIDE);
        emulator.heal();
        let Err(error) = large else { break };
        assert_says(&error.to_string(), &["on cuda:0 needs"]);
        // The plan comes first and is kept, so that from then on nothing but the picture needs memory.
        let is_picture = !is_planned && error.to_string().contains("the frame");
        (nth, is_planned) = if is_picture { (1, true) } else { (nth + 1, is_planned) };
    }
    assert!(is_planned && nth > 5, "only {nth} allocations for a picture");
    assert!(thrice(&mut explainer, SIDE).expect("an explanation") == expected, "another map");
    // Another thread may let go of it.
    std::thread::spawn(move || drop(explainer)).join().expect("a thread");
    assert_eq!(emulator.memory(), before, "memory was lost");
}

/// After some errors a device answers every call with them until the process ends; its memory is lost with it.
#[test]
fn devices_may_be_lost() {
    let Some(emulator) = Emulator::open() else { return };
    let expected = expected();
    for (call, nth, code, name) in [
        ("cuLaunchKernel", 1, 719, "CUDA_ERROR_LAUNCH_FAILED"),
        ("cuLaunchKernel", 30, 700, "CUDA_ERROR_ILLEGAL_ADDRESS"),
        ("cuMemcpyHtoDAsync", 2, 700, "CUDA_ERROR_ILLEGAL_ADDRESS"),
        ("cuMemcpyDtoHAsync", 1, 46, "CUDA_ERROR_DEVICE_UNAVAILABLE"),
        ("cuStreamSynchronize", 3, 214, "CUDA_ERROR_ECC_UNCORRECTABLE"),
        ("cuStreamEndCapture", 1, 719, "CUDA_ERROR_LAUNCH_FAILED"),
        ("cuGraphUpload", 1, 700, "CUDA_ERROR_ILLEGAL_ADDRESS"),
        ("cuGraphLaunch", 1, 702, "CUDA_ERROR_LAUNCH_TIMEOUT"),
    ] {
        let mut explainer = builder().build().expect("an explainer");
        emulator.fail(call, nth, code);
        for side in [SIDE, SIDE, SIDE + 1] {
            let error = thrice(&mut explainer, side).expect_err(call);
            assert_says(&error.to_string(), &["device cuda:0: ", name]);
        }
        assert!(explainer.floors().map_or(true, |floors| floors.is_none()), "{call}");
        let problem = builder().build().err().expect(call).to_string();
        assert_says(&problem, &["device cuda:0: ", name]);
        let mut on_cpu = builder().device(Device::Auto).build().expect("an explainer");
        assert_eq!(on_cpu.device(), Device::Cpu, "{call}");
        explain(&mut on_cpu, SIDE).expect("an explanation on the CPU");
        drop(explainer);
        emulator.heal();
        let mut fresh = builder().build().expect("an explainer");
        assert!(thrice(&mut fresh, SIDE).expect("an explanation") == expected, "{call}: another map");
    }
}

/// Good and bad pictures through one explainer.
#[test]
fn frames_with_a_wrong_pitch() {
    let Some(emulator) = Emulator::open() else { return };
    let before = emulator.memory();
    let mut explainer = builder().build().expect("an explainer");
    let pixels = common::picture(SIDE, SIDE, 1);
    let message = Frame::new(&pixels, SIDE, SIDE, 3 * SIDE - 1, PixelFormat::Rgb).expect_err("a frame").to_string();
    assert_says(&message, &["stride of at least 48 bytes for 16 pixels, found 47"]);
    let message = Frame::new(&pixels, SIDE, SIDE, 4 * SIDE, PixelFormat::Rgb).expect_err("a frame").to_string();
    assert_says(&message, &["expected 1008 bytes for 16×16 pixels, found 768"]);
    assert!(thrice(&mut explainer, SIDE).is_ok());
    drop(explainer);
    assert_eq!(emulator.memory(), before, "memory was lost");
}
