//! The facade: a network, a method and a device, chosen once; then pictures in, maps out.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::backend::cpu::Cpu;
use crate::engine::{Engine, Output, Plan, Request, StageTimes};
use crate::error::{ErrorKind, Result};
use crate::frame::{Fit, Frame, Working};
use crate::grid::{Grid, GridPlan, Mode};
use crate::map::{Map, Status};
use crate::methods::{Level, Method};
use crate::models::{Model, Network};
use crate::net::NodeId;

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
    layer: Option<String>,
    grid: Grid,
    maps: Maps,
    fit: Fit,
    size: Option<usize>,
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
        /// Threads, in place of one for each core.
        threads: usize => threads = Some(threads);
        /// Most bytes of working memory, beyond the weights; a quarter of the machine's unless set.
        memory: u64 => memory = Some(memory);
        /// Patches of one batch, in place of a number that suits cores and memory. Does not change any map.
        batch: usize => batch = Some(batch);
        /// Whether closed forms may stand in for the walk down the network (default). Off serves comparison.
        closed_forms: bool => closed_forms = closed_forms;
    }

    /// Loads the weights and makes the explainer.
    ///
    /// # Errors
    /// When the weights cannot be used, a name is unknown, or a setting makes no sense.
    pub fn build(self) -> Result<Explainer> {
        let model = self.model.as_deref().map(Model::named).transpose()?;
        let method = Method::named(&self.method)?;
        let mut network = match self.network {
            Some(network) => network,
            None => Network::open(&self.weights, model)?,
        };
        if let Some(labels) = self.labels {
            network.set_labels(labels)?;
        }
        let layer = match &self.layer {
            Some(name) => network.graph.layer(name)?,
            None => network.layer,
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
        let memory = self.memory.unwrap_or_else(|| crate::machine::memory() / 4);
        let network = Arc::new(network);
        let cpu = Cpu::new(Arc::new(network.graph.clone()), threads)?;
        Ok(Explainer {
            device: Device::Cpu(Box::new(Engine::new(network.clone(), cpu))),
            size: self.size.unwrap_or(network.preprocess.size),
            network,
            method,
            layer,
            grid: self.grid,
            maps: self.maps,
            fit: self.fit,
            memory,
            wanted_batch: self.batch.unwrap_or(2 * threads).max(1),
            exact_batch: self.batch.is_some(),
            closed_forms: self.closed_forms,
            threads,
            plans: vec![],
        })
    }
}

/// More threads than any machine has.
const MAX_THREADS: usize = 1024;

/// Plans that are kept for sizes seen before. One more, and all are made anew: memory stays bounded whatever comes.
const PLANS: usize = 8;

enum Device {
    Cpu(Box<Engine<Cpu>>),
}

impl Device {
    fn plan(&mut self, request: &Request) -> Result<Plan> {
        match self {
            Self::Cpu(engine) => engine.plan(request),
        }
    }

    fn forget(&mut self) {
        match self {
            Self::Cpu(engine) => engine.forget(),
        }
    }

    fn run(
        &mut self,
        plan: &Plan,
        image: &[u8],
        classes: Option<&[usize]>,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Output> {
        match self {
            Self::Cpu(engine) => engine.run(plan, image, classes, progress),
        }
    }
}

/// Explains pictures with one network and one method.
pub struct Explainer {
    device: Device,
    network: Arc<Network>,
    method: &'static Method,
    layer: NodeId,
    grid: Grid,
    maps: Maps,
    fit: Fit,
    size: usize,
    memory: u64,
    wanted_batch: usize,
    exact_batch: bool,
    closed_forms: bool,
    threads: usize,
    plans: Vec<(PlanKey, Plan)>,
}

/// What a plan depends on beside the explainer's settings: size of the working image, classes, whether the top ones.
type PlanKey = ((usize, usize), usize, bool);

/// The explanation of one picture.
#[derive(Debug, Clone)]
pub struct Explanation {
    /// One entry for each explained class.
    pub classes: Vec<ClassExplanation>,
    /// The five most probable classes of the whole picture with their probabilities, most probable first.
    pub top: Vec<(usize, f32)>,
    /// The picture at the size at which it was explained; maps have this size.
    pub working: Working,
    /// The grid of patches, where UCAG was asked for.
    pub grid: Option<GridPlan>,
    /// Where the time went.
    pub times: Times,
}

/// The explanation of one class.
#[derive(Debug, Clone)]
pub struct ClassExplanation {
    /// Index of the class.
    pub class: usize,
    /// Its name.
    pub label: String,
    /// Its probability for the whole picture.
    pub probability: f32,
    /// UCAG's map; raw and signed in mode `paper`.
    pub ucag: Option<Map>,
    /// The method's own map of the whole picture, raw and signed.
    pub plain: Option<Map>,
    /// Its probability in each patch, row by row.
    pub patch_probabilities: Vec<f32>,
    /// Whether the map says anything: UCAG's, or the plain one where there is no other.
    pub status: Status,
}

impl ClassExplanation {
    /// UCAG's map, or the plain one where there is no other.
    pub fn map(&self) -> &Map {
        match (&self.ucag, &self.plain) {
            (Some(map), _) | (None, Some(map)) => map,
            (None, None) => unreachable!("every explanation has a map"),
        }
    }
}

/// Time from the decoded picture to its maps.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Times {
    /// Resizing to the working image.
    pub resize: Duration,
    /// Laying out memory; nothing once a size has been seen.
    pub plan: Duration,
    /// The stages of the engine.
    pub stages: StageTimes,
    /// All of it.
    pub total: Duration,
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
            layer: None,
            grid: Grid::default(),
            maps: Maps::default(),
            fit: Fit::default(),
            size: None,
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

    /// Number of threads.
    pub fn threads(&self) -> usize {
        self.threads
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
        let working = Working::new(frame, self.fit, self.size)?;
        let resize = start.elapsed();
        let (count, classes) = match target {
            Target::Top(k) => (*k, None),
            Target::Classes(classes) => (classes.len(), Some(classes.as_slice())),
        };
        let key = ((working.h, working.w), count, classes.is_none());
        self.plan(key)?;
        let planned = start.elapsed();
        let plan = &self.plans[0].1;
        let output = self.device.run(plan, &working.pixels, classes, progress)?;
        let grid = plan.grid().cloned();
        let mut explanation = self.assemble(output, working, grid);
        explanation.times.resize = resize;
        explanation.times.plan = planned - resize;
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

    /// Brings the plan for a size to the front, making it if need be.
    fn plan(&mut self, key: PlanKey) -> Result<()> {
        if let Some(at) = self.plans.iter().position(|(k, _)| *k == key) {
            self.plans[..=at].rotate_right(1);
            return Ok(());
        }
        let request = Request {
            image: key.0,
            classes: key.1,
            top: key.2,
            method: self.method,
            layer: self.layer,
            plain: self.maps != Maps::Ucag,
            grid: (self.maps != Maps::Plain).then_some(self.grid),
            closed_forms: self.closed_forms,
            memory: self.memory,
            wanted_batch: self.wanted_batch,
            exact_batch: self.exact_batch,
        };
        if self.plans.len() == PLANS {
            self.plans.clear();
            self.device.forget();
        }
        let plan = self.device.plan(&request)?;
        self.plans.insert(0, (key, plan));
        Ok(())
    }

    fn assemble(&self, output: Output, working: Working, grid: Option<GridPlan>) -> Explanation {
        let (h, w) = (working.h, working.w);
        let rectified = self.method.level == Level::Layer;
        let mut order: Vec<usize> = (0..output.probabilities.len()).collect();
        order.sort_by(|a, b| output.probabilities[*b].total_cmp(&output.probabilities[*a]));
        let top = order.into_iter().take(5).map(|c| (c, output.probabilities[c])).collect();
        let mut plain = output.plain.into_iter().map(|data| Map::new(h, w, data));
        let mut folded = output.folded.into_iter();
        let mut patches = output.patch_probabilities.into_iter();
        let classes = output.classes.iter().map(|class| {
            let plain = plain.next();
            let ucag = folded.next().zip(grid.as_ref()).map(|(data, grid)| finish(data, grid, rectified));
            let mut entry = ClassExplanation {
                class: *class,
                label: self.network.label(*class),
                probability: output.probabilities[*class],
                ucag,
                plain,
                patch_probabilities: patches.next().unwrap_or_default(),
                status: Status::Fine,
            };
            entry.status = entry.map().status(rectified);
            entry
        });
        let classes = classes.collect();
        Explanation { classes, top, working, grid, times: Times { stages: output.times, ..Times::default() } }
    }
}

/// From the folded canvas to the map: nothing to do in mode `paper`; the published code's last steps in mode `release`
/// (`methods.md` 3.2).
fn finish(data: Vec<f32>, grid: &GridPlan, rectified: bool) -> Map {
    let (ch, cw) = grid.canvas();
    let (h, w) = grid.image;
    let canvas = Map::new(ch, cw, data);
    match grid.grid.mode {
        Mode::Paper => canvas,
        Mode::Release => {
            let canvas = if rectified { canvas.relu() } else { canvas };
            let map = if (ch, cw) == (h, w) { canvas } else { canvas.resize(h, w) };
            if rectified { map.min_max().gauss(5, 3.0) } else { map }
        }
    }
}
