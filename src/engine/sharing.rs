//! What patches have in common and is worth keeping for all of them: values of the forward pass, and sums that a method
//! forms of these on its way down.

use std::sync::Arc;

use super::mosaic::Mosaic;
use super::plan::Fixed;
use super::program::{Sum, Writer};
use crate::backend::{Dtype, Storage, Tables};
use crate::net::{Graph, NodeId, Op, Shape};

/// A value that a method reads must save so much of a patch's forward pass if it took the memory of all its values.
const LEAST: f64 = 0.35;

/// The program of what patches have in common.
pub(super) struct Shared<'g> {
    pub writer: Writer<'g>,
    pub tables: Tables,
    /// Memory of what is kept for the methods' sake.
    pub bytes: usize,
}

/// Something that patches can take from a mosaic instead of computing it.
struct Export {
    node: NodeId,
    /// A sum that the node's layer forms; else it is the node's value.
    sum: Option<Sum>,
    dtype: Dtype,
    /// Multiplications that are saved, as a part of those of all patches.
    saved: f64,
    /// Bytes of its mosaic,
    bytes: usize,
    /// and as a part of those of all of a patch's values.
    size: f64,
    /// Whether the method did not ask for it.
    unasked: bool,
}

/// Lets a program take what its patches have in common from a mosaic, as far as that is worth it and what methods read
/// takes no more bytes than `most`. Returns the program that computes it.
pub(super) fn share<'g>(
    w: &mut Writer<'g>,
    tables: &Tables,
    storage: Storage,
    most: u64,
    fixed: &mut Fixed,
) -> Option<Shared<'g>> {
    let mosaic = Arc::new(Mosaic::new(w.graph, &w.shapes, &tables.resample)?);
    let mut exports = exports(w, &mosaic, storage);
    let worth = |export: &Export| export.saved / export.size;
    exports.sort_by(|a, b| worth(b).total_cmp(&worth(a)));
    let mut bytes = 0;
    exports.retain(|export| {
        let fits = export.unasked || (worth(export) >= LEAST && (bytes + export.bytes) as u64 <= most);
        bytes += if fits && !export.unasked { export.bytes } else { 0 };
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
    let all = || (0..graph.nodes().len()).map(NodeId);
    let (work, values): (Vec<usize>, Vec<usize>) =
        all().map(|node| (multiplications(graph, &w.shapes, node), w.shape(node).len())).unzip();
    let (total, of_patch) = (work.iter().sum::<usize>() as f64, values.iter().sum::<usize>() as f64);
    let export = |node: NodeId, sum, dtype, saved: usize, unasked| {
        let len = mosaic.shape(node).len();
        let saved = saved as f64 * (1.0 - mosaic.part(node, w.shape(node))) / total;
        Export { node, sum, dtype, saved, bytes: len * dtype.bytes(), size: len as f64 / of_patch, unasked }
    };
    // The winners of a max pooling come from the patch, and its value with them.
    let read = |node: NodeId| graph.readers(node).iter().any(|reader| !mosaic.has(*reader) || w.has_winners(*reader));
    let mut found = vec![];
    // Multiplications for a node's value in a patch that has what the method asked for.
    let mut cost = work.clone();
    for node in mosaic.nodes().skip(1) {
        let there = |input: &&NodeId| w.is_asked(**input) || w.has_winners(**input) || read(**input);
        cost[node.0] += graph.node(node).inputs.iter().filter(|i| !there(i)).map(|i| cost[i.0]).sum::<usize>();
        if !w.has_winners(node) && (w.is_asked(node) || read(node)) {
            found.push(export(node, None, storage.activation, cost[node.0], !w.is_asked(node)));
        }
    }
    let sums = w.sums().into_iter().filter(|sum| mosaic.has(sum.node));
    found.extend(sums.map(|sum| export(sum.node, Some(sum), Dtype::F32, work[sum.node.0], false)));
    found
}

/// Multiplications of a layer, for one patch.
fn multiplications(graph: &Graph, shapes: &[Shape], node: NodeId) -> usize {
    let Op::Conv { window, .. } = &graph.node(node).op else { return 0 };
    shapes[node.0].len() * window.kernel[0] * window.kernel[1] * shapes[graph.node(node).inputs[0].0].c
}
