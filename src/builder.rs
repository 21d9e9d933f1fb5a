//! What can be chosen about an explainer, and what follows from it.

use std::path::PathBuf;
use std::sync::Arc;

use crate::device::{Device, Precision};
use crate::error::{ErrorKind, Result};
use crate::explainer::{Explainer, Maps};
use crate::frame::Fit;
use crate::grid::Grid;
use crate::methods::{Chosen, LayerUse, Method, Settings};
use crate::models::{Model, Network};
use crate::runner::Runner;

/// Settings of an [`Explainer`]. Every field has a sensible default.
#[derive(Debug, Clone)]
pub struct Builder {
    weights: PathBuf,
    network: Option<Network>,
    model: Option<String>,
    labels: Option<Vec<String>>,
    methods: Vec<String>,
    settings: Vec<(String, String)>,
    layer: Option<String>,
    grid: Grid,
    maps: Maps,
    fit: Fit,
    size: Option<usize>,
    overlay: bool,
    check: bool,
    device: Device,
    precision: Option<Precision>,
    threads: Option<usize>,
    memory: Option<u64>,
    batch: Option<usize>,
    closed_forms: bool,
    sharing: bool,
    winograd: bool,
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
        method: impl Into<String> => methods = vec![method.into()];
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
        /// Whether to lay each map over the frame, on the device: [`overlay`](crate::ClassExplanation::overlay).
        overlay: bool => overlay = overlay;
        /// Whether to see what the methods conserve: [`checks`](crate::ClassExplanation::checks). The plain maps are made
        /// for that.
        check: bool => check = check;
        /// Where to compute: on a GPU where there is one, unless set.
        device: Device => device = device;
        /// In how many bits activations are stored, in place of what suits the device.
        precision: Precision => precision = Some(precision);
        /// Threads, in place of one for each core.
        threads: usize => threads = Some(threads);
        /// Most bytes of working memory, beyond the weights and up to 20 MB of scratch for each thread; unless set a
        /// quarter of the machine's, on a GPU what is free.
        memory: u64 => memory = Some(memory);
        /// Patches of one batch, in place of a number that suits cores and memory. Does not change any map.
        batch: usize => batch = Some(batch);
        /// Whether closed forms may stand in for the walk down the network (default). Off serves comparison.
        closed_forms: bool => closed_forms = closed_forms;
        /// Whether what neighbouring patches have in common is computed once (default). Off serves comparison.
        sharing: bool => sharing = sharing;
        /// Whether 3×3 convolutions may go by Winograd's algorithm on the CPU (default). Off serves comparison.
        winograd: bool => winograd = winograd;
    }

    /// Several explanation methods, in place of one. They share the forward pass.
    #[must_use]
    pub fn methods<S: Into<String>>(mut self, names: impl IntoIterator<Item = S>) -> Self {
        self.methods = names.into_iter().map(Into::into).collect();
        self
    }

    /// Sets something about the methods: a `key` of their [`settings`](Method::settings), or `method.key`. Of
    /// what is set twice the last value counts.
    #[must_use]
    pub fn set(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.push((key.into(), value.into()));
        self
    }

    /// The defaults for a file, or a network that is loaded already.
    pub(crate) fn new(weights: PathBuf, network: Option<Network>) -> Self {
        Self {
            weights,
            network,
            model: None,
            labels: None,
            methods: vec!["grad-cam".into()],
            settings: vec![],
            layer: None,
            grid: Grid::default(),
            maps: Maps::default(),
            fit: Fit::default(),
            size: None,
            overlay: false,
            check: false,
            device: Device::Auto,
            precision: None,
            threads: None,
            memory: None,
            batch: None,
            closed_forms: true,
            sharing: true,
            winograd: true,
        }
    }

    /// Loads the weights and makes the explainer.
    ///
    /// # Errors
    /// When the weights cannot be used, a name is unknown, or a setting makes no sense.
    pub fn build(self) -> Result<Explainer> {
        let model = self.model.as_deref().map(Model::named).transpose()?;
        let named = named(&self.methods)?;
        let settings = Settings::distribute(&named, &self.settings)?;
        let mut network = match self.network {
            Some(network) => network,
            None => Network::open(&self.weights, model)?,
        };
        if let Some(labels) = self.labels {
            network.set_labels(labels)?;
        }
        let layer = self.layer.as_deref().map(|name| network.map_layer(name)).transpose()?;
        let chosen = named.into_iter().zip(settings).map(|(method, settings)| {
            let default = method.layer.default(&network)?;
            let layer = layer.filter(|_| method.layer != LayerUse::None).unwrap_or(default);
            method.check(&network, &settings, layer)?;
            Ok(Chosen { method, settings, layer })
        });
        let methods = chosen.collect::<Result<_>>()?;
        let threads = self.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
        if threads == 0 || threads > MAX_THREADS {
            let problem = format!("expected 1 to {MAX_THREADS}, found {threads}");
            return Err(ErrorKind::Option { option: "threads", problem }.into());
        }
        if self.batch == Some(0) {
            return Err(ErrorKind::Option { option: "batch", problem: "expected 1 or more, found 0".into() }.into());
        }
        let network = Arc::new(network);
        let runner = Runner::new(&network, self.device, self.precision, threads, self.winograd)?;
        let budget = runner.budget(threads)?;
        Ok(Explainer {
            runner,
            overlay: self.overlay,
            check: self.check,
            size: self.size.unwrap_or(network.preprocess.size),
            network,
            methods,
            grid: self.grid,
            maps: self.maps,
            fit: self.fit,
            memory: self.memory.unwrap_or(budget.memory),
            comfortable: if self.batch.is_some() { u64::MAX } else { budget.comfortable },
            wanted_batch: self.batch.unwrap_or(budget.batch).min(MAX_BATCH),
            closed_forms: self.closed_forms,
            sharing: self.sharing,
            threads,
        })
    }
}

/// The methods of these names, each once.
fn named(names: &[String]) -> Result<Vec<&'static Method>> {
    let problem = |problem| Err(ErrorKind::Option { option: "method", problem }.into());
    if names.is_empty() {
        return problem("expected one or more, found none".into());
    }
    if let Some(twice) = names.iter().enumerate().find(|(i, name)| names[..*i].contains(name)) {
        return problem(format!("expected each once, found `{}` twice", twice.1));
    }
    names.iter().map(|name| Method::named(name)).collect()
}

/// Most patches of one batch: what a GPU's grid of blocks counts along its third axis.
const MAX_BATCH: usize = 65_535;

/// More threads than any machine has.
const MAX_THREADS: usize = 1024;
