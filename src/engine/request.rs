//! What an engine is asked for.

use std::sync::Arc;

use crate::frame::Working;
use crate::grid::Grid;
use crate::methods::Chosen;

/// What is to be explained and how; everything that a plan depends on.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// The working image.
    pub working: Working,
    /// Number of classes to explain.
    pub classes: usize,
    /// Whether the classes are the top ones of the image (else they are given).
    pub top: bool,
    /// The methods.
    pub methods: Arc<[Chosen]>,
    /// Whether to make the plain map of the whole image.
    pub plain: bool,
    /// Whether to see what is conserved on the way through the whole image, for which its plain map is made.
    pub check: bool,
    /// UCAG's grid, `None` for no unfolding.
    pub grid: Option<Grid>,
    /// Whether to lay the map over the frame.
    pub overlay: bool,
    /// Whether closed forms may stand in for the walk down.
    pub closed_forms: bool,
    /// Whether what patches have in common is computed once.
    pub sharing: bool,
    /// Most bytes of working memory.
    pub memory: u64,
    /// Most bytes that are taken for the sake of larger batches.
    pub comfortable: u64,
    /// Patches that are enough to keep the device busy.
    pub wanted_batch: usize,
}

impl Request {
    /// Most bytes for the sake of speed: for batches and for what patches have in common, of which methods read `shared`.
    pub(super) fn most(&self, shared: u64) -> u64 {
        self.memory.min(self.comfortable.saturating_add(shared))
    }

    /// Whether a plan for `other` serves this request: the frame matters only to an overlay of it.
    pub(super) fn is_served_by(&self, other: &Self) -> bool {
        let frameless = |mut working: Working| {
            (working.frame, working.source) = (other.working.frame, other.working.source);
            (working.resized, working.corner) = (other.working.resized, other.working.corner);
            working
        };
        let working = if self.overlay { self.working } else { frameless(self.working) };
        Self { working, ..self.clone() } == *other
    }
}
