//! Convolution and its input-gradient, phase by phase (see [`taps`]): as products of gathered pixels, 3×3 ones of stride 1 by
//! Winograd's tiles, input-gradients of few channels by products that are scattered.
//!
//! Weights that are not used as they are get packed anew in every run: that costs little beside the products, and no
//! memory that stays.

use rayon::prelude::*;

use super::epilogue::{Call, Epilogue};
use super::gathered::{self, Unit};
use super::panel::PANEL;
use super::{Base, Cpu, Target, View, Workers, pack, scatter, tiled};
use crate::backend::taps::{self, Direction, Phase};
use crate::backend::{ConvGeom, WeightRef};
use crate::net::{Param, Shape};

/// What a prepared convolution is found by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct ConvKey {
    pub g: ConvGeom,
    pub weight: WeightRef,
    pub direction: Direction,
    /// Samples of all batches.
    pub samples: usize,
}

/// A convolution prepared for one geometry, weight and direction.
pub(super) struct ConvKernel {
    pub(super) key: ConvKey,
    pub(super) source: Shape,
    pub(super) result: Shape,
    pub(super) phases: Vec<Phase>,
    pub(super) units: Vec<Unit>,
    way: Way,
}

/// How a convolution is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Products of gathered pixels.
    Gathered,
    /// Winograd's tiles.
    Tiled,
    /// Products that are scattered.
    Scattered,
}

impl Cpu {
    /// Prepares a convolution; returns the scratch memory that it needs for results of so many lanes, in elements: of each
    /// thread and of all together.
    pub(super) fn prepare_conv(&mut self, key: ConvKey, lanes: usize) -> (usize, usize) {
        let ConvKey { g, weight, direction, samples } = key;
        let winograd = self.winograd;
        let kernel = self.convs.entry(key).or_insert_with(|| {
            let phases = taps::phases(&g, direction);
            let (source, result) = match direction {
                Direction::Forward => (g.x, g.y),
                Direction::Backward => (g.y, g.x),
            };
            let units = gathered::units(&phases, result.c);
            let way = if scatter::suits(direction, result) {
                Way::Scattered
            } else if winograd && tiled::suits(&g, weight, source, result, samples) {
                Way::Tiled
            } else {
                Way::Gathered
            };
            ConvKernel { key, source, result, phases, units, way }
        });
        kernel.scratch(lanes)
    }
}

impl ConvKernel {
    /// Convolves `source`; the epilogue turns products into results.
    pub(super) fn run(
        &self,
        workers: &Workers,
        param: &Param,
        source: View<'_>,
        epilogue: Epilogue<'_>,
        base: Base<'_>,
        y: Target<'_>,
    ) {
        let call = Call { source, epilogue, base, lanes: y.lanes };
        if self.way == Way::Scattered {
            return scatter::run(self, workers, param, &call, y);
        }
        let mut memory = workers.packed();
        let packed = match self.is_packed() {
            true => &*param.weight,
            false => {
                self.pack(workers, param, &mut memory);
                &*memory
            }
        };
        match self.way {
            Way::Tiled => tiled::run(self, workers, packed, &call, y),
            _ => gathered::run(self, workers, packed, &call, y),
        }
    }

    /// Whether the parameter's own memory is what products read.
    fn is_packed(&self) -> bool {
        self.key.weight.is_plain() && self.key.direction == Direction::Forward
    }

    /// Packs the weights: `[phase, panel, row of the matrix, column]`.
    fn pack(&self, workers: &Workers, param: &Param, packed: &mut [f32]) {
        let panels = self.result.c.div_ceil(PANEL);
        let mut rest = packed;
        for phase in self.phases.iter().filter(|phase| phase.depth > 0) {
            let (matrix, others) = rest.split_at_mut(panels * phase.depth * PANEL);
            rest = others;
            let of_panels = |(panel, out): (usize, &mut [f32])| {
                pack::pack(param, phase, self.key.weight, self.key.direction, panel, out);
            };
            workers.pool.install(|| matrix.par_chunks_mut(phase.depth * PANEL).enumerate().for_each(of_panels));
        }
    }

    fn scratch(&self, lanes: usize) -> (usize, usize) {
        let panels = self.result.c.div_ceil(PANEL);
        let own = match self.way {
            Way::Scattered => return scatter::scratch(&self.key.g),
            Way::Tiled => tiled::scratch(self.source, self.result, lanes * self.key.samples),
            Way::Gathered => gathered::scratch(&self.phases, &self.units),
        };
        let depth: usize = match self.is_packed() {
            true => 0,
            false => self.phases.iter().map(|phase| phase.depth).sum(),
        };
        (own, depth * panels * PANEL)
    }
}
