//! Single instructions of the CPU backend: every different layer of three networks at UCAG's patch size (in
//! multiply-adds × 2 a second), unfold and fold (in bytes read and written).

#[path = "../tests/seeded/mod.rs"]
mod seeded;

use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ucag::backend::cpu::Cpu;
use ucag::backend::{Backend, ConvGeom, Dtype, Instr, Pass, Scope, Slot, Step, Tables, Variant, WeightRef};
use ucag::grid::{Grid, GridPlan, Weighting};
use ucag::models::{Model, Preprocess};
use ucag::net::{Graph, Op};
use ucag::{Fit, Frame, Working};

/// Patches of one batch.
const BATCH: usize = 4;

/// Lays slots out one after the other.
struct Arena(usize);

impl Arena {
    fn slot(&mut self, len: usize, scope: Scope) -> Slot {
        let slot = Slot { offset: self.0, len, lanes: 1, dtype: Dtype::F32, scope };
        let samples = if scope == Scope::Shared { 1 } else { 36 };
        self.0 += (len * 4 * samples).next_multiple_of(64);
        slot
    }
}

/// One instruction on a batch.
struct Case {
    group: String,
    id: String,
    instr: Instr<Slot>,
    /// Bytes of the arena.
    arena: usize,
    work: Throughput,
    batch: usize,
}

impl Case {
    fn run(self, c: &mut Criterion, graph: &Arc<Graph>) {
        let plan = GridPlan::new(Grid::default(), 224, 224).unwrap();
        let map = match self.instr {
            Instr::Fold { map, .. } => map,
            _ => (1, 1),
        };
        let tables = Tables { resample: plan.resample(&Preprocess::default()), fold: plan.fold(map, Weighting::Exp) };
        let pixels = seeded::picture(224, 224);
        let frame = Frame::rgb(&pixels, 224, 224).unwrap();
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let mut cpu = Cpu::new(graph.clone(), threads).unwrap();
        let steps = vec![Step { node: self.id.clone(), instr: self.instr }];
        cpu.reserve(self.arena).unwrap();
        cpu.show(&frame, &Working::new(frame.size(), Fit::None, 1).unwrap(), false).unwrap();
        let program = cpu.prepare(steps, tables).unwrap();
        let pass = Pass { program: &program, steps: 0..1, samples: 0..self.batch };
        let mut group = c.benchmark_group(self.group);
        group.sample_size(10).throughput(self.work);
        group.bench_function(self.id, |b| b.iter(|| cpu.run(&pass).unwrap()));
        group.finish();
    }
}

/// Every different layer with weights, both ways.
fn layers(c: &mut Criterion) {
    for name in ["resnet18", "resnet50", "vgg16"] {
        let graph = Arc::new(seeded::network(name, &seeded::neutral(name), seeded::gain).graph);
        let shapes = graph.shapes(322, 322).unwrap();
        let mut seen = vec![];
        for (i, node) in graph.nodes().iter().enumerate() {
            let (Op::Conv { param, .. } | Op::Linear { param }) = node.op else { continue };
            let window = match node.op {
                Op::Conv { window, .. } => Some(window),
                _ => None,
            };
            let (from, to) = (shapes[node.inputs[0].0], shapes[i]);
            if seen.contains(&(window, from, to)) {
                continue;
            }
            seen.push((window, from, to));
            let mut arena = Arena(0);
            let (x, y) = (arena.slot(from.len(), Scope::Batch), arena.slot(to.len(), Scope::Batch));
            let (w, bias) = (WeightRef::plain(param), Some(Variant::Plain));
            let (kind, macs, forward, back) = match window {
                Some(window) => {
                    let g = ConvGeom { window, x: from, y: to };
                    let forward = Instr::Conv { g, w, bias, x, add: None, relu: true, y };
                    (
                        "conv",
                        g.products(),
                        forward,
                        Instr::ConvBack { g, w, exact: false, dy: y, mul: None, add: None, dx: x },
                    )
                }
                None => {
                    let forward = Instr::Linear { w, bias, x, add: None, relu: true, y };
                    (
                        "linear",
                        from.len() * to.len(),
                        forward,
                        Instr::LinearBack { w, exact: false, dy: y, mul: None, add: None, dx: x },
                    )
                }
            };
            for (instr, direction) in [(forward, "forward"), (back, "backward")] {
                let (group, id) = (format!("{kind}/{name}"), format!("{}/{direction}", node.name));
                let work = Throughput::Elements((2 * macs * BATCH) as u64);
                Case { group, id, instr, arena: arena.0, work, batch: BATCH }.run(c, &graph);
            }
        }
    }
}

fn patches(c: &mut Criterion) {
    const PATCHES: usize = 36;
    let (graph, _) = Model::named("resnet18").unwrap().blueprint(10, 8).unwrap();
    let graph = Arc::new(graph);
    let mut arena = Arena(0);
    let y = arena.slot(322 * 322 * 3, Scope::Batch);
    let mut cases = vec![("unfold", Instr::Unfold { image: (224, 224), y }, arena.0, PATCHES * 322 * 322 * 3 * 4)];
    for (side, id) in [(11, "fold 11×11"), (322, "fold 322×322")] {
        let mut arena = Arena(0);
        let (maps, p) = (arena.slot(side * side, Scope::All), arena.slot(1, Scope::All));
        let y = arena.slot(224 * 224, Scope::Shared);
        let instr = Instr::Fold { maps, p, map: (side, side), y };
        cases.push((id, instr, arena.0, (PATCHES * side * side + 224 * 224) * 4));
    }
    for (id, instr, arena, bytes) in cases {
        let work = Throughput::Bytes(bytes as u64);
        Case { group: "patches".into(), id: id.into(), instr, arena, work, batch: PATCHES }.run(c, &graph);
    }
}

criterion_group!(benches, patches, layers);
criterion_main!(benches);
