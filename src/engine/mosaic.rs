//! Exact sharing: what overlapping patches have in common is computed once.
//!
//! Patches of one image show the same pixels, and where their samples coincide so do all values that depend on nothing
//! else; not those near a patch's border, where samples are repeated and layers padded. Along each axis, two positions
//! hold the same value when their windows read the same positions of the input. A *mosaic* has each different position
//! once: that of the network's input follows from the samples, every other one from its input's, and the patches are
//! cut out of those that `sharing.rs` chooses. Nothing here knows a network, a grid or a size; where nothing coincides,
//! nothing is shared.

use std::collections::HashMap;

use crate::backend::Picks;
use crate::grid::{Resample, Samples, Span, Taps};
use crate::net::{Graph, NodeId, Op, Shape, Window};

/// A mosaic is worth it while it has at most this part of the patches' pixels.
const WORTH: f64 = 0.75;

/// Mosaics of the first layers.
pub(super) struct Mosaic {
    /// Those of the nodes in order, as far as they are worth it.
    values: Vec<Value>,
    /// How the input's is sampled.
    pub resample: Resample,
}

/// The mosaic of one node's value.
struct Value {
    /// Rows and columns.
    axes: [Axis; 2],
    channels: usize,
    /// How the node's operation sees each input, where not as it is.
    inputs: Vec<Option<Picks>>,
    /// The window of that operation.
    window: Option<Window>,
}

/// One axis of a mosaic.
#[derive(Clone)]
struct Axis {
    len: usize,
    /// Where each position of each patch lies.
    at: Vec<Vec<u32>>,
}

/// An axis as an operation sees it: positions of its input's mosaic.
type View = Vec<u32>;

impl Mosaic {
    /// For patches that are sampled as `resample` says and have values of `shapes`: before the first node that is not worth
    /// it. `None` where nothing is.
    pub fn new(graph: &Graph, shapes: &[Shape], resample: &Resample) -> Option<Self> {
        let (rows, row_samples) = Axis::of_samples(&resample.rows, resample.image.0);
        let (cols, col_samples) = Axis::of_samples(&resample.cols, resample.image.1);
        let input = Value { axes: [rows, cols], channels: shapes[0].c, inputs: vec![], window: None };
        let resample = Resample { rows: row_samples, cols: col_samples, ..resample.clone() };
        let mut mosaic = Self { values: vec![input], resample };
        for node in (1..graph.nodes().len()).map(NodeId) {
            match mosaic.value(graph, node, shapes[node.0]).filter(|value| value.part(shapes[node.0]) <= WORTH) {
                Some(value) => mosaic.values.push(value),
                None => break,
            }
        }
        (mosaic.values.len() > 1).then_some(mosaic)
    }

    /// The mosaic of a node whose inputs have some.
    fn value(&self, graph: &Graph, node: NodeId, shape: Shape) -> Option<Value> {
        let inputs = &graph.node(node).inputs;
        let input = |i: usize| self.values.get(inputs[i].0);
        let (axes, views, window, fill) = match &graph.node(node).op {
            Op::Conv { window, .. } if *window == Window::square(1, 1, 0) => {
                (input(0)?.axes.clone(), vec![None], Some(*window), 0.0)
            }
            Op::Relu => (input(0)?.axes.clone(), vec![None], None, 0.0),
            Op::Conv { window, .. } | Op::MaxPool(window) => {
                let of = |a: usize| {
                    let window = [window.kernel[a], window.stride[a], window.pad[a]];
                    Some(input(0)?.axes[a].windows(window, [shape.h, shape.w][a]))
                };
                let ((rows, row_view), (cols, col_view)) = (of(0)?, of(1)?);
                let zero = matches!(graph.node(node).op, Op::Conv { .. }) || graph.non_negative(inputs[0]);
                let fill = if zero { 0.0 } else { f32::NEG_INFINITY };
                let step = |a: usize| window.stride[a].min(window.kernel[a]);
                let window = Window { stride: [step(0), step(1)], pad: [0; 2], ..*window };
                ([rows, cols], vec![Some([row_view, col_view])], Some(window), fill)
            }
            Op::Add => {
                let (a, b) = (input(0)?, input(1)?);
                let seen = |x: &Value, y: &Value| {
                    let [rows, cols] = [0, 1].map(|i| x.axes[i].determines(&y.axes[i]));
                    Some([rows?, cols?])
                };
                // The layout of the term that has more positions; the other one follows it.
                match seen(a, b) {
                    Some(view) => (a.axes.clone(), vec![None, Some(view)], None, 0.0),
                    None => (b.axes.clone(), vec![Some(seen(b, a)?), None], None, 0.0),
                }
            }
            _ => return None,
        };
        let picks = |(i, view): (usize, Option<[View; 2]>)| input(i)?.picks(view?, fill);
        let inputs = views.into_iter().enumerate().map(picks).collect();
        Some(Value { axes, channels: shape.c, inputs, window })
    }

    /// The nodes that have one.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> + use<> {
        (0..self.values.len()).map(NodeId)
    }

    /// Whether a node has one.
    pub fn has(&self, node: NodeId) -> bool {
        node.0 < self.values.len()
    }

    /// The pixels of a node's mosaic as a part of those of all patches, each of which has such a value.
    pub fn part(&self, node: NodeId, patch: Shape) -> f64 {
        self.values[node.0].part(patch)
    }

    /// Shape of a node's mosaic; that of nothing where it has none.
    pub fn shape(&self, node: NodeId) -> Shape {
        self.values.get(node.0).map_or(Shape::new(0, 0, 0), Value::shape)
    }

    /// How the operation of a node sees an input, where not as it is.
    pub fn picks(&self, node: NodeId, input: usize) -> Option<&Picks> {
        self.values[node.0].inputs[input].as_ref()
    }

    /// The window of a node's operation.
    pub fn window(&self, node: NodeId) -> Option<Window> {
        self.values[node.0].window
    }

    /// How a node's value in each patch is cut out.
    pub fn cut(&self, node: NodeId) -> Picks {
        let value = &self.values[node.0];
        let [rows, cols] = value.axes.each_ref().map(|axis| axis.at.concat().into());
        let [h, w] = value.axes.each_ref().map(|axis| axis.at[0].len());
        Picks { from: value.shape(), to: Shape::new(h, w, value.channels), rows, cols, fill: 0.0 }
    }
}

impl Value {
    fn shape(&self) -> Shape {
        Shape::new(self.axes[0].len, self.axes[1].len, self.channels)
    }

    /// Its pixels as a part of those of all patches.
    fn part(&self, patch: Shape) -> f64 {
        let patches = self.axes.each_ref().map(|axis| axis.at.len());
        (self.axes[0].len * self.axes[1].len) as f64 / (patches[0] * patches[1] * patch.h * patch.w) as f64
    }

    /// This value as an operation sees it; `None` where it sees it as it is.
    fn picks(&self, [rows, cols]: [View; 2], fill: f32) -> Option<Picks> {
        let from = self.shape();
        let same = |view: &View, len: usize| view.iter().copied().eq(0..len as u32);
        let to = Shape::new(rows.len(), cols.len(), from.c);
        let as_is = same(&rows, from.h) && same(&cols, from.w);
        (!as_is).then(|| Picks { from, to, rows: rows.into(), cols: cols.into(), fill })
    }
}

impl Axis {
    /// The network's input: positions are equal that have the same samples, with the same weights.
    fn of_samples(samples: &Samples, size: usize) -> (Self, Samples) {
        let mut known = HashMap::new();
        let mut taps: Vec<Taps> = vec![];
        let mut place = |t: &Taps| {
            *known.entry((t.index, t.weight.map(f32::to_bits))).or_insert_with(|| {
                taps.push(*t);
                taps.len() as u32 - 1
            })
        };
        let at = samples.patches.iter().map(|patch| patch.iter().map(&mut place).collect()).collect();
        let samples = Samples { crops: vec![Span { start: 0, len: size }], patches: vec![taps] };
        (Self { len: samples.patches[0].len(), at }, samples)
    }

    /// `count` windows (kernel, stride, padding) in each patch, and what they see of this axis.
    ///
    /// Runs of neighbours that are new are laid out one after the other, each with all that its windows read, so that
    /// an ordinary operation without padding computes them. Its windows across two runs compute what nobody reads.
    fn windows(&self, [kernel, stride, pad]: [usize; 3], count: usize) -> (Self, View) {
        let step = stride.min(kernel);
        let mut known: HashMap<Vec<u32>, u32> = HashMap::new();
        let mut view: View = vec![];
        let mut patch = |patch: &Vec<u32>| {
            let mut last = None;
            let mut place = |i: usize| {
                let source = |k: usize| (i * stride + k).checked_sub(pad).and_then(|at| patch.get(at).copied());
                let taps: Vec<u32> = (0..kernel).map(|k| source(k).unwrap_or(Picks::OUTSIDE)).collect();
                if let Some(at) = known.get(&taps) {
                    last = None;
                    return *at;
                }
                let at = match last {
                    Some(last) => {
                        view.extend(&taps[kernel - step..]);
                        last + 1
                    }
                    None => {
                        view.resize(view.len().next_multiple_of(step), Picks::OUTSIDE);
                        let at = (view.len() / step) as u32;
                        view.extend(&taps);
                        at
                    }
                };
                known.insert(taps, at);
                last = Some(at);
                at
            };
            (0..count).map(&mut place).collect()
        };
        let at = self.at.iter().map(&mut patch).collect();
        (Self { len: (view.len() - kernel) / step + 1, at }, view)
    }

    /// The position of `other` at each of this axis, where that is one at most.
    fn determines(&self, other: &Self) -> Option<View> {
        let mut view = vec![Picks::OUTSIDE; self.len];
        for (at, position) in self.at.iter().flatten().zip(other.at.iter().flatten()) {
            let known = &mut view[*at as usize];
            if *known != Picks::OUTSIDE && known != position {
                return None;
            }
            *known = *position;
        }
        Some(view)
    }
}
