//! The CPU: `f32`, NHWC, all cores. Default backend, and the oracle that others are tested against.
//!
//! Results do not depend on batch size or number of threads, bit for bit: work is cut into units whose shapes depend
//! only on the layer, each unit runs on one thread, and no two units write the same element.

mod ceilings;
mod conv;
mod dot;
mod layers;
mod linear;
mod maps;
mod operands;
mod resample;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use rayon::prelude::*;

use super::taps::Direction;
use super::{Backend, Ceilings, Dtype, Instr, Pass, Slot, Step, Storage, Tables, Variant, WeightRef, rectify};
use crate::error::{ErrorKind, Result};
use crate::frame::{Frame, Working, rgb};
use crate::net::Graph;
use conv::{ConvKernel, ConvKey};
use operands::{Base, Operands, Shared, Target, View};

/// A cache line, so that slots are aligned.
#[derive(Debug, Clone, Copy, bytemuck::Zeroable, bytemuck::Pod)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// The CPU backend: the arena, a thread pool and the weights in the layouts that its kernels read.
pub struct Cpu {
    graph: Arc<Graph>,
    arena: Vec<Line>,
    convs: HashMap<ConvKey, ConvKernel>,
    packed: HashMap<(WeightRef, Direction), Arc<[f32]>>,
    /// The frame, RGB, where an overlay will need it.
    photo: Vec<u8>,
    /// The working image, RGB.
    image: Vec<u8>,
    workers: Workers,
}

/// Steps and the tables that they read.
pub struct Program {
    steps: Vec<Step<Slot>>,
    tables: Tables,
}

/// The samples of one run, and what all of them read.
struct Batch<'a> {
    first: usize,
    image: &'a [u8],
    photo: &'a [u8],
    tables: &'a Tables,
}

/// Threads, each with scratch memory of its own.
struct Workers {
    pool: rayon::ThreadPool,
    scratch: Vec<Mutex<Vec<f32>>>,
}

impl Workers {
    /// Runs `work` for each unit, in any order.
    fn each(&self, units: usize, work: impl Fn(usize) + Sync) {
        self.pool.install(|| (0..units).into_par_iter().for_each(&work));
    }

    /// Scratch memory of the calling thread.
    fn scratch(&self) -> MutexGuard<'_, Vec<f32>> {
        let thread = self.pool.current_thread_index().unwrap_or(0);
        self.scratch[thread].lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Cpu {
    /// A backend of `threads` threads for one network.
    ///
    /// # Errors
    /// When the threads cannot be started.
    pub fn new(graph: Arc<Graph>, threads: usize) -> Result<Self> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let pool = pool.map_err(|e| ErrorKind::Option { option: "threads", problem: format!("{threads}: {e}") })?;
        let scratch = (0..threads).map(|_| Mutex::default()).collect();
        pool.broadcast(|_| conv::warm_up());
        let workers = Workers { pool, scratch };
        let (convs, packed) = (HashMap::new(), HashMap::new());
        Ok(Self { graph, arena: vec![], convs, packed, photo: vec![], image: vec![], workers })
    }

    fn step(&self, instr: &Instr<Slot>, operands: &Operands<'_>, batch: &Batch<'_>) {
        let w = &self.workers;
        // The plan keeps the slots of values that are alive at the same time apart, so an instruction's results are
        // disjoint from its operands. The one exception is `add`, which `base!` resolves.
        macro_rules! view {
            ($slot:expr) => {
                // SAFETY: results of this instruction lie elsewhere.
                unsafe { operands.view($slot) }
            };
        }
        macro_rules! view_opt {
            ($slot:expr) => {
                $slot.as_ref().map(|slot| view!(slot))
            };
        }
        macro_rules! target {
            ($slot:expr) => {
                // SAFETY: operands and other results of this instruction lie elsewhere.
                unsafe { operands.target($slot) }
            };
        }
        // The term to add lies where the result goes, elsewhere, or nowhere.
        macro_rules! base {
            ($add:expr, $y:expr) => {
                match $add {
                    None => Base::Zero,
                    Some(add) if add == $y => Base::InPlace,
                    Some(add) => Base::From(view!(add)),
                }
            };
        }
        match instr {
            Instr::Unfold { y, .. } => resample::unfold(w, batch, target!(y)),
            Instr::Conv { g, w: weight, bias, x, add, relu, y } => {
                let kernel = &self.convs[&ConvKey { g: *g, weight: *weight, direction: Direction::Forward }];
                let param = self.graph.param(weight.param);
                kernel.forward(w, param, view!(x), *bias, base!(add, y), *relu, target!(y));
            }
            Instr::ConvBack { g, w: weight, dy, mul, add, dx } => {
                let kernel = &self.convs[&ConvKey { g: *g, weight: *weight, direction: Direction::Backward }];
                kernel.backward(w, view!(dy), view_opt!(mul), base!(add, dx), target!(dx));
            }
            Instr::Linear { w: weight, bias, x, add, relu, y } => {
                let param = self.graph.param(weight.param);
                let bias = bias.map(|v| (param.bias.as_slice(), v));
                linear::forward(w, self.linear_weight(weight), view!(x), bias, base!(add, y), *relu, target!(y));
            }
            Instr::LinearBack { w: weight, dy, mul, add, dx } => {
                linear::backward(w, self.linear_weight(weight), view!(dy), view_opt!(mul), base!(add, dx), target!(dx));
            }
            Instr::MaxPool { g, x, y, index } => {
                // SAFETY: operands and other results of this instruction lie elsewhere.
                let index = index.as_ref().map(|slot| unsafe { operands.bytes_mut(slot) });
                layers::max_pool(w, g, view!(x), target!(y), index);
            }
            Instr::MaxPoolBack { g, index, dy, add, dx } => {
                // SAFETY: results of this instruction lie elsewhere.
                let winners = unsafe { operands.bytes(index) };
                layers::max_pool_back(w, g, winners, view!(dy), base!(add, dx), target!(dx));
            }
            Instr::AvgPool { g, x, y } => layers::avg_pool(w, g, view!(x), target!(y)),
            Instr::AvgPoolBack { g, dy, mul, add, dx } => {
                layers::avg_pool_back(w, g, view!(dy), view_opt!(mul), base!(add, dx), target!(dx));
            }
            Instr::Relu { x, y } => layers::unary(w, view!(x), target!(y), rectify),
            Instr::ReluBack { y, dy, add, dx } => {
                let mask = |y: f32, dy: f32| if y > 0.0 { dy } else { 0.0 };
                layers::binary(w, view!(y), view!(dy), base!(add, dx), target!(dx), mask);
            }
            Instr::Add { a, b, relu, y } => {
                let (a, b, zero, y) = (view!(a), view!(b), Base::Zero, target!(y));
                match relu {
                    true => layers::binary(w, a, b, zero, y, |a, b| rectify(a + b)),
                    false => layers::binary(w, a, b, zero, y, |a, b| a + b),
                }
            }
            Instr::Flatten { x, from, y } => layers::flatten(w, *x, view!(from), target!(y)),
            Instr::FlattenBack { x, dy, add, dx } => {
                layers::flatten_back(w, *x, view!(dy), base!(add, dx), target!(dx))
            }
            Instr::Divide { r, z, z2, eps, y } => {
                layers::divide(w, view!(r), view!(z), view_opt!(z2), *eps, target!(y))
            }
            Instr::Multiply { x, c, add, y } => {
                layers::binary(w, view!(x), view!(c), base!(add, y), target!(y), |x, c| x * c);
            }
            Instr::Part { x, positive: true, y } => layers::unary(w, view!(x), target!(y), rectify),
            Instr::Part { x, positive: false, y } => layers::unary(w, view!(x), target!(y), |v| -rectify(-v)),
            Instr::Softmax { logits, p } => layers::softmax(view!(logits), target!(p)),
            Instr::TopK { p, k, classes } => layers::top_k(view!(p), *k, target!(classes)),
            Instr::Pick { p, classes, y } => layers::pick(view!(p), view!(classes), target!(y)),
            Instr::Seed { classes, value, y } => layers::seed(view!(classes), view_opt!(value), target!(y)),
            Instr::PixelSum { x, channels, scale, y } => layers::pixel_sum(w, *channels, *scale, view!(x), target!(y)),
            Instr::ClassRow { w: weight, classes, scale, y } => {
                layers::class_row(self.linear_weight(weight), view!(classes), *scale, target!(y));
            }
            Instr::ChannelSum { x, channels, weights, y } => {
                layers::channel_sum(w, *channels, view!(x), view_opt!(weights), target!(y));
            }
            Instr::ChannelScale { x, channels, weights, y } => {
                layers::channel_scale(w, *channels, view!(x), view!(weights), target!(y));
            }
            Instr::ChannelMax { x, channels, y } => layers::channel_max(w, *channels, view!(x), target!(y)),
            Instr::Keep { x, y } => target!(y).data.copy_from_slice(view!(x).data),
            Instr::Fold { maps, p, map, y } => {
                resample::fold(w, &batch.tables.fold, view!(maps), view!(p), *map, target!(y));
            }
            Instr::Range { x, y } => maps::range(view!(x), target!(y)),
            Instr::ResizeMap { from, to, x, y } => maps::resize(*from, *to, view!(x), target!(y)),
            Instr::MinMax { x, range, y } => maps::min_max(view!(x), view!(range), target!(y)),
            Instr::Blur { size, vertical, x, y } => maps::blur(*size, *vertical, view!(x), target!(y)),
            Instr::Overlay { size, photo, source, level, x, y, .. } => {
                // SAFETY: operands and other results of this instruction lie elsewhere.
                let pictures = unsafe { operands.bytes_mut(y) };
                let x = view!(x);
                w.pool.install(|| maps::overlay(batch.photo, *photo, *source, *size, *level, x, pictures));
            }
        }
    }

    fn linear_weight(&self, weight: &WeightRef) -> &[f32] {
        match self.packed.get(&(*weight, Direction::Forward)) {
            Some(variant) => variant,
            None => &self.graph.param(weight.param).weight,
        }
    }
}

impl Backend for Cpu {
    type Program = Program;
    type Recording = ();

    fn storage(&self) -> Storage {
        Storage { activation: Dtype::F32, input_channels: 3 }
    }

    fn reserve(&mut self, bytes: usize) -> Result<()> {
        let lines = bytes.div_ceil(size_of::<Line>());
        if lines > self.arena.len() {
            self.arena = Vec::new();
            let mut arena: Vec<Line> = Vec::new();
            arena.try_reserve_exact(lines).map_err(|_| ErrorKind::Memory {
                what: "the plan, which the system refuses,".into(),
                need: bytes as u64,
                have: crate::machine::memory(),
            })?;
            arena.resize(lines, bytemuck::Zeroable::zeroed());
            self.arena = arena;
        }
        Ok(())
    }

    fn prepare(&mut self, steps: Vec<Step<Slot>>, tables: Tables) -> Result<Program> {
        let mut scratch = 0;
        for step in &steps {
            let need = match &step.instr {
                Instr::Conv { g, w, .. } => self.prepare_conv(*g, *w, Direction::Forward),
                Instr::ConvBack { g, w, .. } => self.prepare_conv(*g, *w, Direction::Backward),
                Instr::Linear { w, .. } | Instr::LinearBack { w, .. } => {
                    if w.variant != Variant::Plain {
                        let param = self.graph.param(w.param);
                        let variant = || param.weight.iter().map(|v| w.variant.of(*v)).collect();
                        self.packed.entry((*w, Direction::Forward)).or_insert_with(variant);
                    }
                    linear::scratch(self.graph.param(w.param))
                }
                Instr::Unfold { image, .. } => resample::scratch(*image),
                _ => 0,
            };
            scratch = scratch.max(need);
        }
        for own in &mut self.workers.scratch {
            let own = own.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
            if own.len() < scratch {
                *own = vec![0.0; scratch];
            }
        }
        Ok(Program { steps, tables })
    }

    fn forget(&mut self) {
        self.convs.clear();
    }

    fn show(&mut self, frame: &Frame<'_>, working: &Working, keep: bool) -> Result<()> {
        let photo = rgb(frame);
        self.image = working.pixels_of(&photo, frame.size());
        self.photo = if keep { photo } else { vec![] };
        Ok(())
    }

    fn run(&mut self, pass: &Pass<'_, Program>) -> Result<()> {
        let mut arena = std::mem::take(&mut self.arena);
        let Program { steps, tables } = pass.program;
        let (first, len) = (pass.samples.start, pass.samples.len());
        let batch = Batch { first, image: &self.image, photo: &self.photo, tables };
        let operands = Operands::new(&mut arena, first, len);
        steps[pass.steps.clone()].iter().for_each(|step| self.step(&step.instr, &operands, &batch));
        self.arena = arena;
        Ok(())
    }

    fn write(&mut self, slot: &Slot, bytes: &[u8]) -> Result<()> {
        let arena: &mut [u8] = bytemuck::cast_slice_mut(&mut self.arena);
        arena[slot.offset..slot.offset + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn read(&mut self, reads: &mut [(Slot, &mut [u8])]) -> Result<()> {
        let arena: &[u8] = bytemuck::cast_slice(&self.arena);
        for (slot, bytes) in reads {
            bytes.copy_from_slice(&arena[slot.offset..slot.offset + bytes.len()]);
        }
        Ok(())
    }

    fn allocated(&self) -> u64 {
        let floats = |n: usize| (n * size_of::<f32>()) as u64;
        let own = |own: &Mutex<Vec<f32>>| own.lock().unwrap_or_else(std::sync::PoisonError::into_inner).len();
        let scratch: usize = self.workers.scratch.iter().map(own).sum();
        let packed: usize = self.packed.values().map(|weight| weight.len()).sum();
        let pictures = self.photo.len() + self.image.len();
        floats(scratch + packed) + (std::mem::size_of_val(self.arena.as_slice()) + pictures) as u64
    }

    fn ceilings(&mut self) -> Result<Ceilings> {
        Ok(self.workers.ceilings())
    }
}
