//! From a request to programs, memory layout and batch size.

use std::ops::Range;

use super::Request;
use super::program::{Audit, Reg, Writer};
use super::sharing::{self, Shared};
use super::tail::{self, Tail};
use crate::backend::{ALIGN, Backend, Dtype, Instr, MOST_FACTORS, Pass, Scope, Slot, Step, Storage, Tables};
use crate::error::{ErrorKind, Result};
use crate::frame::Working;
use crate::grid::{GridPlan, Mode, Weighting};
use crate::methods::{Chosen, Job};
use crate::models::Network;

/// Programs and memory layout of a request.
pub(super) struct Plan<B: Backend> {
    request: Request,
    pub whole: Stage<B::Program>,
    /// What the patches have in common, computed before them.
    pub mosaic: Option<Part<B::Program>>,
    pub patches: Option<Stage<B::Program>>,
    pub classes: Slot,
    pub probabilities: Slot,
    /// Patches of one batch.
    pub chunk: usize,
    /// Size of the arena that it was laid out for.
    pub bytes: usize,
    pub recording: B::Recording,
}

/// Steps that run together, ready for the device.
pub(super) struct Part<P> {
    pub program: P,
    pub steps: Vec<Step<Slot>>,
}

impl<P> Part<P> {
    pub fn new<B: Backend<Program = P>>(steps: Vec<Step<Slot>>, tables: Tables, backend: &mut B) -> Result<Self> {
        Ok(Self { program: backend.prepare(steps.clone(), tables)?, steps })
    }

    /// The pass over all of the steps.
    pub fn pass(&self, samples: Range<usize>) -> Pass<'_, P> {
        Pass { program: &self.program, steps: 0..self.steps.len(), samples }
    }
}

/// One way through the network for a set of patches: the whole image as a single patch, or UCAG's. The body runs batch
/// by batch, the tails once.
pub(super) struct Stage<P> {
    pub body: Part<P>,
    pub grid: GridPlan,
    /// Probability of each class in each patch.
    pub p: Slot,
    /// What makes each method's maps; none where no maps were asked for.
    pub tails: Vec<Tail<P>>,
    /// What each method should conserve.
    pub audits: Vec<Vec<Audit<Slot>>>,
}

impl<P> Stage<P> {
    /// The passes of the body, batch by batch.
    pub fn batches(&self, chunk: usize) -> impl Iterator<Item = Pass<'_, P>> {
        let patches = self.grid.patches();
        (0..patches).step_by(chunk).map(move |first| self.body.pass(first..(first + chunk).min(patches)))
    }

    /// The passes that put the maps together and finish them.
    pub fn finish(&self) -> impl Iterator<Item = Pass<'_, P>> {
        self.tails.iter().map(|tail| tail.part.pass(0..self.grid.patches()))
    }
}

/// Places values that outlive a batch, one after the other.
pub(super) struct Fixed {
    end: usize,
}

impl Fixed {
    pub fn place(&mut self, len: usize, lanes: usize, dtype: Dtype, samples: Option<usize>) -> Slot {
        let offset = self.end;
        self.end += (len * lanes * dtype.bytes() * samples.unwrap_or(1)).next_multiple_of(ALIGN);
        let scope = if samples.is_some() { Scope::All } else { Scope::Shared };
        Slot { offset, len, lanes, dtype, scope }
    }
}

/// A stage whose program is written but not laid out.
struct Draft<'g> {
    writer: Writer<'g>,
    grid: GridPlan,
    tables: Tables,
    p: Slot,
    tails: Vec<tail::Draft>,
    audits: Vec<Vec<Audit<Slot>>>,
    /// What its patches have in common.
    shared: Option<Shared<'g>>,
}

/// All programs of a request, laid out.
struct Layout<'g> {
    whole: (Draft<'g>, Vec<Step<Slot>>),
    patches: Option<(Draft<'g>, Vec<Step<Slot>>)>,
    mosaic: Option<(Vec<Step<Slot>>, Tables)>,
    classes: Slot,
    probabilities: Slot,
    chunk: usize,
    /// What the whole image needs, and what all need.
    whole_bytes: usize,
    bytes: usize,
}

impl<'g> Layout<'g> {
    /// `sharing`: whether what patches have in common may be computed once; `at_once`: on how many inputs made of the whole
    /// image the network may run at once.
    fn new(network: &'g Network, request: &Request, storage: Storage, sharing: bool, at_once: usize) -> Result<Self> {
        let (h, w) = (request.working.h, request.working.w);
        let mut fixed = Fixed { end: 0 };
        let classes = fixed.place(request.classes, 1, Dtype::U32, None);
        let probabilities = fixed.place(network.graph.classes(), 1, Dtype::F32, None);
        let mut draft = |grid, weighting, select, at_once| {
            Draft::new(network, request, storage, grid, weighting, select, classes, sharing, at_once, &mut fixed)
        };
        let whole = draft(GridPlan::whole(h, w), Weighting::One, Some((probabilities, request.top)), at_once)?;
        let patches = match request.grid {
            None => None,
            Some(grid) => {
                let weighting = match grid.mode {
                    Mode::Paper | Mode::Aligned => Weighting::Exp,
                    Mode::Release => Weighting::ExpOverMax,
                };
                Some(draft(GridPlan::new(grid, h, w)?, weighting, None, 1)?)
            }
        };
        let base = fixed.end;
        let (whole_steps, whole_bytes) = whole.writer.lay_out(base, 1);
        let mut bytes = whole_bytes;
        let mut lay = |(steps, end)| {
            bytes = bytes.max(end);
            steps
        };
        let (mut chunk, mut mosaic) = (1, None);
        let patches = patches.map(|mut draft| {
            let (one, end) = draft.writer.lay_out(base, 1);
            let sample = (end - base).max(1);
            let kept = draft.shared.take();
            // What is kept for methods takes no room from batches.
            let shared = kept.as_ref().map_or(0, |kept| kept.bytes);
            let room = request.most(shared).saturating_sub(base as u64) / sample as u64;
            chunk = (room as usize).clamp(1, request.wanted_batch.min(draft.grid.patches()));
            let steps = lay(if chunk == 1 { (one, end) } else { draft.writer.lay_out(base, chunk) });
            mosaic = kept.map(|kept| (lay(kept.writer.lay_out(base, 1)), kept.tables));
            (draft, steps)
        });
        Ok(Self { whole: (whole, whole_steps), patches, mosaic, classes, probabilities, chunk, whole_bytes, bytes })
    }
}

impl<B: Backend> Plan<B> {
    /// Lays out memory and makes the device ready.
    ///
    /// # Errors
    /// When grid, image and network do not fit together, or the memory does not suffice for a single patch.
    pub fn new(network: &Network, request: &Request, backend: &mut B) -> Result<Self> {
        let lay_out = |sharing, at_once| Layout::new(network, request, backend.storage(), sharing, at_once);
        // Several inputs at once are a matter of speed, as batches are.
        let mut at_once = if request.classes == 1 { MOST_FACTORS } else { 1 };
        let mut layout = lay_out(request.sharing, at_once)?;
        let mut before = usize::MAX;
        while at_once > 1 && layout.whole_bytes as u64 > request.most(0) && layout.whole_bytes < before {
            (at_once, before) = (at_once / 2, layout.whole_bytes);
            layout = lay_out(request.sharing, at_once)?;
        }
        if layout.mosaic.is_some() && layout.bytes as u64 > request.memory {
            layout = lay_out(false, at_once)?;
        }
        let Layout { whole, patches, mosaic, classes, probabilities, chunk, bytes, .. } = layout;
        if bytes as u64 > request.memory {
            let Working { h, w, .. } = request.working;
            let what = format!("{} of {w}×{h} pixels, one patch at a time,", network.model.name);
            return Err(ErrorKind::Memory { what, need: bytes as u64, have: request.memory }.into());
        }
        backend.reserve(bytes)?;
        let whole = whole.0.ready(whole.1, backend)?;
        let mosaic = mosaic.map(|(steps, tables)| Part::new(steps, tables, backend)).transpose()?;
        let patches = patches.map(|(draft, steps)| draft.ready(steps, backend)).transpose()?;
        let (request, recording) = (request.clone(), B::Recording::default());
        Ok(Self { request, whole, mosaic, patches, classes, probabilities, chunk, bytes, recording })
    }

    /// Whether this plan is one for the request.
    pub fn serves(&self, request: &Request) -> bool {
        request.is_served_by(&self.request)
    }

    /// How many methods it is for.
    pub fn methods(&self) -> usize {
        self.request.methods.len()
    }

    /// Both stages, the whole image first.
    pub fn stages(&self) -> impl Iterator<Item = &Stage<B::Program>> {
        std::iter::once(&self.whole).chain(&self.patches)
    }
}

impl<'g> Draft<'g> {
    /// `select`: where the whole image's probabilities go, and whether its top classes are to be explained.
    #[allow(clippy::too_many_arguments)]
    fn new(
        network: &'g Network,
        request: &Request,
        storage: Storage,
        grid: GridPlan,
        weighting: Weighting,
        select: Option<(Slot, bool)>,
        classes: Slot,
        sharing: bool,
        at_once: usize,
        fixed: &mut Fixed,
    ) -> Result<Self> {
        let graph = &network.graph;
        let patches = grid.patches();
        let writer = Writer::new(graph, grid.scaled(), request.classes, storage);
        let mut w = writer.map_err(|e| too_small(e, &grid))?;
        w.allow_at_once(at_once);
        let classes = w.fixed(classes);
        let p = fixed.place(1, request.classes, Dtype::F32, Some(patches));
        w.at("softmax");
        let (logits, every) = (w.value(graph.output()), w.reg(graph.classes()));
        w.push(Instr::Softmax { logits, p: every });
        if let Some((slot, top)) = select {
            let y = w.fixed(slot);
            w.push(Instr::Keep { x: every, y });
            if top {
                w.push(Instr::TopK { p: every, k: request.classes, classes });
            }
        }
        let y = w.fixed(p);
        w.push(Instr::Pick { p: every, classes, y });
        let is_whole = select.is_some();
        let on_display = is_whole != request.grid.is_some();
        let resample = grid.resample(&network.preprocess);
        let tables = |map| Tables { resample: resample.clone(), fold: grid.fold(map, weighting) };
        if request.check && is_whole {
            w.audit_all();
        }
        let mut audits = vec![];
        let wanted: &[Chosen] = if is_whole && !request.plain { &[] } else { &request.methods };
        let tails = wanted.iter().map(|Chosen { method, settings, layer }| {
            w.at(&graph.node(*layer).name);
            let (closed_forms, preprocess) = (request.closed_forms, network.preprocess);
            let job = Job { classes, layer: *layer, closed_forms, preprocess, settings };
            let raw = method.write(&mut w, &job);
            let written = w.take_audits();
            let mut keep = |x: &Reg| {
                let slot = fixed.place(TOTALS, w.lanes_of(*x), Dtype::F32, None);
                let y = w.fixed(slot);
                w.push(Instr::Keep { x: *x, y });
                slot
            };
            audits.push(written.iter().map(|audit| audit.map(&mut keep)).collect());
            let kept = fixed.place(raw.size.0 * raw.size.1, request.classes, Dtype::F32, Some(patches));
            let y = w.fixed(kept);
            w.push(Instr::Keep { x: raw.map, y });
            let mut tail = tail::Draft::new(tables(raw.size), kept, raw.size, p, fixed);
            if !is_whole {
                tail.finish(&grid, method.level, fixed);
            }
            if request.overlay && on_display {
                tail.overlay(request, method, fixed);
            }
            tail
        });
        let tails = tails.collect();
        let tables = tables((1, 1));
        let shared = (sharing && patches > 1).then(|| sharing::share(&mut w, &tables, storage, fixed)).flatten();
        w.forward();
        w.unfold(grid.image);
        Ok(Self { writer: w, grid, tables, p, tails, audits, shared })
    }

    fn ready<B: Backend>(self, steps: Vec<Step<Slot>>, backend: &mut B) -> Result<Stage<B::Program>> {
        let body = Part::new(steps, self.tables, backend)?;
        let tails = self.tails.into_iter().map(|tail| tail.ready(backend)).collect::<Result<_>>()?;
        Ok(Stage { body, grid: self.grid, p: self.p, tails, audits: self.audits })
    }
}

/// Numbers of a result of `Totals`, of which the first is the sum.
const TOTALS: usize = 2;

/// A network that is too large for a patch is a fault of the grid: say so with the numbers.
fn too_small(error: crate::Error, grid: &GridPlan) -> crate::Error {
    if grid.patches() == 1 {
        return error;
    }
    let ((h, w), (sh, sw)) = (grid.patch(), grid.scaled());
    ErrorKind::Grid(format!("patches of {h}×{w} pixels, scaled to {sh}×{sw}, are too small: {error}")).into()
}
