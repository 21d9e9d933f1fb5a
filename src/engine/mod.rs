//! Plans and runs programs on a backend. Owns the memory; the backend only computes.

mod check;
mod floors;
mod mosaic;
mod plan;
mod program;
mod request;
mod rules;
mod sharing;
mod tail;
mod walk;

pub use check::Check;
pub use floors::{Floor, Floors, LayerTime};
pub use program::{Audit, Reg, Writer};
pub use request::Request;
pub use rules::{Bounds, Composite, EPS, Part, Rule, SHIFT, Share, is_pointwise, stabilised};
pub use walk::{Arrived, Layer, Rules, Walk, transposed, walk_down};

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::backend::{Access, Backend, Dtype, Pass, Scope, Slot, Step};
use crate::error::{ErrorKind, Result};
use crate::frame::Frame;
use crate::grid::GridPlan;
use crate::models::Network;
use plan::{Plan, Stage};

/// Plans that are kept for requests seen before. One more, and all are made anew: memory stays bounded whatever comes.
const PLANS: usize = 8;

/// A network on a device, and plans for what was asked of it.
pub(crate) struct Engine<B: Backend> {
    network: Arc<Network>,
    backend: B,
    /// The latest first.
    plans: Vec<Plan<B>>,
}

/// Time spent in the stages of one explanation.
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize)]
pub struct StageTimes {
    /// Making the working image.
    pub resize: Duration,
    /// Laying out memory; nothing once a size has been seen.
    pub plan: Duration,
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
    /// For each explained class, its probability in each patch.
    pub patch_probabilities: Vec<Vec<f32>>,
    /// What each method gives.
    pub methods: Vec<MethodOutput>,
    /// The grid of patches, where the image is unfolded.
    pub grid: Option<GridPlan>,
    pub times: StageTimes,
}

/// What one method gives, one entry for each explained class.
#[derive(Debug, Clone, Default)]
pub(crate) struct MethodOutput {
    /// Plain maps.
    pub plain: Vec<Vec<f32>>,
    /// Maps folded from patches.
    pub folded: Vec<Vec<f32>>,
    /// Maps over the frame, RGB.
    pub overlays: Vec<Vec<u8>>,
    /// What should be conserved.
    pub checks: Vec<Vec<Check>>,
}

impl<B: Backend> Engine<B> {
    pub(crate) fn new(network: Arc<Network>, backend: B) -> Self {
        Self { network, backend, plans: vec![] }
    }

    pub(crate) fn backend(&self) -> &B {
        &self.backend
    }

    /// Brings the plan for a request to the front, making it if need be. Nothing is allocated afterwards.
    fn plan(&mut self, request: &Request) -> Result<()> {
        if let Some(at) = self.plans.iter().position(|plan| plan.serves(request)) {
            self.plans[..=at].rotate_right(1);
            // A larger plan that failed for want of memory has taken the arena with it.
            return self.backend.reserve(self.plans[0].bytes);
        }
        if self.plans.len() == PLANS {
            self.plans.clear();
            self.backend.forget();
        }
        let plan = Plan::new(&self.network, request, &mut self.backend)?;
        self.plans.insert(0, plan);
        Ok(())
    }

    /// Explains one frame. `classes`: the classes to explain, unless the request is for the top ones. `progress` hears
    /// of every finished batch: patches done, patches in all.
    pub(crate) fn run(
        &mut self,
        request: &Request,
        frame: &Frame<'_>,
        classes: Option<&[usize]>,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Output> {
        let start = Instant::now();
        self.plan(request)?;
        let planned = start.elapsed();
        self.backend.show(frame, &request.working, request.overlay)?;
        let mut times = StageTimes { plan: planned, resize: start.elapsed() - planned, ..StageTimes::default() };
        let plan = &mut self.plans[0];
        if let Some(classes) = classes {
            let classes: Vec<u32> = classes.iter().map(|c| *c as u32).collect();
            self.backend.write(&plan.classes, bytemuck::cast_slice(&classes))?;
        }
        let mut recording = std::mem::take(&mut plan.recording);
        let plan = &self.plans[0];
        let mut passes: Vec<Pass<'_, B::Program>> = plan.whole.batches(1).collect();
        passes.extend(plan.mosaic.iter().map(|part| part.pass(0..1)));
        let first = passes.len();
        passes.extend(plan.patches.iter().flat_map(|stage| stage.batches(plan.chunk)));
        let bodies = passes.len();
        passes.extend(plan.stages().flat_map(Stage::finish));
        let all = plan.patches.as_ref().map_or(0, |stage| stage.grid.patches());
        let mut done = |i: usize| {
            if (first..bodies).contains(&i) {
                progress(((i + 1 - first) * plan.chunk).min(all), all);
            }
        };
        let outcome = self.backend.explain(&passes, &mut recording, &mut done);
        self.plans[0].recording = recording;
        let outcome = outcome?;
        for (i, time) in outcome.times.iter().enumerate() {
            match i {
                0 => times.whole += *time,
                i if i < bodies => times.patches += *time,
                _ => times.fold += *time,
            }
        }
        let output = self.results(times)?;
        let maps = output.methods.iter().flat_map(|method| method.plain.iter().chain(&method.folded));
        let maps = maps.chain(&output.patch_probabilities);
        let finite = |values: &Vec<f32>| values.iter().all(|v| v.is_finite());
        if outcome.overflow || !finite(&output.probabilities) || !maps.into_iter().all(finite) {
            return Err(ErrorKind::NonFinite { node: self.overflowing()? }.into());
        }
        Ok(output)
    }

    /// Brings everything that the latest plan gives to the host.
    fn results(&mut self, times: StageTimes) -> Result<Output> {
        let plan = &self.plans[0];
        let (methods, lanes) = (plan.methods(), plan.classes.len);
        let tails = |m: usize| [Some(&plan.whole), plan.patches.as_ref()].map(|stage| stage?.tails.get(m));
        let mut wanted = vec![(plan.probabilities, 1), (plan.classes, 1)];
        wanted.extend(plan.patches.iter().map(|stage| (stage.p, stage.grid.patches())));
        // Lane by lane: these are too large to be cut up afterwards.
        let lane = |slot: Slot, k: usize| Slot { offset: slot.offset + k * slot.bytes(1) / lanes, lanes: 1, ..slot };
        for tail in (0..methods).flat_map(tails).flatten() {
            wanted.extend((0..lanes).map(|k| (lane(tail.map, k), 1)));
            wanted.extend(tail.overlay.iter().flat_map(|slot| (0..lanes).map(|k| (lane(*slot, k), 1))));
        }
        for audit in plan.whole.audits.iter().flatten() {
            audit.map(|slot| wanted.push((*slot, 1)));
        }
        let mut bytes: Vec<Vec<u8>> = wanted.iter().map(|(slot, samples)| vec![0; slot.bytes(*samples)]).collect();
        let mut reads: Vec<(Slot, &mut [u8])> =
            wanted.iter().zip(&mut bytes).map(|((slot, _), bytes)| (*slot, bytes.as_mut_slice())).collect();
        self.backend.read(&mut reads)?;
        let mut found = bytes.into_iter();
        let mut next = || found.next().unwrap_or_default();
        let probabilities = floats(&next());
        let classes = words(&next()).map(|word| u32::from_le_bytes(word) as usize).collect();
        let p = plan.patches.iter().flat_map(|_| floats(&next())).collect::<Vec<f32>>();
        let patch_probabilities = match plan.patches {
            Some(_) => (0..lanes).map(|k| p.iter().skip(k).step_by(lanes).copied().collect()).collect(),
            None => vec![],
        };
        let mut made = vec![];
        for [whole, patches] in (0..methods).map(tails) {
            let mut method = MethodOutput::default();
            for (tail, maps) in [(whole, &mut method.plain), (patches, &mut method.folded)] {
                let Some(tail) = tail else { continue };
                *maps = (0..lanes).map(|_| floats(&next())).collect();
                method.overlays.extend(tail.overlay.iter().flat_map(|_| 0..lanes).map(|_| next()));
            }
            made.push(method);
        }
        for (method, audits) in made.iter_mut().zip(&plan.whole.audits) {
            let read: Vec<Audit<Vec<f32>>> = audits.iter().map(|audit| audit.map(|_| floats(&next()))).collect();
            method.checks = (0..lanes).map(|lane| Check::all(&read, lane)).collect();
        }
        let grid = plan.patches.as_ref().map(|stage| stage.grid.clone());
        Ok(Output { probabilities, classes, patch_probabilities, methods: made, grid, times })
    }

    /// The node at which values stopped being finite, found by running the stages again patch by patch, step by step.
    fn overflowing(&mut self) -> Result<String> {
        let plan = &self.plans[0];
        let mut parts = vec![(&plan.whole.body, 1)];
        parts.extend(plan.mosaic.iter().map(|part| (part, 1)));
        parts.extend(plan.patches.iter().map(|stage| (&stage.body, stage.grid.patches())));
        let single =
            parts.into_iter().flat_map(|(part, samples)| (0..samples).map(move |first| (part, first..first + 1)));
        let tails =
            plan.stages().flat_map(|stage| stage.tails.iter().map(|tail| (&tail.part, 0..stage.grid.patches())));
        for (part, samples) in single.chain(tails) {
            for (i, step) in part.steps.iter().enumerate() {
                self.backend.run(&Pass { steps: i..i + 1, ..part.pass(samples.clone()) })?;
                if !finite(&mut self.backend, step, samples.start)? {
                    return Ok(step.node.clone());
                }
            }
        }
        Ok("fold".into())
    }
}

/// Whether a step's results for the sample `first` are finite.
fn finite<B: Backend>(backend: &mut B, step: &Step<Slot>, first: usize) -> Result<bool> {
    let mut results = vec![];
    step.instr.clone().map(|slot, access| {
        if access == Access::Write && matches!(slot.dtype, Dtype::F32 | Dtype::F16) {
            results.push(slot);
        }
    });
    for mut slot in results {
        let size = slot.bytes(1);
        if slot.scope == Scope::All {
            slot.offset += first * size;
        }
        let mut bytes = vec![0; size];
        backend.read(&mut [(slot, &mut bytes)])?;
        let finite = match slot.dtype {
            Dtype::F16 => bytes.as_chunks().0.iter().all(|b| half::f16::from_le_bytes(*b).is_finite()),
            _ => floats(&bytes).iter().all(|v| v.is_finite()),
        };
        if !finite {
            return Ok(false);
        }
    }
    Ok(true)
}

fn words(bytes: &[u8]) -> impl Iterator<Item = [u8; 4]> {
    bytes.as_chunks().0.iter().copied()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    words(bytes).map(f32::from_le_bytes).collect()
}
