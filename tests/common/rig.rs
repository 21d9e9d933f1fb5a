//! Runs single instructions and whole programs on a backend.

use std::sync::Arc;

use ucag::backend::cpu::Cpu;
use ucag::backend::{ALIGN, Backend, Dtype, Instr, Pass, Scope, Seed, Slot, Step, Tables};
use ucag::engine::{Composite, Reg, Writer, walk_down};
use ucag::grid::{GridPlan, Weighting};
use ucag::methods::{Job, Method, RawMap, Settings};
use ucag::models::Preprocess;
use ucag::net::{Graph, NodeId};
use ucag::{Fit, Frame, Working};

/// Bytes between slots that nobody may touch.
const GUARD: usize = 2 * ALIGN;

/// What the guards and, before a run, the results are filled with: `f32` reads it as no number.
const UNTOUCHED: u8 = 0xff;

/// A backend with an arena that is laid out slot by slot.
pub struct Rig<B: Backend = Cpu> {
    backend: B,
    pub tables: Tables,
    /// Which of all samples the batch begins with.
    pub first: usize,
    contents: Vec<(Slot, Vec<u8>)>,
    end: usize,
}

/// How the whole picture is sampled, and how a single map makes the whole map.
pub fn tables(plan: &GridPlan, map: (usize, usize), weighting: Weighting) -> Tables {
    Tables { resample: plan.resample(&Preprocess::default()), fold: plan.fold(map, weighting) }
}

impl Rig {
    pub fn new(graph: &Arc<Graph>, threads: usize) -> Self {
        Self::on(Cpu::new(graph.clone(), threads).expect("threads"))
    }
}

impl<B: Backend> Rig<B> {
    pub fn on(backend: B) -> Self {
        let tables = tables(&GridPlan::whole(1, 1), (1, 1), Weighting::One);
        Self { backend, tables, first: 0, contents: vec![], end: GUARD }
    }

    /// Shows the backend a picture of packed RGB pixels.
    pub fn show(&mut self, (h, w): (usize, usize), pixels: &[u8]) {
        show(&mut self.backend, (h, w), pixels);
    }

    /// Shows the backend a frame.
    pub fn show_frame(&mut self, frame: &Frame<'_>, working: &Working) {
        self.backend.show(frame, working, false).expect("room for the picture");
    }

    /// Room for `samples` samples (1 for a shared slot), with the given contents.
    pub fn slot(&mut self, len: usize, lanes: usize, dtype: Dtype, scope: Scope, contents: Vec<u8>) -> Slot {
        let slot = Slot { offset: self.end, len, lanes, dtype, scope };
        self.end += contents.len().next_multiple_of(ALIGN) + GUARD;
        self.contents.push((slot, contents));
        slot
    }

    /// Room for a result.
    pub fn result(&mut self, len: usize, lanes: usize, dtype: Dtype, scope: Scope, samples: usize) -> Slot {
        self.slot(len, lanes, dtype, scope, vec![UNTOUCHED; len * lanes * dtype.bytes() * samples])
    }

    /// Runs one instruction on a batch; returns the bytes of the asked slots. Checks that nothing else was written.
    pub fn run(&mut self, instr: Instr<Slot>, samples: usize, results: &[Slot]) -> Vec<Vec<u8>> {
        let steps = vec![Step { node: "test".into(), instr }];
        self.backend.reserve(self.end).expect("memory");
        let program = self.backend.prepare(steps.clone(), self.tables.clone()).expect("memory");
        let all = Slot { offset: 0, len: self.end, lanes: 1, dtype: Dtype::U8, scope: Scope::Shared };
        self.backend.write(&all, &vec![UNTOUCHED; self.end]).expect("write");
        for (slot, contents) in &self.contents {
            self.backend.write(slot, contents).expect("write");
        }
        self.backend
            .run(&Pass { program: &program, steps: 0..1, samples: self.first..self.first + samples })
            .expect("run");
        let mut after = vec![0; self.end];
        self.backend.read(&mut [(all, &mut after)]).expect("read");
        let mut free = 0;
        for (slot, contents) in &self.contents {
            let untouched = after[free..slot.offset].iter().all(|b| *b == UNTOUCHED);
            assert!(untouched, "{:?} wrote outside its slots", steps[0].instr);
            free = slot.offset + contents.len();
            let kept = results.contains(slot) || after[slot.offset..free] == contents[..];
            assert!(kept, "{:?} wrote into an operand", steps[0].instr);
        }
        let find = |slot: &Slot| self.contents.iter().find(|(s, _)| s == slot).expect("a slot of this rig");
        results.iter().map(|slot| after[slot.offset..slot.offset + find(slot).1.len()].to_vec()).collect()
    }
}

/// A picture and its size, the input of a program.
#[derive(Clone)]
pub struct Picture {
    pub size: (usize, usize),
    pub pixels: Vec<u8>,
}

impl Picture {
    pub fn new(h: usize, w: usize, seed: u64) -> Self {
        Self { size: (h, w), pixels: super::picture(h, w, seed) }
    }

    /// The network's input, pixel by pixel.
    pub fn normalised(&self) -> Vec<f64> {
        let pre = Preprocess::default();
        let value = |(i, v): (usize, &u8)| {
            let (mean, std) = (f64::from(pre.mean[i % 3]), f64::from(pre.std[i % 3]));
            f64::from(((f64::from(*v) / 255.0 - mean) / std) as f32)
        };
        self.pixels.iter().enumerate().map(value).collect()
    }
}

/// Writes a program for one picture, runs it and returns one value a class, class after class. `write` is given the
/// register of the class indices and returns the asked value.
pub fn program(
    graph: &Arc<Graph>,
    picture: &Picture,
    classes: &[usize],
    write: impl FnOnce(&mut Writer<'_>, Reg) -> (Reg, usize),
) -> Vec<f32> {
    programs(graph, picture, classes, |w, classes| vec![write(w, classes)]).remove(0)
}

/// The same with several asked values.
pub fn programs(
    graph: &Arc<Graph>,
    picture: &Picture,
    classes: &[usize],
    write: impl FnOnce(&mut Writer<'_>, Reg) -> Vec<(Reg, usize)>,
) -> Vec<Vec<f32>> {
    let (h, w) = picture.size;
    let mut cpu = Cpu::new(graph.clone(), 2).expect("threads");
    let writer = Writer::new(graph, (h, w), classes.len(), cpu.storage());
    let mut writer = writer.expect("a picture that is large enough");
    let shared = |offset, len, lanes, dtype| Slot { offset, len, lanes, dtype, scope: Scope::Shared };
    let class_slot = shared(0, classes.len(), 1, Dtype::U32);
    let class_reg = writer.fixed(class_slot);
    let (mut base, mut results) = (ALIGN, vec![]);
    for (value, len) in write(&mut writer, class_reg) {
        let slot = shared(base, len, classes.len(), Dtype::F32);
        let y = writer.fixed(slot);
        writer.push(Instr::Keep { x: value, y });
        base = (base + len * classes.len() * 4).next_multiple_of(ALIGN);
        results.push(slot);
    }
    writer.forward();
    writer.unfold((h, w));
    let (steps, end) = writer.lay_out(base, 1);

    cpu.reserve(end).expect("memory");
    let all = 0..steps.len();
    let program = cpu.prepare(steps, tables(&GridPlan::whole(h, w), (1, 1), Weighting::One)).expect("memory");
    let indices: Vec<u8> = classes.iter().flat_map(|c| (*c as u32).to_le_bytes()).collect();
    cpu.write(&class_slot, &indices).expect("write");
    show(&mut cpu, (h, w), &picture.pixels);
    cpu.run(&Pass { program: &program, steps: all, samples: 0..1 }).expect("run");
    let read = |slot: &Slot| {
        let mut bytes = vec![0; slot.bytes(1)];
        cpu.read(&mut [(*slot, &mut bytes)]).expect("read");
        floats(&bytes)
    };
    results.iter().map(read).collect()
}

/// Makes packed RGB pixels the working image.
pub fn show(backend: &mut impl Backend, (h, w): (usize, usize), pixels: &[u8]) {
    let frame = Frame::rgb(pixels, h, w).expect("a frame");
    let working = Working::new((h, w), Fit::None, 1).expect("a sensible size");
    backend.show(&frame, &working, false).expect("room for the picture");
}

/// The engine's walk from the logits, each class's seed being 1 or its logit, down to `stop`.
pub fn walk(
    graph: &Arc<Graph>,
    picture: &Picture,
    classes: &[usize],
    stop: NodeId,
    composite: &Composite,
    from_logit: bool,
) -> Vec<f32> {
    program(graph, picture, classes, |w, classes| {
        let x = from_logit.then(|| w.value(graph.output()));
        let seed = if from_logit { Seed::Value } else { Seed::One };
        let y = w.class_reg(graph.classes());
        w.push(Instr::Seed { classes, seed, x, y });
        let result =
            walk_down(w, (graph.output(), y), stop, composite).at(stop).expect("the output depends on every node");
        (result, w.shape(stop).len())
    })
}

/// A method's raw maps, class after class.
pub fn raw_maps(
    graph: &Arc<Graph>,
    picture: &Picture,
    classes: &[usize],
    method: &str,
    layer: NodeId,
    closed_forms: bool,
) -> Vec<f32> {
    raw_maps_set(graph, picture, classes, (method, &[]), layer, closed_forms)
}

/// A method's name, keys and values.
pub type Set<'a> = (&'a str, &'a [(&'a str, &'a str)]);

fn with_settings((method, set): Set<'_>) -> (&'static Method, Settings) {
    let method = Method::named(method).expect("a method");
    let pairs: Vec<_> = set.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    (method, Settings::parse(method, &pairs).expect("settings"))
}

/// The raw maps of a method that something is set about.
pub fn raw_maps_set(
    graph: &Arc<Graph>,
    picture: &Picture,
    classes: &[usize],
    method: Set<'_>,
    layer: NodeId,
    closed_forms: bool,
) -> Vec<f32> {
    let (method, settings) = &with_settings(method);
    program(graph, picture, classes, |w, classes| {
        let job = Job { classes, layer, closed_forms, preprocess: Preprocess::default(), settings };
        let RawMap { map, size } = method.write(w, &job);
        (map, size.0 * size.1)
    })
}

/// Bytes of working memory that a method needs for one sample of `size` and one class.
pub fn working_memory(graph: &Arc<Graph>, size: (usize, usize), method: Set<'_>, layer: NodeId) -> usize {
    let (method, settings) = &with_settings(method);
    let storage = Cpu::new(graph.clone(), 1).expect("threads").storage();
    let mut writer = Writer::new(graph, size, 1, storage).expect("a picture that is large enough");
    let class = Slot { offset: 0, len: 1, lanes: 1, dtype: Dtype::U32, scope: Scope::Shared };
    let classes = writer.fixed(class);
    let job = Job { classes, layer, closed_forms: true, preprocess: Preprocess::default(), settings };
    method.write(&mut writer, &job);
    writer.forward();
    writer.unfold(size);
    writer.lay_out(ALIGN, 1).1 - ALIGN
}

/// What a method's one audit expects, and what it finds, class after class.
pub fn completeness(graph: &Arc<Graph>, picture: &Picture, classes: &[usize], method: Set<'_>) -> [Vec<f64>; 2] {
    let (method, settings) = &with_settings(method);
    let sums = programs(graph, picture, classes, |w, classes| {
        w.audit_all();
        let job =
            Job { classes, layer: graph.output(), closed_forms: true, preprocess: Preprocess::default(), settings };
        method.write(w, &job);
        let audits = w.take_audits();
        assert_eq!(audits.len(), 1, "{}: audits", method.name);
        let mut sum = |terms: &[Reg]| (terms[1..].iter().fold(terms[0], |sum, term| w.sum(sum, *term)), 2);
        vec![sum(&audits[0].expected), sum(&audits[0].found)]
    });
    [0, 1].map(|i| sums[i].iter().step_by(2).map(|sum| f64::from(*sum)).collect())
}

pub fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// Numbers of a slot of floating point type.
pub fn numbers(bytes: &[u8], dtype: Dtype) -> Vec<f32> {
    match dtype {
        Dtype::F16 => bytes.as_chunks().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect(),
        _ => floats(bytes),
    }
}
