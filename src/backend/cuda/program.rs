//! Steps with everything on the device that they need.

use super::Cuda;
use super::memory::Buffer;
use super::product::{Product, is_plain, kind};
use super::tables::{DeviceTables, blends};
use crate::backend::taps::Direction;
use crate::backend::{Instr, Slot, Step, Tables, Variant};
use crate::error::Result;
use crate::net::Shape;

/// Steps and what they look up on the device.
pub struct Program {
    pub(super) steps: Vec<Step<Slot>>,
    pub(super) tables: DeviceTables,
    /// Tables of rows and columns of the steps that have some, by their index.
    pub(super) axes: Vec<(usize, [Buffer; 2])>,
    /// Colours of the layer's palette and of the input's.
    pub(super) palettes: Option<[Buffer; 2]>,
}

impl Program {
    /// Tables of rows and columns of a step.
    pub(super) fn axes(&self, step: usize) -> Option<&[Buffer; 2]> {
        self.axes.iter().find(|(i, _)| *i == step).map(|(_, axes)| axes)
    }
}

impl Cuda {
    /// Makes weights, tables and algorithms of a program ready, so that running it allocates nothing.
    pub(super) fn ready(&mut self, steps: Vec<Step<Slot>>, tables: Tables) -> Result<Program> {
        let (mut axes, mut palettes, samples) = (vec![], None, tables.samples());
        for (i, step) in steps.iter().enumerate() {
            match &step.instr {
                Instr::Conv { g, w, bias, x, add, relu, y } => {
                    let (add, relu, quotient) = (add.as_ref(), *relu, None);
                    let product = Product { w, source: g.x, result: g.y, bias: *bias, x, add, relu, quotient, y };
                    let kind = is_plain(g).then(|| kind(&product, false, samples)).flatten();
                    kind.iter().try_for_each(|kind| self.gemm.prepare(kind))?;
                    self.weights.conv(g, *w, Direction::Forward)?;
                    self.weights.bias(w.param, *bias, kind.is_some_and(|kind| kind.half))?;
                }
                Instr::Quotient { g, w, bias, .. } => {
                    self.weights.conv(g, *w, Direction::Forward)?;
                    self.weights.bias(w.param, *bias, false)?;
                }
                Instr::ConvBack { g, w, exact, .. } => {
                    self.back_weight(g, *w, *exact)?;
                }
                Instr::Linear { w, bias, x, add, relu, y } => {
                    let (source, result) = (Shape::new(1, 1, x.len), Shape::new(1, 1, y.len));
                    let (add, quotient) = (add.as_ref(), None);
                    let product = Product { w, source, result, bias: *bias, x, add, relu: *relu, quotient, y };
                    let kind = kind(&product, true, samples);
                    kind.iter().try_for_each(|kind| self.gemm.prepare(kind))?;
                    match kind {
                        Some(_) => self.weights.linear(*w)?,
                        None => self.weights.turned(*w)?,
                    };
                    self.weights.bias(w.param, *bias, kind.is_some_and(|kind| kind.half))?;
                }
                Instr::LinearBack { w, .. } | Instr::ClassRow { w, .. } => {
                    self.weights.linear(*w)?;
                }
                Instr::HeadShares { param, .. } => {
                    self.weights.bias(*param, Some(Variant::Plain), false)?;
                }
                Instr::Vector { param, vector, .. } => {
                    self.weights.vector(*param, *vector)?;
                }
                Instr::Gather { picks, .. } => {
                    let of = |axis: &[u32]| Buffer::of(&self.handle, axis, "tables of shared pixels");
                    axes.push((i, [of(&picks.rows)?, of(&picks.cols)?]));
                }
                Instr::Overlay { size, photo, source, .. } => {
                    let (rows, cols) = crate::render::axes(*photo, *source, *size);
                    let of = |axis: &[_]| Buffer::of(&self.handle, &blends(axis), "tables of the overlay");
                    axes.push((i, [of(&rows)?, of(&cols)?]));
                    let of = |colours: &[[u8; 3]]| Buffer::of(&self.handle, colours.as_flattened(), "a palette");
                    let [layer, input] = crate::palette::tables();
                    palettes = Some([of(layer)?, of(input)?]);
                }
                _ => {}
            }
        }
        Ok(Program { tables: DeviceTables::new(&self.handle, tables)?, steps, axes, palettes })
    }
}
