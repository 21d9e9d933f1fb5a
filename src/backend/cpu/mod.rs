//! The CPU: `f32`, NHWC, all cores. Default backend, and the oracle that others are tested against.
//!
//! Results do not depend on batch size or number of threads, bit for bit: each number is summed in an order that depends
//! on the layer alone, by one thread, wherever work is cut into units.

mod ceilings;
mod conv;
mod correlate;
mod dot;
mod elementwise;
mod epilogue;
mod gathered;
mod head;
mod isa;
mod layers;
mod linear;
mod maps;
mod matmul;
mod noise;
mod operands;
mod pack;
mod panel;
mod reduce;
mod resample;
mod resize;
mod run;
mod scatter;
mod simd;
mod tiled;
mod transpose;
mod winograd;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use rayon::prelude::*;

use super::taps::Direction;
use super::{Backend, Ceilings, Dtype, Instr, Pass, Slot, Step, Storage, Tables, Vector};
use crate::aligned::Aligned;
use crate::error::{ErrorKind, Result};
use crate::frame::{Frame, Working, rgb};
use crate::net::{Graph, ParamId};
use conv::{ConvKernel, ConvKey};
use isa::Isa;
use operands::{Base, Operands, Shared, Target, View};

/// A cache line, so that slots are aligned.
#[derive(Debug, Clone, Copy, bytemuck::Zeroable, bytemuck::Pod)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// The CPU backend: the arena, a thread pool and the convolutions that are prepared.
pub struct Cpu {
    graph: Arc<Graph>,
    arena: Vec<Line>,
    convs: HashMap<ConvKey, ConvKernel>,
    vectors: HashMap<(ParamId, Vector), Box<[f32]>>,
    /// The frame, RGB, where an overlay will need it.
    photo: Vec<u8>,
    /// The working image, RGB.
    image: Vec<u8>,
    workers: Workers,
    /// Whether convolutions may be computed by Winograd's algorithm.
    winograd: bool,
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
    scratch: Vec<Mutex<Aligned>>,
    /// Packed weights of the convolution that is running.
    packed: Mutex<Aligned>,
}

impl Workers {
    /// Runs `work` for each unit, in any order.
    fn each(&self, units: usize, work: impl Fn(usize) + Sync) {
        self.pool.install(|| (0..units).into_par_iter().for_each(&work));
    }

    /// Scratch memory of the calling thread.
    fn scratch(&self) -> MutexGuard<'_, Aligned> {
        let thread = self.pool.current_thread_index().unwrap_or(0);
        locked(&self.scratch[thread])
    }

    /// Scratch memory for packed weights.
    fn packed(&self) -> MutexGuard<'_, Aligned> {
        locked(&self.packed)
    }
}

/// Scratch memory has no state that a panic could have left half done.
fn locked(memory: &Mutex<Aligned>) -> MutexGuard<'_, Aligned> {
    memory.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Cpu {
    /// A backend of `threads` threads for one network.
    ///
    /// # Errors
    /// When the threads cannot be started, or the environment variable `UCAG_ISA` names no vector instructions of this
    /// processor.
    pub fn new(graph: Arc<Graph>, threads: usize) -> Result<Self> {
        Isa::check()?;
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let pool = pool.map_err(|e| ErrorKind::Option { option: "threads", problem: format!("{threads}: {e}") })?;
        let scratch = (0..threads).map(|_| Mutex::default()).collect();
        pool.broadcast(|_| matmul::warm_up());
        let workers = Workers { pool, scratch, packed: Mutex::default() };
        let (convs, vectors) = (HashMap::new(), HashMap::new());
        Ok(Self { graph, arena: vec![], convs, vectors, photo: vec![], image: vec![], workers, winograd: true })
    }

    /// Whether 3×3 convolutions may go by Winograd's algorithm, as they do unless told otherwise.
    #[must_use]
    pub fn winograd(self, winograd: bool) -> Self {
        Self { winograd, ..self }
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
        let (mut scratch, mut packed) = (0, 0);
        let samples = tables.samples();
        let mut conv = |cpu: &mut Self, g, weight, direction, y: &Slot| {
            let (own, all) = cpu.prepare_conv(ConvKey { g, weight, direction, samples }, y.lanes);
            packed = packed.max(all);
            own
        };
        for step in &steps {
            let need = match &step.instr {
                Instr::Conv { g, w, y, .. } | Instr::Quotient { g, w, y, .. } => {
                    conv(self, *g, *w, Direction::Forward, y)
                }
                Instr::ConvBack { g, w, dx, .. } => conv(self, *g, *w, Direction::Backward, dx),
                Instr::Linear { w, .. } | Instr::LinearBack { w, .. } => linear::scratch(self.graph.param(w.param), *w),
                Instr::Correlate { g, .. } | Instr::ConvBy { g, .. } | Instr::ConvBackBy { g, .. } => {
                    correlate::scratch(g)
                }
                Instr::Vector { param, vector, .. } => {
                    let graph = self.graph.clone();
                    let values = || vector.of(graph.param(*param)).into();
                    self.vectors.entry((*param, *vector)).or_insert_with(values);
                    0
                }
                Instr::Unfold { image, .. } => resample::scratch(*image),
                _ => 0,
            };
            scratch = scratch.max(need);
        }
        let all = self.workers.scratch.iter().map(|own| (own, scratch));
        for (memory, need) in all.chain([(&self.workers.packed, packed)]) {
            let mut memory = locked(memory);
            if memory.len() < need {
                *memory = Aligned::zeros(need);
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
        // All steps inside the pool: entering it for each would wake this thread and one of its own each time.
        self.workers.pool.install(|| {
            let operands = Operands::new(&mut arena, first, len);
            steps[pass.steps.clone()].iter().for_each(|step| self.step(&step.instr, &operands, &batch));
        });
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
        let memories = self.workers.scratch.iter().chain([&self.workers.packed]);
        let scratch: usize = memories.map(|memory| locked(memory).len()).sum();
        let pictures = self.photo.len() + self.image.len();
        floats(scratch) + (std::mem::size_of_val(self.arena.as_slice()) + pictures) as u64
    }

    fn ceilings(&mut self) -> Result<Ceilings> {
        Ok(self.workers.ceilings())
    }
}
