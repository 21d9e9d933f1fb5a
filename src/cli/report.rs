//! What is told about a photo: as JSON for programs, as text for people.

use std::collections::HashSet;
use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;
use serde_json::json;
use ucag::grid::GridPlan;
use ucag::methods::{Chosen, Settings};
use ucag::{Check, ClassExplanation, Explainer, Explanation, Map, Mode, Status, Working};

/// All numbers of an explanation; `STEM.json`, and a line of `--json`.
#[derive(Serialize)]
pub struct Report {
    pub schema: u32,
    pub version: &'static str,
    pub input: Input,
    pub network: Network,
    /// Whether what should be conserved is told.
    #[serde(skip)]
    pub check: bool,
    pub methods: Vec<Method>,
    pub mode: String,
    pub classes: Vec<Class>,
    pub top5: Vec<Probability>,
    pub grid: Option<Grid>,
    pub working: WorkingImage,
    pub resize: String,
    pub timings_ms: Timings,
    pub files: Vec<String>,
    pub threads: usize,
    pub device: String,
}

/// The photo as it was given.
#[derive(Serialize)]
pub struct Input {
    pub path: String,
    pub sha256: String,
    pub width: usize,
    pub height: usize,
}

/// The network and the file that holds it.
#[derive(Serialize, Clone)]
pub struct Network {
    pub model: &'static str,
    pub weights: String,
    pub sha256: String,
    pub classes: usize,
}

/// A method, the layer that it read, and all its settings.
#[derive(Serialize)]
pub struct Method {
    pub name: &'static str,
    pub layer: Option<String>,
    pub settings: serde_json::Map<String, serde_json::Value>,
    /// What was set otherwise than it is by default.
    #[serde(skip)]
    pub changed: Vec<String>,
}

/// A class explained by a method.
#[derive(Serialize)]
pub struct Class {
    pub class: usize,
    pub label: String,
    pub probability: f32,
    pub method: &'static str,
    pub status: Status,
    /// The status for people.
    #[serde(skip)]
    pub verdict: String,
    pub map: MapFacts,
    /// What should be conserved, by `--check`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<Check>,
    pub patch_probabilities: Vec<f32>,
}

/// Raw values of a map, in short.
#[derive(Serialize)]
pub struct MapFacts {
    pub min: f32,
    pub max: f32,
    pub sum: f64,
    pub width: usize,
    pub height: usize,
}

/// A class and its probability.
#[derive(Serialize)]
pub struct Probability {
    pub class: usize,
    pub label: String,
    pub probability: f32,
}

/// The grid of patches; sizes are `[rows, columns]`.
#[derive(Serialize)]
pub struct Grid {
    pub n: usize,
    pub rho: f64,
    pub alpha: f64,
    /// Whether sizes were nudged, and the factors that patches were scaled up by.
    pub aligned: bool,
    pub factors: [f64; 2],
    pub patch: [usize; 2],
    pub scaled: [usize; 2],
    pub offsets: Offsets,
}

/// First rows and first columns of the patches, in working pixels.
#[derive(Serialize)]
pub struct Offsets {
    pub rows: Vec<usize>,
    pub columns: Vec<usize>,
}

/// The image that was explained.
#[derive(Serialize)]
pub struct WorkingImage {
    pub width: usize,
    pub height: usize,
    pub to_photo: Affine,
}

/// Photo position = scale · working position + offset, each `[x, y]`; positions are counted from the upper left corner.
#[derive(Serialize)]
pub struct Affine {
    pub scale: [f64; 2],
    pub offset: [f64; 2],
}

/// Milliseconds. `explain` is from the decoded photo to the folded map, `total` from the file to the rendered outputs.
#[derive(Serialize, Clone, Copy, Default)]
pub struct Timings {
    pub decode: f64,
    pub resize: f64,
    pub plan: f64,
    pub whole: f64,
    pub patches: f64,
    pub fold: f64,
    pub explain: f64,
    pub render: f64,
    pub total: f64,
}

/// A duration in milliseconds, to the microsecond.
pub fn ms(time: Duration) -> f64 {
    time.as_micros() as f64 / 1000.0
}

impl Timings {
    /// Those of the engine; the others are zero.
    pub fn of(explanation: &Explanation) -> Self {
        let times = &explanation.times;
        Self {
            resize: ms(times.stages.resize),
            plan: ms(times.stages.plan),
            whole: ms(times.stages.whole),
            patches: ms(times.stages.patches),
            fold: ms(times.stages.fold),
            explain: ms(times.total),
            ..Self::default()
        }
    }
}

impl Method {
    /// What an explainer is to do by a method.
    pub fn of(explainer: &Explainer, chosen: &Chosen) -> Self {
        let default = Settings::default(chosen.method);
        let changed = chosen.settings.iter().zip(default.iter()).filter(|(now, default)| now != default);
        Self {
            name: chosen.method.name,
            layer: chosen.layer().map(|layer| explainer.network().graph.short_name(layer).into()),
            settings: chosen.settings.iter().map(|(key, value)| (key.to_string(), json!(value))).collect(),
            changed: changed.map(|((key, value), _)| format!("{key}={value}")).collect(),
        }
    }

    fn text(&self) -> String {
        let changed = if self.changed.is_empty() { String::new() } else { format!(" ({})", self.changed.join(", ")) };
        format!("{}{changed}", self.name)
    }
}

impl From<&ClassExplanation> for Class {
    fn from(entry: &ClassExplanation) -> Self {
        Self {
            class: entry.class,
            label: entry.label.clone(),
            probability: entry.probability,
            method: entry.method.name,
            status: entry.status,
            verdict: entry.verdict(),
            map: entry.map().into(),
            checks: entry.checks.clone(),
            patch_probabilities: entry.patch_probabilities.clone(),
        }
    }
}

impl Class {
    /// What came in, what went out and what was lost, node by node.
    fn write_checks(&self, f: &mut String) -> std::fmt::Result {
        if self.checks.is_empty() {
            return writeln!(f, "  check of {}: it promises no sum", self.method);
        }
        let width = self.checks.iter().map(|check| check.node.chars().count()).max().unwrap_or(0);
        writeln!(f, "  check of {} for {}:", self.method, self.label)?;
        writeln!(f, "    {:<width$} {:>13} {:>13} {:>10}", "node", "in", "out", "lost")?;
        let mut seen = HashSet::new();
        for Check { node, expected, found, lost } in &self.checks {
            // Methods that contrast classes walk down several times.
            if !seen.insert(node) {
                writeln!(f, "    and once more:")?;
                seen = HashSet::from([node]);
            }
            writeln!(f, "    {node:<width$} {expected:>13.6} {found:>13.6} {:>8.4} %", 100.0 * lost)?;
        }
        Ok(())
    }
}

impl From<&Map> for MapFacts {
    fn from(map: &Map) -> Self {
        let (min, max) = map.range();
        Self { min, max, sum: map.sum(), width: map.w, height: map.h }
    }
}

impl From<&GridPlan> for Grid {
    fn from(plan: &GridPlan) -> Self {
        let (rows, columns) = plan.offsets();
        Self {
            n: plan.grid.n,
            rho: plan.grid.rho(),
            alpha: plan.grid.alpha,
            aligned: plan.grid.mode == Mode::Aligned,
            factors: plan.alpha().into(),
            patch: plan.patch().into(),
            scaled: plan.scaled().into(),
            offsets: Offsets { rows, columns },
        }
    }
}

impl From<&Working> for WorkingImage {
    fn from(working: &Working) -> Self {
        let [top, left, rows, columns] = working.source;
        let scale = [columns / working.w as f64, rows / working.h as f64];
        Self { width: working.w, height: working.h, to_photo: Affine { scale, offset: [left, top] } }
    }
}

impl Report {
    /// The report for people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = self.write(&mut text);
        text
    }

    fn write(&self, f: &mut String) -> std::fmt::Result {
        let Self { input, working, network, .. } = self;
        writeln!(f, "{} ({}×{})", input.path, input.width, input.height)?;
        for top in &self.top5 {
            let explained = self.classes.iter().any(|c| c.class == top.class);
            writeln!(
                f,
                "  {} {:6.2} %  {} ({})",
                if explained { '>' } else { ' ' },
                100.0 * top.probability,
                top.label,
                top.class
            )?;
        }
        let methods: Vec<String> = self.methods.iter().map(Method::text).collect();
        write!(f, "  {} of {}, {}×{}", methods.join(", "), network.model, working.width, working.height)?;
        match &self.grid {
            Some(grid) => {
                let aligned = if grid.aligned { ", steps aligned" } else { "" };
                writeln!(f, ", UCAG with {0}×{0} patches, mode {1}{aligned}", grid.n, self.mode)?;
            }
            None => writeln!(f, ", plain")?,
        }
        for maps in self.classes.chunks(self.methods.len().max(1)) {
            let Class { class, label, probability, .. } = &maps[0];
            write!(f, "  explained: {label} ({class}), {:.2} %", 100.0 * probability)?;
            for map in maps.iter().filter(|map| map.status != Status::Fine) {
                let of = if maps.len() > 1 { format!(" of {}", map.method) } else { String::new() };
                write!(f, "; the map{of} is {}", map.verdict)?;
            }
            writeln!(f)?;
            if self.check {
                maps.iter().try_for_each(|map| map.write_checks(f))?;
            }
        }
        let t = &self.timings_ms;
        let stages = [
            ("decode", t.decode),
            ("resize", t.resize),
            ("plan", t.plan),
            ("whole image", t.whole),
            ("patches", t.patches),
            ("fold", t.fold),
            ("render", t.render),
        ];
        let stages: Vec<String> = stages.iter().map(|(name, ms)| format!("{name} {ms:.0}")).collect();
        writeln!(f, "  {:.0} ms: {}", t.total, stages.join(", "))?;
        write!(f, "  wrote {}", self.files.join(", "))
    }
}
