//! What the GPU does at best: a large matrix product and a large copy.

use std::sync::Arc;
use std::time::Duration;

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
    // The largest is far more than any cache holds.
    let flops = rate(128, 8192, |side| product(handle, gemm, side))?;
    Ok(Ceilings { flops, bytes: rate(1 << 20, 512 << 20, |len| copy(handle, len))? })
}

/// The rate of what is measured at a size, which is doubled until the time lets nothing but the work count.
fn rate(from: usize, to: usize, mut measure: impl FnMut(usize) -> Result<(f64, Duration)>) -> Result<f64> {
    const LONG: Duration = Duration::from_millis(1);
    let mut size = from;
    loop {
        let (work, time) = measure(size)?;
        if time >= LONG || size >= to {
            return Ok(work / time.as_secs_f64().max(1e-9));
        }
        size *= 2;
    }
}

/// Operations of a product of fp16 with sums in fp32, and their time.
fn product(handle: &Arc<Handle>, gemm: &mut Gemm, side: usize) -> Result<(f64, Duration)> {
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
    let bytes = side * side * size_of::<half::f16>();
    let mut matrices = Buffer::new(handle, 3 * bytes, "matrices to measure with")?;
    matrices.clear(3 * bytes)?;
    let [x, w, y] = [0, 1, 2].map(|i| matrices.address(i * bytes));
    // SAFETY: three matrices of that size in one buffer, of which only the last is written.
    let run = || unsafe { gemm.run(&kind, side, &Operands { x, w, bias: 0, add: 0, y }) };
    Ok((2.0 * (side as f64).powi(3), fastest(handle, run)?))
}

/// Bytes that a copy reads and writes, and its time.
fn copy(handle: &Arc<Handle>, len: usize) -> Result<(f64, Duration)> {
    let [source, copy] = [(); 2].map(|()| Buffer::new(handle, len, "a copy to measure with"));
    let (source, copy) = (source?, copy?);
    let run = || {
        // SAFETY: two buffers of that size.
        let copied = unsafe { result::memcpy_dtod_async(copy.address(0), source.address(0), len, handle.raw()) };
        copied.map_err(|e| handle.failed("copying on the device", e))
    };
    Ok((2.0 * len as f64, fastest(handle, run)?))
}

/// Time of the fastest of some runs.
fn fastest(handle: &Arc<Handle>, mut run: impl FnMut() -> Result<()>) -> Result<Duration> {
    let (start, end) = (Event::new(handle)?, Event::new(handle)?);
    let mut best = Duration::MAX;
    for _ in 0..RUNS {
        start.mark(false)?;
        run()?;
        end.mark(false)?;
        handle.wait()?;
        best = best.min(start.until(&end)?);
    }
    Ok(best)
}
