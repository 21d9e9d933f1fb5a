//! What patches have in common and is worth keeping for all of them: values of the forward pass, and sums that a method
//! forms of these on its way down.

use std::sync::Arc;

use super::mosaic::Mosaic;
use super::plan::Fixed;
use super::program::{Sum, Writer};
use crate::backend::{ConvGeom, Dtype, Storage, Tables};
use crate::net::{Graph, NodeId, Op, Shape};

/// Multiplications that a method must be spared for each number which a patch takes from what is shared. With fewer, as in
/// the first stage of a ResNet, copying costs as much.
const LEAST: f64 = 600.0;

/// Most bytes of what is kept for methods to read. A constant: what is shared decides about rounding, and maps must not
/// depend on the memory or the batches of a run.
const MOST: u64 = 168 << 20;

/// The program of what patches have in common.
pub(super) struct Shared<'g> {
    pub writer: Writer<'g>,
    pub tables: Tables,
    /// Memory of what is kept for methods to read.
    pub bytes: u64,
}

/// Something that patches can take from a mosaic instead of computing it.
struct Export {
    node: NodeId,
    /// A sum that the node's layer forms; else it is the node's value.
    sum: Option<Sum>,
    dtype: Dtype,
    /// Multiplications that are spared for each number which a patch takes,
    spared: f64,
    /// and for each that is kept.
    density: f64,
    /// Memory that is taken for methods to read it; none where patches go on from it.
    bytes: u64,
}

/// Lets a program take what its patches have in common from a mosaic, as far as that is worth it. Returns the program that
/// computes it.
pub(super) fn share<'g>(
    w: &mut Writer<'g>,
    tables: &Tables,
    storage: Storage,
    fixed: &mut Fixed,
) -> Option<Shared<'g>> {
    let mosaic = Arc::new(Mosaic::new(w.graph, &w.shapes, &tables.resample)?);
    let mut exports = exports(w, &mosaic, storage);
    exports.sort_by(|a, b| b.density.total_cmp(&a.density));
    let mut bytes = 0;
    exports.retain(|export| {
        let fits = export.bytes == 0 || (export.spared >= LEAST && bytes + export.bytes <= MOST);
        bytes += if fits { export.bytes } else { 0 };
        fits
    });
    if exports.is_empty() {
        return None;
    }
    let mut shared = Writer::of_mosaic(w.graph, mosaic.clone(), storage);
    for Export { node, sum, dtype, .. } in exports {
        let slot = fixed.place(mosaic.shape(node).len(), 1, dtype, None);
        match sum {
            None => {
                shared.put(node, slot);
                w.give(node, slot, mosaic.cut(node));
            }
            Some(sum) => {
                shared.form(&sum, slot);
                w.give_sum(&sum, slot, mosaic.cut(node));
            }
        }
    }
    shared.forward();
    shared.unfold(mosaic.resample.image);
    Some(Shared { writer: shared, tables: Tables { resample: mosaic.resample.clone(), ..tables.clone() }, bytes })
}

/// All that a program could take from a mosaic.
fn exports(w: &Writer<'_>, mosaic: &Mosaic, storage: Storage) -> Vec<Export> {
    let graph = w.graph;
    let export = |node: NodeId, sum, dtype: Dtype, work: usize, read| {
        let (patch, len) = (w.shape(node), mosaic.shape(node).len());
        let part = mosaic.part(node, patch);
        let spared = work as f64 * (1.0 - part) / patch.len() as f64;
        let bytes = if read { (len * dtype.bytes()) as u64 } else { 0 };
        Export { node, sum, dtype, spared, density: spared / part, bytes }
    };
    // What a max pooling chose is found in the patch, and its value with it.
    let is_chosen_from = |node: NodeId| graph.readers(node).iter().any(|reader| w.has_winners(*reader));
    let is_read = |node: NodeId| w.is_asked(node) || is_chosen_from(node);
    let leaves = |node: NodeId| graph.readers(node).iter().any(|reader| !mosaic.has(*reader));
    let is_there = |node: NodeId| is_read(node) || leaves(node) || w.has_winners(node);
    let work = |node: NodeId| multiplications(graph, &w.shapes, node);
    // For a node's value, in a patch that has all others which it could take.
    let cost = |node: NodeId| {
        let (mut seen, mut rest, mut cost) = (vec![false; node.0], vec![node], 0);
        while let Some(node) = rest.pop() {
            cost += work(node);
            for input in graph.node(node).inputs.iter().filter(|input| !is_there(**input)) {
                if !std::mem::replace(&mut seen[input.0], true) {
                    rest.push(*input);
                }
            }
        }
        cost
    };
    let values = mosaic.nodes().skip(1).filter(|node| !w.has_winners(*node) && is_there(*node));
    let values = values.map(|node| export(node, None, storage.activation, cost(node), is_read(node)));
    let sums = w.sums().into_iter().filter(|sum| mosaic.has(sum.node));
    let sums = sums.map(|sum| export(sum.node, Some(sum), Dtype::F32, work(sum.node), true));
    values.chain(sums).collect()
}

/// Multiplications of a layer, for one patch.
fn multiplications(graph: &Graph, shapes: &[Shape], node: NodeId) -> usize {
    match graph.node(node).op {
        Op::Conv { window, .. } => {
            ConvGeom { window, x: shapes[graph.node(node).inputs[0].0], y: shapes[node.0] }.products()
        }
        _ => 0,
    }
}
