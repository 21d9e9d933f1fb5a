//! Where walks down start: seeds and what methods make of the head, against naive definitions in `f64`, on the CPU and,
//! where there is a device, on CUDA.

mod common;

use std::sync::Arc;

use common::case::{Add, Case, Operand, Oracle, Write, layer, no_layer};
use common::reference as oracle;
use ucag::backend::{Dtype, Instr, Seed, Slot};
use ucag::net::{Graph, ParamId};

/// Class indices of three lanes.
fn classes(indices: [u32; 3]) -> Operand {
    Operand { len: 3, lanes: 1, dtype: Dtype::U32, values: indices.map(f64::from).to_vec() }
}

/// An instruction that reads three classes and one more operand, with a lane a class.
fn check(name: &str, graph: &Arc<Graph>, indices: [u32; 3], operand: Operand, write: Write<'_>, oracle: Oracle<'_>) {
    let (name, graph, len) = (format!("{name} of {}", operand.len), graph.clone(), operand.len);
    let operands = vec![classes(indices), operand];
    Case { name, graph, operands, len, lanes: 3, add: Add::Nowhere, relu: false, write, oracle }.check();
}

#[test]
fn seeds() {
    use Seed::{Magnitude, One, OtherMagnitudes, OtherSoftmax, Others, Softmax, Value};
    for seed in [One, Value, Others, Magnitude, OtherMagnitudes, Softmax, OtherSoftmax] {
        for n in [20, 300] {
            let write = |o: &[Slot], _: Option<Slot>, y: Slot| Instr::Seed { classes: o[0], seed, x: Some(o[1]), y };
            let seeds = |o: &[&[f64]]| {
                let (x, k) = (o[1], o[0][0] as usize);
                let value = |j: usize| match (seed, j == k) {
                    (One, true) => 1.0,
                    (Value, true) => x[k],
                    (Others, false) => x[k] / (n - 1) as f64,
                    (Magnitude, true) | (OtherMagnitudes, false) => x[j].abs(),
                    (Softmax, true) => x[k] * (x.iter().sum::<f64>() - x[k]) + 1e-8,
                    (OtherSoftmax, false) => x[k] * x[j],
                    _ => 0.0,
                };
                (0..n).map(value).collect()
            };
            check(&format!("{seed:?}"), &no_layer(), [13, 0, 19], Operand::random(1, 1, n), &write, &seeds);
        }
    }
}

/// The gradient of AGF's head, by central differences of what it is the gradient of.
#[test]
fn head_gradients() {
    for (n, scale) in [(20, 1.0), (7, 4.0), (300, 2.0), (5, 0.0)] {
        let logits = Operand::random(1, 1, n).map(|v| f64::from((v * scale) as f32));
        let write = |o: &[Slot], _: Option<Slot>, y: Slot| Instr::HeadGradient { logits: o[1], classes: o[0], y };
        let gradient = |o: &[&[f64]]| {
            let (k, y) = (o[0][0] as usize, o[1]);
            let q = |y: &[f64]| {
                let sigma = y.iter().map(|v| (v - y[k]).abs()).fold(0.0, f64::max);
                let u: Vec<f64> = y.iter().map(|v| y[k] * (-0.5 * ((v - y[k]) / sigma).powi(2)).exp()).collect();
                oracle::softmax(&u)[k]
            };
            let moved = |j: usize, by: f64| {
                let mut y = y.to_vec();
                y[j] += by;
                q(&y)
            };
            const STEP: f64 = 1e-5;
            let derivative = |j| (moved(j, STEP) - moved(j, -STEP)) / (2.0 * STEP);
            let alike = y.iter().all(|v| *v == y[0]);
            (0..n).map(|j| if alike { 0.0 } else { derivative(j) }).collect()
        };
        let indices = [3, 0, n as u32 - 1];
        check(&format!("head gradient up to {scale}"), &no_layer(), indices, logits, &write, &gradient);
    }
}

#[test]
fn head_shares() {
    let (graph, _, bias) = layer(6, 20, None);
    for n in [6, 700] {
        let param = ParamId(1);
        let write = |o: &[Slot], _: Option<Slot>, y: Slot| Instr::HeadShares { q: o[1], classes: o[0], param, y };
        let shares = |o: &[&[f64]]| {
            let (sum, size) = (o[1].iter().sum::<f64>(), o[1].iter().map(|q| q.abs()).sum::<f64>());
            let total = if sum == 0.0 { 0.0 } else { sum + bias[o[0][0] as usize] };
            o[1].iter().map(|q| if total == 0.0 { 0.0 } else { q.abs() / size * total }).collect()
        };
        let mut q = Operand::random(1, 3, n).map(|v| v + 0.5);
        q.values[..n].fill(0.0);
        check("head shares", &graph, [13, 0, 19], q, &write, &shares);
    }
}
