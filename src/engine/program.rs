//! Writing programs: registers for values, forward passes with fused epilogues, layout of registers in the arena.
//!
//! A method first writes what it does with the network's values and asks for those that it reads. The forward pass is
//! written afterwards: values nobody asked for are fused into the step that consumes them or die with their last
//! reader. What must be kept thus follows from the program and is declared nowhere. A method that runs the network on
//! further inputs writes a nested program for each.

mod forward;
mod layout;

use std::collections::HashMap;
use std::sync::Arc;

use super::mosaic::Mosaic;
use crate::backend::{Divisor, Dtype, Instr, Picks, Slot, Step, Storage, Unary, Variant, Vector, WeightRef};
use crate::error::Result;
use crate::net::{Graph, NodeId, Op, ParamId, Shape};

/// A value of a program, written once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reg(usize);

#[derive(Debug, Clone, Copy)]
struct RegInfo {
    len: usize,
    lanes: usize,
    dtype: Dtype,
    /// Where it lies, when it outlives the program.
    fixed: Option<Slot>,
}

/// Sums that are equal where nothing is lost: `expected` and `found` less `less`. Each is a result of `Totals`.
#[derive(Debug, Clone, PartialEq)]
pub struct Audit<R = Reg> {
    /// The node at which relevance came in and went out, or what is summed.
    pub node: String,
    /// Terms of what comes in.
    pub expected: Vec<R>,
    /// Terms of what goes out,
    pub found: Vec<R>,
    /// and what had been there before.
    pub less: Vec<R>,
}

impl<R> Audit<R> {
    /// The same with every term replaced.
    pub fn map<S>(&self, mut f: impl FnMut(&R) -> S) -> Audit<S> {
        let mut all = |terms: &[R]| terms.iter().map(&mut f).collect();
        let (expected, found, less) = (all(&self.expected), all(&self.found), all(&self.less));
        Audit { node: self.node.clone(), expected, found, less }
    }
}

/// A sum that a program forms of a node's value: `w*x + bias`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sum {
    /// The convolution whose input the value is.
    pub node: NodeId,
    w: WeightRef,
    bias: Option<Variant>,
    /// What is made of it.
    y: Reg,
}

/// A program that is being written for one input size.
pub struct Writer<'g> {
    /// The network.
    pub graph: &'g Graph,
    /// Shape of every node's output.
    pub shapes: Vec<Shape>,
    /// Lanes of what walks down: one for each explained class, or for each input of a nested program that has several.
    pub lanes: usize,
    /// Inputs that a nested program may run the network on at once, where one class is explained.
    at_once: usize,
    /// Inputs that the network is run on, each in a lane of its values.
    inputs: usize,
    storage: Storage,
    mosaic: Option<Arc<Mosaic>>,
    values: HashMap<NodeId, Reg>,
    winners: HashMap<NodeId, Reg>,
    /// Values that are not computed but cut out of a mosaic.
    given: HashMap<NodeId, (Reg, Picks)>,
    /// Sums that are formed of values during the forward pass, and where they go.
    formed: Vec<(Sum, Reg)>,
    /// Inputs as the operations of nodes see them, where that is not as they are.
    views: HashMap<(NodeId, usize), Reg>,
    regs: Vec<RegInfo>,
    steps: Vec<Step<Reg>>,
    /// First step of the program that is being written: a nested one begins later.
    start: usize,
    node: String,
    audits: Option<Vec<Audit>>,
}

impl<'g> Writer<'g> {
    /// Starts a program for inputs of `size` (rows, columns) and `lanes` classes, whose values are stored as `storage`
    /// says.
    ///
    /// # Errors
    /// When the input is too small for the network.
    pub fn new(graph: &'g Graph, size: (usize, usize), lanes: usize, storage: Storage) -> Result<Self> {
        Ok(Self::with_shapes(graph, shapes(graph, size, storage)?, lanes, storage))
    }

    /// Starts a program for a mosaic.
    pub(super) fn of_mosaic(graph: &'g Graph, mosaic: Arc<Mosaic>, storage: Storage) -> Self {
        let shapes = (0..graph.nodes().len()).map(|node| mosaic.shape(NodeId(node))).collect();
        Self { mosaic: Some(mosaic), ..Self::with_shapes(graph, shapes, 1, storage) }
    }

    fn with_shapes(graph: &'g Graph, shapes: Vec<Shape>, lanes: usize, storage: Storage) -> Self {
        Self {
            graph,
            shapes,
            lanes,
            at_once: 1,
            inputs: 1,
            storage,
            mosaic: None,
            values: HashMap::new(),
            winners: HashMap::new(),
            given: HashMap::new(),
            formed: vec![],
            views: HashMap::new(),
            regs: vec![],
            steps: vec![],
            start: 0,
            node: String::new(),
            audits: None,
        }
    }

    /// Lets a nested program run the network on up to so many inputs at once.
    pub fn allow_at_once(&mut self, inputs: usize) {
        self.at_once = inputs;
    }

    /// Inputs that a nested program may run the network on at once: one where lanes tell classes apart.
    pub fn at_once(&self) -> usize {
        if self.lanes == 1 { self.at_once } else { 1 }
    }

    /// Writes a program that runs the network on another input, or on one in each lane of `input` while one class is
    /// explained: `write` asks for values of that run. They end with it, registers that it returns do not.
    ///
    /// # Errors
    /// When the input is too small for the network.
    pub fn nested<T>(
        &mut self,
        input: Reg,
        size: (usize, usize),
        write: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        let shapes = std::mem::replace(&mut self.shapes, shapes(self.graph, size, self.storage)?);
        let values = std::mem::replace(&mut self.values, HashMap::from([(NodeId(0), input)]));
        let (winners, given) = (std::mem::take(&mut self.winners), std::mem::take(&mut self.given));
        let start = std::mem::replace(&mut self.start, self.steps.len());
        let (inputs, lanes) = (self.inputs, self.lanes);
        self.inputs = self.lanes_of(input);
        self.lanes = lanes.max(self.inputs);
        let result = write(self);
        self.forward();
        (self.shapes, self.values, self.winners, self.given, self.start) = (shapes, values, winners, given, start);
        (self.inputs, self.lanes) = (inputs, lanes);
        result
    }

    /// From now on methods write down what should be conserved.
    pub fn audit_all(&mut self) {
        self.audits.get_or_insert_default();
    }

    /// Whether methods should write down what should be conserved.
    pub fn audited(&self) -> bool {
        self.audits.is_some()
    }

    /// Writes down sums that should be equal.
    pub fn audit(&mut self, audit: Audit) {
        self.audits.iter_mut().for_each(|audits| audits.push(audit.clone()));
    }

    /// Takes what was written down since the last time.
    pub fn take_audits(&mut self) -> Vec<Audit> {
        self.audits.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Lanes of a register.
    pub fn lanes_of(&self, reg: Reg) -> usize {
        self.regs[reg.0].lanes
    }

    /// Shape of a node's output.
    pub fn shape(&self, node: NodeId) -> Shape {
        self.shapes[node.0]
    }

    /// Channels of a node's output as they are stored, and how many of them are the network's own.
    pub fn channels(&self, node: NodeId) -> (usize, usize) {
        let stored = self.shape(node).c;
        (stored, if node == NodeId(0) { COLOURS } else { stored })
    }

    /// Names the node that the following steps work for.
    pub fn at(&mut self, node: &str) {
        self.node = node.into();
    }

    /// A new register of one lane a sample.
    pub fn reg(&mut self, len: usize) -> Reg {
        self.add(RegInfo { len, lanes: 1, dtype: Dtype::F32, fixed: None })
    }

    /// A new register of one lane a class.
    pub fn class_reg(&mut self, len: usize) -> Reg {
        self.add(RegInfo { len, lanes: self.lanes, dtype: Dtype::F32, fixed: None })
    }

    /// A new register of one lane an input of the network, stored as activations are.
    pub fn activation(&mut self, len: usize) -> Reg {
        self.add(RegInfo { len, lanes: self.inputs, dtype: self.storage.activation, fixed: None })
    }

    /// A new register like another one.
    pub fn like(&mut self, like: Reg) -> Reg {
        self.add(RegInfo { fixed: None, ..self.regs[like.0] })
    }

    /// A new register like another one, but of so many lanes.
    pub fn in_lanes(&mut self, like: Reg, lanes: usize) -> Reg {
        self.add(RegInfo { fixed: None, lanes, ..self.regs[like.0] })
    }

    /// A new register of `len` numbers with another one's lanes.
    pub fn with_lanes_of(&mut self, like: Reg, len: usize) -> Reg {
        self.add(RegInfo { len, lanes: self.regs[like.0].lanes, dtype: Dtype::F32, fixed: None })
    }

    /// A register for a value that lies outside the program.
    pub fn fixed(&mut self, slot: Slot) -> Reg {
        self.add(RegInfo { len: slot.len, lanes: slot.lanes, dtype: slot.dtype, fixed: Some(slot) })
    }

    fn add(&mut self, info: RegInfo) -> Reg {
        self.regs.push(info);
        Reg(self.regs.len() - 1)
    }

    /// The output of a node, kept as long as the program needs it.
    pub fn value(&mut self, node: NodeId) -> Reg {
        let node = self.resolve(node);
        if let Some(reg) = self.values.get(&node) {
            return *reg;
        }
        // Probabilities follow from the logits, so these are as exact as the sums that they are.
        let dtype = if node == self.graph.output() { Dtype::F32 } else { self.storage.activation };
        let reg = self.add(RegInfo { len: self.shape(node).len(), lanes: self.inputs, dtype, fixed: None });
        self.values.insert(node, reg);
        reg
    }

    /// Winners of a max pooling.
    pub fn winners(&mut self, node: NodeId) -> Reg {
        if let Some(reg) = self.winners.get(&node) {
            return *reg;
        }
        let len = self.shape(node).len();
        let reg = self.add(RegInfo { len, lanes: self.inputs, dtype: Dtype::U8, fixed: None });
        self.winners.insert(node, reg);
        reg
    }

    /// Whether a node's value was asked for.
    pub(super) fn is_asked(&self, node: NodeId) -> bool {
        self.values.contains_key(&node)
    }

    /// Whether a node's winners were asked for.
    pub(super) fn has_winners(&self, node: NodeId) -> bool {
        self.winners.contains_key(&node)
    }

    /// Flattening a single pixel changes nothing: the node's value is its input's.
    fn resolve(&self, node: NodeId) -> NodeId {
        let Op::Flatten = self.graph.node(node).op else { return node };
        let input = self.graph.node(node).inputs[0];
        let shape = self.shape(input);
        if shape.h * shape.w == 1 { self.resolve(input) } else { node }
    }

    /// Appends a step.
    pub fn push(&mut self, instr: Instr<Reg>) {
        self.steps.push(Step { node: self.node.clone(), instr });
    }

    /// `f(x)`
    pub fn unary(&mut self, f: Unary, x: Reg) -> Reg {
        let y = self.like(x);
        self.push(Instr::Unary { f, x, y });
        y
    }

    /// `a + b`, of `a`'s lanes.
    pub fn sum(&mut self, a: Reg, b: Reg) -> Reg {
        let y = self.like(a);
        self.push(Instr::Add { a, b, relu: false, y });
        y
    }

    /// `x ⊙ c`, of `c`'s lanes.
    pub fn multiply(&mut self, x: Reg, c: Reg) -> Reg {
        let y = self.like(c);
        self.push(Instr::Multiply { x, c, add: None, y });
        y
    }

    /// `y[pixel, c] = x[pixel, c]·vector[c]`, a vector of a layer's parameters.
    pub fn by_vector(&mut self, x: Reg, param: ParamId, vector: Vector) -> Reg {
        let channels = self.graph.param(param).outputs;
        let (weights, y) = (self.reg(channels), self.like(x));
        self.push(Instr::Vector { param, vector, y: weights });
        self.push(Instr::ChannelScale { x, channels, weights, y });
        y
    }

    /// `r / (z + z2)`
    pub fn divide(&mut self, r: Reg, z: Reg, z2: Option<Reg>, by: Divisor) -> Reg {
        self.quotient(r, z, z2, by, 1.0)
    }

    /// `scale · r / (z + z2)`
    pub fn quotient(&mut self, r: Reg, z: Reg, z2: Option<Reg>, by: Divisor, scale: f32) -> Reg {
        let y = self.like(r);
        self.push(Instr::Divide { r, z, z2, by, scale, y });
        y
    }

    /// Sum of all values of a lane and the number of those that are not zero.
    pub fn totals(&mut self, x: Reg) -> Reg {
        let y = self.with_lanes_of(x, 2);
        self.push(Instr::Totals { x, y });
        y
    }

    /// Smallest and largest value of a lane, over the first `channels.1` of every `channels.0` channels.
    pub fn range(&mut self, x: Reg, channels: (usize, usize)) -> Reg {
        let y = self.with_lanes_of(x, 2);
        self.push(Instr::Range { x, channels, y });
        y
    }
}

/// Colours of a picture.
const COLOURS: usize = 3;

/// Shapes of all nodes for inputs of `size`.
fn shapes(graph: &Graph, size: (usize, usize), storage: Storage) -> Result<Vec<Shape>> {
    let mut shapes = graph.shapes(size.0, size.1)?;
    shapes[0].c = storage.input_channels;
    Ok(shapes)
}
