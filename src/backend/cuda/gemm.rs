//! Plain matrix products by cuBLASLt, with bias, residual and rectifier in the epilogue.
//!
//! The algorithm is chosen once for each kind of product, for the rows of a typical batch and without splitting sums, and
//! serves every number of rows: so the bits of a row depend neither on the batch nor on the memory that is free. Only
//! where the library refuses it for some number of rows, one is chosen for that number.

use std::collections::HashMap;
use std::ffi::c_void;
use std::fmt;
use std::sync::Arc;

use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;

use super::device::Handle;
use super::memory::Buffer;
use crate::error::{Error, ErrorKind, Result};

/// Scratch memory for the library.
const WORKSPACE: usize = 32 << 20;
/// What all operands' addresses are multiples of.
const ALIGNMENT: u32 = crate::backend::ALIGN as u32;

/// The kind of a product; everything that its algorithm may depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Kind {
    /// Rows for which the algorithm is chosen.
    pub typical_rows: usize,
    pub outputs: usize,
    pub inputs: usize,
    /// The weight is `[outputs, inputs]` rather than `[inputs, outputs]`.
    pub transposed: bool,
    /// The result is stored in 16 bits rather than 32.
    pub half: bool,
    pub bias: bool,
    pub add: bool,
    pub relu: bool,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a product of {} by {} values", self.inputs, self.outputs)
    }
}

/// Addresses of a product's operands: `y = relu?(x·w + bias + add)`, rows of fp16 in, bias and add of y's type.
pub(super) struct Operands {
    pub x: u64,
    pub w: u64,
    pub bias: u64,
    pub add: u64,
    pub y: u64,
}

/// The library and the algorithms chosen so far.
pub(super) struct Gemm {
    library: sys::cublasLtHandle_t,
    workspace: Buffer,
    /// By kind and number of rows.
    chosen: HashMap<(Kind, usize), sys::cublasLtMatmulAlgo_t>,
    handle: Arc<Handle>,
}

// SAFETY: the handle is used by one thread at a time, as `&mut self` ensures.
unsafe impl Send for Gemm {}

/// Whether the library can be loaded.
pub(super) fn available() -> Result<()> {
    // SAFETY: only tries to open the library.
    if unsafe { sys::is_culib_present() } {
        return Ok(());
    }
    let problem = "cuBLASLt was not found: looked for libcublasLt.so.13 where the loader looks (LD_LIBRARY_PATH, \
                   ldconfig); it comes with the CUDA toolkit and with the Python package nvidia-cublas";
    Err(ErrorKind::Device { device: "cuda".into(), problem: problem.into() }.into())
}

impl Gemm {
    pub fn new(handle: &Arc<Handle>) -> Result<Self> {
        available()?;
        handle.bind()?;
        // Programs without matrix products need none.
        let workspace = Buffer::empty(handle);
        let library = result::create_handle().map_err(|e| failed(handle, "starting cuBLASLt", e))?;
        Ok(Self { library, workspace, chosen: HashMap::new(), handle: handle.clone() })
    }

    /// Bytes of device memory that this holds.
    pub fn bytes(&self) -> u64 {
        self.workspace.len() as u64
    }

    /// Chooses the algorithm of a kind of product, unless that is done.
    pub fn prepare(&mut self, kind: &Kind) -> Result<()> {
        self.choose(kind, kind.typical_rows)
    }

    /// Must not happen while a graph is recorded: the library's heuristic may fail then.
    fn choose(&mut self, kind: &Kind, rows: usize) -> Result<()> {
        if !self.chosen.contains_key(&(*kind, rows)) {
            if self.workspace.len() < WORKSPACE {
                self.workspace = Buffer::new(&self.handle, WORKSPACE, "scratch memory for matrix products")?;
            }
            // Any address does, as long as it is aligned as the bias will be.
            let bias = self.workspace.address(0);
            let problem = Problem::new(kind, rows, bias).and_then(|p| p.choose(self.library));
            let algorithm = problem.map_err(|e| failed(&self.handle, &format!("choosing how to compute {kind}"), e))?;
            self.chosen.insert((*kind, rows), algorithm);
        }
        Ok(())
    }

    /// Enqueues a product of `rows` rows.
    ///
    /// # Safety
    /// The addresses must be of device memory as large as kind and rows say, `ALIGNMENT` apart, and nothing else may
    /// use the result until it is done. `add` may be the result's own address.
    pub unsafe fn run(&mut self, kind: &Kind, rows: usize, operands: &Operands) -> Result<()> {
        use sys::cublasStatus_t::{CUBLAS_STATUS_INVALID_VALUE, CUBLAS_STATUS_NOT_SUPPORTED};

        if rows == 0 {
            return Ok(());
        }
        self.prepare(kind)?;
        let failed = |handle: &Handle, e| failed(handle, &format!("computing {rows} rows of {kind}"), e);
        let problem = Problem::new(kind, rows, operands.bias).map_err(|e| failed(&self.handle, e))?;
        // SAFETY: as the caller promises.
        let mut done = unsafe { self.enqueue(&problem, kind, rows, operands) };
        if let Err(CublasError(CUBLAS_STATUS_NOT_SUPPORTED | CUBLAS_STATUS_INVALID_VALUE)) = done {
            self.choose(kind, rows)?;
            // SAFETY: as above; what was refused has not been enqueued.
            done = unsafe { self.enqueue(&problem, kind, rows, operands) };
        }
        done.map_err(|e| failed(&self.handle, e))
    }

    /// # Safety
    /// As of `run`.
    unsafe fn enqueue(
        &self,
        problem: &Problem,
        kind: &Kind,
        rows: usize,
        operands: &Operands,
    ) -> std::result::Result<(), CublasError> {
        let algorithm = self.chosen.get(&(*kind, rows)).unwrap_or(&self.chosen[&(*kind, kind.typical_rows)]);
        let (one, beta) = (1.0_f32, if kind.add { 1.0_f32 } else { 0.0 });
        let pointer = |address: u64| address as *const c_void;
        let add = if kind.add { operands.add } else { operands.y };
        // SAFETY: descriptors of this call, and addresses that the caller vouches for.
        unsafe {
            result::matmul(
                self.library,
                problem.operation,
                (&raw const one).cast(),
                (&raw const beta).cast(),
                pointer(operands.w),
                problem.weight,
                pointer(operands.x),
                problem.source,
                pointer(add),
                problem.result,
                operands.y as *mut c_void,
                problem.result,
                algorithm,
                self.workspace.address(0) as *mut c_void,
                WORKSPACE,
                self.handle.raw().cast(),
            )
        }
    }
}

impl Drop for Gemm {
    fn drop(&mut self) {
        let _ = self.handle.wait();
        // SAFETY: created by `new`, destroyed only here.
        let _ = unsafe { result::destroy_handle(self.library) };
    }
}

fn failed(handle: &Handle, doing: &str, error: CublasError) -> Error {
    let device = crate::device::Device::Cuda(handle.number).to_string();
    ErrorKind::Device { device, problem: format!("{doing} by cuBLASLt failed: {:?}", error.0) }.into()
}

/// Descriptors of one product. The library's matrices are column-major, so it computes `yᵀ = wᵀ·xᵀ`.
struct Problem {
    operation: sys::cublasLtMatmulDesc_t,
    weight: sys::cublasLtMatrixLayout_t,
    source: sys::cublasLtMatrixLayout_t,
    result: sys::cublasLtMatrixLayout_t,
}

impl Problem {
    fn new(kind: &Kind, rows: usize, bias: u64) -> std::result::Result<Self, CublasError> {
        use sys::cublasLtEpilogue_t as Epilogue;
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        /// `CUBLAS_OP_T`
        const TRANSPOSE: i32 = 1;

        let (n, k, m) = (kind.outputs as u64, kind.inputs as u64, rows as u64);
        let half = sys::cudaDataType::CUDA_R_16F;
        let single = sys::cudaDataType::CUDA_R_32F;
        let stored = if kind.half { half } else { single };
        let mut problem = Self {
            operation: result::create_matmul_desc(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, single)?,
            weight: std::ptr::null_mut(),
            source: std::ptr::null_mut(),
            result: std::ptr::null_mut(),
        };
        problem.weight = match kind.transposed {
            true => result::create_matrix_layout(half, k, n, k as i64)?,
            false => result::create_matrix_layout(half, n, k, n as i64)?,
        };
        problem.source = result::create_matrix_layout(half, k, m, k as i64)?;
        problem.result = result::create_matrix_layout(stored, n, m, n as i64)?;
        if kind.transposed {
            problem.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &TRANSPOSE)?;
        }
        let epilogue = match (kind.bias, kind.relu) {
            (false, false) => Epilogue::CUBLASLT_EPILOGUE_DEFAULT,
            (false, true) => Epilogue::CUBLASLT_EPILOGUE_RELU,
            (true, false) => Epilogue::CUBLASLT_EPILOGUE_BIAS,
            (true, true) => Epilogue::CUBLASLT_EPILOGUE_RELU_BIAS,
        };
        problem.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
        if kind.bias {
            problem.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &stored)?;
            problem.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias)?;
        }
        Ok(problem)
    }

    fn set<T>(
        &self,
        attribute: sys::cublasLtMatmulDescAttributes_t,
        value: &T,
    ) -> std::result::Result<(), CublasError> {
        // SAFETY: the descriptor lives; the attribute is of this size.
        unsafe {
            result::set_matmul_desc_attribute(
                self.operation,
                attribute,
                std::ptr::from_ref(value).cast(),
                size_of::<T>(),
            )
        }
    }

    /// The algorithm that the library thinks fastest, of those that add up each sum in one go.
    fn choose(&self, library: sys::cublasLtHandle_t) -> std::result::Result<sys::cublasLtMatmulAlgo_t, CublasError> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;

        let (workspace, no_split, alignment) = (WORKSPACE, 0_u32, ALIGNMENT);
        let preference = result::create_matmul_pref()?;
        let set = |attribute, value: *const c_void, size| {
            // SAFETY: the preference lives; the attribute is of this size.
            unsafe { result::set_matmul_pref_attribute(preference, attribute, value, size) }
        };
        let settings = || {
            set(
                Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                (&raw const workspace).cast(),
                size_of::<usize>(),
            )?;
            set(Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, (&raw const no_split).cast(), size_of::<u32>())?;
            [
                Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
                Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
                Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
            ]
            .into_iter()
            .try_for_each(|operand| set(operand, (&raw const alignment).cast(), size_of::<u32>()))
        };
        let chosen = settings().and_then(|()| {
            let (operation, result) = (self.operation, self.result);
            // SAFETY: all descriptors live.
            unsafe {
                let (weight, source) = (self.weight, self.source);
                result::get_matmul_algo_heuristic(library, operation, weight, source, result, result, preference)
            }
        });
        // SAFETY: created above, destroyed only here.
        let _ = unsafe { result::destroy_matmul_pref(preference) };
        chosen.map(|c| c.algo)
    }
}

impl Drop for Problem {
    fn drop(&mut self) {
        for layout in [self.weight, self.source, self.result] {
            if !layout.is_null() {
                // SAFETY: created by `new`, destroyed only here.
                let _ = unsafe { result::destroy_matrix_layout(layout) };
            }
        }
        // SAFETY: as above.
        let _ = unsafe { result::destroy_matmul_desc(self.operation) };
    }
}
