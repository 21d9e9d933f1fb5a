//! One instruction, run alone, in batches and on several threads, against the `f64` oracle.

use std::sync::Arc;

use super::reference::{self as oracle, Window};
use super::rig::Rig;
use super::{Random, tolerance};
use ucag::backend::{Backend, Dtype, Instr, Scope, Slot, Variant, WeightRef, WeightSign};
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

    /// The same numbers, as `f16` holds them.
    pub fn half(&self) -> Self {
        let values = self.values.iter().map(|v| half::f16::from_f64(*v).to_f64()).collect();
        Self { dtype: Dtype::F16, values, ..self.clone() }
    }

    /// The same numbers changed one by one.
    pub fn map(mut self, f: impl Fn(f64) -> f64) -> Self {
        self.values.iter_mut().for_each(|v| *v = f(*v));
        self
    }

    pub fn bytes(&self, samples: std::ops::Range<usize>) -> Vec<u8> {
        let each = self.len * self.lanes;
        let samples = if self.scope() == Scope::Shared { 0..1 } else { samples };
        let bytes = |v: &f64| match self.dtype {
            Dtype::F32 => (*v as f32).to_le_bytes().to_vec(),
            Dtype::F16 => half::f16::from_f64(*v).to_le_bytes().to_vec(),
            Dtype::U32 => (*v as u32).to_le_bytes().to_vec(),
            Dtype::U8 => vec![*v as u8],
        };
        self.values[samples.start * each..samples.end * each].iter().flat_map(bytes).collect()
    }

    /// Class indices, one a lane, are shared by all samples.
    fn scope(&self) -> Scope {
        if self.dtype == Dtype::U32 { Scope::Shared } else { Scope::Batch }
    }

    /// The numbers that lane `lane` of `sample` reads.
    pub fn of(&self, sample: usize, lane: usize) -> &[f64] {
        if self.scope() == Scope::Shared {
            return &self.values[lane..=lane];
        }
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
        let (operands, bound) = (self.operands.clone(), tolerance::OP);
        let data = Data { operands, add: self.addend(), result: Dtype::F32, bound };
        let on_cpu = |threads| move |graph: &Arc<Graph>| Rig::new(graph, threads);
        let found = self.run(on_cpu(1), SAMPLES, &data);
        super::assert_nmse(&self.name, &found, &self.expected(&data), data.bound);
        for (threads, batch) in [(2, 9), (2, 5), (3, 3), (1, 1)] {
            let again = self.run(on_cpu(threads), batch, &data);
            assert!(same_bits(&found, &again), "{}: {threads} threads and batches of {batch} differ", self.name);
        }
        #[cfg(feature = "cuda")]
        self.check_on_cuda();
    }

    /// The same on a GPU, which stores activations in 16 bits: those that it must, and all that it may.
    #[cfg(feature = "cuda")]
    fn check_on_cuda(&self) {
        if super::cuda::backend(&self.graph).is_none() {
            return;
        }
        let on_gpu = |graph: &Arc<Graph>| Rig::on(super::cuda::backend(graph).expect("it was there"));
        for all in [false, true] {
            let Some(data) = self.halves(all) else { continue };
            let name = format!("{}, {} in f16", self.name, if all { "all that may be" } else { "what must be" });
            let found = self.run(on_gpu, SAMPLES, &data);
            super::assert_nmse(&name, &found, &self.expected(&data), data.bound);
            let again = self.run(on_gpu, 4, &data);
            assert!(same_bits(&found, &again), "{name}: batches of 4 differ");
        }
    }

    /// Operands as a device that stores activations in 16 bits has them; `all`: those too that may have 32. `None` when
    /// that is no different.
    #[cfg(feature = "cuda")]
    fn halves(&self, all: bool) -> Option<Data> {
        let slot = |o: &Operand| Slot { offset: 0, len: o.len, lanes: o.lanes, dtype: o.dtype, scope: o.scope() };
        let slots: Vec<Slot> = self.operands.iter().map(slot).collect();
        let y = Slot { offset: 0, len: self.len, lanes: self.lanes, dtype: Dtype::F32, scope: Scope::Batch };
        use Instr as I;
        let (products, forward, never) = match (self.write)(&slots, (self.add != Add::Nowhere).then_some(y), y) {
            I::Conv { .. } | I::Linear { .. } => (true, true, false),
            I::MaxPool { .. } | I::AvgPool { .. } | I::Add { .. } => (false, true, false),
            I::Flatten { .. } | I::Unary { .. } | I::Fill { .. } | I::Bound { .. } | I::LaneScale { .. } => {
                (false, true, false)
            }
            I::Softmax { .. } | I::HeadGradient { .. } => (false, false, true),
            _ => (false, false, false),
        };
        if all && never {
            return None;
        }
        let half = |o: &Operand| match o.dtype {
            Dtype::F32 if products || (all && (o.lanes == 1 || forward)) => o.half(),
            _ => o.clone(),
        };
        // On the way down the quantity that arrives is never an activation.
        let down = matches!(
            (self.write)(&slots, None, y),
            I::ConvBack { .. } | I::LinearBack { .. } | I::FlattenBack { .. } | I::AvgPoolBack { .. }
        );
        let operands = self.operands.iter().enumerate();
        let operands = operands.map(|(i, o)| if down && i == 0 { o.clone() } else { half(o) }).collect();
        let (add, result) = match all && forward {
            true => (self.addend().half(), Dtype::F16),
            false => (self.addend(), Dtype::F32),
        };
        let bound = match (self.write)(&slots, None, y) {
            I::ConvBack { exact: true, .. } | I::LinearBack { exact: true, .. } => tolerance::EXACT_PRODUCT,
            I::Conv { .. } | I::Linear { .. } | I::ConvBack { .. } | I::LinearBack { .. } => tolerance::HALF_OP,
            _ if result == Dtype::F16 => tolerance::HALF_OP,
            _ => tolerance::OP,
        };
        Some(Data { operands, add, result, bound })
    }

    /// The term to add.
    fn addend(&self) -> Operand {
        Operand::random(77, self.lanes, self.len)
    }

    fn expected(&self, data: &Data) -> Vec<f64> {
        let mut expected = vec![];
        for (sample, lane) in (0..SAMPLES).flat_map(|s| (0..self.lanes).map(move |l| (s, l))) {
            let operands: Vec<&[f64]> = data.operands.iter().map(|o| o.of(sample, lane)).collect();
            let mut y = (self.oracle)(&operands);
            if self.add != Add::Nowhere {
                y = oracle::sum(&y, data.add.of(sample, lane));
            }
            expected.extend(if self.relu { oracle::relu(&y) } else { y });
        }
        expected
    }

    fn run<B: Backend>(&self, rig: impl Fn(&Arc<Graph>) -> Rig<B>, batch: usize, data: &Data) -> Vec<f32> {
        let mut result = vec![];
        for first in (0..SAMPLES).step_by(batch) {
            let samples = first..(first + batch).min(SAMPLES);
            let mut rig = rig(&self.graph);
            let mut slot = |o: &Operand| rig.slot(o.len, o.lanes, o.dtype, o.scope(), o.bytes(samples.clone()));
            let operands: Vec<Slot> = data.operands.iter().map(&mut slot).collect();
            let term = (self.add != Add::Nowhere).then(|| slot(&data.add));
            let y = match (self.add, term) {
                (Add::InPlace, Some(term)) => term,
                _ => rig.result(self.len, self.lanes, data.result, Scope::Batch, samples.len()),
            };
            let bytes = rig.run((self.write)(&operands, term, y), samples.len(), &[y]);
            result.extend(super::rig::numbers(&bytes[0], data.result));
        }
        result
    }
}

/// Operands, the term to add and the type of the result, as a device has them.
struct Data {
    operands: Vec<Operand>,
    add: Operand,
    result: Dtype,
    /// What the result may differ from the definition.
    bound: f64,
}

fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

/// A graph whose parameter 1 is a convolution or linear layer with the returned weight (file order; `f16` holds it) and
/// bias.
pub fn layer(inputs: usize, outputs: usize, kernel: Option<[usize; 2]>) -> (Arc<Graph>, Vec<f64>, Vec<f64>) {
    let [kh, kw] = kernel.unwrap_or([1, 1]);
    let shape = if kernel.is_some() { vec![outputs, inputs, kh, kw] } else { vec![outputs, inputs] };
    let random = |key: &str, shape: Vec<usize>| {
        let values = Random::named(key, 3).units(shape.iter().product());
        let half = |v: f32| half::f16::from_f32(v).to_f32();
        (key.to_string(), shape, values.into_iter().map(half).collect())
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
    WeightRef { param: ParamId(1), sign: WeightSign::Folded, variant, termwise: false }
}

/// The part of numbers that a variant keeps.
pub fn part(variant: Variant, values: &[f64]) -> Vec<f64> {
    match variant {
        Variant::Plain => values.to_vec(),
        Variant::Positive => oracle::positive(values),
        Variant::Negative => oracle::negative(values),
        Variant::Absolute => values.iter().map(|v| v.abs()).collect(),
        Variant::Square => oracle::product(values, values),
        Variant::One => vec![1.0; values.len()],
        Variant::MorePositive(g) => values.iter().map(|v| v + f64::from(f32::from_bits(g)) * v.max(0.0)).collect(),
        Variant::MoreNegative(g) => values.iter().map(|v| v + f64::from(f32::from_bits(g)) * v.min(0.0)).collect(),
    }
}

pub const VARIANTS: [Variant; 3] = [Variant::Plain, Variant::Positive, Variant::Negative];

pub fn same(w: &Window) -> ucag::net::Window {
    ucag::net::Window { kernel: w.kernel, stride: w.stride, pad: w.pad }
}

pub fn window(kernel: [usize; 2], stride: usize, pad: [usize; 2]) -> Window {
    Window { kernel, stride: [stride; 2], pad }
}
