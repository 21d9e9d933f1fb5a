//! Writing programs: registers for values, forward passes with fused epilogues, layout of registers in the arena.
//!
//! A method first writes what it does with the network's values and asks for those that it reads. The forward pass is
//! written afterwards: values nobody asked for are fused into the step that consumes them or die with their last
//! reader. What must be kept thus follows from the program and is declared nowhere. A method that runs the network on
//! further inputs writes a nested program for each.

use std::collections::HashMap;
use std::sync::Arc;

use super::mosaic::Mosaic;
use crate::backend::{
    ALIGN, Access, AvgGeom, ConvGeom, Divisor, Dtype, Instr, Picks, PoolGeom, Scope, Slot, Step, Storage, Unary,
    Variant, WeightRef,
};
use crate::error::Result;
use crate::net::{Graph, NodeId, Op, Shape, Window};

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

/// A program that is being written for one input size.
pub struct Writer<'g> {
    /// The network.
    pub graph: &'g Graph,
    /// Shape of every node's output.
    pub shapes: Vec<Shape>,
    /// Number of explained classes.
    pub lanes: usize,
    storage: Storage,
    mosaic: Option<Arc<Mosaic>>,
    values: HashMap<NodeId, Reg>,
    winners: HashMap<NodeId, Reg>,
    /// Values that are not computed but cut out of a mosaic.
    given: HashMap<NodeId, (Reg, Picks)>,
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
        let (values, winners, given) = (HashMap::new(), HashMap::new(), HashMap::new());
        let (regs, steps, node) = (vec![], vec![], String::new());
        let (mosaic, start, audits) = (None, 0, None);
        Self { graph, shapes, lanes, storage, mosaic, values, winners, given, regs, steps, start, node, audits }
    }

    /// Writes a program that runs the network on another input: `write` asks for values of that run. They end with it,
    /// registers that it returns do not.
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
        let result = write(self);
        self.forward();
        (self.shapes, self.values, self.winners, self.given, self.start) = (shapes, values, winners, given, start);
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

    /// A new register of one lane, stored as activations are.
    pub fn activation(&mut self, len: usize) -> Reg {
        self.add(RegInfo { len, lanes: 1, dtype: self.storage.activation, fixed: None })
    }

    /// A new register like another one.
    pub fn like(&mut self, like: Reg) -> Reg {
        self.add(RegInfo { fixed: None, ..self.regs[like.0] })
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
        let reg = self.add(RegInfo { len: self.shape(node).len(), lanes: 1, dtype, fixed: None });
        self.values.insert(node, reg);
        reg
    }

    /// Winners of a max pooling.
    pub fn winners(&mut self, node: NodeId) -> Reg {
        if let Some(reg) = self.winners.get(&node) {
            return *reg;
        }
        let len = self.shape(node).len();
        let reg = self.add(RegInfo { len, lanes: 1, dtype: Dtype::U8, fixed: None });
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

    /// Where a node's value lies that outlives the program.
    pub(super) fn put(&mut self, node: NodeId, slot: Slot) {
        let reg = self.fixed(slot);
        self.values.insert(node, reg);
    }

    /// Lets a node's value be cut out of its mosaic, which lies in a slot.
    pub(super) fn give(&mut self, node: NodeId, slot: Slot, cut: Picks) {
        let mosaic = self.fixed(slot);
        self.given.insert(node, (mosaic, cut));
    }

    /// An input as the operation of a node sees it, and its shape.
    fn input(&mut self, node: NodeId, i: usize) -> (Reg, Shape) {
        let input = self.graph.node(node).inputs[i];
        let x = self.value(input);
        match self.mosaic.as_ref().and_then(|mosaic| mosaic.picks(node, i)).cloned() {
            None => (x, self.shape(input)),
            Some(picks) => (self.gather(x, &picks), picks.to),
        }
    }

    fn gather(&mut self, x: Reg, picks: &Picks) -> Reg {
        let y = self.activation(picks.to.len());
        self.push(Instr::Gather { picks: picks.clone(), x, y });
        y
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

    /// Puts the forward pass, as far as values were asked for, before the steps written so far.
    pub fn forward(&mut self) {
        let rest = self.steps.split_off(self.start);
        let asked: Vec<bool> =
            self.nodes().map(|n| self.values.contains_key(&n) || self.winners.contains_key(&n)).collect();
        let mut needed = asked.clone();
        for node in self.nodes().rev().filter(|n| self.resolve(*n) == *n) {
            if needed[node.0] && !self.given.contains_key(&node) {
                self.graph.node(node).inputs.iter().for_each(|i| needed[self.resolve(*i).0] = true);
            }
        }
        let mut done = vec![false; needed.len()];
        for node in self.nodes() {
            if needed[node.0] && !done[node.0] {
                self.forward_node(node, &asked, &mut done);
            }
        }
        self.steps.extend(rest);
    }

    fn nodes(&self) -> impl DoubleEndedIterator<Item = NodeId> + use<> {
        (0..self.graph.nodes().len()).map(NodeId)
    }

    /// Writes one node together with the nodes after it that fuse into it.
    fn forward_node(&mut self, node: NodeId, asked: &[bool], done: &mut [bool]) {
        let graph = self.graph;
        self.at(&graph.node(node).name);
        if let Some((x, picks)) = self.given.get(&node).cloned() {
            done[node.0] = true;
            let y = self.value(node);
            return self.push(Instr::Gather { picks, x, y });
        }
        let inputs = &graph.node(node).inputs;
        let (mut last, mut add, mut relu) = (node, None, false);
        let only_reader = |n: NodeId| match graph.readers(n) {
            [reader] if !asked[n.0] => Some(*reader),
            _ => None,
        };
        if matches!(graph.node(node).op, Op::Conv { .. } | Op::Linear { .. } | Op::Add) {
            while let Some(reader) = only_reader(last) {
                match graph.node(reader).op {
                    Op::Relu => (last, relu) = (reader, true),
                    // The other term must exist already; the later one of two convolutions takes the earlier one in.
                    Op::Add if last == node && !matches!(graph.node(node).op, Op::Add) => {
                        let terms = &graph.node(reader).inputs;
                        let other = terms.iter().position(|i| *i != last);
                        let as_is = |i| self.mosaic.as_ref().is_none_or(|mosaic| mosaic.picks(reader, i).is_none());
                        match other.filter(|o| done[self.resolve(terms[*o]).0] && as_is(1 - o)) {
                            Some(other) => (last, add) = (reader, Some(self.input(reader, other).0)),
                            None => break,
                        }
                    }
                    _ => break,
                }
                done[last.0] = true;
                if relu {
                    break;
                }
            }
        }
        done[node.0] = true;
        let window = |window: &Window| self.mosaic.as_ref().and_then(|mosaic| mosaic.window(node)).unwrap_or(*window);
        let op = match &graph.node(node).op {
            Op::Conv { window: w, param } => Op::Conv { window: window(w), param: *param },
            Op::MaxPool(w) => Op::MaxPool(window(w)),
            op => op.clone(),
        };
        let x = (!inputs.is_empty()).then(|| self.input(node, 0));
        let out = self.shape(node);
        let bias = Some(Variant::Plain);
        let instr = match (op, x) {
            (Op::Conv { window, param }, Some((x, shape))) => {
                let g = ConvGeom { window, x: shape, y: out };
                Instr::Conv { g, w: WeightRef::plain(param), bias, x, add, relu, y: self.value(last) }
            }
            (Op::Linear { param }, Some((x, _))) => {
                Instr::Linear { w: WeightRef::plain(param), bias, x, add, relu, y: self.value(last) }
            }
            (Op::Relu, Some((x, _))) => Instr::Unary { f: Unary::Positive, x, y: self.value(node) },
            (Op::MaxPool(window), Some((x, shape))) => {
                let g = PoolGeom { window, x: shape, y: out };
                let index = self.winners.get(&node).copied();
                Instr::MaxPool { g, x, y: self.value(node), index }
            }
            (Op::AvgPool(pool), Some((x, shape))) => {
                let g = AvgGeom { pool, x: shape, y: out };
                Instr::AvgPool { g, x, y: self.value(node) }
            }
            (Op::Add, Some((a, _))) => Instr::Add { a, b: self.input(node, 1).0, relu, y: self.value(last) },
            (Op::Flatten, Some((from, x))) => Instr::Flatten { x, from, y: self.value(node) },
            (_, _) => return, // the input, which the caller has written
        };
        self.push(instr);
    }

    /// Puts the unfolding of a working image of `image` (rows, columns) first, where the network's input is needed.
    pub fn unfold(&mut self, image: (usize, usize)) {
        if !self.values.contains_key(&NodeId(0)) {
            return;
        }
        let y = self.value(NodeId(0));
        self.steps.insert(0, Step { node: "unfold".into(), instr: Instr::Unfold { image, y } });
    }

    /// Lays the program out from byte `base` of the arena on, for batches of up to `batch` samples. Returns the
    /// program and the first byte after it.
    pub fn lay_out(&self, base: usize, batch: usize) -> (Vec<Step<Slot>>, usize) {
        let (places, place_of) = self.places(batch);
        // The largest first leaves the least gaps mostly, in order of their use now and then.
        let by_size = Place::lay_out(&places, base, |place| std::cmp::Reverse(place.bytes));
        let by_use = Place::lay_out(&places, base, |place| place.first);
        let (offsets, end) = if by_use.1 < by_size.1 { by_use } else { by_size };
        let slot = |reg: Reg| {
            let RegInfo { len, lanes, dtype, fixed } = self.regs[reg.0];
            let offset = || place_of.get(&reg).map(|place| offsets[*place]);
            let batch = || Some(Slot { offset: offset()?, len, lanes, dtype, scope: Scope::Batch });
            fixed.or_else(batch).unwrap_or_else(|| unreachable!("register {reg:?} is read before it is written"))
        };
        let step =
            |step: &Step<Reg>| Step { node: step.node.clone(), instr: step.instr.clone().map(|reg, _| slot(reg)) };
        (self.steps.iter().map(step).collect(), end)
    }

    /// The places that registers need, and which one has which.
    fn places(&self, batch: usize) -> (Vec<Place>, HashMap<Reg, usize>) {
        let mut last_use: HashMap<Reg, usize> = HashMap::new();
        for (at, step) in self.steps.iter().enumerate() {
            step.instr.clone().map(|reg, _| last_use.insert(reg, at));
        }
        let bytes = |info: &RegInfo| (info.len * info.lanes * info.dtype.bytes() * batch).next_multiple_of(ALIGN);
        let mut places: Vec<Place> = vec![];
        let mut place_of: HashMap<Reg, usize> = HashMap::new();
        for (at, step) in self.steps.iter().enumerate() {
            // A term added in place hands its memory on when nobody else reads it, here or later.
            let mut reads: Vec<Reg> = vec![];
            step.instr.clone().map(|reg, _| reads.push(reg));
            let mut heir = None;
            step.instr.clone().map(|reg, access| {
                let info = &self.regs[reg.0];
                if info.fixed.is_some() {
                    return;
                }
                let once = reads.iter().filter(|r| **r == reg).count() == 1;
                if access == Access::ReadInPlace && last_use[&reg] == at && once {
                    heir = Some(reg);
                }
                if access == Access::Write && !place_of.contains_key(&reg) {
                    let same = |h: &Reg| {
                        let from = &self.regs[h.0];
                        (from.len, from.lanes, from.dtype) == (info.len, info.lanes, info.dtype)
                    };
                    let place = heir.take().filter(same).map_or(places.len(), |h| place_of[&h]);
                    if place == places.len() {
                        places.push(Place { bytes: bytes(info), first: at, last: at });
                    }
                    places[place].last = last_use[&reg];
                    place_of.insert(reg, place);
                }
            });
        }
        (places, place_of)
    }
}

/// Memory for a value, or for several that follow one another in it.
struct Place {
    bytes: usize,
    /// The steps from which to which it is needed.
    first: usize,
    last: usize,
}

impl Place {
    /// Offsets from `base` on, and the first byte after all. One after the other, each is put into the smallest gap that
    /// those before it leave while it is needed.
    fn lay_out<K: Ord>(places: &[Self], base: usize, key: impl Fn(&Self) -> K) -> (Vec<usize>, usize) {
        let mut order: Vec<usize> = (0..places.len()).collect();
        order.sort_by_key(|i| key(&places[*i]));
        let mut offsets = vec![base; places.len()];
        for (done, i) in order.iter().enumerate() {
            let place = &places[*i];
            let meets = |j: &&usize| places[**j].first <= place.last && place.first <= places[**j].last;
            let used = order[..done].iter().filter(meets).map(|j| (offsets[*j], places[*j].bytes)).collect();
            offsets[*i] = free_range(base, place.bytes, used);
        }
        let end = places.iter().zip(&offsets).map(|(place, offset)| offset + place.bytes).max().unwrap_or(base);
        (offsets, end)
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

/// The smallest gap between used ranges that holds `size` bytes.
fn free_range(base: usize, size: usize, mut used: Vec<(usize, usize)>) -> usize {
    used.sort_unstable();
    let (mut best, mut start) = (None, base);
    for (offset, len) in used {
        if offset >= start + size && best.is_none_or(|(gap, _)| offset - start < gap) {
            best = Some((offset - start, start));
        }
        start = start.max(offset + len);
    }
    best.map_or(start, |(_, offset)| offset)
}
