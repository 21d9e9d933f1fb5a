//! The kernels: loaded all at once, so that a missing one is an error of construction, and launched from here only.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::marker::PhantomData;
use std::sync::Arc;

use cudarc::driver::{result, sys};

use super::args::*;
use super::conv::Limits;
use super::device::Handle;
use crate::error::{ErrorKind, Result};

/// One compiled file of `kernels/`.
struct Module {
    file: &'static str,
    image: &'static [u8],
    kernels: &'static [&'static str],
    /// It is code for sm_90a alone.
    hopper_only: bool,
}

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// A kernel that takes arguments `A` and runs in blocks of `threads` threads.
pub(super) struct Kernel<A> {
    pub name: &'static str,
    pub threads: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    args: PhantomData<fn(&A)>,
}

impl<A> Kernel<A> {
    pub const fn new(name: &'static str, threads: u32) -> Self {
        Self { name, threads, shared: 0, args: PhantomData }
    }

    pub const fn with_shared(name: &'static str, threads: u32, shared: u32) -> Self {
        Self { name, threads, shared, args: PhantomData }
    }
}

macro_rules! kernels {
    ($($name:ident $text:literal $args:ident $threads:literal;)*) => {
        $(pub(super) const $name: Kernel<$args> = Kernel::new($text, $threads);)*
        /// Names of the kernels above.
        const NAMES: &[&str] = &[$($text),*];
    };
}

kernels! {
    UNARY "eltwise_unary" EltwiseArgs 256;
    BINARY "eltwise_binary" EltwiseArgs 256;
    DIVIDE "eltwise_divide" EltwiseArgs 256;
    SPLIT "eltwise_split" SplitArgs 256;
    TOTALS "totals" ReduceArgs 1024;
    RANGE "range" ReduceArgs 1024;
    LANE_SCALE "lane_scale" LaneArgs 256;
    LANE_SUM "lane_sum" EltwiseArgs 256;
    SHIFT "shift" SampleArgs 256;
    CONTRAST "contrast" SampleArgs 256;
    SCALE "scale" SampleArgs 256;
    GATHER "gather" GatherArgs 256;
    FILL "fill" FillArgs 256;
    PERTURB "perturb" PerturbArgs 256;
    CORRELATE "correlate" SampleConvArgs 256;
    CONV_BY "conv_by" SampleConvArgs 256;
    CONV_BACK_BY "conv_back_by" SampleConvArgs 256;
    MAX_POOL "max_pool" PoolArgs 256;
    MAX_POOL_BACK "max_pool_back" PoolArgs 256;
    AVG_POOL "avg_pool" AverageArgs 256;
    AVG_POOL_BACK "avg_pool_back" AverageArgs 256;
    FLATTEN "flatten" FlattenArgs 256;
    FLATTEN_BACK "flatten_back" FlattenArgs 256;
    SOFTMAX "softmax" HeadArgs 256;
    TOP_K "top_k" HeadArgs 256;
    PICK "pick" HeadArgs 256;
    SEED "seed" HeadArgs 256;
    CLASS_ROW "class_row" HeadArgs 256;
    HEAD_GRADIENT "head_gradient" HeadArgs 256;
    HEAD_SHARES "head_shares" HeadArgs 256;
    PIXEL_SUM "pixel_sum" ChannelArgs 256;
    CHANNEL_SUM "channel_sum" ChannelArgs 256;
    CHANNEL_SCALE "channel_scale" ChannelArgs 256;
    CHANNEL_MAX "channel_max" ChannelArgs 256;
    CHANNEL_SPREAD "channel_spread" ChannelArgs 256;
    FACTOR "factor" ChannelArgs 1024;
    INTERPOLATE "interpolate" InterpolateArgs 256;
    UNFOLD "unfold" UnfoldArgs 256;
    RESIZE_ACROSS "resize_across" ResizeArgs 256;
    RESIZE_DOWN "resize_down" ResizeArgs 256;
    FOLD "fold" FoldArgs 256;
    MAP_GAUSS "map_gauss" MapArgs 256;
    OVERLAY "overlay" OverlayArgs 256;
}

/// Bytes of shared memory that `factor` has besides what its launch adds, at most.
const FACTOR_OWN: u32 = 16 << 10;

/// All kernels on a device.
pub(super) struct Kernels {
    functions: HashMap<&'static str, sys::CUfunction>,
    modules: Vec<sys::CUmodule>,
    handle: Arc<Handle>,
}

// SAFETY: handles of the driver, which may be used from any thread that has made the context current.
unsafe impl Send for Kernels {}

impl Kernels {
    pub fn load(handle: &Arc<Handle>, limits: Limits) -> Result<Self> {
        handle.bind()?;
        let mut loaded = Self { functions: HashMap::new(), modules: vec![], handle: handle.clone() };
        for module in MODULES.iter().filter(|module| limits.wgmma || !module.hopper_only) {
            let failed = |what: &str, e| handle.failed(&format!("loading {what} of kernels/{}", module.file), e);
            // SAFETY: a whole image that nvcc wrote; the driver copies it.
            let image = unsafe { result::module::load_data(module.image.as_ptr().cast()) };
            let image = image.map_err(|e| failed("the code", e))?;
            loaded.modules.push(image);
            for name in module.kernels {
                let text = CString::new(*name).unwrap_or_default();
                // SAFETY: the module was just loaded and lives as long as `self`.
                let function = unsafe { result::module::get_function(image, text) };
                loaded.functions.insert(name, function.map_err(|e| failed(&format!("kernel {name}"), e))?);
            }
        }
        for name in NAMES {
            loaded.function(name)?;
        }
        for tile in super::conv::TILES.iter().filter(|t| t.runs_on(limits)) {
            loaded.allow_shared(tile.name, tile.shared)?;
        }
        loaded.allow_shared(super::conv::STEM.name, super::conv::STEM.shared)?;
        loaded.allow_shared(FACTOR.name, limits.shared - FACTOR_OWN)?;
        Ok(loaded)
    }

    fn function(&self, name: &str) -> Result<sys::CUfunction> {
        self.functions.get(name).copied().ok_or_else(|| {
            let device = crate::device::Device::Cuda(self.handle.number).to_string();
            ErrorKind::Device { device, problem: format!("kernel {name} is missing from this program") }.into()
        })
    }

    /// Lets a kernel have so many bytes of dynamic shared memory, of which 48 KiB need no leave.
    fn allow_shared(&self, name: &str, bytes: u32) -> Result<()> {
        const FREE: u32 = 48 << 10;
        let function = self.function(name)?;
        if bytes <= FREE {
            return Ok(());
        }
        let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: a function of a loaded module.
        let set = unsafe { result::function::set_function_attribute(function, attribute, bytes as i32) };
        set.map_err(|e| self.handle.failed(&format!("giving {name} {bytes} bytes of shared memory"), e))
    }

    /// Launches a kernel, in stream order. A grid without blocks does nothing.
    ///
    /// # Safety
    /// Every pointer of `args` must be null, where the kernel takes that, or point to device memory as large as the
    /// other fields say, and nothing else may use what the kernel writes until it is done.
    pub unsafe fn launch<A>(&self, kernel: &Kernel<A>, grid: [usize; 3], args: &A) -> Result<()> {
        if grid.contains(&0) {
            return Ok(());
        }
        let function = self.function(kernel.name)?;
        let [x, y, z] = grid.map(|n| n as u32);
        let mut parameters = [std::ptr::from_ref(args).cast_mut().cast::<c_void>()];
        let (threads, stream) = ((kernel.threads, 1, 1), self.handle.raw());
        // SAFETY: the function takes one structure of type `A` (`args.rs`); the rest is the caller's promise.
        let launched =
            unsafe { result::launch_kernel(function, (x, y, z), threads, kernel.shared, stream, &mut parameters) };
        launched.map_err(|e| self.handle.failed(&format!("launching {}", kernel.name), e))
    }
}

impl Drop for Kernels {
    fn drop(&mut self) {
        let _ = self.handle.wait();
        for module in &self.modules {
            // SAFETY: loaded by `load`, unloaded only here, with no kernel running.
            let _ = unsafe { result::module::unload(*module) };
        }
    }
}
