//! Weights of convolutions as the panels that products read.

use super::panel::PANEL;
use super::transpose::transpose;
use crate::backend::taps::{Direction, Phase};
use crate::backend::{Variant, WeightRef, WeightSign};
use crate::net::Param;

/// Columns `panel·PANEL..` of a phase's matrix: rows of [`PANEL`] elements. What lies beyond the last column means nothing.
pub(super) fn pack(param: &Param, phase: &Phase, w: WeightRef, direction: Direction, panel: usize, out: &mut [f32]) {
    // One loop for each of the common views, so that it is compiled for vectors.
    match (direction, w.sign, w.variant) {
        (Direction::Forward, WeightSign::Folded, Variant::Plain) => out.copy_from_slice(param.panel(panel)),
        (Direction::Forward, WeightSign::Folded, Variant::Positive) => map(param.panel(panel), out, |v| v.max(0.0)),
        (Direction::Forward, WeightSign::Folded, Variant::Negative) => map(param.panel(panel), out, |v| v.min(0.0)),
        (Direction::Forward, ..) => {
            let outputs = panel * PANEL..((panel + 1) * PANEL).min(param.outputs);
            for (to, from) in out.chunks_exact_mut(PANEL).zip(param.panel(panel).chunks_exact(PANEL)) {
                to.iter_mut().zip(from).zip(outputs.clone()).for_each(|((to, v), oc)| *to = w.of(param, oc, *v));
            }
        }
        (Direction::Backward, ..) => {
            turn(param, phase, panel, out);
            let rows = out.chunks_exact_mut(PANEL).enumerate();
            rows.for_each(|(at, row)| w.see(param, at % param.outputs, row));
        }
    }
}

fn map(from: &[f32], to: &mut [f32], view: impl Fn(f32) -> f32) {
    to.iter_mut().zip(from).for_each(|(to, v)| *to = view(*v));
}

/// Rows are output channels, columns inputs.
fn turn(param: &Param, phase: &Phase, panel: usize, out: &mut [f32]) {
    let inputs = panel * PANEL..((panel + 1) * PANEL).min(param.inputs);
    for (tap, to) in phase.positions.iter().zip(out.chunks_exact_mut(param.outputs * PANEL)) {
        for (index, to) in to.chunks_mut(PANEL * PANEL).enumerate() {
            let from = &param.panel(index)[(tap * param.inputs + inputs.start) * PANEL..][..inputs.len() * PANEL];
            match (from.try_into(), <&mut [f32; PANEL * PANEL]>::try_from(&mut *to)) {
                (Ok(from), Ok(to)) => transpose(from, to),
                // At the borders a square is not whole.
                _ => {
                    for (column, from) in from.chunks_exact(PANEL).enumerate() {
                        to[column..].iter_mut().step_by(PANEL).zip(from).for_each(|(to, v)| *to = *v);
                    }
                }
            }
        }
    }
}
