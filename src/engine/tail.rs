//! What follows the last batch for one method: its maps put together and finished, with tables of their own.

use super::Request;
use super::plan::{Fixed, Part};
use crate::backend::{Backend, Dtype, Filter, Instr, Scaling, Slot, Step, Tables, Unary};
use crate::error::Result;
use crate::frame::Working;
use crate::grid::{GridPlan, Mode};
use crate::methods::{Level, Method};
use crate::net::Shape;

/// A method's finished maps and the steps that make them.
pub(super) struct Tail<P> {
    pub part: Part<P>,
    /// The finished maps.
    pub map: Slot,
    /// The maps over the frame, where asked for.
    pub overlay: Option<Slot>,
}

/// A tail whose steps are written but not made ready.
pub(super) struct Draft {
    steps: Vec<Step<Slot>>,
    tables: Tables,
    lanes: usize,
    map: Slot,
    overlay: Option<Slot>,
}

impl Draft {
    /// Folds the `maps` of all patches, `size` (rows, columns) each, with the classes' probabilities `p`.
    pub fn new(tables: Tables, maps: Slot, size: (usize, usize), p: Slot, fixed: &mut Fixed) -> Self {
        let canvas = tables.fold.canvas;
        let mut draft = Self { steps: vec![], tables, lanes: maps.lanes, map: maps, overlay: None };
        draft.push(fixed, "fold", canvas.0 * canvas.1, |y| Instr::Fold { maps, p, map: size, y });
        draft
    }

    /// Appends a step, whose result of `len` values a lane becomes the map.
    fn push(&mut self, fixed: &mut Fixed, node: &str, len: usize, instr: impl FnOnce(Slot) -> Instr<Slot>) {
        let y = fixed.place(len, self.lanes, Dtype::F32, None);
        self.steps.push(Step { node: node.into(), instr: instr(y) });
        self.map = y;
    }

    /// The map's smallest and largest value.
    fn range(&mut self, fixed: &mut Fixed) -> Slot {
        let x = self.map;
        self.push(fixed, "range", 2, |y| Instr::Range { x, channels: (1, 1), y });
        std::mem::replace(&mut self.map, x)
    }

    /// From the folded canvas to the map: nothing to do in mode `paper`; the published code's last steps in mode
    /// `release` (`methods.md` 3.2).
    pub fn finish(&mut self, grid: &GridPlan, level: Level, fixed: &mut Fixed) {
        if grid.grid.mode != Mode::Release {
            return;
        }
        let (from, to) = (grid.canvas(), grid.image);
        if level == Level::Layer {
            let x = self.map;
            self.push(fixed, "relu", x.len, |y| Instr::Unary { f: Unary::Positive, x, y });
        }
        if from != to {
            let x = self.map;
            let (from, slice, filter) = (Shape::new(from.0, from.1, 1), (0, 1), Filter::Bilinear);
            let instr = |y| Instr::Resize { from, slice, to, filter, scale: 1.0, x, add: None, y };
            self.push(fixed, "resize", to.0 * to.1, instr);
        }
        if level == Level::Layer {
            let (x, range) = (self.map, self.range(fixed));
            self.push(fixed, "min-max", x.len, |y| Instr::Scale { by: Scaling::MinMax, x, range, y });
            for vertical in [false, true] {
                let x = self.map;
                self.push(fixed, "blur", x.len, |y| Instr::Blur { size: to, vertical, x, y });
            }
        }
    }

    /// The map over the frame.
    pub fn overlay(&mut self, request: &Request, method: &Method, fixed: &mut Fixed) {
        let Working { h, w, source, frame: photo, .. } = request.working;
        let (x, range) = (self.map, self.range(fixed));
        let y = fixed.place(photo.0 * photo.1 * 3, self.lanes, Dtype::U8, None);
        let instr = Instr::Overlay { size: (h, w), photo, source, level: method.drawn_as(), x, range, y };
        self.steps.push(Step { node: "overlay".into(), instr });
        self.overlay = Some(y);
    }

    /// Makes the device ready for it.
    pub fn ready<B: Backend>(self, backend: &mut B) -> Result<Tail<B::Program>> {
        Ok(Tail { part: Part::new(self.steps, self.tables, backend)?, map: self.map, overlay: self.overlay })
    }
}
