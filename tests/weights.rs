//! Weights in all their views, and weights that belong to the sample, against naive definitions in `f64`: on the CPU and,
//! where there is a device, on CUDA.

mod common;

use std::sync::Arc;

use common::Random;
use common::case::{ADDS, Add, Case, Operand, Oracle, Write, layer, no_layer, part, same, window};
use common::reference::{self as oracle, Window};
use ucag::backend::{ConvGeom, Instr, Variant, Vector, WeightRef, WeightSign};
use ucag::net::{Builder, Graph, NodeId, ParamId, Shape, Tensors};

const VARIANTS: [Variant; 8] = [
    Variant::Plain,
    Variant::Positive,
    Variant::Negative,
    Variant::Absolute,
    Variant::Square,
    Variant::One,
    Variant::MorePositive(0.25_f32.to_bits()),
    Variant::MoreNegative(1.5_f32.to_bits()),
];
const SIGNS: [WeightSign; 3] = [WeightSign::Folded, WeightSign::Trained, WeightSign::Negated];

const INPUTS: usize = 3;
const OUTPUTS: usize = 5;

/// A 3 × 3 convolution with a batch norm of which some scales are negative; its folded weight (file order), which
/// outputs are turned by `WeightSign::Trained`, its own bias and the norm's shift as they show in the result.
struct Normed {
    graph: Arc<Graph>,
    weight: Vec<f64>,
    turned: Vec<bool>,
    own_bias: Vec<f64>,
    shift: Vec<f64>,
}

fn normed() -> Normed {
    let shape = |key: &str| if key == "c.weight" { vec![OUTPUTS, INPUTS, 3, 3] } else { vec![OUTPUTS] };
    let keys = ["c.weight", "c.bias", "n.weight", "n.bias", "n.running_mean", "n.running_var"];
    let tensors = keys.map(|key| {
        let values = Random::named(key, 4).units(shape(key).iter().product());
        let value = |v: &f32| if key == "n.running_var" { v + 1.5 } else { *v };
        (key.to_string(), shape(key), values.iter().map(value).collect::<Vec<f32>>())
    });
    let file = Tensors::from_bytes("norm", common::safetensors(&tensors, &[])).expect("a file");
    let mut b = Builder::new(Some(&file), |n| n);
    b.conv_bn(NodeId(0), ["c", "n"], OUTPUTS, same(&window([3, 3], 1, [1, 1])), true).expect("a layer");
    let (graph, _) = b.finish("norm").expect("a graph");
    let [weight, bias, gamma, beta, mean, var] = tensors.each_ref().map(|t| common::to_f64(&t.2));
    let scale: Vec<f64> = gamma.iter().zip(&var).map(|(g, v)| g / (v + 1e-5).sqrt()).collect();
    let turned: Vec<bool> = scale.iter().map(|s| *s < 0.0).collect();
    assert!(turned.contains(&true) && turned.contains(&false));
    Normed {
        graph: Arc::new(graph),
        weight: weight.iter().enumerate().map(|(i, w)| w * scale[i / (INPUTS * 9)]).collect(),
        turned,
        own_bias: oracle::product(&bias, &scale),
        shift: (0..OUTPUTS).map(|o| beta[o] - mean[o] * scale[o]).collect(),
    }
}

/// The view of a weight in file order with so many values an output.
fn view(weight: &[f64], each: usize, turned: &[bool], sign: WeightSign, variant: Variant) -> Vec<f64> {
    let turn = |(i, w): (usize, &f64)| match sign {
        WeightSign::Folded => *w,
        WeightSign::Trained => {
            if turned[i / each] {
                -w
            } else {
                *w
            }
        }
        WeightSign::Negated => -w,
    };
    part(variant, &weight.iter().enumerate().map(turn).collect::<Vec<f64>>())
}

#[test]
fn views_of_convolutions() {
    let Normed { graph, weight, turned, .. } = normed();
    let (size, square) = ((4, 5, INPUTS), window([3, 3], 1, [1, 1]));
    let g = ConvGeom { window: same(&square), x: Shape::new(4, 5, INPUTS), y: Shape::new(4, 5, OUTPUTS) };
    for (sign, variant) in SIGNS.into_iter().flat_map(|s| VARIANTS.map(|v| (s, v))) {
        let w = WeightRef { param: ParamId(0), sign, variant, termwise: false };
        let viewed = view(&weight, INPUTS * 9, &turned, sign, variant);
        let case = |name: &str, len, from, write: Write<'_>, oracle: Oracle<'_>| {
            let (name, operands) = (format!("{name} by {w:?}"), vec![Operand::random(1, 1, from)]);
            Case { name, graph: graph.clone(), operands, len, lanes: 1, add: Add::Nowhere, relu: false, write, oracle }
                .check();
        };
        case(
            "conv",
            g.y.len(),
            g.x.len(),
            &|o, add, y| Instr::Conv { g, w, bias: None, x: o[0], add, relu: false, y },
            &|o| oracle::conv(o[0], size, &viewed, OUTPUTS, &square),
        );
        case(
            "backward",
            g.x.len(),
            g.y.len(),
            &|o, add, dx| Instr::ConvBack { g, w, exact: false, dy: o[0], mul: None, add, dx },
            &|o| oracle::conv_back(o[0], size, &viewed, OUTPUTS, &square),
        );
    }
}

/// By cuBLASLt, which takes multiples of 8, and by own kernels.
#[test]
fn views_of_linear_layers() {
    for (inputs, outputs) in [(16, 8), (7, 5)] {
        let (graph, weight, _) = layer(inputs, outputs, None);
        let views =
            VARIANTS.map(|v| (WeightSign::Folded, v)).into_iter().chain([(WeightSign::Negated, Variant::Plain)]);
        for (sign, variant) in views {
            let w = WeightRef { param: ParamId(1), sign, variant, termwise: false };
            let viewed = view(&weight, inputs, &[], sign, variant);
            let case = |name: &str, len, from, write: Write<'_>, oracle: Oracle<'_>| {
                let name = format!("{name} {inputs} to {outputs} by {w:?}");
                let (operands, graph) = (vec![Operand::random(1, 1, from)], graph.clone());
                Case { name, graph, operands, len, lanes: 1, add: Add::Nowhere, relu: false, write, oracle }.check();
            };
            let write = &|o: &[_], add, y| Instr::Linear { w, bias: None, x: o[0], add, relu: false, y };
            case("linear", outputs, inputs, write, &|o| oracle::linear(o[0], &viewed));
            let write = &|o: &[_], add, dx| Instr::LinearBack { w, exact: false, dy: o[0], mul: None, add, dx };
            case("backward", inputs, outputs, write, &|o| oracle::linear_back(o[0], &viewed));
        }
    }
}

#[test]
fn vectors_of_parameters() {
    let Normed { graph, own_bias, shift, .. } = normed();
    let (plain, _, bias) = layer(4, OUTPUTS, Some([1, 1]));
    for (graph, param, vector, expected) in [
        (&graph, 0, Vector::OwnBias, own_bias),
        (&graph, 0, Vector::NormShift, shift),
        (&plain, 1, Vector::OwnBias, bias),
        (&plain, 1, Vector::NormShift, vec![0.0; OUTPUTS]),
    ] {
        for pixels in [1, 12, 701] {
            let param = ParamId(param);
            let (name, len) = (format!("{vector:?} of {param:?}, {pixels} pixels"), pixels * OUTPUTS);
            let write = &|_: &[_], _, y| Instr::Vector { param, vector, y };
            let oracle = &|_: &[&[f64]]| expected.repeat(pixels);
            let (graph, operands, add) = (graph.clone(), vec![], Add::Nowhere);
            Case { name, graph, operands, len, lanes: 1, add, relu: false, write, oracle }.check();
        }
    }
}

/// Every result pixel, kernel position and the source pixel that they meet at.
fn visits(g: &ConvGeom, mut visit: impl FnMut(usize, usize, usize)) {
    let [[kh, kw], [sy, sx], [py, px]] = [g.window.kernel, g.window.stride, g.window.pad];
    for (oy, ox) in (0..g.y.h).flat_map(|oy| (0..g.y.w).map(move |ox| (oy, ox))) {
        for (ky, kx) in (0..kh).flat_map(|ky| (0..kw).map(move |kx| (ky, kx))) {
            let iy = (oy * sy + ky).checked_sub(py).filter(|i| *i < g.x.h);
            let ix = (ox * sx + kx).checked_sub(px).filter(|i| *i < g.x.w);
            if let (Some(iy), Some(ix)) = (iy, ix) {
                visit(oy * g.y.w + ox, ky * kw + kx, iy * g.x.w + ix);
            }
        }
    }
}

#[test]
fn weights_of_samples() {
    for ((h, w, c), outputs, window, lanes) in [
        ((5, 6, 5), 7, window([3, 3], 1, [1, 1]), 2),
        ((7, 6, 4), 3, window([3, 3], 2, [1, 1]), 1),
        ((5, 5, 3), 4, window([1, 1], 2, [0, 0]), 2),
        ((9, 11, 4), 6, window([7, 7], 2, [3, 3]), 1),
        ((8, 7, 2), 3, window([2, 2], 3, [0, 0]), 1),
        ((4, 5, 3), 2, Window { kernel: [1, 3], stride: [1, 2], pad: [0, 1] }, 2),
        // Across tiles of results and of terms.
        ((9, 9, 66), 70, window([1, 1], 1, [0, 0]), 1),
    ] {
        let g = ConvGeom {
            window: same(&window),
            x: Shape::new(h, w, c),
            y: Shape::new(window.results(h, 0), window.results(w, 1), outputs),
        };
        let len = window.kernel[0] * window.kernel[1] * c * outputs;
        let at = |tap: usize, i: usize, o: usize| (tap * c + i) * outputs + o;
        let pairs = || (0..c).flat_map(|i| (0..outputs).map(move |o| (i, o)));
        let case = |name: &str, operands: &[&Operand], len, add, write: Write<'_>, oracle: Oracle<'_>| {
            let name = format!("{name} {h}x{w}x{c} to {outputs} by {window:?}, {lanes} lanes, add {add:?}");
            let (graph, operands) = (no_layer(), operands.iter().map(|o| (*o).clone()).collect());
            Case { name, graph, operands, len, lanes, add, relu: false, write, oracle }.check();
        };
        let (x, mul) = (Operand::random(1, 1, g.x.len()), Operand::random(4, 1, g.x.len()));
        let (dy, v) = (Operand::random(2, lanes, g.y.len()), Operand::random(3, lanes, len));
        case(
            "correlate",
            &[&x, &dy],
            len,
            Add::Nowhere,
            &|o, _, v| Instr::Correlate { g, x: o[0], dy: o[1], v },
            &|o| {
                let mut v = vec![0.0; len];
                visits(&g, |q, tap, p| {
                    pairs().for_each(|(i, o_)| v[at(tap, i, o_)] += o[0][p * c + i] * o[1][q * outputs + o_]);
                });
                v
            },
        );
        case("by", &[&v, &x], g.y.len(), Add::Nowhere, &|o, _, y| Instr::ConvBy { g, v: o[0], x: o[1], y }, &|o| {
            let mut y = vec![0.0; g.y.len()];
            visits(&g, |q, tap, p| {
                pairs().for_each(|(i, o_)| y[q * outputs + o_] += o[0][at(tap, i, o_)] * o[1][p * c + i]);
            });
            y
        });
        for (i, add) in ADDS.into_iter().enumerate() {
            let operands: &[&Operand] = if i == 1 { &[&v, &dy] } else { &[&v, &dy, &mul] };
            case(
                "back by",
                operands,
                g.x.len(),
                add,
                &|o, add, dx| Instr::ConvBackBy { g, v: o[0], dy: o[1], mul: o.get(2).copied(), add, dx },
                &|o| {
                    let mut dx = vec![0.0; g.x.len()];
                    visits(&g, |q, tap, p| {
                        pairs().for_each(|(i, o_)| dx[p * c + i] += o[0][at(tap, i, o_)] * o[1][q * outputs + o_]);
                    });
                    o.get(2).map_or(dx.clone(), |mul| oracle::product(&dx, mul))
                },
            );
        }
    }
}
