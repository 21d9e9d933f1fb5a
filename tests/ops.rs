//! Matrix products of the CPU backend, convolutions and linear layers, against the `f64` oracle.

mod common;

use common::case::{ADDS, Case, Operand, VARIANTS, layer, part, same, weight, window};
use common::reference::{self as oracle, Window};
use common::{Random, tolerance};
use ucag::backend::{ConvGeom, Dtype, Instr, Scope, Slot};
use ucag::net::{Builder, NodeId, Shape, Tensors};

/// A convolution forward and backward: plain, and with everything that can be fused into it.
fn conv(h: usize, w: usize, c: usize, outputs: usize, window: Window, all: bool) {
    let (graph, weights, bias) = layer(c, outputs, Some(window.kernel));
    let (oh, ow) = (window.results(h, 0), window.results(w, 1));
    let g = ConvGeom { window: same(&window), x: Shape::new(h, w, c), y: Shape::new(oh, ow, outputs) };
    let size = (h, w, c);
    let (x_len, y_len) = (g.x.len(), g.y.len());
    for (i, (variant, add)) in VARIANTS.into_iter().zip(ADDS).enumerate().take(if all { 3 } else { 1 }) {
        let (part_w, part_b) = (part(variant, &weights), part(variant, &bias));
        let (has_bias, relu) = (i != 1, i != 0);
        let name = format!("conv {h}x{w}x{c} to {outputs} by {window:?} {variant:?} add {add:?}");
        let lanes = 1 + i % 2;
        Case {
            name: name.clone(),
            graph: graph.clone(),
            operands: vec![Operand::random(1, lanes, x_len)],
            len: y_len,
            lanes,
            add,
            relu,
            write: &|x, add, y| Instr::Conv {
                g,
                w: weight(variant),
                bias: has_bias.then_some(variant),
                x: x[0],
                add,
                relu,
                y,
            },
            oracle: &|x| {
                let y = oracle::conv(x[0], size, &part_w, outputs, &window);
                if has_bias { oracle::biased(&y, &part_b) } else { y }
            },
        }
        .check();
        let mut operands = vec![Operand::random(2, lanes, y_len)];
        // The factor is an activation of one lane, shared by all classes.
        operands.extend((i > 0).then(|| Operand::random(3, 1, x_len)));
        for exact in if all { &[false, true][..] } else { &[false] } {
            Case {
                name: format!("backward {name} {lanes} lanes, exact: {exact}"),
                graph: graph.clone(),
                operands: operands.clone(),
                len: x_len,
                lanes,
                add,
                relu: false,
                write: &|o, add, dx| {
                    let mul = o.get(1).copied();
                    Instr::ConvBack { g, w: weight(variant), exact: *exact, dy: o[0], mul, add, dx }
                },
                oracle: &|o| {
                    let dx = oracle::conv_back(o[0], size, &part_w, outputs, &window);
                    o.get(1).map_or(dx.clone(), |mul| oracle::product(&dx, mul))
                },
            }
            .check();
        }
    }
}

#[test]
fn convolutions_of_all_windows() {
    for (h, w, c, o, window) in [
        (9, 7, 3, 5, window([3, 3], 1, [1, 1])),
        (9, 7, 5, 3, window([3, 3], 2, [1, 1])),
        (8, 11, 3, 17, window([3, 3], 3, [1, 1])),
        (13, 10, 3, 8, window([7, 7], 2, [3, 3])),
        (37, 21, 4, 72, window([7, 7], 2, [3, 3])),
        // Few channels: all phases of the backward pass at once.
        (3, 2, 4, 8, window([7, 7], 2, [3, 3])),
        (8, 8, 4, 4, window([3, 3], 2, [1, 1])),
        (7, 6, 4, 8, window([1, 1], 2, [0, 0])),
        (7, 6, 4, 8, Window { kernel: [2, 3], stride: [1, 4], pad: [0, 1] }),
        (7, 6, 4, 8, Window { kernel: [3, 3], stride: [1, 2], pad: [1, 1] }),
        // Many channels, and whole vectors of them on either side.
        (6, 7, 40, 68, window([3, 3], 1, [1, 1])),
        (9, 8, 36, 132, window([3, 3], 2, [1, 1])),
        (13, 11, 136, 12, window([1, 1], 1, [0, 0])),
        (7, 7, 5, 4, window([7, 7], 1, [0, 0])),
        (9, 8, 3, 4, window([1, 7], 1, [0, 3])),
        (8, 9, 4, 3, window([7, 1], 2, [3, 0])),
        (7, 5, 5, 6, window([1, 1], 1, [0, 0])),
        (7, 6, 5, 6, window([1, 1], 2, [0, 0])),
        (8, 7, 3, 4, window([1, 1], 3, [0, 0])),
        // Pixels no window ends on: the backward pass must clear them.
        (8, 9, 3, 4, window([2, 2], 3, [0, 0])),
        // Inputs smaller than the stride or the kernel.
        (2, 1, 3, 4, window([1, 1], 3, [0, 0])),
        (1, 1, 3, 4, window([3, 3], 2, [1, 1])),
        (2, 3, 3, 4, window([7, 7], 2, [3, 3])),
        (4, 4, 2, 2, Window { kernel: [3, 2], stride: [1, 2], pad: [2, 1] }),
    ] {
        conv(h, w, c, o, window, true);
    }
}

#[test]
fn convolutions_of_all_widths() {
    for c in [1, 3, 5, 17, 64, 130] {
        for o in [1, 17, 130] {
            conv(5, 4, c, o, window([3, 3], 1, [1, 1]), c == o);
            conv(5, 4, c, o, window([1, 1], 1, [0, 0]), c == o);
            conv(5, 4, c, o, window([3, 3], 2, [1, 1]), c == o);
        }
    }
}

/// Many tiles of pixels, and more channels than one tile of channels holds.
#[test]
fn convolutions_across_tiles() {
    conv(42, 25, 64, 5, window([3, 3], 1, [1, 1]), false);
    conv(61, 49, 5, 40, window([3, 3], 2, [1, 1]), false);
    conv(30, 25, 7, 9, window([1, 1], 1, [0, 0]), false);
    conv(3, 2, 9, 700, window([1, 1], 1, [0, 0]), false);
    conv(30, 31, 16, 144, window([3, 3], 1, [1, 1]), true);
    conv(6, 7, 24, 136, window([3, 3], 2, [1, 1]), true);
}

#[test]
fn linear_layers() {
    for (inputs, outputs) in [(1, 1), (3, 5), (17, 130), (130, 17), (300, 257), (64, 1000)] {
        let (graph, weights, bias) = layer(inputs, outputs, None);
        for (i, (variant, add)) in VARIANTS.into_iter().zip(ADDS).enumerate() {
            let (part_w, part_b) = (part(variant, &weights), part(variant, &bias));
            let (has_bias, relu) = (i != 1, i != 0);
            let name = format!("linear {inputs} to {outputs} {variant:?} add {add:?}");
            let lanes = 1 + i;
            Case {
                name: name.clone(),
                graph: graph.clone(),
                operands: vec![Operand::random(1, lanes, inputs)],
                len: outputs,
                lanes,
                add,
                relu,
                write: &|x, add, y| Instr::Linear {
                    w: weight(variant),
                    bias: has_bias.then_some(variant),
                    x: x[0],
                    add,
                    relu,
                    y,
                },
                oracle: &|x| {
                    let y = oracle::linear(x[0], &part_w);
                    if has_bias { oracle::sum(&y, &part_b) } else { y }
                },
            }
            .check();
            let mut operands = vec![Operand::random(2, lanes, outputs)];
            operands.extend((i > 0).then(|| Operand::random(3, 1, inputs)));
            for exact in [false, true] {
                Case {
                    name: format!("backward {name}, exact: {exact}"),
                    graph: graph.clone(),
                    operands: operands.clone(),
                    len: inputs,
                    lanes,
                    add,
                    relu: false,
                    write: &|o, add, dx| {
                        let mul = o.get(1).copied();
                        Instr::LinearBack { w: weight(variant), exact, dy: o[0], mul, add, dx }
                    },
                    oracle: &|o| {
                        let dx = oracle::linear_back(o[0], &part_w);
                        o.get(1).map_or(dx.clone(), |mul| oracle::product(&dx, mul))
                    },
                }
                .check();
            }
        }
    }
}

/// Folding a batch norm into its convolution gives what the two give one after the other.
#[test]
fn folded_batch_norm() {
    let shape = |key: &str| if key == "c.weight" { vec![5, 3, 3, 3] } else { vec![5] };
    let keys = ["c.weight", "c.bias", "n.weight", "n.bias", "n.running_mean", "n.running_var"];
    let tensors = keys.map(|key| {
        let values = Random::named(key, 4).units(shape(key).iter().product());
        let values = if key == "n.running_var" { values.iter().map(|v| v + 1.01).collect() } else { values };
        (key.to_string(), shape(key), values)
    });
    let file = Tensors::from_bytes("norm", common::safetensors(&tensors, &[])).expect("a file");
    let mut b = Builder::new(Some(&file), |n| n);
    let square = window([3, 3], 1, [1, 1]);
    b.conv_bn(NodeId(0), ["c", "n"], 5, same(&square), true).expect("a layer");
    let (graph, _) = b.finish("norm").expect("a graph");
    let [weight, bias, gamma, beta, mean, var] = tensors.each_ref().map(|t| common::to_f64(&t.2));
    let x = common::to_f64(&Random(5).units(7 * 6 * 3));
    let plain = oracle::biased(&oracle::conv(&x, (7, 6, 3), &weight, 5, &square), &bias);
    let normed = plain.iter().enumerate().map(|(i, y)| (i % 5, y));
    let normed: Vec<f64> = normed.map(|(c, y)| gamma[c] * (y - mean[c]) / (var[c] + 1e-5).sqrt() + beta[c]).collect();
    let folded = common::oracle::Oracle::new(&graph, (7, 6), &x);
    assert!(common::nmse(folded.logits(), &normed) < tolerance::OP);
}

/// What all samples share counts once in the work of a step.
#[test]
fn work_of_a_fold() {
    let slot = |len, scope| Slot { offset: 0, len, lanes: 2, dtype: Dtype::F32, scope };
    let (maps, p) = (slot(12, Scope::All), slot(1, Scope::All));
    let fold = Instr::Fold { maps, p, map: (3, 4), y: slot(100, Scope::Shared) };
    let work = fold.work(&common::case::no_layer(), 36, 4);
    assert_eq!((work.flops, work.bytes), (0.0, 8.0 * (36.0 * 13.0 + 100.0)));
}
