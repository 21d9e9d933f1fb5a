//! Which kernel computes a product. The backend's own choice is private to it, so its source is compiled here again.

#[allow(dead_code)]
#[path = "../../src/backend/cuda/conv.rs"]
mod conv;
#[allow(dead_code)]
#[path = "../../src/backend/taps.rs"]
pub mod taps;

use ucag::backend::cuda::args;
use ucag::backend::{ConvGeom, Instr, Slot, WeightRef};
use ucag::net::Window;

use conv::Read;
use taps::Direction;

/// What of a device matters to the choice.
#[derive(Clone, Copy)]
pub struct Limits {
    pub multiprocessors: usize,
    pub shared: u32,
    pub wgmma: bool,
}

/// What that source asks of `src/backend/cuda/kernels.rs`.
mod kernels {
    use std::marker::PhantomData;

    pub struct Kernel<A> {
        pub name: &'static str,
        args: PhantomData<A>,
    }

    impl<A> Kernel<A> {
        pub const fn with_shared(name: &'static str, _threads: u32, _shared: u32) -> Self {
            Self { name, args: PhantomData }
        }
    }
}

/// The name that stands for products by cuBLASLt.
pub const LIBRARY: &str = "cublaslt";

/// How a layer without taps reads what comes down.
fn down(exact: bool) -> Read {
    if exact { Read::Tf32Twice } else { Read::Tf32 }
}

/// What `src/backend/cuda/lower.rs` launches for a product; of several launches the first, which is the largest.
pub fn product(instr: &Instr<Slot>, samples: usize, limits: Limits) -> Option<&'static str> {
    let Limits { multiprocessors, shared, wgmma } = limits;
    let limits = conv::Limits { multiprocessors, shared, wgmma };
    let whole = |inputs: usize, outputs: usize| inputs.is_multiple_of(8) && outputs.is_multiple_of(8);
    let choose =
        |read, pixels, inputs, outputs| conv::choose(read, samples * pixels, inputs, outputs, false, limits).0.name;
    Some(match instr {
        Instr::Conv { g, .. } if g.window == Window::square(1, 1, 0) && whole(g.x.c, g.y.c) => LIBRARY,
        Instr::Conv { g, .. } => match &taps::phases(g, Direction::Forward)[0] {
            phase if conv::is_stem(phase, g.x, g.y) => conv::STEM.name,
            phase => choose(Read::F16, phase.h * phase.w, g.x.c, g.y.c),
        },
        Instr::ConvBack { g, exact, .. } => {
            if conv::is_narrow(g, *exact) {
                return Some(conv::NARROW.name);
            }
            let phase = &taps::phases(g, Direction::Backward)[0];
            choose(Read::back(*exact, g.y.c, g.x.c, limits), phase.h * phase.w, g.y.c, g.x.c)
        }
        Instr::Linear { x, y, .. } if whole(x.len, y.len) => LIBRARY,
        Instr::Linear { x, y, .. } => choose(Read::F16, 1, x.len, y.len),
        Instr::LinearBack { exact, dy, dx, .. } => choose(down(*exact), 1, dy.len, dx.len),
        _ => return None,
    })
}
