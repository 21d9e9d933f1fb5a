//! From a request to programs, memory layout and batch size.

use super::program::Writer;
use crate::backend::{ALIGN, Batch, Dtype, Instr, Scope, Slot, Step};
use crate::error::{ErrorKind, Result};
use crate::grid::{FoldPlan, Grid, GridPlan, Mode, Resample, Weighting};
use crate::methods::{Job, Method};
use crate::models::Network;
use crate::net::NodeId;

/// What is to be explained and how; everything that a plan depends on.
#[derive(Debug, Clone, Copy)]
pub struct Request {
    /// Rows and columns of the working image.
    pub image: (usize, usize),
    /// Number of classes to explain.
    pub classes: usize,
    /// Whether the classes are the top ones of the image (else they are given).
    pub top: bool,
    /// The method.
    pub method: &'static Method,
    /// Layer of a class activation map.
    pub layer: NodeId,
    /// Whether to make the plain map of the whole image.
    pub plain: bool,
    /// UCAG's grid, `None` for no unfolding.
    pub grid: Option<Grid>,
    /// Whether closed forms may stand in for the walk down.
    pub closed_forms: bool,
    /// Most bytes of working memory.
    pub memory: u64,
    /// Patches that are enough to keep all cores busy.
    pub wanted_batch: usize,
    /// Whether batches have that many patches even where fewer would be more comfortable.
    pub exact_batch: bool,
}

/// Working memory that a plan does not exceed for the sake of larger batches: more would only leave the caches.
const COMFORTABLE: u64 = 384 << 20;

/// Programs and memory layout of a request.
pub struct Plan {
    pub(super) whole: Stage,
    pub(super) patches: Option<Stage>,
    pub(super) plain: bool,
    pub(super) classes: Slot,
    pub(super) probabilities: Slot,
    /// Patches of one batch.
    pub chunk: usize,
    /// Bytes of the arena.
    pub bytes: usize,
}

/// One pass over a set of patches: the whole image as a single patch, or UCAG's.
pub(super) struct Stage {
    pub steps: Vec<Step<Slot>>,
    pub fold_steps: Vec<Step<Slot>>,
    pub grid: GridPlan,
    pub resample: Resample,
    pub fold: FoldPlan,
    /// Probability of each class in each patch.
    pub p: Slot,
    /// The folded maps.
    pub result: Slot,
}

impl Stage {
    pub(super) fn batch<'a>(&'a self, image: &'a [u8], first: usize, len: usize) -> Batch<'a> {
        Batch { first, len, image, resample: &self.resample, fold: &self.fold }
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
    fold: FoldPlan,
    fold_step: Step<Slot>,
    p: Slot,
    result: Slot,
}

impl Plan {
    /// # Errors
    /// When grid, image and network do not fit together, or the memory does not suffice for a single patch.
    pub(super) fn new(network: &Network, request: &Request) -> Result<Self> {
        let graph = &network.graph;
        let mut fixed = Fixed { end: 0 };
        let classes = fixed.place(request.classes, 1, Dtype::U32, None);
        let probabilities = fixed.place(graph.classes(), 1, Dtype::F32, None);
        let whole = {
            let grid = GridPlan::whole(request.image.0, request.image.1);
            let select = Some((probabilities, request.top));
            Draft::new(network, request, grid, Weighting::One, select, classes, &mut fixed)?
        };
        let patches = match request.grid {
            None => None,
            Some(grid) => {
                let weighting = match grid.mode {
                    Mode::Paper => Weighting::Exp,
                    Mode::Release => Weighting::ExpOverMax,
                };
                let grid = GridPlan::new(grid, request.image.0, request.image.1)?;
                Some(Draft::new(network, request, grid, weighting, None, classes, &mut fixed)?)
            }
        };
        let base = fixed.end;
        let (whole, mut bytes) = whole.lay_out(network, base, 1);
        let mut chunk = 1;
        let patches = match patches {
            None => None,
            Some(draft) => {
                let (one, end) = draft.lay_out(network, base, 1);
                let sample = (end - base).max(1);
                let comfortable = if request.exact_batch { request.memory } else { request.memory.min(COMFORTABLE) };
                let room = comfortable.saturating_sub(base as u64) / sample as u64;
                chunk = (room as usize).clamp(1, request.wanted_batch.min(draft.grid.patches()));
                let (stage, end) = if chunk == 1 { (one, end) } else { draft.lay_out(network, base, chunk) };
                bytes = bytes.max(end);
                Some(stage)
            }
        };
        if bytes as u64 > request.memory {
            let what = format!(
                "{} of {}×{} pixels, one patch at a time,",
                network.model.name, request.image.1, request.image.0
            );
            return Err(ErrorKind::Memory { what, need: bytes as u64, have: request.memory }.into());
        }
        Ok(Self { whole, patches, plain: request.plain, classes, probabilities, chunk, bytes })
    }

    /// The grid of patches, where the image is unfolded.
    pub fn grid(&self) -> Option<&GridPlan> {
        self.patches.as_ref().map(|stage| &stage.grid)
    }

    pub(super) fn stages(&self) -> impl Iterator<Item = &Stage> {
        std::iter::once(&self.whole).chain(&self.patches)
    }
}

impl<'g> Draft<'g> {
    /// `select`: where the whole image's probabilities go, and whether its top classes are to be explained.
    fn new(
        network: &'g Network,
        request: &Request,
        grid: GridPlan,
        weighting: Weighting,
        select: Option<(Slot, bool)>,
        classes: Slot,
        fixed: &mut Fixed,
    ) -> Result<Self> {
        let graph = &network.graph;
        let patches = grid.patches();
        let mut w = Writer::new(graph, grid.scaled(), request.classes).map_err(|e| too_small(e, &grid))?;
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
        let (map, size) = if is_whole && !request.plain {
            (fixed.place(1, request.classes, Dtype::F32, Some(1)), (1, 1))
        } else {
            let job = Job { classes, layer: request.layer, closed_forms: request.closed_forms };
            let raw = request.method.write(&mut w, &job);
            let kept = fixed.place(raw.size.0 * raw.size.1, request.classes, Dtype::F32, Some(patches));
            let y = w.fixed(kept);
            w.push(Instr::Keep { x: raw.map, y });
            (kept, raw.size)
        };
        let fold = grid.fold(size, weighting);
        let result = fixed.place(fold.canvas.0 * fold.canvas.1, request.classes, Dtype::F32, None);
        let fold_step = Step { node: "fold".into(), instr: Instr::Fold { maps: map, p, map: size, y: result } };
        w.forward();
        w.unfold(grid.image);
        Ok(Self { writer: w, grid, fold, fold_step, p, result })
    }

    fn lay_out(&self, network: &Network, base: usize, batch: usize) -> (Stage, usize) {
        let (steps, end) = self.writer.lay_out(base, batch);
        let stage = Stage {
            steps,
            fold_steps: vec![self.fold_step.clone()],
            grid: self.grid.clone(),
            resample: self.grid.resample(&network.preprocess),
            fold: self.fold.clone(),
            p: self.p,
            result: self.result,
        };
        (stage, end)
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
