//! One timed instruction: its operands, its kernel, its work.

use ucag::backend::{ALIGN, Dtype, Instr, Scope, Slot};
use ucag::grid::{Grid, GridPlan};
use ucag::net::Graph;

/// Side of the working image, what channels are divided by, and size of the photo.
pub struct Setting {
    pub image: usize,
    pub narrowing: usize,
    pub photo: (usize, usize),
}

pub const PAPER: Setting = Setting { image: 224, narrowing: 1, photo: (1080, 1920) };
pub const TINY: Setting = Setting { image: 24, narrowing: 8, photo: (54, 96) };

impl Setting {
    pub fn plan(&self) -> GridPlan {
        GridPlan::new(Grid::default(), self.image, self.image).unwrap()
    }
}

/// One instruction on some samples.
pub struct Case {
    pub kernel: &'static str,
    pub id: String,
    pub instr: Instr<Slot>,
    pub samples: usize,
    /// Bytes of the arena.
    pub end: usize,
}

impl Case {
    /// FLOPs of products, channels that only fill up a vector left out; bytes of operands, results and weights.
    pub fn work(&self, graph: &Graph) -> (usize, usize) {
        let mut moved = 0;
        self.instr.clone().map(|slot, _| moved += bytes(&slot, self.samples));
        let (rows, w) = match &self.instr {
            Instr::Correlate { g, .. } | Instr::ConvBy { g, .. } | Instr::ConvBackBy { g, .. } => {
                let products = g.y.len() * g.window.kernel[0] * g.window.kernel[1] * g.x.c;
                return (2 * products * self.samples, moved);
            }
            Instr::Conv { g, w, .. } | Instr::ConvBack { g, w, .. } => (g.y.h * g.y.w, w),
            Instr::Linear { w, .. } | Instr::LinearBack { w, .. } => (1, w),
            Instr::ClassRow { y, .. } => return (0, moved + 2 * y.len),
            Instr::Overlay { photo, .. } => return (0, moved + 3 * photo.0 * photo.1),
            _ => return (0, moved),
        };
        let param = graph.param(w.param);
        (2 * rows * self.samples * (param.len() - param.outputs), moved + 2 * param.len())
    }
}

/// Bytes of a slot.
pub fn bytes(slot: &Slot, samples: usize) -> usize {
    slot.len * slot.dtype.bytes() * if slot.scope == Scope::Shared { 1 } else { samples }
}

/// Lays slots out one after the other.
pub struct Arena {
    pub end: usize,
    pub samples: usize,
}

impl Arena {
    pub fn slot(&mut self, len: usize, dtype: Dtype, scope: Scope) -> Slot {
        let slot = Slot { offset: self.end, len, lanes: 1, dtype, scope };
        self.end += bytes(&slot, self.samples).next_multiple_of(ALIGN);
        slot
    }

    pub fn half(&mut self, len: usize) -> Slot {
        self.slot(len, Dtype::F16, Scope::Batch)
    }

    pub fn float(&mut self, len: usize) -> Slot {
        self.slot(len, Dtype::F32, Scope::Batch)
    }

    /// Of all patches, for folding.
    pub fn kept(&mut self, len: usize) -> Slot {
        self.slot(len, Dtype::F32, Scope::All)
    }

    pub fn shared(&mut self, len: usize, dtype: Dtype) -> Slot {
        self.slot(len, dtype, Scope::Shared)
    }
}
