//! What the GPU does at best: a large matrix product and a large copy.

use std::sync::Arc;

use cudarc::driver::result;

use super::device::Handle;
use super::gemm::{Gemm, Kind, Operands};
use super::memory::Buffer;
use super::recording::Event;
use crate::backend::Ceilings;
use crate::error::Result;

/// Runs of which the fastest counts; the first ones also wake the clocks.
const RUNS: usize = 8;

pub(super) fn measure(handle: &Arc<Handle>, gemm: &mut Gemm) -> Result<Ceilings> {
    Ok(Ceilings { flops: product_rate(handle, gemm)?, bytes: copy_rate(handle)? })
}

/// Operations a second of a product of fp16 with sums in fp32.
fn product_rate(handle: &Arc<Handle>, gemm: &mut Gemm) -> Result<f64> {
    // Emulated devices would take minutes for what a GPU does in a millisecond.
    let side = if handle.is_emulated() { 128 } else { 8192 };
    let kind = Kind {
        typical_rows: side,
        outputs: side,
        inputs: side,
        transposed: true,
        half: true,
        bias: false,
        add: false,
        relu: false,
    };
    let mut matrices = Buffer::new(handle, 3 * side * side * 2, "matrices to measure with")?;
    matrices.clear(3 * side * side * 2)?;
    let [x, w, y] = [0, 1, 2].map(|i| matrices.address(i * side * side * 2));
    // SAFETY: three matrices of that size in one buffer, of which only the last is written.
    let run = || unsafe { gemm.run(&kind, side, &Operands { x, w, bias: 0, add: 0, y }) };
    fastest(handle, run, 2.0 * (side as f64).powi(3))
}

/// Bytes a second, read and written.
fn copy_rate(handle: &Arc<Handle>) -> Result<f64> {
    // Far more than any cache holds.
    let len = if handle.is_emulated() { 1 << 20 } else { 512 << 20 };
    let (source, copy) = (Buffer::new(handle, len, "a copy")?, Buffer::new(handle, len, "a copy")?);
    let run = || {
        // SAFETY: two buffers of that size.
        let copied = unsafe { result::memcpy_dtod_async(copy.address(0), source.address(0), len, handle.raw()) };
        copied.map_err(|e| handle.failed("copying on the device", e))
    };
    fastest(handle, run, 2.0 * len as f64)
}

/// The rate of the fastest of some runs that each do `work`.
fn fastest(handle: &Arc<Handle>, mut run: impl FnMut() -> Result<()>, work: f64) -> Result<f64> {
    let (start, end) = (Event::new(handle)?, Event::new(handle)?);
    let mut best = 0.0_f64;
    for _ in 0..RUNS {
        start.mark(false)?;
        run()?;
        end.mark(false)?;
        handle.wait()?;
        best = best.max(work / start.until(&end)?.as_secs_f64().max(1e-9));
    }
    Ok(best)
}
