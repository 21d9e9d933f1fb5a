//! Every kernel of the CUDA backend, timed on the device at the shapes of the paper's setting: 36 patches of 322 × 322
//! pixels through ResNet-50 and VGG-16, and input-gradients of 4 of them.
//!
//! A benchmark's group is the kernel, by its name in `kernels/*.cu`, or `cublaslt`. Throughput: bytes are those of every
//! operand, result and weight, once each; elements are the FLOPs of products, which have both.
//!
//! Without a GPU, or on the emulator, nothing is timed. `UCAG_BENCH_DRY=1` runs every case there on tiny shapes and
//! checks that it launches the kernel it stands for.

#[path = "kernels/case.rs"]
mod case;
#[path = "kernels/cases.rs"]
mod cases;
#[path = "kernels/choice.rs"]
mod choice;
#[allow(dead_code)]
#[path = "../tests/seeded/mod.rs"]
mod seeded;

use std::collections::BTreeSet;
use std::ffi::{c_char, c_int};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, Throughput};
use cudarc::driver::CudaContext;
use cudarc::driver::sys::CUdevice_attribute_enum as Attribute;
use safetensors::tensor::TensorView;
use ucag::backend::cuda::{Cuda, Program, Recording};
use ucag::backend::{Access, Backend, Dtype, Instr, Outcome, Pass, Slot, Step, Tables};
use ucag::grid::Weighting;
use ucag::models::{Model, Preprocess};
use ucag::net::{self, Graph, Tensors};
use ucag::{Fit, Frame, Network, Working};

use case::{Case, PAPER, Setting, TINY};
use cases::{NETWORKS, cases};
use choice::{LIBRARY, Limits};

/// Where `choice` finds the source that it compiles.
mod backend {
    pub use crate::choice::taps;
    pub use ucag::backend::ConvGeom;
}

/// Copies of a step in one pass: enough to fill `PASS`, and no more than `COPIES`.
const PASS: Duration = Duration::from_millis(1);
const COPIES: usize = 64;
/// More bytes than any GPU's caches hold.
const BEYOND_CACHES: usize = 256 << 20;
/// A name for what `show` launches. It comes with the upload of a frame, so it is timed with that and has no floor.
const RESIZE: &str = "resize_across + resize_down";
/// For which kernels are named where there is no GPU.
const H100: Limits = Limits { multiprocessors: 132, shared: 227 << 10, wgmma: true };

/// A network with seeded weights: of zeros a GPU computes faster than it does in earnest, for they take less power.
fn network(name: &str, classes: usize, setting: &Setting) -> Arc<Graph> {
    let model = Model::named(name).unwrap();
    let (_, list) = model.blueprint(classes, setting.narrowing).unwrap();
    let value = |(key, shape): &(String, Vec<usize>)| match key.rsplit_once('.').unwrap().1 {
        "running_mean" => vec![0.0; shape[0]],
        "running_var" => vec![1.0; shape[0]],
        _ => seeded::values(key, seeded::gain(key, shape), shape.iter().product()),
    };
    let values: Vec<Vec<f32>> = list.iter().map(value).collect();
    let views = list.iter().zip(&values).map(|((key, shape), values)| {
        (key, TensorView::new(safetensors::Dtype::F32, shape.clone(), bytemuck::cast_slice(values)).unwrap())
    });
    let bytes = safetensors::serialize(views, None).unwrap();
    Arc::new(Network::from_tensors(&Tensors::from_bytes(name, bytes).unwrap(), Some(model)).unwrap().graph)
}

/// A network on the device, which is shown a photo.
struct Device<'a> {
    backend: Cuda,
    graph: Arc<Graph>,
    setting: &'a Setting,
    photo: Vec<u8>,
}

impl<'a> Device<'a> {
    fn new(name: &str, classes: usize, setting: &'a Setting) -> Self {
        let graph = network(name, classes, setting);
        let backend = Cuda::new(graph.clone(), 0).unwrap();
        let mut device = Self { backend, graph, setting, photo: seeded::picture(setting.photo.0, setting.photo.1) };
        device.show().unwrap();
        device
    }

    fn show(&mut self) -> ucag::Result<()> {
        let frame = Frame::rgb(&self.photo, self.setting.photo.0, self.setting.photo.1).unwrap();
        let working = Working::new(frame.size(), Fit::Squash, self.setting.image).unwrap();
        self.backend.show(&frame, &working, true)
    }

    /// Copies of a case's step, each with operands of its own until these are more than caches hold.
    fn load(&mut self, case: &Case, copies: usize) -> Loaded {
        let own = BEYOND_CACHES.div_ceil(case.end).min(copies);
        let copy =
            |i: usize| case.instr.clone().map(|slot, _| Slot { offset: slot.offset + i % own * case.end, ..slot });
        let step = |i| Step { node: case.id.clone(), instr: copy(i) };
        let plan = self.setting.plan();
        let map = if let Instr::Fold { map, .. } = case.instr { map } else { (1, 1) };
        let tables = Tables { resample: plan.resample(&Preprocess::default()), fold: plan.fold(map, Weighting::Exp) };
        self.backend.reserve(own * case.end).unwrap();
        let program = self.backend.prepare((0..copies).map(step).collect(), tables).unwrap();
        for i in 0..own {
            copy(i).map(|slot, access| {
                if access != Access::Write {
                    self.fill(&slot, case.samples);
                }
            });
        }
        let mut loaded = Loaded { program, recording: Recording::default(), copies, samples: case.samples };
        (0..3).for_each(|_| assert!(!loaded.run(&mut self.backend).overflow, "{}: {}", case.kernel, case.id));
        loaded
    }

    fn fill(&mut self, slot: &Slot, samples: usize) {
        const VALUES: usize = 1 << 18;
        let values = || seeded::values("noise", 0, VALUES).into_iter();
        let noise: Vec<u8> = match slot.dtype {
            Dtype::F16 => values().flat_map(|v| half::f16::from_f32(v).to_le_bytes()).collect(),
            Dtype::F32 => values().flat_map(f32::to_le_bytes).collect(),
            Dtype::U32 => vec![0; VALUES],
            Dtype::U8 => (0..VALUES).map(|i| (i % 4) as u8).collect(),
        };
        let len = case::bytes(slot, samples);
        for at in (0..len).step_by(noise.len()) {
            let part = &noise[..noise.len().min(len - at)];
            self.backend.write(&Slot { offset: slot.offset + at, ..*slot }, part).unwrap();
        }
    }
}

/// A program that is ready to be replayed.
struct Loaded {
    program: Program,
    recording: Recording,
    copies: usize,
    samples: usize,
}

impl Loaded {
    /// Runs all copies as one pass, from the third time on as a recorded graph. Its time is taken on the device, by
    /// events around the pass, so neither launches nor waits of the host are in it.
    fn run(&mut self, backend: &mut Cuda) -> Outcome {
        let pass = Pass { program: &self.program, steps: 0..self.copies, samples: 0..self.samples };
        backend.explain(&[pass], &mut self.recording, &mut |_| ()).unwrap()
    }

    /// The device's time for so many steps.
    fn time(&mut self, backend: &mut Cuda, steps: u64) -> Duration {
        let passes = steps.div_ceil(self.copies as u64);
        let all: Duration = (0..passes).map(|_| self.run(backend).times[0]).sum();
        all.mul_f64(steps as f64 / (passes * self.copies as u64) as f64)
    }
}

fn time(device: &mut Device<'_>, case: &Case, c: &mut Criterion) {
    let (flops, bytes) = case.work(&device.graph);
    let (elements, bytes) = (flops as u64, bytes as u64);
    let work = if flops > 0 { Throughput::ElementsAndBytes { elements, bytes } } else { Throughput::Bytes(bytes) };
    let mut loaded = None;
    let mut group = c.benchmark_group(case.kernel);
    group.throughput(work).bench_function(&case.id, |b| {
        let loaded = loaded.get_or_insert_with(|| {
            let once = device.load(case, 1).time(&mut device.backend, 1).as_secs_f64();
            device.load(case, ((PASS.as_secs_f64() / once) as usize).clamp(1, COPIES))
        });
        b.iter_custom(|steps| loaded.time(&mut device.backend, steps));
    });
    group.finish();
}

/// What `run` launches first, from the error that names it when the emulator refuses it.
fn launched(run: impl FnOnce() -> ucag::Result<()>) -> String {
    type Fail = unsafe extern "C" fn(*const c_char, c_int, c_int);
    const CUDA_NOT_PERMITTED: c_int = 800;
    const CUBLAS_EXECUTION_FAILED: c_int = 13;
    // SAFETY: the library is loaded already.
    let emulator = unsafe { libloading::Library::new("libcuda.so.1") }.unwrap();
    // SAFETY: `tests/emulator/driver/errors.cpp` defines it so; names are C strings, null takes all wishes back.
    let fail = |call, code| unsafe { emulator.get::<Fail>(b"emu_fail").unwrap()(call, 1, code) };
    fail(c"cuLaunchKernel".as_ptr(), CUDA_NOT_PERMITTED);
    fail(c"cublasLtMatmul".as_ptr(), CUBLAS_EXECUTION_FAILED);
    let error = run().expect_err("nothing was launched").to_string();
    fail(std::ptr::null(), 0);
    let kernel = error.split_once("launching ").and_then(|(_, rest)| rest.split(' ').next());
    kernel.unwrap_or(if error.contains("by cuBLASLt failed") { LIBRARY } else { &error }).into()
}

/// Runs every case on tiny shapes; says which kernels no case times.
fn dry(limits: Limits) {
    let (mut count, mut named) = (0, BTreeSet::from(["resize_across", "resize_down"]));
    let (mut seen_full, mut seen) = (vec![], vec![]);
    for (name, classes) in NETWORKS {
        let (full, _) = Model::named(name).unwrap().blueprint(classes, PAPER.narrowing).unwrap();
        named.extend(cases(&full, name, &PAPER, H100, &mut seen_full).iter().map(|case| case.kernel));
        let mut device = Device::new(name, classes, &TINY);
        assert!(RESIZE.starts_with(&launched(|| device.show())));
        device.show().unwrap();
        for case in cases(&device.graph.clone(), name, &TINY, limits, &mut seen) {
            let loaded = device.load(&case, 3);
            let pass = Pass { program: &loaded.program, steps: 0..1, samples: 0..case.samples };
            assert_eq!(launched(|| device.backend.run(&pass)), case.kernel, "{}", case.id);
            count += 1;
        }
        assert_eq!(device.backend.note(), None);
    }
    let files = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/kernels")).unwrap();
    let sources = files.map(|f| f.unwrap().path()).filter(|f| f.extension().is_some_and(|e| e == "cu"));
    let sources: String = sources.map(|f| std::fs::read_to_string(f).unwrap()).collect();
    let defined: BTreeSet<&str> = sources.split("KERNEL(").skip(1).filter_map(|s| s.split(',').next()).collect();
    let unknown: Vec<_> = named.difference(&defined).filter(|name| **name != LIBRARY).collect();
    assert!(unknown.is_empty(), "cases for kernels that are not there: {unknown:?}");
    let missing: Vec<_> = defined.difference(&named).collect();
    println!("kernels: DRY: {count} cases ran on the emulator; no case times {missing:?} of {}", defined.len());
}

fn main() -> ExitCode {
    let name = match ucag::gpus() {
        Err(problem) => Err(problem.to_string()),
        Ok(gpus) => gpus.into_iter().next().map_or(Err("there is no GPU".into()), |gpu| match gpu.problem {
            Some(problem) => Err(format!("{}: {problem}", gpu.name)),
            None => Ok(gpu.name),
        }),
    };
    let dry_run = std::env::var_os("UCAG_BENCH_DRY").is_some();
    let skip = match &name {
        Err(problem) => Some(problem.as_str()),
        Ok(name) if name.contains("emulat") != dry_run => {
            Some(if dry_run { "a dry run needs the emulator" } else { "nothing is timed on the emulator" })
        }
        Ok(_) => None,
    };
    if let Some(reason) = skip {
        println!("kernels: SKIPPED: {reason}");
        return if dry_run { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    }
    let ask = |attribute| CudaContext::new(0).unwrap().attribute(attribute).unwrap();
    let limits = Limits {
        multiprocessors: ask(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT) as usize,
        shared: ask(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN) as u32,
        wgmma: CudaContext::new(0).unwrap().compute_capability().unwrap() == (9, 0),
    };
    if dry_run {
        dry(limits);
        return ExitCode::SUCCESS;
    }
    // Short, for `load` has woken the clocks already, and more than a hundred cases have to fit into a minute and a half.
    let (warm_up, measurement) = (Duration::from_millis(150), Duration::from_millis(400));
    let c = Criterion::default().sample_size(10).warm_up_time(warm_up).measurement_time(measurement);
    let mut c = c.nresamples(2000).without_plots().configure_from_args();
    let mut seen = vec![];
    for (name, classes) in NETWORKS {
        let mut device = Device::new(name, classes, &PAPER);
        for case in cases(&device.graph.clone(), name, &PAPER, limits, &mut seen) {
            time(&mut device, &case, &mut c);
        }
        if name == NETWORKS[0].0 {
            c.benchmark_group(RESIZE).bench_function("show", |b| b.iter(|| device.show().unwrap()));
        }
        device.backend.note().inspect(|note| println!("kernels: {note}"));
    }
    c.final_summary();
    ExitCode::SUCCESS
}
