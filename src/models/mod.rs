//! The networks that `ucag` knows, and how one is recognised from the names and shapes of its tensors.

mod imagenet;
mod resnet;
mod vgg;

use std::path::Path;

use crate::error::{Error, ErrorKind, Result};
use crate::net::{Builder, Graph, Metadata, NodeId, Op, TensorList, Tensors};

/// One known network.
#[derive(Debug, Clone, Copy)]
pub struct Model {
    /// Name, as `--model` takes it.
    pub name: &'static str,
    /// Layer that class activation maps use unless another is asked for.
    pub default_layer: &'static str,
    /// Output of the stage before the last one.
    pub earlier_layer: &'static str,
    kind: Kind,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Resnet { blocks: [usize; 4], bottleneck: bool },
    Vgg { convs: [usize; 5], batch_norm: bool },
}

macro_rules! models {
    ($($name:literal $layer:literal $earlier:literal $kind:expr;)*) => {
        /// All known networks.
        pub const MODELS: &[Model] =
            &[$(Model { name: $name, default_layer: $layer, earlier_layer: $earlier, kind: $kind }),*];
    };
}

use Kind::{Resnet, Vgg};
models! {
    "resnet18" "layer4" "layer3" Resnet { blocks: [2, 2, 2, 2], bottleneck: false };
    "resnet34" "layer4" "layer3" Resnet { blocks: [3, 4, 6, 3], bottleneck: false };
    "resnet50" "layer4" "layer3" Resnet { blocks: [3, 4, 6, 3], bottleneck: true };
    "resnet101" "layer4" "layer3" Resnet { blocks: [3, 4, 23, 3], bottleneck: true };
    "resnet152" "layer4" "layer3" Resnet { blocks: [3, 8, 36, 3], bottleneck: true };
    "vgg11" "features.19" "features.15" Vgg { convs: [1, 1, 2, 2, 2], batch_norm: false };
    "vgg13" "features.23" "features.19" Vgg { convs: [2, 2, 2, 2, 2], batch_norm: false };
    "vgg16" "features.29" "features.23" Vgg { convs: [2, 2, 3, 3, 3], batch_norm: false };
    "vgg19" "features.35" "features.27" Vgg { convs: [2, 2, 4, 4, 4], batch_norm: false };
    "vgg11_bn" "features.27" "features.21" Vgg { convs: [1, 1, 2, 2, 2], batch_norm: true };
    "vgg13_bn" "features.33" "features.27" Vgg { convs: [2, 2, 2, 2, 2], batch_norm: true };
    "vgg16_bn" "features.42" "features.33" Vgg { convs: [2, 2, 3, 3, 3], batch_norm: true };
    "vgg19_bn" "features.51" "features.39" Vgg { convs: [2, 2, 4, 4, 4], batch_norm: true };
}

impl Model {
    /// Finds a network by name.
    ///
    /// # Errors
    /// For a name that is not in [`MODELS`].
    pub fn named(name: &str) -> Result<&'static Self> {
        let known = || MODELS.iter().map(|m| m.name);
        MODELS.iter().find(|m| m.name == name).ok_or_else(|| Error::unknown("model", name, known()))
    }

    /// The network that the names and shapes of `tensors` look most like, `None` when they look like none.
    pub fn recognise(tensors: &Tensors) -> Option<&'static Self> {
        let found = resnet::recognise(tensors).or_else(|| vgg::recognise(tensors))?;
        // A file with a layer too many or too few is held against the nearest network, so that the report says which.
        let distance = |m: &&Model| match (m.kind, found) {
            (Resnet { blocks: a, bottleneck: x }, Resnet { blocks: b, bottleneck: y }) if x == y => {
                a.iter().zip(b).map(|(a, b)| a.abs_diff(b)).sum()
            }
            (Vgg { convs: a, batch_norm: x }, Vgg { convs: b, batch_norm: y }) if x == y => {
                a.iter().sum::<usize>().abs_diff(b.iter().sum())
            }
            _ => usize::MAX,
        };
        MODELS.iter().min_by_key(distance)
    }

    /// Graph and tensors of this network without weights, every channel count divided by `narrowing` (at least 4
    /// channels stay). Serves listings, tests and benches.
    ///
    /// # Errors
    /// Never for the networks of [`MODELS`].
    pub fn blueprint(&self, classes: usize, narrowing: usize) -> Result<(Graph, TensorList)> {
        let width = move |nominal: usize| match nominal {
            CLASSES => classes,
            channels => (channels / narrowing).max(4),
        };
        let mut builder = Builder::new(None, width);
        self.build(&mut builder, &Metadata::new(), None)?;
        builder.finish(self.name)
    }

    fn build(&self, b: &mut Builder<'_>, metadata: &Metadata, tensors: Option<&Tensors>) -> Result<()> {
        match self.kind {
            Resnet { blocks, bottleneck } => resnet::build(b, blocks, bottleneck, metadata),
            Vgg { convs, batch_norm } => vgg::build(b, convs, batch_norm, metadata, tensors),
        }
    }
}

/// Nominal number of classes: a count of channels that no other layer of a known network has.
const CLASSES: usize = 1000;

/// What a picture's values are turned into before the first layer: `(value/255 − mean) / std`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Preprocess {
    /// Mean of red, green and blue.
    pub mean: [f32; 3],
    /// Standard deviation of red, green and blue.
    pub std: [f32; 3],
    /// Side that the network was trained at, in pixels.
    pub size: usize,
}

impl Default for Preprocess {
    fn default() -> Self {
        Self { mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225], size: 224 }
    }
}

/// A network with its weights, the names of its classes and its preprocessing.
#[derive(Debug, Clone)]
pub struct Network {
    /// The network's definition.
    pub model: &'static Model,
    /// Nodes and weights.
    pub graph: Graph,
    /// One name a class; empty when the file gives none and the classes are not ImageNet's 1000.
    pub labels: Vec<String>,
    /// Preprocessing.
    pub preprocess: Preprocess,
    /// Layer that class activation maps use unless another is asked for.
    pub layer: NodeId,
}

impl Network {
    /// Loads a safetensors file. `model` overrides recognition.
    ///
    /// # Errors
    /// When the file is unreadable, is no known network, or does not fit the network.
    pub fn open(path: impl AsRef<Path>, model: Option<&'static Model>) -> Result<Self> {
        Self::from_tensors(&Tensors::open(path)?, model)
    }

    /// Loads a network from tensors. `model` overrides recognition.
    ///
    /// # Errors
    /// As [`Network::open`].
    pub fn from_tensors(tensors: &Tensors, model: Option<&'static Model>) -> Result<Self> {
        let Some(model) = model.or_else(|| Model::recognise(tensors)) else {
            let found: Vec<&str> = tensors.infos().keys().map(String::as_str).take(4).collect();
            let known: Vec<&str> = MODELS.iter().map(|m| m.name).collect();
            let problem = format!(
                "expected the tensors of one of {}, found {} tensors of another network ({}, …)",
                known.join(", "),
                tensors.infos().len(),
                found.join(", ")
            );
            return Err(Error::weights(tensors.path(), problem));
        };
        let metadata = tensors.metadata();
        let mut builder = Builder::new(Some(tensors), |n| n);
        model.build(&mut builder, metadata, Some(tensors))?;
        let (graph, _) = builder.finish(model.name)?;
        let layer = graph.layer(metadata.get("ucag.layer").map_or(model.default_layer, String::as_str))?;
        let labels = labels(tensors, graph.classes())?;
        Ok(Self { model, labels, preprocess: preprocess(tensors)?, layer, graph })
    }

    /// The layer of a name, whose output has rows and columns.
    ///
    /// # Errors
    /// As [`Graph::layer`], and for a layer of single values.
    pub fn map_layer(&self, name: &str) -> Result<NodeId> {
        let layer = self.graph.layer(name)?;
        let node = self.graph.node(layer);
        if matches!(node.op, Op::Linear { .. } | Op::Flatten) {
            let problem = "expected a layer with rows and columns, found one of single values".into();
            return Err(ErrorKind::Layer { name: node.name.clone(), problem }.into());
        }
        Ok(layer)
    }

    /// Replaces the class names.
    ///
    /// # Errors
    /// When there is not one name a class.
    pub fn set_labels(&mut self, labels: Vec<String>) -> Result<()> {
        if labels.len() != self.graph.classes() {
            let problem = format!("expected {} names, one a class, found {}", self.graph.classes(), labels.len());
            return Err(ErrorKind::Option { option: "labels", problem }.into());
        }
        self.labels = labels;
        Ok(())
    }

    /// Name of a class; its number where it has no name.
    pub fn label(&self, class: usize) -> String {
        self.labels.get(class).cloned().unwrap_or_else(|| format!("class {class}"))
    }
}

fn labels(tensors: &Tensors, classes: usize) -> Result<Vec<String>> {
    match json::<Vec<String>>(tensors, "ucag.labels")? {
        Some(labels) if labels.len() == classes => Ok(labels),
        Some(labels) => {
            let problem = format!("metadata `ucag.labels`: expected {classes} names, found {}", labels.len());
            Err(Error::weights(tensors.path(), problem))
        }
        None if classes == CLASSES => Ok(imagenet::labels()),
        None => Ok(vec![]),
    }
}

fn preprocess(tensors: &Tensors) -> Result<Preprocess> {
    let default = Preprocess::default();
    let mean = json(tensors, "ucag.mean")?.unwrap_or(default.mean);
    let std = json(tensors, "ucag.std")?.unwrap_or(default.std);
    let size = json(tensors, "ucag.size")?.unwrap_or(default.size);
    let usable = |v: &[f32; 3], low: f32| v.iter().all(|x| x.is_finite() && *x > low);
    if !usable(&std, 0.0) || !usable(&mean, f32::NEG_INFINITY) || size == 0 {
        let problem = format!(
            "metadata: expected finite `ucag.mean`, positive `ucag.std` and `ucag.size`, found {mean:?}, {std:?} and {size}"
        );
        return Err(Error::weights(tensors.path(), problem));
    }
    Ok(Preprocess { mean, std, size })
}

fn json<T: serde::de::DeserializeOwned>(tensors: &Tensors, key: &str) -> Result<Option<T>> {
    let Some(text) = tensors.metadata().get(key) else { return Ok(None) };
    let parsed = serde_json::from_str(text);
    parsed.map(Some).map_err(|e| Error::weights(tensors.path(), format!("metadata `{key}`: {e}, found `{text}`")))
}
