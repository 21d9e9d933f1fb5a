//! What the latest plan costs at least, and what each of its steps takes.

use std::time::Duration;

use super::Engine;
use crate::backend::{Backend, Ceilings, Pass, Slot, Step, Work};
use crate::error::Result;

/// Least work of the stages of one explanation, and the least time that it takes.
#[derive(Debug, Clone, PartialEq)]
pub struct Floors {
    /// What the device does at best.
    pub ceilings: Ceilings,
    /// The whole image, all patches, putting the maps together; as [`StageTimes`](crate::StageTimes).
    pub stages: [Floor; 3],
    /// Patches of one batch.
    pub batch: usize,
}

/// Work of a stage and the time below which it cannot be done, step after step.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Floor {
    /// All of its work.
    pub work: Work,
    /// Sum over its steps of what arithmetic or traffic takes at least.
    pub time: Duration,
    /// The part of that time in which arithmetic is what takes longer.
    pub arithmetic: Duration,
}

/// Time and work of one step of an explanation, over all batches.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerTime {
    /// `whole`, `shared`, `patches` or `fold`: the whole image, what patches have in common, the patches, putting maps
    /// together.
    pub stage: &'static str,
    /// The node that it works for.
    pub node: String,
    /// What it does.
    pub operation: String,
    /// The least work.
    pub work: Work,
    /// What it took.
    pub time: Duration,
}

impl LayerTime {
    fn new(stage: &'static str, step: &Step<Slot>) -> Self {
        let (node, operation) = (step.node.clone(), step.instr.name());
        Self { stage, node, operation, work: Work::default(), time: Duration::ZERO }
    }
}

impl<B: Backend> Engine<B> {
    /// How long each step of the latest plan takes, alone: the frame shown last is explained once more, step by step.
    /// Steps of all batches are added up.
    pub(crate) fn layers(&mut self) -> Result<Vec<LayerTime>> {
        let Some(plan) = self.plans.first() else { return Ok(vec![]) };
        let weight_bytes = self.backend.storage().activation.bytes();
        let mut parts = vec![("whole", &plan.whole.body, plan.whole.batches(1).collect::<Vec<_>>())];
        parts.extend(plan.mosaic.iter().map(|part| ("shared", part, vec![part.pass(0..1)])));
        parts.extend(plan.patches.iter().map(|stage| ("patches", &stage.body, stage.batches(plan.chunk).collect())));
        let tails = plan.stages().flat_map(|stage| stage.tails.iter().zip(stage.finish()));
        parts.extend(tails.map(|(tail, pass)| ("fold", &tail.part, vec![pass])));
        let mut layers: Vec<LayerTime> = vec![];
        let mut passes = vec![];
        for (stage, part, batches) in parts {
            let first = layers.len();
            layers.extend(part.steps.iter().map(|step| LayerTime::new(stage, step)));
            for pass in batches {
                for (i, step) in part.steps.iter().enumerate() {
                    layers[first + i].work += step.instr.work(&self.network.graph, pass.samples.len(), weight_bytes);
                    passes.push((first + i, Pass { steps: i..i + 1, ..part.pass(pass.samples.clone()) }));
                }
            }
        }
        let (of, passes): (Vec<usize>, Vec<Pass<'_, B::Program>>) = passes.into_iter().unzip();
        let times = self.backend.explain(&passes, &mut B::Recording::default(), &mut |_| ())?.times;
        of.iter().zip(times).for_each(|(layer, time)| layers[*layer].time += time);
        Ok(layers)
    }

    /// What the latest plan costs at least; `None` before the first one.
    pub(crate) fn floors(&mut self) -> Result<Option<Floors>> {
        if self.plans.is_empty() {
            return Ok(None);
        }
        let ceilings = self.backend.ceilings()?;
        let weight_bytes = self.backend.storage().activation.bytes();
        let plan = &self.plans[0];
        let mut stages = [Floor::default(); 3];
        let graph = &self.network.graph;
        let mut count = |index: usize, steps: &[Step<Slot>], samples| {
            for step in steps {
                stages[index].add(&step.instr.work(graph, samples, weight_bytes), &ceilings);
            }
        };
        plan.mosaic.iter().for_each(|part| count(1, &part.steps, 1));
        for (index, stage) in plan.stages().enumerate() {
            for pass in stage.batches(if index == 0 { 1 } else { plan.chunk }) {
                count(index, &stage.body.steps, pass.samples.len());
            }
            stage.tails.iter().for_each(|tail| count(2, &tail.part.steps, stage.grid.patches()));
        }
        Ok(Some(Floors { ceilings, stages, batch: plan.chunk }))
    }
}

impl Floor {
    fn add(&mut self, work: &Work, ceilings: &Ceilings) {
        self.work += *work;
        let time = Duration::from_secs_f64(ceilings.floor(work));
        self.time += time;
        if work.flops / ceilings.flops > work.bytes / ceilings.bytes {
            self.arithmetic += time;
        }
    }
}
