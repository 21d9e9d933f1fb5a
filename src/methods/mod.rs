//! Explanation methods: each is one function that writes what it does with a network's values, and one row of
//! [`METHODS`].

mod agf;
mod averaged;
mod cam;
mod cameras;
mod composite;
mod contrast;
mod excitation;
mod full_grad;
mod fused;
mod gradient;
mod lrp;
mod norm_grad;
mod rap;
mod registry;
mod rsp;
mod settings;

pub use registry::METHODS;
pub use settings::{Kind, Setting, Settings, Value};

use crate::engine::{Reg, Writer};
use crate::error::{Error, Result};
use crate::models::{Network, Preprocess};
use crate::net::NodeId;

/// Where a method's raw map lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// At a layer: a coarse map whose positive part counts.
    Layer,
    /// At the input: a fine map, signed.
    Input,
}

/// What a method is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Gradients of the class's logit at the input.
    Gradient,
    /// Class activation maps: a layer's activations, weighted.
    Cam,
    /// Relevance handed down from the output, layer by layer.
    Relevance,
    /// A probability that goes down from the output through excitatory connections.
    Excitation,
}

impl std::fmt::Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Gradient => "gradient",
            Self::Cam => "CAM",
            Self::Relevance => "relevance",
            Self::Excitation => "excitation",
        })
    }
}

/// Signs of the numbers in a raw map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// Both.
    Signed,
    /// None is negative where no activation of the layer is.
    AsLayer,
    /// None is negative.
    NotNegative,
}

impl std::fmt::Display for Sign {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Signed => "signed",
            Self::AsLayer => "not negative where the layer is not",
            Self::NotNegative => "not negative",
        })
    }
}

/// The layer that a method reads unless another one is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerUse {
    /// None: a choice does not matter.
    None,
    /// The network's layer for class activation maps.
    Last,
    /// The output of the stage before the last one.
    Earlier,
}

impl LayerUse {
    /// The layer of a network; for a method that reads none it is of no account.
    ///
    /// # Errors
    /// When the network's file names a layer that the network does not have.
    pub fn default(self, network: &Network) -> Result<NodeId> {
        match self {
            Self::None | Self::Last => Ok(network.layer),
            Self::Earlier => network.graph.layer(network.model.earlier_layer),
        }
    }
}

impl std::fmt::Display for LayerUse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Last => "the network's last with rows and columns",
            Self::Earlier => "the output of the stage before the last",
        })
    }
}

/// The network's input.
const INPUT: NodeId = NodeId(0);

/// One explanation method.
#[derive(Debug, Clone, Copy)]
pub struct Method {
    /// Name, as `--method` takes it.
    pub name: &'static str,
    /// What it is made of.
    pub family: Family,
    /// Where its map lives.
    pub level: Level,
    /// Sign of its raw map.
    pub sign: Sign,
    /// Whether its raw map is proportional to the class's row of the last layer: twice the weights and the bias, twice the
    /// map.
    pub linear: bool,
    /// Passes through the network for one image.
    pub passes: &'static str,
    /// Where it was published.
    pub source: &'static str,
    /// The layer that it reads.
    pub layer: LayerUse,
    /// The networks that it is for.
    pub networks: &'static str,
    /// What can be set about it.
    pub settings: &'static [Setting],
    /// Whether its settings make sense for a network and a layer; asked once, before anything runs.
    check: fn(&Network, &Settings, NodeId) -> Result<()>,
    write: fn(&mut Writer<'_>, &Job<'_>) -> RawMap,
}

/// A method with what was chosen about it.
#[derive(Debug, Clone, PartialEq)]
pub struct Chosen {
    /// The method.
    pub method: &'static Method,
    /// Its settings.
    pub settings: Settings,
    /// The layer to read, see [`LayerUse`].
    pub layer: NodeId,
}

impl Chosen {
    /// The layer that is read, if any.
    pub fn layer(&self) -> Option<NodeId> {
        (self.method.layer != LayerUse::None).then_some(self.layer)
    }
}

/// What a method is asked to do.
#[derive(Debug, Clone, Copy)]
pub struct Job<'a> {
    /// The explained classes, one lane each.
    pub classes: Reg,
    /// The layer to read, see [`LayerUse`].
    pub layer: NodeId,
    /// Whether closed forms may stand in for the walk down.
    pub closed_forms: bool,
    /// What the input's values were turned into.
    pub preprocess: Preprocess,
    /// The method's settings.
    pub settings: &'a Settings,
}

/// A method's result: one map of `size` (rows, columns) for each class.
#[derive(Debug, Clone, Copy)]
pub struct RawMap {
    /// The maps.
    pub map: Reg,
    /// Rows and columns.
    pub size: (usize, usize),
}

impl PartialEq for Method {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Method {
    /// Finds a method by name.
    ///
    /// # Errors
    /// For a name that is not in [`METHODS`].
    pub fn named(name: &str) -> Result<&'static Self> {
        let known = || METHODS.iter().map(|m| m.name);
        METHODS.iter().find(|m| m.name == name).ok_or_else(|| Error::unknown("method", name, known()))
    }

    /// As what its map is drawn: one that is never negative like a layer's, in the sequential palette.
    pub fn drawn_as(&self) -> Level {
        if self.sign == Sign::NotNegative { Level::Layer } else { self.level }
    }

    /// Sees whether the method can be run with these settings.
    pub(crate) fn check(&self, network: &Network, settings: &Settings, layer: NodeId) -> Result<()> {
        (self.check)(network, settings, layer)
    }

    /// Writes the method.
    #[doc(hidden)]
    pub fn write(&self, w: &mut Writer<'_>, job: &Job<'_>) -> RawMap {
        (self.write)(w, job)
    }
}
