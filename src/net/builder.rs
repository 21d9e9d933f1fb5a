//! The builder that models are written with.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::params::{Norm, Param, ParamId, Values, fold_conv};
use super::{AvgPool, Graph, Node, NodeId, Op, Tensors, Window};
use crate::aligned::Aligned;
use crate::error::{Error, ErrorKind, Misfit, Result};

/// Keys and shapes of a network's tensors.
pub type TensorList = Vec<(String, Vec<usize>)>;

/// Builds a [`Graph`] layer by layer, taking weights from a file or, without one, only their shapes.
pub struct Builder<'a> {
    tensors: Option<&'a Tensors>,
    width: Box<dyn Fn(usize) -> usize>,
    graph: Graph,
    params: Vec<Param>,
    channels: Vec<usize>,
    expected: TensorList,
    misfit: Misfit,
}

impl<'a> Builder<'a> {
    /// Starts a graph with its input. Without `tensors` the weights stay empty and every nominal number of channels
    /// goes through `width`.
    pub fn new(tensors: Option<&'a Tensors>, width: impl Fn(usize) -> usize + 'static) -> Self {
        let graph = Graph {
            nodes: vec![Node { name: "input".into(), op: Op::Input, inputs: vec![] }],
            params: Arc::default(),
            aliases: vec![],
            removed: vec![],
            readers: vec![],
            non_negative: vec![],
        };
        let misfit = Misfit::default();
        Self { tensors, width: Box::new(width), graph, params: vec![], channels: vec![3], expected: vec![], misfit }
    }

    /// The network's input: the normalised image.
    pub fn input(&self) -> NodeId {
        NodeId(0)
    }

    /// Number of channels that a node gives.
    pub fn channels(&self, x: NodeId) -> usize {
        self.channels[x.0]
    }

    /// A convolution named `key`, with bias; `outputs` is the nominal number of channels.
    pub fn conv(&mut self, x: NodeId, key: &str, outputs: usize, window: Window) -> Result<NodeId> {
        let param = self.conv_param(key, self.channels(x), outputs, window, true, None)?;
        let channels = self.params[param.0].outputs;
        Ok(self.push(key, Op::Conv { window, param }, vec![x], channels))
    }

    /// A convolution `key` with the batch norm `bn` folded in; the node is named `bn`, whose output it gives. A
    /// convolution that is not `biased` may still have a bias in the file.
    pub fn conv_bn(
        &mut self,
        x: NodeId,
        [key, bn]: [&str; 2],
        outputs: usize,
        window: Window,
        biased: bool,
    ) -> Result<NodeId> {
        let param = self.conv_param(key, self.channels(x), outputs, window, biased, Some(bn))?;
        let channels = self.params[param.0].outputs;
        self.graph.removed.push((key.into(), bn.into()));
        Ok(self.push(bn, Op::Conv { window, param }, vec![x], channels))
    }

    /// A fully connected layer.
    pub fn linear(&mut self, x: NodeId, key: &str, outputs: usize) -> Result<NodeId> {
        let inputs = self.channels(x);
        let weight_key = format!("{key}.weight");
        let outputs = self.outputs_of(&weight_key, outputs);
        let weight = self.take(&weight_key, &[outputs, inputs])?;
        let bias = self.take(&format!("{key}.bias"), &[outputs])?.to_vec();
        let param = self.param(Param { key: key.into(), inputs, outputs, kernel: [1, 1], weight, bias, norm: None });
        Ok(self.push(key, Op::Linear { param }, vec![x], outputs))
    }

    /// A rectifier.
    pub fn relu(&mut self, x: NodeId, name: &str) -> NodeId {
        self.push(name, Op::Relu, vec![x], self.channels(x))
    }

    /// A max pooling layer.
    pub fn max_pool(&mut self, x: NodeId, name: &str, window: Window) -> NodeId {
        self.push(name, Op::MaxPool(window), vec![x], self.channels(x))
    }

    /// An average pooling layer.
    pub fn avg_pool(&mut self, x: NodeId, name: &str, pool: AvgPool) -> NodeId {
        self.push(name, Op::AvgPool(pool), vec![x], self.channels(x))
    }

    /// The sum of two nodes; branches of different width are recorded as a mis-shape of `key`, the layer before `a`.
    pub fn add(&mut self, a: NodeId, b: NodeId, name: &str, key: &str) -> NodeId {
        let (ca, cb) = (self.channels(a), self.channels(b));
        if ca != cb {
            self.mis_shaped(&format!("{key}.weight"), &format!("[{cb}, …]"), &format!("[{ca}, …]"));
        }
        self.push(name, Op::Add, vec![a, b], ca.min(cb))
    }

    /// Flattens `pixels` pixels.
    pub fn flatten(&mut self, x: NodeId, name: &str, pixels: usize) -> NodeId {
        self.push(name, Op::Flatten, vec![x], self.channels(x) * pixels)
    }

    /// Gives a node, usually the end of a block, a second name.
    pub fn alias(&mut self, name: impl Into<String>, id: NodeId) {
        self.graph.aliases.push((name.into(), id));
    }

    /// The finished graph and the tensors that it was built from or needs, by key.
    ///
    /// # Errors
    /// When the file lacks tensors, has tensors the network does not know, or tensors of another shape.
    pub fn finish(mut self, network: &str) -> Result<(Graph, TensorList)> {
        if let Some(tensors) = self.tensors {
            let expected: BTreeSet<&str> = self.expected.iter().map(|(key, _)| key.as_str()).collect();
            let stray = |k: &&String| !expected.contains(k.as_str()) && !k.ends_with(".num_batches_tracked");
            self.misfit.unexpected = tensors.infos().keys().filter(stray).cloned().collect();
            if !self.misfit.is_empty() {
                let (path, network) = (tensors.path().into(), network.into());
                return Err(ErrorKind::Misfit { path, network, misfit: self.misfit }.into());
            }
        }
        let graph = &mut self.graph;
        graph.params = Arc::new(self.params);
        graph.readers = vec![vec![]; graph.nodes.len()];
        for (i, node) in graph.nodes.iter().enumerate() {
            for input in &node.inputs {
                graph.readers[input.0].push(NodeId(i));
            }
        }
        for node in &graph.nodes {
            let inherited = || node.inputs.iter().all(|i| graph.non_negative[i.0]);
            let value = match node.op {
                Op::Relu => true,
                Op::Input | Op::Conv { .. } | Op::Linear { .. } => false,
                Op::MaxPool(_) | Op::AvgPool(_) | Op::Add | Op::Flatten => inherited(),
            };
            graph.non_negative.push(value);
        }
        Ok((self.graph, self.expected))
    }

    fn push(&mut self, name: &str, op: Op, inputs: Vec<NodeId>, channels: usize) -> NodeId {
        self.graph.nodes.push(Node { name: name.into(), op, inputs });
        self.channels.push(channels);
        NodeId(self.graph.nodes.len() - 1)
    }

    fn param(&mut self, param: Param) -> ParamId {
        self.params.push(param);
        ParamId(self.params.len() - 1)
    }

    /// Number of outputs: the file's first axis, or the nominal number without a file.
    fn outputs_of(&self, key: &str, nominal: usize) -> usize {
        const SENSIBLE: std::ops::RangeInclusive<usize> = 1..=1 << 20;
        match self.tensors {
            Some(tensors) => {
                let found = tensors.shape(key).and_then(|s| s.first().copied());
                found.filter(|o| SENSIBLE.contains(o)).unwrap_or(nominal)
            }
            None => (self.width)(nominal),
        }
    }

    fn conv_param(
        &mut self,
        key: &str,
        inputs: usize,
        outputs: usize,
        window: Window,
        biased: bool,
        bn: Option<&str>,
    ) -> Result<ParamId> {
        let weight_key = format!("{key}.weight");
        let bias_key = format!("{key}.bias");
        let outputs = self.outputs_of(&weight_key, outputs);
        let [kh, kw] = window.kernel;
        let weight = self.take(&weight_key, &[outputs, inputs, kh, kw])?;
        let has_bias = biased || self.tensors.is_some_and(|t| t.shape(&bias_key).is_some());
        let own_bias = if has_bias { self.take(&bias_key, &[outputs])?.to_vec() } else { vec![] };
        let norm = bn.map(|bn| self.norm(bn, outputs)).transpose()?;
        let (weight, bias, norm) = match norm {
            None => (fold_conv(&weight, outputs, inputs, kh * kw, None), own_bias, None),
            // Parts that are missing are recorded already; what is built from the rest is never finished.
            Some((scale, shift)) if scale.len() != outputs || shift.len() != outputs => {
                (Aligned::default(), vec![], Some(Norm { scale: vec![], shift: vec![], bias: own_bias }))
            }
            Some((scale, shift)) => {
                let weight = fold_conv(&weight, outputs, inputs, kh * kw, Some(&scale));
                let own = |o: usize| own_bias.get(o).copied().map_or(0.0, f64::from);
                let bias = (0..scale.len()).map(|o| (own(o) * scale[o] + shift[o]) as f32).collect();
                let to_f32 = |v: &[f64]| v.iter().map(|x| *x as f32).collect();
                (weight, bias, Some(Norm { scale: to_f32(&scale), shift: to_f32(&shift), bias: own_bias }))
            }
        };
        let weight = Values::Aligned(weight);
        Ok(self.param(Param { key: key.into(), inputs, outputs, kernel: window.kernel, weight, bias, norm }))
    }

    /// Scale and shift of a batch norm in evaluation mode; eps as in torchvision.
    fn norm(&mut self, bn: &str, channels: usize) -> Result<(Vec<f64>, Vec<f64>)> {
        const EPS: f64 = 1e-5;
        let gamma = self.take(&format!("{bn}.weight"), &[channels])?;
        let beta = self.take(&format!("{bn}.bias"), &[channels])?;
        let mean = self.take(&format!("{bn}.running_mean"), &[channels])?;
        let var = self.take(&format!("{bn}.running_var"), &[channels])?;
        if let (Some(tensors), Some(at)) = (self.tensors, var.iter().position(|v| *v < 0.0)) {
            let problem =
                format!("tensor `{bn}.running_var`: value {at} is {}, expected no negative variance", var[at]);
            return Err(Error::weights(tensors.path(), problem));
        }
        let scale: Vec<f64> =
            gamma.iter().zip(var.iter()).map(|(g, v)| f64::from(*g) / (f64::from(*v) + EPS).sqrt()).collect();
        let shift =
            beta.iter().zip(mean.iter()).zip(&scale).map(|((b, m), s)| f64::from(*b) - f64::from(*m) * s).collect();
        Ok((scale, shift))
    }

    /// Values of a tensor. One that is absent or of another shape is recorded and left empty, so that all misfits of a
    /// file are reported together.
    fn take(&mut self, key: &str, shape: &[usize]) -> Result<Values> {
        self.expected.push((key.into(), shape.into()));
        let empty = || Ok(Values::Owned(vec![]));
        let Some(tensors) = self.tensors else { return empty() };
        match tensors.infos().get(key) {
            None => {
                self.misfit.missing.push(key.into());
                empty()
            }
            // timm stores fully connected layers as 1×1 convolutions in some networks: same values, same order.
            Some(info) if strip_ones(&info.shape) == strip_ones(shape) => tensors.values(key, info),
            Some(info) => {
                self.mis_shaped(key, &format!("{shape:?}"), &format!("{:?}", info.shape));
                empty()
            }
        }
    }

    fn mis_shaped(&mut self, key: &str, expected: &str, found: &str) {
        self.misfit.shapes.push((key.into(), expected.into(), found.into()));
    }
}

fn strip_ones(shape: &[usize]) -> &[usize] {
    let end = shape.iter().rposition(|n| *n != 1).map_or(0, |i| i + 1);
    &shape[..end]
}
