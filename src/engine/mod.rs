//! Plans and runs programs on a backend. Owns the memory; the backend only computes.

mod plan;
mod program;
mod rules;
mod walk;

pub use plan::{Plan, Request};
pub use program::{Reg, Writer};
pub use rules::{Composite, Part, Recipe, Rule};
pub use walk::walk_down;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::backend::{Backend, Batch, Slot, Step};
use crate::error::{ErrorKind, Result};
use crate::models::Network;
use plan::Stage;

/// A network on a device.
pub(crate) struct Engine<B> {
    network: Arc<Network>,
    backend: B,
}

/// Time spent in the stages of one explanation.
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize)]
pub struct StageTimes {
    /// The whole image through the network, and its plain map where one was asked for.
    pub whole: Duration,
    /// All patches: unfold, network, method.
    pub patches: Duration,
    /// Putting the maps together.
    pub fold: Duration,
}

/// What a run gives, on the host.
#[derive(Debug, Clone, Default)]
pub(crate) struct Output {
    /// Probabilities of all classes for the whole image.
    pub probabilities: Vec<f32>,
    /// The explained classes.
    pub classes: Vec<usize>,
    /// For each explained class, its plain map.
    pub plain: Vec<Vec<f32>>,
    /// For each explained class, the map folded from patches.
    pub folded: Vec<Vec<f32>>,
    /// For each explained class, its probability in each patch.
    pub patch_probabilities: Vec<Vec<f32>>,
    pub times: StageTimes,
}

impl<B: Backend> Engine<B> {
    pub(crate) fn new(network: Arc<Network>, backend: B) -> Self {
        Self { network, backend }
    }

    /// Lays out memory for a request and makes the device ready for it. Nothing is allocated afterwards.
    pub(crate) fn plan(&mut self, request: &Request) -> Result<Plan> {
        let plan = Plan::new(&self.network, request)?;
        self.backend.reserve(plan.bytes)?;
        for stage in plan.stages() {
            self.backend.prepare(&stage.steps)?;
        }
        Ok(plan)
    }

    /// Forgets all plans made so far.
    pub(crate) fn forget(&mut self) {
        self.backend.forget();
    }

    /// Explains one working image. `classes`: the classes to explain, unless the plan is for the top ones. `progress`
    /// hears of every finished batch: patches done, patches in all.
    pub(crate) fn run(
        &mut self,
        plan: &Plan,
        image: &[u8],
        classes: Option<&[usize]>,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Output> {
        let mut output = Output::default();
        if let Some(classes) = classes {
            let classes: Vec<u32> = classes.iter().map(|c| *c as u32).collect();
            self.backend.write(&plan.classes, bytemuck::cast_slice(&classes))?;
        }
        let start = Instant::now();
        self.batches(&plan.whole, image, 1, &mut |_, _| ())?;
        output.probabilities = self.download(&plan.probabilities, 1)?;
        self.check(&output.probabilities, &plan.whole, image)?;
        let classes = self.download(&plan.classes, 1)?;
        output.classes = classes.iter().map(|c| c.to_bits() as usize).collect();
        output.times.whole = start.elapsed();

        if let Some(stage) = &plan.patches {
            let start = Instant::now();
            self.batches(stage, image, plan.chunk, progress)?;
            output.times.patches = start.elapsed();
            let patches = stage.grid.patches();
            let p = self.download(&stage.p, patches)?;
            self.check(&p, stage, image)?;
            let lanes = plan.classes.len;
            output.patch_probabilities =
                (0..lanes).map(|k| p.iter().skip(k).step_by(lanes).copied().collect()).collect();
        }
        let start = Instant::now();
        if plan.plain {
            output.plain = self.fold(&plan.whole, image)?;
        }
        if let Some(stage) = &plan.patches {
            output.folded = self.fold(stage, image)?;
        }
        output.times.fold = start.elapsed();
        Ok(output)
    }

    /// Runs a stage's steps over all its patches.
    fn batches(
        &mut self,
        stage: &Stage,
        image: &[u8],
        chunk: usize,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<()> {
        let patches = stage.grid.patches();
        for first in (0..patches).step_by(chunk) {
            let len = chunk.min(patches - first);
            self.backend.run(&stage.steps, &stage.batch(image, first, len))?;
            progress(first + len, patches);
        }
        Ok(())
    }

    /// Runs a stage's fold and brings its maps to the host, one a class.
    fn fold(&mut self, stage: &Stage, image: &[u8]) -> Result<Vec<Vec<f32>>> {
        self.backend.run(&stage.fold_steps, &stage.batch(image, 0, stage.grid.patches()))?;
        let maps = self.download(&stage.result, 1)?;
        self.check(&maps, stage, image)?;
        Ok(maps.chunks_exact(stage.result.len).map(<[f32]>::to_vec).collect())
    }

    fn download(&mut self, slot: &Slot, samples: usize) -> Result<Vec<f32>> {
        let mut values = vec![0.0_f32; slot.len * slot.lanes * samples];
        self.backend.read(slot, bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }

    /// Finds the node at which values stopped being finite, by running the stage again patch by patch and step by step.
    fn check(&mut self, values: &[f32], stage: &Stage, image: &[u8]) -> Result<()> {
        if values.iter().all(|v| v.is_finite()) {
            return Ok(());
        }
        for first in 0..stage.grid.patches() {
            for step in &stage.steps {
                let batch = stage.batch(image, first, 1);
                self.backend.run(std::slice::from_ref(step), &batch)?;
                if !self.finite(step, &batch)? {
                    return Err(ErrorKind::NonFinite { node: step.node.clone() }.into());
                }
            }
        }
        Err(ErrorKind::NonFinite { node: "fold".into() }.into())
    }

    /// Whether a step's results are finite.
    fn finite(&mut self, step: &Step<Slot>, batch: &Batch<'_>) -> Result<bool> {
        use crate::backend::{Access, Dtype, Scope};
        let mut results = vec![];
        step.instr.clone().map(|slot, access| {
            if access == Access::Write && slot.dtype == Dtype::F32 {
                results.push(slot);
            }
        });
        for mut slot in results {
            if slot.scope == Scope::All {
                slot.offset += batch.first * slot.len * slot.lanes * slot.dtype.bytes();
            }
            if !self.download(&slot, 1)?.iter().all(|v| v.is_finite()) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
