//! The facade: a network, methods and a device, chosen once; then pictures in, maps out.

use std::mem::take;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use crate::builder::Builder;
use crate::device::{Device, Precision};
use crate::engine::{Floors, LayerTime, Output, Request};
use crate::error::{ErrorKind, Result};
use crate::explanation::{ClassExplanation, Explanation, Times};
use crate::frame::{Fit, Frame, Working};
use crate::grid::Grid;
use crate::map::{Map, Status};
use crate::methods::{Chosen, Level};
use crate::models::Network;
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

/// Explains pictures with one network, by one method or several.
pub struct Explainer {
    pub(crate) runner: Runner,
    pub(crate) network: Arc<Network>,
    pub(crate) methods: Arc<[Chosen]>,
    pub(crate) grid: Grid,
    pub(crate) maps: Maps,
    pub(crate) fit: Fit,
    pub(crate) size: usize,
    pub(crate) overlay: bool,
    pub(crate) check: bool,
    pub(crate) memory: u64,
    pub(crate) comfortable: u64,
    pub(crate) wanted_batch: usize,
    pub(crate) closed_forms: bool,
    pub(crate) sharing: bool,
    pub(crate) threads: usize,
}

impl Explainer {
    /// Starts with a safetensors file.
    pub fn builder(weights: impl AsRef<Path>) -> Builder {
        Builder::new(weights.as_ref().into(), None)
    }

    /// Starts with a network that is loaded already.
    pub fn with_network(network: Network) -> Builder {
        Builder::new("".into(), Some(network))
    }

    /// The network.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// The methods with what was chosen about them.
    pub fn methods(&self) -> &[Chosen] {
        &self.methods
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

    /// How long each step of an explanation takes by itself: the latest frame is explained once more, step by step.
    /// Nothing before the first explanation.
    ///
    /// # Errors
    /// When the device fails.
    pub fn layers(&mut self) -> Result<Vec<LayerTime>> {
        self.runner.layers()
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
            methods: self.methods.clone(),
            plain: self.maps != Maps::Ucag || self.check,
            check: self.check,
            grid: (self.maps != Maps::Plain).then_some(self.grid),
            overlay: self.overlay,
            closed_forms: self.closed_forms,
            sharing: self.sharing,
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
        let mut order: Vec<usize> = (0..output.probabilities.len()).collect();
        order.sort_by(|a, b| output.probabilities[*b].total_cmp(&output.probabilities[*a]));
        let top = order.into_iter().take(5).map(|c| (c, output.probabilities[c])).collect();
        let (frame_h, frame_w) = working.frame;
        let mut made = output.methods;
        let mut classes = vec![];
        for (k, class) in output.classes.iter().enumerate() {
            for (chosen, made) in self.methods.iter().zip(&mut made) {
                let map = |maps: &mut Vec<Vec<f32>>| maps.get_mut(k).map(|data| Map::new(h, w, take(data)));
                let mut entry = ClassExplanation {
                    class: *class,
                    label: self.network.label(*class),
                    probability: output.probabilities[*class],
                    method: chosen.method,
                    layer: chosen.layer().map(|layer| self.network.graph.short_name(layer).into()),
                    ucag: map(&mut made.folded),
                    plain: map(&mut made.plain),
                    overlay: made.overlays.get_mut(k).map(|p| Picture { h: frame_h, w: frame_w, pixels: take(p) }),
                    patch_probabilities: output.patch_probabilities.get(k).cloned().unwrap_or_default(),
                    checks: made.checks.get_mut(k).map(take).unwrap_or_default(),
                    status: Status::Fine,
                };
                entry.status = entry.map().status(chosen.method.drawn_as() == Level::Layer);
                classes.push(entry);
            }
        }
        let times = Times { stages: output.times, ..Times::default() };
        Explanation { classes, top, working, grid: output.grid, times }
    }
}
