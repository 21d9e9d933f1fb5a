//! Explanation methods: each is one function that writes what it does with a network's values, and one row here.

mod cam;
mod gradient;
mod lrp;

use crate::engine::{Reg, Writer};
use crate::error::{Error, Result};
use crate::net::NodeId;

/// Where a method's raw map lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// At a layer: a coarse map whose positive part counts.
    Layer,
    /// At the input: a fine map, signed.
    Input,
}

/// One explanation method.
#[derive(Debug, Clone, Copy)]
pub struct Method {
    /// Name, as `--method` takes it.
    pub name: &'static str,
    /// Where its map lives.
    pub level: Level,
    /// Sign of its raw map.
    pub sign: &'static str,
    /// Passes through the network for one image.
    pub passes: &'static str,
    /// Where it was published.
    pub source: &'static str,
    write: fn(&mut Writer<'_>, &Job) -> RawMap,
}

/// What a method is asked to do.
#[derive(Debug, Clone, Copy)]
pub struct Job {
    /// The explained classes, one lane each.
    pub classes: Reg,
    /// Layer of a class activation map.
    pub layer: NodeId,
    /// Whether closed forms may stand in for the walk down.
    pub closed_forms: bool,
}

/// A method's result: one map of `size` (rows, columns) for each class.
#[derive(Debug, Clone, Copy)]
pub struct RawMap {
    /// The maps.
    pub map: Reg,
    /// Rows and columns.
    pub size: (usize, usize),
}

/// Passes of methods that read the gradient at a layer.
const TO_LAYER: &str = "forward, backward to the layer (none for pooled linear heads)";

/// Passes of methods that read the gradient at the input.
const TO_INPUT: &str = "forward, backward to the input";

/// All methods.
pub const METHODS: &[Method] = &[
    Method {
        name: "grad-cam",
        level: Level::Layer,
        sign: "signed",
        passes: TO_LAYER,
        source: "Selvaraju et al., ICCV 2017",
        write: cam::grad_cam,
    },
    Method {
        name: "lrp-epsilon-plus",
        level: Level::Input,
        sign: "signed",
        passes: "forward, relevance to the input (two passes)",
        source: "Bach et al., PLoS ONE 2015; Kohlbrenner et al., IJCNN 2020",
        write: lrp::epsilon_plus,
    },
    Method {
        name: "grad-cam++",
        level: Level::Layer,
        sign: "not negative where the layer is not",
        passes: TO_LAYER,
        source: "Chattopadhay et al., WACV 2018",
        write: cam::grad_cam_plus_plus,
    },
    Method {
        name: "xgrad-cam",
        level: Level::Layer,
        sign: "signed",
        passes: TO_LAYER,
        source: "Fu et al., BMVC 2020",
        write: cam::xgrad_cam,
    },
    Method {
        name: "hires-cam",
        level: Level::Layer,
        sign: "signed",
        passes: TO_LAYER,
        source: "Draelos and Carin, arXiv 2011.08891, 2020",
        write: cam::hires_cam,
    },
    Method {
        name: "layer-cam",
        level: Level::Layer,
        sign: "not negative where the layer is not",
        passes: TO_LAYER,
        source: "Jiang et al., IEEE TIP 2021",
        write: cam::layer_cam,
    },
    Method {
        name: "wgrad-cam",
        level: Level::Layer,
        sign: "signed",
        passes: TO_LAYER,
        source: "Zhang et al., AAAI 2021, as ucag reads its abstract",
        write: cam::wgrad_cam,
    },
    Method {
        name: "gradient",
        level: Level::Input,
        sign: "not negative",
        passes: TO_INPUT,
        source: "Simonyan et al., ICLR workshop 2014",
        write: gradient::gradient,
    },
    Method {
        name: "guided",
        level: Level::Input,
        sign: "not negative",
        passes: TO_INPUT,
        source: "Springenberg et al., ICLR workshop 2015",
        write: gradient::guided,
    },
    Method {
        name: "deconv",
        level: Level::Input,
        sign: "not negative",
        passes: TO_INPUT,
        source: "Zeiler and Fergus, ECCV 2014",
        write: gradient::deconv,
    },
    Method {
        name: "input-x-gradient",
        level: Level::Input,
        sign: "signed",
        passes: TO_INPUT,
        source: "Shrikumar et al., arXiv 1605.01713, 2016",
        write: gradient::input_times_gradient,
    },
];

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

    /// Writes the method.
    #[doc(hidden)]
    pub fn write(&self, w: &mut Writer<'_>, job: &Job) -> RawMap {
        (self.write)(w, job)
    }
}
