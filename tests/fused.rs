//! Instructions that stand for several give the bits that those give one after the other: on the CPU and, where there is
//! a device, on CUDA.

mod common;

use std::sync::Arc;

use common::case::{ADDS, Add, Operand, SAMPLES, layer, no_layer, same, weight, window};
use common::reference::Window;
use common::rig::Rig;
use ucag::backend::{Backend, ConvGeom, Divisor, Dtype, Instr, Scope, Slot, Variant};
use ucag::net::{Graph, Shape};

const DIVISORS: [Divisor; 3] = [Divisor::Signed(1e-6), Divisor::NonZero, Divisor::Shifted(1e-9)];

/// Operands and results of one instruction after the other.
struct Bench<'a, B: Backend> {
    rig: &'a dyn Fn(&Arc<Graph>) -> Rig<B>,
    graph: Arc<Graph>,
    lanes: usize,
    /// Type of the first operand.
    first: Dtype,
}

impl<B: Backend> Bench<'_, B> {
    /// Runs what `write` makes of the operands, each with its lanes and the bytes of `f32` values, and of places for results.
    /// With `in_place` the first result lies where the last operand does.
    fn run(
        &self,
        operands: &[(usize, &[u8])],
        (results, len): (usize, usize),
        in_place: bool,
        write: impl Fn(&[Slot], &[Slot]) -> Instr<Slot>,
    ) -> Vec<Vec<u8>> {
        let mut rig = (self.rig)(&self.graph);
        let slot = |(i, (lanes, bytes)): (usize, &(usize, &[u8]))| {
            let len = bytes.len() / (SAMPLES * lanes * Dtype::F32.bytes());
            let (dtype, bytes) = match self.first {
                Dtype::F16 if i == 0 => (Dtype::F16, halves(bytes)),
                _ => (Dtype::F32, bytes.to_vec()),
            };
            rig.slot(len, *lanes, dtype, Scope::Batch, bytes)
        };
        let operands: Vec<Slot> = operands.iter().enumerate().map(slot).collect();
        let mut y: Vec<Slot> =
            (0..results).map(|_| rig.result(len, self.lanes, Dtype::F32, Scope::Batch, SAMPLES)).collect();
        if let (true, Some(last)) = (in_place, operands.last()) {
            y[0] = *last;
        }
        rig.run(write(&operands, &y), SAMPLES, &y)
    }
}

/// Values of `f32` in 16 bits.
fn halves(bytes: &[u8]) -> Vec<u8> {
    let values: Vec<f32> = bytemuck::pod_collect_to_vec(bytes);
    values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect()
}

/// A quotient of a convolution, whose input is of some type, is the convolution and then the quotient.
fn quotients<B: Backend>(
    rig: &dyn Fn(&Arc<Graph>) -> Rig<B>,
    first: Dtype,
    (h, w, c, o): (usize, usize, usize, usize),
    win: Window,
) {
    let graph = layer(c, o, Some(win.kernel)).0;
    let bench = Bench { rig, graph: graph.clone(), lanes: 1, first };
    let after = Bench { rig, graph, lanes: 1, first: Dtype::F32 };
    let g =
        ConvGeom { window: same(&win), x: Shape::new(h, w, c), y: Shape::new(win.results(h, 0), win.results(w, 1), o) };
    let len = g.y.len();
    let [x, r, term] = [(1, g.x.len()), (2, len), (3, len)].map(|(seed, len)| Operand::random(seed, 1, len));
    let [x, r, term] = [x, r, term].map(|operand| operand.bytes(0..SAMPLES));
    for (by, add) in DIVISORS.into_iter().flat_map(|by| ADDS.map(|add| (by, add))) {
        let (scale, w, bias) = (-1.5, weight(Variant::Positive), (add != Add::Elsewhere).then_some(Variant::Positive));
        let in_place = add == Add::InPlace;
        let term_of = |o: &[Slot]| o.last().filter(|_| add != Add::Nowhere).copied();
        let sum = |o: &[Slot], y: &[Slot]| Instr::Conv { g, w, bias, x: o[0], add: term_of(o), relu: false, y: y[0] };
        let z = bench.run(&[(1, &x), (1, &term)], (1, len), in_place, sum).remove(0);
        let quotient = |o: &[Slot], y: &[Slot]| Instr::Divide { r: o[0], z: o[1], z2: None, by, scale, y: y[0] };
        let expected = after.run(&[(1, &r), (1, &z)], (1, len), false, quotient);
        let both = |o: &[Slot], y: &[Slot]| Instr::Quotient {
            g,
            w,
            bias,
            x: o[0],
            add: term_of(o),
            r: o[1],
            by,
            scale,
            y: y[0],
        };
        let found = bench.run(&[(1, &x), (1, &r), (1, &term)], (1, len), in_place, both);
        assert!(found == expected, "{by:?} of a convolution of {first:?}, {g:?}, add {add:?}");
    }
}

/// A split of a sum is a quotient and two products; terms are such that their sum less one of them is the other.
fn splits<B: Backend>(rig: &dyn Fn(&Arc<Graph>) -> Rig<B>, lanes: usize, len: usize) {
    let bench = Bench { rig, graph: no_layer(), lanes, first: Dtype::F32 };
    let [a, b] =
        [1, 2].map(|seed| Operand::random(seed, 1, len).map(|v| (4.0 * v).round() / 4.0 + 0.0).bytes(0..SAMPLES));
    let numbers = |bytes: &[u8]| -> Vec<f32> { bytemuck::pod_collect_to_vec(bytes) };
    let sum: Vec<f32> = numbers(&a).iter().zip(numbers(&b)).map(|(a, b)| a + b).collect();
    let sum: Vec<u8> = bytemuck::cast_slice(&sum).to_vec();
    let r = Operand::random(3, lanes, len).bytes(0..SAMPLES);
    for by in DIVISORS {
        let quotient =
            |o: &[Slot], y: &[Slot]| Instr::Divide { r: o[0], z: o[1], z2: Some(o[2]), by, scale: 1.0, y: y[0] };
        let c = bench.run(&[(lanes, &r), (1, &a), (1, &b)], (1, len), false, quotient).remove(0);
        let product = |o: &[Slot], y: &[Slot]| Instr::Multiply { x: o[0], c: o[1], add: None, y: y[0] };
        let share = |x: &[u8]| bench.run(&[(1, x), (lanes, &c)], (1, len), false, product).remove(0);
        for (first, whole) in [(&a, false), (&sum, true)] {
            let split = |o: &[Slot], y: &[Slot]| {
                let [a, b, r, ya, yb] = [o[0], o[1], o[2], y[0], y[1]];
                Instr::Split { a, b, whole, r, by, ya, yb }
            };
            let found = bench.run(&[(1, first), (1, &b), (lanes, &r)], (2, len), false, split);
            // As numbers: a kernel that adds nothing to a product still turns −0 into 0.
            let same = found.iter().zip([share(&a), share(&b)]).all(|(y, share)| numbers(y) == numbers(&share));
            assert!(same, "{by:?}, whole {whole}, {len} numbers in {lanes} lanes");
        }
    }
}

/// `types`: those in which the backend takes the input of a convolution.
fn check<B: Backend>(rig: &dyn Fn(&Arc<Graph>) -> Rig<B>, types: &[Dtype]) {
    for first in types {
        quotients(rig, *first, (9, 7, 5, 6), window([3, 3], 2, [1, 1]));
        quotients(rig, *first, (13, 11, 7, 40), window([1, 1], 1, [0, 0]));
        quotients(rig, *first, (30, 30, 16, 32), window([3, 3], 1, [1, 1]));
        quotients(rig, *first, (20, 20, 16, 160), window([3, 3], 1, [1, 1]));
    }
    for lanes in [1, 3] {
        splits(rig, lanes, 35);
        splits(rig, lanes, 3 * 16384 + 5);
    }
}

#[test]
fn the_same_bits_as_one_after_the_other() {
    check(&|graph| Rig::new(graph, 2), &[Dtype::F32]);
    #[cfg(feature = "cuda")]
    if common::cuda::device().is_some() {
        check(&|graph| Rig::on(common::cuda::backend(graph).expect("it was there")), &[Dtype::F32, Dtype::F16]);
    }
}
