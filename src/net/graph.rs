//! The graph of a network.

use std::sync::Arc;

use super::Op;
use super::params::{Param, ParamId};
use crate::error::{Error, ErrorKind, Result};

/// Index of a node; inputs always come before their readers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub usize);

/// One operation of the network.
#[derive(Debug, Clone)]
pub struct Node {
    /// Torch's key prefix of the module whose output this is.
    pub name: String,
    /// What it computes.
    pub op: Op,
    /// Where its inputs come from.
    pub inputs: Vec<NodeId>,
}

/// A network in topological order; the last node gives the logits. Clones share the weights.
#[derive(Debug, Clone)]
pub struct Graph {
    pub(super) nodes: Vec<Node>,
    pub(super) params: Arc<Vec<Param>>,
    pub(super) aliases: Vec<(String, NodeId)>,
    pub(super) removed: Vec<(String, String)>,
    pub(super) readers: Vec<Vec<NodeId>>,
    pub(super) non_negative: Vec<bool>,
}

impl Graph {
    /// All nodes, inputs first.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// One node.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0]
    }

    /// Shortest name of a node: the block's where it ends one.
    pub fn short_name(&self, id: NodeId) -> &str {
        let blocks = self.aliases.iter().filter(|(_, node)| *node == id).map(|(name, _)| name.as_str());
        blocks.chain([self.node(id).name.as_str()]).min_by_key(|name| name.len()).unwrap_or_default()
    }

    /// Weights of all layers.
    pub fn params(&self) -> &[Param] {
        &self.params
    }

    /// The weights of one layer.
    pub fn param(&self, id: ParamId) -> &Param {
        &self.params[id.0]
    }

    /// The node that gives the logits.
    pub fn output(&self) -> NodeId {
        NodeId(self.nodes.len() - 1)
    }

    /// Nodes that read the output of `id`.
    pub fn readers(&self, id: NodeId) -> &[NodeId] {
        &self.readers[id.0]
    }

    /// True when the node's output can never be negative, whatever the weights.
    pub fn non_negative(&self, id: NodeId) -> bool {
        self.non_negative[id.0]
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.params.last().map_or(0, |p| p.outputs)
    }

    /// Names under which layers can be asked for, blocks (`layer4`) included.
    pub fn layer_names(&self) -> Vec<&str> {
        let blocks = self.aliases.iter().map(|(name, _)| name.as_str());
        blocks.chain(self.nodes.iter().map(|n| n.name.as_str())).collect()
    }

    /// The node of a layer's name.
    ///
    /// # Errors
    /// For an unknown name (lists similar ones), and for a layer that folding of batch norm removed (says which node
    /// holds its place).
    pub fn layer(&self, name: &str) -> Result<NodeId> {
        if let Some((_, id)) = self.aliases.iter().find(|(alias, _)| alias == name) {
            return Ok(*id);
        }
        if let Some(i) = self.nodes.iter().position(|n| n.name == name) {
            return Ok(NodeId(i));
        }
        if let Some((_, bn)) = self.removed.iter().find(|(conv, _)| conv == name) {
            let problem = format!("batch norm is folded into this convolution, so only `{bn}`, its sum, exists");
            return Err(ErrorKind::Layer { name: name.into(), problem }.into());
        }
        let stem = name.split('.').next().unwrap_or(name);
        let near: Vec<&str> = self.layer_names().into_iter().filter(|n| n.starts_with(stem)).collect();
        Err(Error::unknown("layer", name, if near.is_empty() { self.layer_names() } else { near }))
    }
}
