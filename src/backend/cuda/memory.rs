//! Memory of the device, and pinned memory of the host that the device reads and writes without detours.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::{DriverError, result, sys};

use super::device::Handle;
use crate::error::{ErrorKind, Result};

/// Device memory.
pub(super) struct Buffer {
    pointer: sys::CUdeviceptr,
    len: usize,
    handle: Arc<Handle>,
}

impl Buffer {
    /// No memory.
    pub fn empty(handle: &Arc<Handle>) -> Self {
        Self { pointer: 0, len: 0, handle: handle.clone() }
    }

    /// Uninitialised memory; `what` names its purpose should there be too little.
    pub fn new(handle: &Arc<Handle>, len: usize, what: &str) -> Result<Self> {
        if len == 0 {
            return Ok(Self::empty(handle));
        }
        handle.bind()?;
        // SAFETY: the context is current; what is allocated is freed once, by `drop`.
        let pointer = unsafe { result::malloc_sync(len) };
        let pointer = pointer.map_err(|e| not_allocated(handle, what, len, e))?;
        Ok(Self { pointer, len, handle: handle.clone() })
    }

    /// A copy of `data`.
    pub fn of<T: bytemuck::Pod>(handle: &Arc<Handle>, data: &[T], what: &str) -> Result<Self> {
        let bytes: &[u8] = bytemuck::cast_slice(data);
        let mut buffer = Self::new(handle, bytes.len(), what)?;
        buffer.write(0, bytes)?;
        handle.wait()?;
        Ok(buffer)
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// Address of byte `at`.
    pub fn address(&self, at: usize) -> u64 {
        debug_assert!(at <= self.len);
        self.pointer + at as u64
    }

    /// The same for structures of kernel arguments.
    pub fn pointer<T>(&self, at: usize) -> *mut T {
        self.address(at) as *mut T
    }

    /// Copies from the host, in stream order. The source may be reused at once unless it is pinned.
    pub fn write(&mut self, at: usize, bytes: &[u8]) -> Result<()> {
        assert!(at + bytes.len() <= self.len, "write beyond a buffer");
        if bytes.is_empty() {
            return Ok(());
        }
        self.handle.bind()?;
        // SAFETY: within this buffer, as just checked; the driver stages what is not pinned before it returns.
        let copied = unsafe { result::memcpy_htod_async(self.address(at), bytes, self.handle.raw()) };
        copied.map_err(|e| self.handle.failed("copying to the device", e))
    }

    /// Copies to pinned memory, in stream order; it is there after a wait.
    pub fn read(&self, at: usize, pinned: &mut [u8]) -> Result<()> {
        assert!(at + pinned.len() <= self.len, "read beyond a buffer");
        self.handle.bind()?;
        // SAFETY: within this buffer, as just checked; callers wait before they look or let go of the memory.
        let copied = unsafe { result::memcpy_dtoh_async(pinned, self.address(at), self.handle.raw()) };
        copied.map_err(|e| self.handle.failed("copying from the device", e))
    }

    /// Fills the first `len` bytes with zeros, in stream order.
    pub fn clear(&mut self, len: usize) -> Result<()> {
        assert!(len <= self.len, "clearing beyond a buffer");
        self.handle.bind()?;
        // SAFETY: within this buffer, as just checked.
        let cleared = unsafe { result::memset_d8_async(self.pointer, 0, len, self.handle.raw()) };
        cleared.map_err(|e| self.handle.failed("clearing memory", e))
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.pointer == 0 {
            return;
        }
        // Freeing waits for kernels that still use the memory. A device that is lost has lost its memory too, so
        // errors have no consequence.
        let _ = self.handle.bind();
        // SAFETY: allocated by `new`, freed only here.
        let _ = unsafe { result::free_sync(self.pointer) };
    }
}

/// Pinned host memory.
pub(super) struct Pinned {
    start: *mut u8,
    len: usize,
    handle: Arc<Handle>,
}

// SAFETY: memory with a single owner, as a `Vec` is.
unsafe impl Send for Pinned {}

impl Pinned {
    pub fn new(handle: &Arc<Handle>, len: usize) -> Result<Self> {
        handle.bind()?;
        // SAFETY: the context is current; freed once, by `drop`. Without flags, so that the host reads it at full speed.
        let start = unsafe { result::malloc_host(len.max(1), 0) };
        let doing = || format!("allocating {len} bytes of pinned memory of the host");
        let start = start.map_err(|e| handle.failed(&doing(), e))?.cast::<u8>();
        // SAFETY: `len` bytes from `start` on were just allocated.
        unsafe { start.write_bytes(0, len) };
        Ok(Self { start, len, handle: handle.clone() })
    }

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `len` initialised bytes, owned by this value.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: `len` initialised bytes, owned by this value and borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let _ = self.handle.wait();
        // SAFETY: allocated by `new`, freed only here, with no copy under way.
        let _ = unsafe { result::free_host(self.start.cast::<c_void>()) };
    }
}

fn not_allocated(handle: &Handle, what: &str, need: usize, error: DriverError) -> crate::Error {
    if error.0 != sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
        return handle.failed(&format!("allocating {need} bytes for {what}"), error);
    }
    let what = format!("{what} on {}", crate::device::Device::Cuda(handle.number));
    ErrorKind::Memory { what, need: need as u64, have: handle.free_memory().unwrap_or(0) }.into()
}
