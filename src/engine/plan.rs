//! From a request to programs, memory layout and batch size.

use std::ops::Range;
use std::sync::Arc;

use super::program::Writer;
use crate::backend::{ALIGN, Backend, Dtype, Instr, Pass, Scope, Slot, Step, Storage, Tables};
use crate::error::{ErrorKind, Result};
use crate::frame::Working;
use crate::grid::{Grid, GridPlan, Mode, Weighting};
use crate::methods::{Job, Level, Method, Settings};
use crate::models::Network;
use crate::net::NodeId;

/// What is to be explained and how; everything that a plan depends on.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// The working image.
    pub working: Working,
    /// Number of classes to explain.
    pub classes: usize,
    /// Whether the classes are the top ones of the image (else they are given).
    pub top: bool,
    /// The method.
    pub method: &'static Method,
    /// Its settings.
    pub settings: Arc<Settings>,
    /// Layer of a class activation map.
    pub layer: NodeId,
    /// Whether to make the plain map of the whole image.
    pub plain: bool,
    /// UCAG's grid, `None` for no unfolding.
    pub grid: Option<Grid>,
    /// Whether to lay the map over the frame.
    pub overlay: bool,
    /// Whether closed forms may stand in for the walk down.
    pub closed_forms: bool,
    /// Most bytes of working memory.
    pub memory: u64,
    /// Most bytes that are taken for the sake of larger batches.
    pub comfortable: u64,
    /// Patches that are enough to keep the device busy.
    pub wanted_batch: usize,
}

impl Request {
    /// Whether a plan for `other` serves this request: the frame matters only to an overlay of it.
    fn is_served_by(&self, other: &Self) -> bool {
        let frameless = |mut working: Working| {
            (working.frame, working.source) = (other.working.frame, other.working.source);
            (working.resized, working.corner) = (other.working.resized, other.working.corner);
            working
        };
        let working = if self.overlay { self.working } else { frameless(self.working) };
        Self { working, ..self.clone() } == *other
    }
}

/// Programs and memory layout of a request.
pub(super) struct Plan<B: Backend> {
    request: Request,
    pub whole: Stage<B::Program>,
    pub patches: Option<Stage<B::Program>>,
    pub classes: Slot,
    pub probabilities: Slot,
    /// Patches of one batch.
    pub chunk: usize,
    /// Size of the arena that it was laid out for.
    pub bytes: usize,
    pub recording: B::Recording,
}

/// One way through the network for a set of patches: the whole image as a single patch, or UCAG's. Steps of the body
/// run batch by batch, those after it once.
pub(super) struct Stage<P> {
    pub program: P,
    pub steps: Vec<Step<Slot>>,
    pub body: usize,
    pub grid: GridPlan,
    /// Probability of each class in each patch.
    pub p: Slot,
    /// The finished maps.
    pub map: Slot,
    /// The maps over the frame, where asked for.
    pub overlay: Option<Slot>,
}

impl<P> Stage<P> {
    /// A pass over some of the steps.
    pub fn pass(&self, steps: Range<usize>, samples: Range<usize>) -> Pass<'_, P> {
        Pass { program: &self.program, steps, samples }
    }

    /// The passes of the body, batch by batch.
    pub fn body(&self, chunk: usize) -> impl Iterator<Item = Pass<'_, P>> {
        let patches = self.grid.patches();
        (0..patches).step_by(chunk).map(move |first| self.pass(0..self.body, first..(first + chunk).min(patches)))
    }

    /// The pass that puts the maps together and finishes them.
    pub fn tail(&self) -> Pass<'_, P> {
        self.pass(self.body..self.steps.len(), 0..self.grid.patches())
    }
}

/// Places values that outlive a batch, one after the other.
struct Fixed {
    end: usize,
}

impl Fixed {
    fn place(&mut self, len: usize, lanes: usize, dtype: Dtype, samples: Option<usize>) -> Slot {
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
    tail: Vec<Step<Slot>>,
    p: Slot,
    map: Slot,
    overlay: Option<Slot>,
}

impl<B: Backend> Plan<B> {
    /// Lays out memory and makes the device ready.
    ///
    /// # Errors
    /// When grid, image and network do not fit together, or the memory does not suffice for a single patch.
    pub fn new(network: &Network, request: &Request, backend: &mut B) -> Result<Self> {
        let graph = &network.graph;
        let image = (request.working.h, request.working.w);
        let mut fixed = Fixed { end: 0 };
        let classes = fixed.place(request.classes, 1, Dtype::U32, None);
        let probabilities = fixed.place(graph.classes(), 1, Dtype::F32, None);
        let mut draft = |grid, weighting, select| {
            Draft::new(network, request, backend.storage(), grid, weighting, select, classes, &mut fixed)
        };
        let whole = draft(GridPlan::whole(image.0, image.1), Weighting::One, Some((probabilities, request.top)))?;
        let patches = match request.grid {
            None => None,
            Some(grid) => {
                let weighting = match grid.mode {
                    Mode::Paper => Weighting::Exp,
                    Mode::Release => Weighting::ExpOverMax,
                };
                Some(draft(GridPlan::new(grid, image.0, image.1)?, weighting, None)?)
            }
        };
        let base = fixed.end;
        let (whole_steps, mut bytes) = whole.writer.lay_out(base, 1);
        let mut chunk = 1;
        let patch_steps = patches.as_ref().map(|draft| {
            let (one, end) = draft.writer.lay_out(base, 1);
            let sample = (end - base).max(1);
            let room = request.memory.saturating_sub(base as u64).min(request.comfortable) / sample as u64;
            chunk = (room as usize).clamp(1, request.wanted_batch.min(draft.grid.patches()));
            let (steps, end) = if chunk == 1 { (one, end) } else { draft.writer.lay_out(base, chunk) };
            bytes = bytes.max(end);
            steps
        });
        if bytes as u64 > request.memory {
            let what = format!("{} of {}×{} pixels, one patch at a time,", network.model.name, image.1, image.0);
            return Err(ErrorKind::Memory { what, need: bytes as u64, have: request.memory }.into());
        }
        backend.reserve(bytes)?;
        let whole = whole.finish(whole_steps, backend)?;
        let patches = patches.zip(patch_steps).map(|(draft, steps)| draft.finish(steps, backend)).transpose()?;
        let (request, recording) = (request.clone(), B::Recording::default());
        Ok(Self { request, whole, patches, classes, probabilities, chunk, bytes, recording })
    }

    /// Whether this plan is one for the request.
    pub fn serves(&self, request: &Request) -> bool {
        request.is_served_by(&self.request)
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
        fixed: &mut Fixed,
    ) -> Result<Self> {
        let graph = &network.graph;
        let patches = grid.patches();
        let writer = Writer::new(graph, grid.scaled(), request.classes, storage);
        let mut w = writer.map_err(|e| too_small(e, &grid))?;
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
        let unasked = is_whole && !request.plain;
        let (maps, size) = if unasked {
            (fixed.place(1, request.classes, Dtype::F32, Some(1)), (1, 1))
        } else {
            let settings = &request.settings;
            let job = Job { classes, layer: request.layer, closed_forms: request.closed_forms, settings };
            let raw = request.method.write(&mut w, &job);
            let kept = fixed.place(raw.size.0 * raw.size.1, request.classes, Dtype::F32, Some(patches));
            let y = w.fixed(kept);
            w.push(Instr::Keep { x: raw.map, y });
            (kept, raw.size)
        };
        w.forward();
        w.unfold(grid.image);
        let tables = Tables { resample: grid.resample(&network.preprocess), fold: grid.fold(size, weighting) };
        let mut tail = Tail { steps: vec![], fixed, lanes: request.classes };
        let canvas = grid.canvas();
        let mut map = tail.push("fold", canvas.0 * canvas.1, |y| Instr::Fold { maps, p, map: size, y });
        if !is_whole {
            map = tail.finish(&grid, request.method.level, map);
        }
        let on_display = if request.grid.is_some() { !is_whole } else { is_whole };
        let overlay = (request.overlay && on_display).then(|| tail.overlay(request, map));
        let tail = if unasked { vec![] } else { tail.steps };
        Ok(Self { writer: w, grid, tables, tail, p, map, overlay })
    }

    fn finish<B: Backend>(self, mut steps: Vec<Step<Slot>>, backend: &mut B) -> Result<Stage<B::Program>> {
        let body = steps.len();
        steps.extend(self.tail);
        let program = backend.prepare(steps.clone(), self.tables)?;
        Ok(Stage { program, steps, body, grid: self.grid, p: self.p, map: self.map, overlay: self.overlay })
    }
}

/// The steps after the last batch.
struct Tail<'f> {
    steps: Vec<Step<Slot>>,
    fixed: &'f mut Fixed,
    lanes: usize,
}

impl Tail<'_> {
    /// Appends a step; returns where its result of `len` values a lane lies.
    fn push(&mut self, node: &str, len: usize, instr: impl FnOnce(Slot) -> Instr<Slot>) -> Slot {
        let y = self.fixed.place(len, self.lanes, Dtype::F32, None);
        self.steps.push(Step { node: node.into(), instr: instr(y) });
        y
    }

    /// From the folded canvas to the map: nothing to do in mode `paper`; the published code's last steps in mode
    /// `release` (`methods.md` 3.2).
    fn finish(&mut self, grid: &GridPlan, level: Level, canvas: Slot) -> Slot {
        if grid.grid.mode == Mode::Paper {
            return canvas;
        }
        let (from, to) = (grid.canvas(), grid.image);
        let mut map = canvas;
        if level == Level::Layer {
            map = self.push("relu", map.len, |y| Instr::Relu { x: map, y });
        }
        if from != to {
            map = self.push("resize", to.0 * to.1, |y| Instr::ResizeMap { from, to, x: map, y });
        }
        if level == Level::Layer {
            let range = self.push("range", 2, |y| Instr::Range { x: map, y });
            map = self.push("min-max", map.len, |y| Instr::MinMax { x: map, range, y });
            for vertical in [false, true] {
                map = self.push("blur", map.len, |y| Instr::Blur { size: to, vertical, x: map, y });
            }
        }
        map
    }

    /// The map over the frame.
    fn overlay(&mut self, request: &Request, x: Slot) -> Slot {
        let Working { h, w, source, frame: photo, .. } = request.working;
        let range = self.push("range", 2, |y| Instr::Range { x, y });
        let y = self.fixed.place(photo.0 * photo.1 * 3, self.lanes, Dtype::U8, None);
        let level = request.method.level;
        let instr = Instr::Overlay { size: (h, w), photo, source, level, x, range, y };
        self.steps.push(Step { node: "overlay".into(), instr });
        y
    }
}

/// A network that is too large for a patch is a fault of the grid: say so with the numbers.
fn too_small(error: crate::Error, grid: &GridPlan) -> crate::Error {
    if grid.patches() == 1 {
        return error;
    }
    let ((h, w), (sh, sw)) = (grid.patch(), grid.scaled());
    ErrorKind::Grid(format!("patches of {h}×{w} pixels, scaled to {sh}×{sw}, are too small: {error}")).into()
}
