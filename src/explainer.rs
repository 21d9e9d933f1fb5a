//! The facade: a network, a method and a device, chosen once; then pictures in, maps out.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use crate::device::{Device, Precision};
use crate::engine::{Floors, Output, Request};
use crate::error::{ErrorKind, Result};
use crate::explanation::{ClassExplanation, Explanation, Times};
use crate::frame::{Fit, Frame, Working};
use crate::grid::Grid;
use crate::map::{Map, Status};
use crate::methods::{Level, Method, Settings};
use crate::models::{Model, Network};
use crate::net::NodeId;
use crate::render::Picture;
use crate::runner::Runner;

/// Which classes of a picture are explained. The choice is made once, on the whole picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The most probable ones, that many.
    Top(usize),
    /// These.
    Classes(Vec<usize>),
}

/// Which maps are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Maps {
    /// UCAG's only.
    #[default]
    Ucag,
    /// The method's own only, without unfolding.
    Plain,
    /// Both.
    Both,
}

/// Settings of an [`Explainer`]. Every field has a sensible default.
#[derive(Debug, Clone)]
pub struct Builder {
    weights: PathBuf,
    network: Option<Network>,
    model: Option<String>,
    labels: Option<Vec<String>>,
    method: String,
    settings: Vec<(String, String)>,
    layer: Option<String>,
    grid: Grid,
    maps: Maps,
    fit: Fit,
    size: Option<usize>,
    overlay: bool,
    device: Device,
    precision: Option<Precision>,
    threads: Option<usize>,
    memory: Option<u64>,
    batch: Option<usize>,
    closed_forms: bool,
}

macro_rules! setters {
    ($($(#[$doc:meta])* $name:ident: $type:ty => $field:ident = $value:expr;)*) => {
        $($(#[$doc])* #[must_use] pub fn $name(mut self, $name: $type) -> Self { self.$field = $value; self })*
    };
}

impl Builder {
    setters! {
        /// The network's name, where it is not to be recognised from the tensors.
        model: impl Into<String> => model = Some(model.into());
        /// Names of the classes, in place of those in the file.
        labels: Vec<String> => labels = Some(labels);
        /// Explanation method, `grad-cam` unless set. Names are in [`crate::methods::METHODS`].
        method: impl Into<String> => method = method.into();
        /// Layer of a class activation map, in place of the network's default.
        layer: impl Into<String> => layer = Some(layer.into());
        /// UCAG's grid.
        grid: Grid => grid = grid;
        /// Which maps are made.
        maps: Maps => maps = maps;
        /// How a picture becomes the working image.
        fit: Fit => fit = fit;
        /// Side of the working image in pixels, in place of the network's own.
        size: usize => size = Some(size);
        /// Whether to lay each map over the frame, on the device: [`ClassExplanation::overlay`].
        overlay: bool => overlay = overlay;
        /// Where to compute: on a GPU where there is one, unless set.
        device: Device => device = device;
        /// In how many bits activations are stored, in place of what suits the device.
        precision: Precision => precision = Some(precision);
        /// Threads, in place of one for each core.
        threads: usize => threads = Some(threads);
        /// Most bytes of working memory, beyond the weights; unless set a quarter of the machine's, on a GPU what is free.
        memory: u64 => memory = Some(memory);
        /// Patches of one batch, in place of a number that suits cores and memory. Does not change any map.
        batch: usize => batch = Some(batch);
        /// Whether closed forms may stand in for the walk down the network (default). Off serves comparison.
        closed_forms: bool => closed_forms = closed_forms;
    }

    /// Sets something about a method: a `key` of its [`settings`](Method::settings), or `method.key`.
    #[must_use]
    pub fn set(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.push((key.into(), value.into()));
        self
    }

    /// Loads the weights and makes the explainer.
    ///
    /// # Errors
    /// When the weights cannot be used, a name is unknown, or a setting makes no sense.
    pub fn build(self) -> Result<Explainer> {
        let model = self.model.as_deref().map(Model::named).transpose()?;
        let method = Method::named(&self.method)?;
        let settings = Settings::parse(method, &self.settings)?;
        let mut network = match self.network {
            Some(network) => network,
            None => Network::open(&self.weights, model)?,
        };
        if let Some(labels) = self.labels {
            network.set_labels(labels)?;
        }
        let layer = match &self.layer {
            Some(name) => network.graph.layer(name)?,
            None => method.layer.default(&network)?,
        };
        if matches!(network.graph.node(layer).op, crate::net::Op::Linear { .. } | crate::net::Op::Flatten) {
            let name = network.graph.node(layer).name.clone();
            let problem = "expected a layer with rows and columns, found one of single values".into();
            return Err(ErrorKind::Layer { name, problem }.into());
        }
        let threads = self.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
        if threads == 0 || threads > MAX_THREADS {
            let problem = format!("expected 1 to {MAX_THREADS}, found {threads}");
            return Err(ErrorKind::Option { option: "threads", problem }.into());
        }
        if self.batch == Some(0) {
            return Err(ErrorKind::Option { option: "batch", problem: "expected 1 or more, found 0".into() }.into());
        }
        method.check(&network, &settings)?;
        let network = Arc::new(network);
        let runner = Runner::new(&network, self.device, self.precision, threads)?;
        let budget = runner.budget(threads)?;
        Ok(Explainer {
            runner,
            overlay: self.overlay,
            size: self.size.unwrap_or(network.preprocess.size),
            network,
            method,
            settings: Arc::new(settings),
            layer,
            grid: self.grid,
            maps: self.maps,
            fit: self.fit,
            memory: self.memory.unwrap_or(budget.memory),
            comfortable: if self.batch.is_some() { u64::MAX } else { budget.comfortable },
            wanted_batch: self.batch.unwrap_or(budget.batch).min(MAX_BATCH),
            closed_forms: self.closed_forms,
            threads,
        })
    }
}

/// Most patches of one batch: what a GPU's grid of blocks counts along its third axis.
const MAX_BATCH: usize = 65_535;

/// More threads than any machine has.
const MAX_THREADS: usize = 1024;

/// Explains pictures with one network and one method.
pub struct Explainer {
    runner: Runner,
    network: Arc<Network>,
    method: &'static Method,
    settings: Arc<Settings>,
    layer: NodeId,
    grid: Grid,
    maps: Maps,
    fit: Fit,
    size: usize,
    overlay: bool,
    memory: u64,
    comfortable: u64,
    wanted_batch: usize,
    closed_forms: bool,
    threads: usize,
}

impl Explainer {
    /// Starts with a safetensors file.
    pub fn builder(weights: impl AsRef<Path>) -> Builder {
        Builder {
            weights: weights.as_ref().into(),
            network: None,
            model: None,
            labels: None,
            method: "grad-cam".into(),
            settings: vec![],
            layer: None,
            grid: Grid::default(),
            maps: Maps::default(),
            fit: Fit::default(),
            size: None,
            overlay: false,
            device: Device::Auto,
            precision: None,
            threads: None,
            memory: None,
            batch: None,
            closed_forms: true,
        }
    }

    /// Starts with a network that is loaded already.
    pub fn with_network(network: Network) -> Builder {
        Builder { network: Some(network), ..Self::builder("") }
    }

    /// The network.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// The method.
    pub fn method(&self) -> &'static Method {
        self.method
    }

    /// Name of the layer of class activation maps.
    pub fn layer(&self) -> &str {
        &self.network.graph.node(self.layer).name
    }

    /// Number of threads of the CPU.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Where it computes; never [`Device::Auto`].
    pub fn device(&self) -> Device {
        self.runner.device()
    }

    /// In how many bits activations are stored.
    pub fn precision(&self) -> Precision {
        self.runner.precision()
    }

    /// Why a GPU runs step by step instead of replaying what it has recorded, where it does.
    pub fn note(&self) -> Option<&str> {
        self.runner.note()
    }

    /// Name of the device for people.
    pub fn device_name(&self) -> String {
        self.runner.gpu_name().unwrap_or_else(|| format!("{} threads", self.threads))
    }

    /// Bytes of the device's memory in use; on the CPU without the weights that lie in the file.
    pub fn allocated(&self) -> u64 {
        self.runner.allocated()
    }

    /// What the latest explanation costs at least on this device, which is measured for that; `None` before the first.
    ///
    /// # Errors
    /// When the device fails or has not enough memory.
    pub fn floors(&mut self) -> Result<Option<Floors>> {
        self.runner.floors()
    }

    /// Explains a picture.
    ///
    /// # Errors
    /// When a class does not exist, picture, grid and network do not fit together, the memory does not suffice, or the
    /// network's values leave the finite numbers.
    pub fn explain(&mut self, frame: &Frame<'_>, target: &Target) -> Result<Explanation> {
        self.explain_with(frame, target, &mut |_, _| ())
    }

    /// As [`Explainer::explain`]; `progress` hears of patches done and patches in all.
    ///
    /// # Errors
    /// As [`Explainer::explain`].
    pub fn explain_with(
        &mut self,
        frame: &Frame<'_>,
        target: &Target,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Explanation> {
        let start = Instant::now();
        self.validate(target)?;
        let working = Working::new(frame.size(), self.fit, self.size)?;
        let (count, classes) = match target {
            Target::Top(k) => (*k, None),
            Target::Classes(classes) => (classes.len(), Some(classes.as_slice())),
        };
        let request = Request {
            working,
            classes: count,
            top: classes.is_none(),
            method: self.method,
            settings: self.settings.clone(),
            layer: self.layer,
            plain: self.maps != Maps::Ucag,
            grid: (self.maps != Maps::Plain).then_some(self.grid),
            overlay: self.overlay,
            closed_forms: self.closed_forms,
            memory: self.memory,
            comfortable: self.comfortable,
            wanted_batch: self.wanted_batch,
        };
        let output = self.runner.run(&request, frame, classes, progress)?;
        let mut explanation = self.assemble(output, working);
        explanation.times.total = start.elapsed();
        Ok(explanation)
    }

    fn validate(&self, target: &Target) -> Result<()> {
        let classes = self.network.graph.classes();
        let problem = |class: String, problem: String| Err(ErrorKind::Class { class, problem }.into());
        match target {
            Target::Top(k) if *k == 0 || *k > classes => {
                problem(format!("top {k}"), format!("expected 1 to {classes} classes"))
            }
            Target::Classes(list) if list.is_empty() || list.len() > classes => {
                problem(format!("{} classes", list.len()), format!("expected 1 to {classes}"))
            }
            Target::Classes(list) => match list.iter().find(|c| **c >= classes) {
                Some(class) => problem(class.to_string(), format!("expected 0 to {}", classes - 1)),
                None => Ok(()),
            },
            Target::Top(_) => Ok(()),
        }
    }

    fn assemble(&self, output: Output, working: Working) -> Explanation {
        let (h, w) = (working.h, working.w);
        let rectified = self.method.level == Level::Layer;
        let mut order: Vec<usize> = (0..output.probabilities.len()).collect();
        order.sort_by(|a, b| output.probabilities[*b].total_cmp(&output.probabilities[*a]));
        let top = order.into_iter().take(5).map(|c| (c, output.probabilities[c])).collect();
        let mut plain = output.plain.into_iter().map(|data| Map::new(h, w, data));
        let mut folded = output.folded.into_iter().map(|data| Map::new(h, w, data));
        let mut patches = output.patch_probabilities.into_iter();
        let mut overlays = output.overlays.into_iter();
        let (frame_h, frame_w) = working.frame;
        let classes = output.classes.iter().map(|class| {
            let mut entry = ClassExplanation {
                class: *class,
                label: self.network.label(*class),
                probability: output.probabilities[*class],
                ucag: folded.next(),
                plain: plain.next(),
                overlay: overlays.next().map(|pixels| Picture { h: frame_h, w: frame_w, pixels }),
                patch_probabilities: patches.next().unwrap_or_default(),
                status: Status::Fine,
            };
            entry.status = entry.map().status(rectified);
            entry
        });
        let classes = classes.collect();
        let times = Times { stages: output.times, ..Times::default() };
        Explanation { classes, top, working, grid: output.grid, times }
    }
}
