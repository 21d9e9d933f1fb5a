//! Weights of convolutions as the panels that products read.

use super::panel::PANEL;
use super::transpose::transpose;
use crate::backend::taps::{Direction, Phase};
use crate::backend::{WeightRef, WeightSign};
use crate::net::Param;

/// Columns `panel·PANEL..` of a phase's matrix: rows of [`PANEL`] elements. What lies beyond the last column means nothing.
pub(super) fn pack(param: &Param, phase: &Phase, w: WeightRef, direction: Direction, panel: usize, out: &mut [f32]) {
    match direction {
        Direction::Forward => {
            out.copy_from_slice(param.panel(panel));
            let outputs = panel * PANEL..((panel + 1) * PANEL).min(param.outputs);
            match w.sign {
                // Each column has a sign of its own.
                WeightSign::Trained => {
                    for row in out.chunks_exact_mut(PANEL) {
                        row.iter_mut().zip(outputs.clone()).for_each(|(v, oc)| *v = w.of(param, oc, *v));
                    }
                }
                WeightSign::Folded | WeightSign::Negated => w.see(param, outputs.start, out),
            }
        }
        Direction::Backward => {
            turn(param, phase, panel, out);
            let rows = out.chunks_exact_mut(PANEL).enumerate();
            rows.for_each(|(at, row)| w.see(param, at % param.outputs, row));
        }
    }
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
