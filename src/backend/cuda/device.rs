//! Finding a GPU, and naming what goes wrong with it.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream, DriverError, result, sys};

use super::conv::Limits;
use crate::device::{Device, Gpu};
use crate::error::{Error, ErrorKind, Result};

/// Version of the CUDA driver interface that is needed at least: 13.0, driver r580.
const DRIVER: i32 = 13_000;
/// Oldest compute capability that the kernels run on: tensor cores with asynchronous copies.
const CAPABILITY: (i32, i32) = (8, 0);
/// The one on which code for sm_90a runs.
const HOPPER: (i32, i32) = (9, 0);

/// A GPU that is ready to compute, and the one stream on which it does.
pub(super) struct Handle {
    pub context: Arc<CudaContext>,
    pub stream: Arc<CudaStream>,
    pub number: usize,
}

fn unusable(device: &str, problem: impl Into<String>) -> Error {
    ErrorKind::Device { device: device.into(), problem: problem.into() }.into()
}

/// What the driver says, in its own words.
pub(super) fn words(error: DriverError) -> String {
    match (error.error_name(), error.error_string()) {
        (Ok(name), Ok(text)) => format!("{} ({})", text.to_string_lossy(), name.to_string_lossy()),
        _ => format!("{:?}", error.0),
    }
}

/// Number of GPUs, 1 or more, with the driver ready for use.
pub(crate) fn count() -> Result<usize> {
    // SAFETY: only tries to open the library.
    if !unsafe { sys::is_culib_present() } {
        return Err(unusable("cuda", "no NVIDIA driver is installed (libcuda.so.1 was not found)"));
    }
    let mut version = 0;
    // SAFETY: the library is there, and this call needs no initialisation.
    let asked = unsafe { sys::cuDriverGetVersion(&mut version) }.result();
    asked.map_err(|e| unusable("cuda", format!("the driver does not tell its version: {}", words(e))))?;
    if version < DRIVER {
        let text = |v: i32| format!("{}.{}", v / 1000, v % 1000 / 10);
        let (need, have) = (text(DRIVER), text(version));
        let problem = format!("expected a driver for CUDA {need} (r580) or newer, found one for CUDA {have}");
        return Err(unusable("cuda", problem));
    }
    let found = result::init().and_then(|()| result::device::get_count());
    match found {
        Ok(n) if n > 0 => Ok(n as usize),
        Ok(_) => Err(unusable("cuda", "the driver finds no GPU")),
        Err(e) => Err(unusable("cuda", format!("the driver finds no GPU: {}", words(e)))),
    }
}

/// All GPUs.
pub(crate) fn gpus() -> Result<Vec<Gpu>> {
    Ok((0..count()?).map(describe).collect())
}

fn describe(number: usize) -> Gpu {
    let mut gpu = Gpu { number, name: "unknown".into(), capability: (0, 0), memory: (0, 0), problem: None };
    let mut fill = || -> Result<()> {
        let opened = Handle::open(number)?;
        let ask = |e| opened.failed("asking for its properties", e);
        gpu.name = opened.context.name().map_err(ask)?;
        gpu.capability = opened.context.compute_capability().map_err(ask)?;
        let (free, total) = opened.context.mem_get_info().map_err(ask)?;
        gpu.memory = (total as u64, free as u64);
        super::gemm::available()
    };
    if let Err(error) = fill() {
        gpu.problem = Some(match error.kind() {
            ErrorKind::Device { problem, .. } => problem.clone(),
            _ => error.to_string(),
        });
    }
    gpu
}

impl Handle {
    /// Opens the GPU of this number.
    pub fn open(number: usize) -> Result<Self> {
        let device = Device::Cuda(number).to_string();
        let count = count()?;
        if number >= count {
            let problem = format!("expected a number below {count}, the number of GPUs");
            return Err(unusable(&device, problem));
        }
        let ask = |e| unusable(&device, format!("opening it failed: {}", words(e)));
        let context = CudaContext::new(number).map_err(ask)?;
        let (major, minor) = context.compute_capability().map_err(ask)?;
        if (major, minor) < CAPABILITY {
            let name = context.name().map_err(ask)?;
            let (need_major, need_minor) = CAPABILITY;
            let problem = format!(
                "expected compute capability {need_major}.{need_minor} or newer, found {major}.{minor} ({name})"
            );
            return Err(unusable(&device, problem));
        }
        let stream = context.new_stream().map_err(ask)?;
        Ok(Self { context, stream, number })
    }

    /// The stream as the driver knows it.
    pub fn raw(&self) -> sys::CUstream {
        self.stream.cu_stream()
    }

    /// Makes the context current on the calling thread, which every call of the driver needs.
    pub fn bind(&self) -> Result<()> {
        self.context.bind_to_thread().map_err(|e| self.failed("making its context current", e))
    }

    /// Waits until everything so far is done.
    pub fn wait(&self) -> Result<()> {
        self.stream.synchronize().map_err(|e| self.failed("waiting for results", e))
    }

    /// What of the device matters to the choice of kernels.
    pub fn limits(&self) -> Result<Limits> {
        use sys::CUdevice_attribute_enum as Attribute;

        let ask = |attribute| {
            let value = self.context.attribute(attribute);
            value.map_err(|e| self.failed("asking for its properties", e))
        };
        let multiprocessors = ask(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?.max(1) as usize;
        let shared = ask(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?.max(0) as u32;
        let capability = self.context.compute_capability();
        let wgmma = capability.map_err(|e| self.failed("asking for its properties", e))? == HOPPER;
        Ok(Limits { multiprocessors, shared, wgmma })
    }

    /// Bytes that are free.
    pub fn free_memory(&self) -> Result<u64> {
        let memory = self.context.mem_get_info();
        memory.map(|(free, _)| free as u64).map_err(|e| self.failed("asking for its free memory", e))
    }

    /// The error of a call that failed.
    pub fn failed(&self, doing: &str, error: DriverError) -> Error {
        unusable(&Device::Cuda(self.number).to_string(), format!("{doing} failed: {}", words(error)))
    }
}
