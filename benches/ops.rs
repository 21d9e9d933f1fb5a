//! Single instructions of the CPU backend: every different convolution of the networks at UCAG's patch size (in
//! multiply-adds × 2 a second), unfold and fold (in bytes read and written).

#[path = "../tests/seeded/mod.rs"]
mod seeded;

use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ucag::backend::cpu::Cpu;
use ucag::backend::{Backend, Batch, ConvGeom, Dtype, Instr, Scope, Slot, Step, Variant, WeightRef};
use ucag::grid::{Grid, GridPlan, Weighting};
use ucag::models::{Model, Preprocess};
use ucag::net::{Graph, Op};

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

fn run(
    c: &mut Criterion,
    group: &str,
    id: &str,
    graph: &Arc<Graph>,
    instr: Instr<Slot>,
    bytes: usize,
    work: Throughput,
    len: usize,
) {
    let plan = GridPlan::new(Grid::default(), 224, 224).unwrap();
    let (resample, fold) = (plan.resample(&Preprocess::default()), plan.fold((11, 11), Weighting::Exp));
    let image = seeded::picture(224, 224);
    let batch = Batch { first: 0, len, image: &image, resample: &resample, fold: &fold };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut cpu = Cpu::new(graph.clone(), threads).unwrap();
    let steps = [Step { node: id.into(), instr }];
    cpu.reserve(bytes).unwrap();
    cpu.prepare(&steps).unwrap();
    let mut group = c.benchmark_group(group);
    group.sample_size(10).throughput(work);
    group.bench_function(id, |b| b.iter(|| cpu.run(&steps, &batch).unwrap()));
    group.finish();
}

fn convolutions(c: &mut Criterion) {
    for name in ["resnet50", "vgg16"] {
        let model = Model::named(name).unwrap();
        let network = seeded::network(name, &seeded::neutral(name), seeded::gain);
        let graph = Arc::new(network.graph);
        let shapes = graph.shapes(322, 322).unwrap();
        let mut seen = vec![];
        for (i, node) in graph.nodes().iter().enumerate() {
            let Op::Conv { window, param } = node.op else { continue };
            let g = ConvGeom { window, x: shapes[node.inputs[0].0], y: shapes[i] };
            if seen.contains(&g) {
                continue;
            }
            seen.push(g);
            let mut arena = Arena(0);
            let (x, y) = (arena.slot(g.x.len(), Scope::Batch), arena.slot(g.y.len(), Scope::Batch));
            let macs = g.y.len() * g.x.c * window.kernel[0] * window.kernel[1] * BATCH;
            let w = WeightRef { param, variant: Variant::Plain };
            let forward = Instr::Conv { g, w, bias: Some(Variant::Plain), x, add: None, relu: true, y };
            let work = Throughput::Elements(2 * macs as u64);
            let group = format!("conv/{}", model.name);
            run(c, &group, &format!("{}/forward", node.name), &graph, forward, arena.0, work.clone(), BATCH);
            let back = Instr::ConvBack { g, w, dy: y, mul: None, add: None, dx: x };
            run(c, &group, &format!("{}/backward", node.name), &graph, back, arena.0, work, BATCH);
        }
    }
}

fn patches(c: &mut Criterion) {
    let (graph, _) = Model::named("resnet18").unwrap().blueprint(10, 8).unwrap();
    let graph = Arc::new(graph);
    let mut arena = Arena(0);
    let y = arena.slot(322 * 322 * 3, Scope::Batch);
    let work = Throughput::Bytes(36 * 322 * 322 * 3 * 4);
    run(c, "patches", "unfold", &graph, Instr::Unfold { image: (224, 224), y }, arena.0, work, 36);
    for (side, id) in [(11, "fold 11×11"), (322, "fold 322×322")] {
        let mut arena = Arena(0);
        let maps = arena.slot(side * side, Scope::All);
        let (p, y) = (arena.slot(1, Scope::All), arena.slot(224 * 224, Scope::Shared));
        let work = Throughput::Bytes(36 * (side * side * 4) as u64);
        let instr = Instr::Fold { maps, p, map: (11, 11), y };
        run(c, "patches", id, &graph, instr, arena.0, work, 36);
    }
}

criterion_group!(benches, patches, convolutions);
criterion_main!(benches);
