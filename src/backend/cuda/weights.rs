//! Weights on the device: fp16, in the layouts that the kernels read, each made when a program first needs it.

use std::collections::HashMap;
use std::sync::Arc;

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::device::Handle;
use super::memory::Buffer;
use crate::backend::taps::{self, Direction};
use crate::backend::{ConvGeom, Variant, Vector, WeightRef};
use crate::error::Result;
use crate::net::{Graph, ParamId};

/// A form in which a layer's parameters are resident.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Form {
    /// Matrices of a convolution, phase by phase.
    Conv(WeightRef, Direction),
    /// Those of an input-gradient turned, `[result channels, depth]`, in fp32 with the values that fp16 holds.
    Columns(WeightRef),
    /// The one matrix of all phases of an input-gradient.
    Merged(WeightRef),
    /// `[outputs, inputs]`, fp16.
    Linear(WeightRef),
    /// `[inputs, outputs]`, for layers that cuBLASLt does not serve.
    Turned(WeightRef),
    /// fp32, for own kernels and for results in fp32.
    Bias(ParamId, Variant),
    /// fp16, for matrix products whose results are.
    HalfBias(ParamId, Variant),
    /// One fp32 an output channel.
    Vector(ParamId, Vector),
}

/// All weights that programs have asked for.
pub(super) struct Weights {
    graph: Arc<Graph>,
    handle: Arc<Handle>,
    resident: HashMap<Form, Buffer>,
}

fn halves(values: &[f32]) -> Vec<f16> {
    let mut halves = vec![f16::ZERO; values.len()];
    halves.convert_from_f32_slice(values);
    halves
}

impl Weights {
    pub fn new(graph: Arc<Graph>, handle: Arc<Handle>) -> Self {
        Self { graph, handle, resident: HashMap::new() }
    }

    /// Bytes of all resident weights.
    pub fn bytes(&self) -> u64 {
        self.resident.values().map(|b| b.len() as u64).sum()
    }

    /// Address of a weight; makes it resident first, which must not happen while a graph is recorded.
    fn address<T: bytemuck::Pod>(&mut self, form: Form, param: ParamId, make: impl FnOnce() -> Vec<T>) -> Result<u64> {
        if let Some(buffer) = self.resident.get(&form) {
            return Ok(buffer.address(0));
        }
        let what = format!("the weights of {}", self.graph.param(param).key);
        let buffer = Buffer::of(&self.handle, &make(), &what)?;
        Ok(self.resident.entry(form).or_insert(buffer).address(0))
    }

    pub fn conv(&mut self, g: &ConvGeom, w: WeightRef, direction: Direction) -> Result<u64> {
        let graph = self.graph.clone();
        self.address(Form::Conv(w.values(), direction), w.param, || {
            halves(&taps::pack(graph.param(w.param), g, w, direction))
        })
    }

    /// The matrix of all phases of an input-gradient at once.
    pub fn merged(&mut self, g: &ConvGeom, w: WeightRef) -> Result<u64> {
        let graph = self.graph.clone();
        self.address(Form::Merged(w.values()), w.param, || halves(&taps::pack_merged(graph.param(w.param), g, w)))
    }

    /// The matrices of an input-gradient for the kernels that want them turned.
    pub fn columns(&mut self, g: &ConvGeom, w: WeightRef) -> Result<u64> {
        let graph = self.graph.clone();
        self.address(Form::Columns(w.values()), w.param, || {
            let packed = taps::pack(graph.param(w.param), g, w, Direction::Backward);
            let mut turned = Vec::with_capacity(packed.len());
            for phase in taps::phases(g, Direction::Backward) {
                let matrix = &packed[phase.weight..][..phase.depth * g.x.c];
                let column = |c: usize| matrix.iter().skip(c).step_by(g.x.c).map(|v| f16::from_f32(*v).to_f32());
                turned.extend((0..g.x.c).flat_map(column));
            }
            turned
        })
    }

    pub fn linear(&mut self, w: WeightRef) -> Result<u64> {
        let graph = self.graph.clone();
        self.address(Form::Linear(w.values()), w.param, || {
            let param = graph.param(w.param);
            let view = |(i, v): (usize, &f32)| f16::from_f32(w.of(param, i / param.inputs, *v));
            if w.is_plain() { halves(&param.weight) } else { param.weight.iter().enumerate().map(view).collect() }
        })
    }

    pub fn turned(&mut self, w: WeightRef) -> Result<u64> {
        let graph = self.graph.clone();
        self.address(Form::Turned(w.values()), w.param, || {
            let param = graph.param(w.param);
            let column = |i: usize| param.weight.iter().skip(i).step_by(param.inputs).enumerate();
            (0..param.inputs).flat_map(column).map(|(o, v)| f16::from_f32(w.of(param, o, *v))).collect()
        })
    }

    pub fn vector(&mut self, param: ParamId, vector: Vector) -> Result<u64> {
        let graph = self.graph.clone();
        self.address(Form::Vector(param, vector), param, || vector.of(graph.param(param)))
    }

    /// Address of a bias, 0 where the layer or the rule has none.
    pub fn bias(&mut self, param: ParamId, variant: Option<Variant>, half: bool) -> Result<u64> {
        let graph = self.graph.clone();
        let bias = &graph.param(param).bias;
        let Some(variant) = variant.filter(|_| !bias.is_empty()) else { return Ok(0) };
        let values = || bias.iter().map(|b| variant.of(*b));
        match half {
            true => self.address(Form::HalfBias(param, variant), param, || values().map(f16::from_f32).collect()),
            false => self.address(Form::Bias(param, variant), param, || values().collect::<Vec<f32>>()),
        }
    }
}
