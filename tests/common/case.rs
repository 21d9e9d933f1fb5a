//! One instruction, run alone, in batches and on several threads, against the `f64` oracle.

use std::sync::Arc;

use super::reference::{self as oracle, Window};
use super::rig::Rig;
use super::{Random, tolerance};
use ucag::backend::{Dtype, Instr, Scope, Slot, Variant, WeightRef};
use ucag::net::{Builder, Graph, NodeId, ParamId, Tensors};

/// Samples of every case; batches of 9, 5 and 4, 3, and 1 are cut from them.
pub const SAMPLES: usize = 9;

/// Something an instruction reads: `lanes` × `len` numbers a sample.
#[derive(Clone)]
pub struct Operand {
    pub len: usize,
    pub lanes: usize,
    pub dtype: Dtype,
    pub values: Vec<f64>,
}

impl Operand {
    /// Random numbers in [−1, 1).
    pub fn random(seed: u64, lanes: usize, len: usize) -> Self {
        let values = super::to_f64(&Random(seed).units(SAMPLES * lanes * len));
        Self { len, lanes, dtype: Dtype::F32, values }
    }

    /// The same numbers changed one by one.
    pub fn map(mut self, f: impl Fn(f64) -> f64) -> Self {
        self.values.iter_mut().for_each(|v| *v = f(*v));
        self
    }

    pub fn bytes(&self, samples: std::ops::Range<usize>) -> Vec<u8> {
        let each = self.len * self.lanes;
        let bytes = |v: &f64| match self.dtype {
            Dtype::F32 => (*v as f32).to_le_bytes().to_vec(),
            Dtype::U32 => (*v as u32).to_le_bytes().to_vec(),
            Dtype::U8 => vec![*v as u8],
        };
        self.values[samples.start * each..samples.end * each].iter().flat_map(bytes).collect()
    }

    /// The numbers that lane `lane` of `sample` reads.
    pub fn of(&self, sample: usize, lane: usize) -> &[f64] {
        let i = if self.lanes == 1 { sample } else { sample * self.lanes + lane };
        &self.values[i * self.len..][..self.len]
    }
}

/// Where the term lies that is added to the result.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Add {
    Nowhere,
    Elsewhere,
    /// In the result's own memory.
    InPlace,
}

pub const ADDS: [Add; 3] = [Add::Nowhere, Add::Elsewhere, Add::InPlace];

pub type Write<'a> = &'a dyn Fn(&[Slot], Option<Slot>, Slot) -> Instr<Slot>;
pub type Oracle<'a> = &'a dyn Fn(&[&[f64]]) -> Vec<f64>;

/// One instruction, its operands and what it should compute for one lane of one sample.
pub struct Case<'a> {
    pub name: String,
    pub graph: Arc<Graph>,
    pub operands: Vec<Operand>,
    /// Values and lanes of the result.
    pub len: usize,
    pub lanes: usize,
    pub add: Add,
    /// Whether the sum is rectified.
    pub relu: bool,
    pub write: Write<'a>,
    pub oracle: Oracle<'a>,
}

impl Case<'_> {
    pub fn check(&self) {
        let add = Operand::random(77, self.lanes, self.len);
        let found = self.run(1, SAMPLES, &add);
        let mut expected = vec![];
        for (sample, lane) in (0..SAMPLES).flat_map(|s| (0..self.lanes).map(move |l| (s, l))) {
            let operands: Vec<&[f64]> = self.operands.iter().map(|o| o.of(sample, lane)).collect();
            let mut y = (self.oracle)(&operands);
            if self.add != Add::Nowhere {
                y = oracle::sum(&y, add.of(sample, lane));
            }
            expected.extend(if self.relu { oracle::relu(&y) } else { y });
        }
        super::assert_nmse(&self.name, &found, &expected, tolerance::OP);
        for (threads, batch) in [(2, 9), (2, 5), (3, 3), (1, 1)] {
            let again = self.run(threads, batch, &add);
            let same = found.iter().zip(&again).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "{}: other bits with {threads} threads and batches of {batch}", self.name);
        }
    }

    fn run(&self, threads: usize, batch: usize, add: &Operand) -> Vec<f32> {
        let mut result = vec![];
        for first in (0..SAMPLES).step_by(batch) {
            let samples = first..(first + batch).min(SAMPLES);
            let mut rig = Rig::new(&self.graph, threads);
            let mut slot = |o: &Operand| rig.slot(o.len, o.lanes, o.dtype, Scope::Batch, o.bytes(samples.clone()));
            let operands: Vec<Slot> = self.operands.iter().map(&mut slot).collect();
            let term = (self.add != Add::Nowhere).then(|| slot(add));
            let y = match (self.add, term) {
                (Add::InPlace, Some(term)) => term,
                _ => rig.result(self.len, self.lanes, Dtype::F32, Scope::Batch, samples.len()),
            };
            let bytes = rig.run((self.write)(&operands, term, y), samples.len(), &[], &[y]);
            result.extend(super::rig::floats(&bytes[0]));
        }
        result
    }
}

/// A graph whose parameter 1 is a convolution or linear layer with the returned weight (file order) and bias.
pub fn layer(inputs: usize, outputs: usize, kernel: Option<[usize; 2]>) -> (Arc<Graph>, Vec<f64>, Vec<f64>) {
    let [kh, kw] = kernel.unwrap_or([1, 1]);
    let shape = if kernel.is_some() { vec![outputs, inputs, kh, kw] } else { vec![outputs, inputs] };
    let random = |key: &str, shape: Vec<usize>| {
        (key.to_string(), shape.clone(), Random::named(key, 3).units(shape.iter().product()))
    };
    let tensors = [
        random("first.weight", vec![inputs, 3, 1, 1]),
        random("first.bias", vec![inputs]),
        random("layer.weight", shape),
        random("layer.bias", vec![outputs]),
    ];
    let file = Tensors::from_bytes("layer", super::safetensors(&tensors, &[])).expect("a file");
    let mut b = Builder::new(Some(&file), |n| n);
    let window = |kernel| ucag::net::Window { kernel, stride: [1, 1], pad: [0, 0] };
    let x = b.conv(NodeId(0), "first", inputs, window([1, 1])).expect("a layer");
    match kernel {
        Some(kernel) => b.conv(x, "layer", outputs, window(kernel)),
        None => b.linear(x, "layer", outputs),
    }
    .expect("a layer");
    let (graph, _) = b.finish("layer").expect("a graph");
    (Arc::new(graph), super::to_f64(&tensors[2].2), super::to_f64(&tensors[3].2))
}

/// A graph for instructions without weights.
pub fn no_layer() -> Arc<Graph> {
    layer(1, 1, None).0
}

pub fn weight(variant: Variant) -> WeightRef {
    WeightRef { param: ParamId(1), variant }
}

/// The part of numbers that a variant keeps.
pub fn part(variant: Variant, values: &[f64]) -> Vec<f64> {
    match variant {
        Variant::Plain => values.to_vec(),
        Variant::Positive => oracle::positive(values),
        Variant::Negative => oracle::negative(values),
    }
}

pub const VARIANTS: [Variant; 3] = [Variant::Plain, Variant::Positive, Variant::Negative];

pub fn same(w: &Window) -> ucag::net::Window {
    ucag::net::Window { kernel: w.kernel, stride: w.stride, pad: w.pad }
}

pub fn window(kernel: [usize; 2], stride: usize, pad: [usize; 2]) -> Window {
    Window { kernel, stride: [stride; 2], pad }
}
