//! What an instruction costs at least: arithmetic and memory traffic, counted from its shapes.

use super::{Instr, Slot};
use crate::net::Graph;

/// Arithmetic and traffic.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Work {
    /// Multiplications and additions in matrix products; the others are lost beside them, or beside the traffic.
    pub flops: f64,
    /// Bytes of every operand and result, once each.
    pub bytes: f64,
}

impl std::ops::AddAssign for Work {
    fn add_assign(&mut self, other: Self) {
        self.flops += other.flops;
        self.bytes += other.bytes;
    }
}

/// What a device does at best, as measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ceilings {
    /// Multiplications and additions a second in a large matrix product.
    pub flops: f64,
    /// Bytes read and written a second in a large copy.
    pub bytes: f64,
}

impl Ceilings {
    /// Seconds below which no work can be done.
    pub fn floor(&self, work: &Work) -> f64 {
        (work.flops / self.flops).max(work.bytes / self.bytes)
    }
}

impl Instr<Slot> {
    /// Work for `samples` samples, weights being read once. `weight_bytes`: bytes of one weight.
    pub fn work(&self, graph: &Graph, samples: usize, weight_bytes: usize) -> Work {
        let mut operands = 0;
        self.clone().map(|slot, _| operands += slot.bytes(samples));
        let (param, products) = match self {
            Instr::Conv { g, w, y, .. } | Instr::Quotient { g, w, y, .. } => (Some(w.param), y.lanes * g.products()),
            Instr::ConvBack { g, w, dx, .. } => (Some(w.param), dx.lanes * g.products()),
            Instr::Linear { w, x, y, .. } => (Some(w.param), y.lanes * x.len * y.len),
            Instr::LinearBack { w, dy, dx, .. } => (Some(w.param), dx.lanes * dy.len * dx.len),
            Instr::Correlate { g, v: result, .. }
            | Instr::ConvBy { g, y: result, .. }
            | Instr::ConvBackBy { g, dx: result, .. } => (None, result.lanes * g.products()),
            _ => (None, 0),
        };
        let weights = param.map_or(0, |p| graph.param(p).len() * weight_bytes);
        Work { flops: 2.0 * (products * samples) as f64, bytes: (operands + weights) as f64 }
    }
}
