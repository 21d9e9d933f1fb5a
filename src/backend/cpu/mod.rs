//! The CPU: `f32`, NHWC, all cores. Default backend, and the oracle that others are tested against.
//!
//! Results do not depend on batch size or number of threads, bit for bit: work is cut into units whose shapes depend
//! only on the layer, each unit runs on one thread, and no two units write the same element.

mod conv;
mod layers;
mod linear;
mod resample;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use rayon::prelude::*;

use super::{Backend, Batch, Dtype, Instr, Scope, Slot, Step};
use crate::error::{ErrorKind, Result};
use crate::net::Graph;
use conv::{ConvKey, ConvKernel, Direction};

/// A cache line, so that slots are aligned.
#[derive(Debug, Clone, Copy, bytemuck::Zeroable, bytemuck::Pod)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// The CPU backend: the arena, a thread pool and the weights in the layouts that its kernels read.
pub(crate) struct Cpu {
    graph: Arc<Graph>,
    arena: Vec<Line>,
    convs: HashMap<ConvKey, ConvKernel>,
    packed: HashMap<(super::WeightRef, Direction), Arc<[f32]>>,
    workers: Workers,
}

/// Threads, each with scratch memory of its own.
struct Workers {
    pool: rayon::ThreadPool,
    scratch: Vec<Mutex<Vec<f32>>>,
}

impl Workers {
    /// Runs `work` for each unit, in any order.
    fn each(&self, units: usize, work: impl Fn(usize) + Sync) {
        self.pool.install(|| (0..units).into_par_iter().for_each(|unit| work(unit)));
    }

    /// Scratch memory of the calling thread.
    fn scratch(&self) -> MutexGuard<'_, Vec<f32>> {
        let thread = self.pool.current_thread_index().unwrap_or(0);
        self.scratch[thread].lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// An operand: `len` elements for each lane of each sample.
#[derive(Clone, Copy)]
struct View<'a> {
    data: &'a [f32],
    len: usize,
    lanes: usize,
}

impl<'a> View<'a> {
    /// Values that belong to result `b`, results having `lanes` lanes a sample.
    fn of(&self, b: usize, lanes: usize) -> &'a [f32] {
        let i = if self.lanes == lanes { b } else { b / lanes };
        &self.data[i * self.len..(i + 1) * self.len]
    }
}

/// A result: `len` elements for each of `count` results, `lanes` of them a sample.
struct Target<'a> {
    data: &'a mut [f32],
    len: usize,
    lanes: usize,
}

impl Target<'_> {
    fn count(&self) -> usize {
        self.data.len() / self.len
    }
}

/// A pointer to a result that several threads write disjoint parts of.
#[derive(Clone, Copy)]
struct Shared(*mut f32);
// SAFETY: users write disjoint elements, which each `unsafe` block that dereferences it argues for.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    fn at(self, offset: usize) -> *mut f32 {
        self.0.wrapping_add(offset)
    }
}

impl Cpu {
    /// A backend of `threads` threads for one network.
    ///
    /// # Errors
    /// When the threads cannot be started.
    pub(crate) fn new(graph: Arc<Graph>, threads: usize) -> Result<Self> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let pool = pool.map_err(|e| ErrorKind::Option { option: "threads", problem: format!("{threads}: {e}") })?;
        let scratch = (0..threads).map(|_| Mutex::default()).collect();
        let workers = Workers { pool, scratch };
        Ok(Self { graph, arena: vec![], convs: HashMap::new(), packed: HashMap::new(), workers })
    }

    /// First byte and number of elements of a slot for a batch.
    fn extent(slot: &Slot, batch: &Batch<'_>) -> (usize, usize) {
        let sample = slot.len * slot.lanes;
        match slot.scope {
            Scope::Batch => (slot.offset, sample * batch.len),
            Scope::All => (slot.offset + batch.first * sample * slot.dtype.bytes(), sample * batch.len),
            Scope::Shared => (slot.offset, sample),
        }
    }

    /// Bytes of the arena from `offset` on, checked to lie inside.
    fn bytes(&self, offset: usize, len: usize) -> *mut u8 {
        let size = std::mem::size_of_val(self.arena.as_slice());
        assert!(offset + len <= size, "slot outside the arena");
        (self.arena.as_ptr() as *mut u8).wrapping_add(offset)
    }

    /// # Safety
    /// No live [`Target`] may overlap the slot.
    unsafe fn view(&self, slot: &Slot, batch: &Batch<'_>) -> View<'_> {
        debug_assert_ne!(slot.dtype, Dtype::U8);
        let (offset, len) = Self::extent(slot, batch);
        let start = self.bytes(offset, len * 4).cast::<f32>();
        // SAFETY: in bounds and aligned (slots are), initialised (the arena starts as zeros), and not written while
        // the view lives, by the caller's promise.
        let data = unsafe { std::slice::from_raw_parts(start, len) };
        View { data, len: slot.len, lanes: slot.lanes }
    }

    /// # Safety
    /// No other live view may overlap the slot.
    unsafe fn target(&self, slot: &Slot, batch: &Batch<'_>) -> Target<'_> {
        debug_assert_ne!(slot.dtype, Dtype::U8);
        let (offset, len) = Self::extent(slot, batch);
        let start = self.bytes(offset, len * 4).cast::<f32>();
        // SAFETY: in bounds and aligned; the caller promises that nothing else refers to these elements. The arena is
        // reached through `&mut self` in `run`, so no other call runs meanwhile.
        let data = unsafe { std::slice::from_raw_parts_mut(start, len) };
        Target { data, len: slot.len, lanes: slot.lanes }
    }

    /// # Safety
    /// No other live view may overlap the slot.
    unsafe fn winners(&self, slot: &Slot, batch: &Batch<'_>) -> &mut [u8] {
        debug_assert_eq!(slot.dtype, Dtype::U8);
        let (offset, len) = Self::extent(slot, batch);
        // SAFETY: as in `target`.
        unsafe { std::slice::from_raw_parts_mut(self.bytes(offset, len), len) }
    }

    fn step(&self, instr: &Instr<Slot>, batch: &Batch<'_>) {
        let w = &self.workers;
        // SAFETY of the three: each instruction's result is disjoint from its operands. The plan keeps the slots of
        // values that are alive at the same time apart; the one exception is `add`, which `base!` resolves.
        macro_rules! view { ($slot:expr) => { unsafe { self.view($slot, batch) } }; }
        macro_rules! view_opt { ($slot:expr) => { $slot.as_ref().map(|slot| view!(slot)) }; }
        macro_rules! target { ($slot:expr) => { unsafe { self.target($slot, batch) } }; }
        // The term to add lies where the result goes, elsewhere, or nowhere.
        macro_rules! base {
            ($add:expr, $y:expr) => {
                match $add { None => Base::Zero, Some(add) if add == $y => Base::InPlace, Some(add) => Base::From(view!(add)) }
            };
        }
        match instr {
            Instr::Unfold { y, .. } => resample::unfold(w, batch, target!(y)),
            Instr::Conv { g, w: weight, bias, x, add, relu, y } => {
                let kernel = &self.convs[&ConvKey { g: *g, weight: *weight, direction: Direction::Forward }];
                let bias = bias.map(|v| (self.graph.param(weight.param).bias.as_slice(), v));
                kernel.forward(w, view!(x), bias, base!(add, y), *relu, target!(y));
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
                // SAFETY: as above.
                let index = index.as_ref().map(|slot| unsafe { self.winners(slot, batch) });
                layers::max_pool(w, g, view!(x), target!(y), index);
            }
            Instr::MaxPoolBack { g, index, dy, add, dx } => {
                // SAFETY: as above; read only.
                let winners = unsafe { self.winners(index, batch) };
                layers::max_pool_back(w, g, winners, view!(dy), base!(add, dx), target!(dx));
            }
            Instr::AvgPool { g, x, y } => layers::avg_pool(w, g, view!(x), target!(y)),
            Instr::AvgPoolBack { g, dy, mul, add, dx } => {
                layers::avg_pool_back(w, g, view!(dy), view_opt!(mul), base!(add, dx), target!(dx));
            }
            Instr::Relu { x, y } => layers::unary(w, view!(x), target!(y), |v| v.max(0.0)),
            Instr::ReluBack { y, dy, add, dx } => {
                let mask = |y: f32, dy: f32| if y > 0.0 { dy } else { 0.0 };
                layers::binary(w, view!(y), view!(dy), base!(add, dx), target!(dx), mask);
            }
            Instr::Add { a, b, relu, y } => {
                let low = if *relu { 0.0 } else { f32::NEG_INFINITY };
                layers::binary(w, view!(a), view!(b), Base::Zero, target!(y), |a, b| (a + b).max(low));
            }
            Instr::Flatten { x, from, y } => layers::flatten(w, *x, view!(from), target!(y)),
            Instr::FlattenBack { x, dy, add, dx } => layers::flatten_back(w, *x, view!(dy), base!(add, dx), target!(dx)),
            Instr::Divide { r, z, z2, eps, y } => layers::divide(w, view!(r), view!(z), view_opt!(z2), *eps, target!(y)),
            Instr::Multiply { x, c, add, y } => {
                layers::binary(w, view!(x), view!(c), base!(add, y), target!(y), |x, c| x * c);
            }
            Instr::Part { x, positive: true, y } => layers::unary(w, view!(x), target!(y), |v| v.max(0.0)),
            Instr::Part { x, positive: false, y } => layers::unary(w, view!(x), target!(y), |v| v.min(0.0)),
            Instr::Softmax { logits, p } => layers::softmax(view!(logits), target!(p)),
            Instr::TopK { p, k, classes } => layers::top_k(view!(p), *k, target!(classes)),
            Instr::Pick { p, classes, y } => layers::pick(view!(p), view!(classes), target!(y)),
            Instr::Seed { classes, value, y } => layers::seed(view!(classes), view_opt!(value), target!(y)),
            Instr::PixelMean { x, channels, y } => layers::pixel_mean(w, *channels, view!(x), target!(y)),
            Instr::ClassRow { w: weight, classes, scale, y } => {
                layers::class_row(self.linear_weight(weight), view!(classes), *scale, target!(y));
            }
            Instr::ChannelSum { x, channels, weights, y } => {
                layers::channel_sum(w, *channels, view!(x), view_opt!(weights), target!(y));
            }
            Instr::Keep { x, y } => target!(y).data.copy_from_slice(view!(x).data),
            Instr::Fold { maps, p, map, y } => {
                resample::fold(w, batch.fold, view!(maps), view!(p), *map, target!(y));
            }
        }
    }

    fn linear_weight(&self, weight: &super::WeightRef) -> &[f32] {
        match self.packed.get(&(*weight, Direction::Forward)) {
            Some(variant) => variant,
            None => &self.graph.param(weight.param).weight,
        }
    }
}

/// What a result starts from before products are added to it.
#[derive(Clone, Copy)]
enum Base<'a> {
    /// Nothing.
    Zero,
    /// The result's own memory, which holds the term to add.
    InPlace,
    /// A term elsewhere.
    From(View<'a>),
}

impl Backend for Cpu {
    fn reserve(&mut self, bytes: usize) -> Result<()> {
        let lines = bytes.div_ceil(size_of::<Line>());
        if lines > self.arena.len() {
            self.arena = Vec::new();
            let mut arena: Vec<Line> = Vec::new();
            arena.try_reserve_exact(lines).map_err(|_| ErrorKind::Memory {
                what: "the plan (the system refused it)".into(),
                need: bytes as u64,
                have: 0,
            })?;
            arena.resize(lines, bytemuck::Zeroable::zeroed());
            self.arena = arena;
        }
        Ok(())
    }

    fn prepare(&mut self, steps: &[Step<Slot>]) -> Result<()> {
        let mut scratch = 0;
        for step in steps {
            let need = match &step.instr {
                Instr::Conv { g, w, .. } => self.prepare_conv(*g, *w, Direction::Forward),
                Instr::ConvBack { g, w, .. } => self.prepare_conv(*g, *w, Direction::Backward),
                Instr::Linear { w, .. } | Instr::LinearBack { w, .. } => {
                    if w.variant != super::Variant::Plain {
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
        Ok(())
    }

    fn run(&mut self, steps: &[Step<Slot>], batch: &Batch<'_>) -> Result<()> {
        for step in steps {
            self.step(&step.instr, batch);
        }
        Ok(())
    }

    fn write(&mut self, slot: &Slot, bytes: &[u8]) -> Result<()> {
        let arena: &mut [u8] = bytemuck::cast_slice_mut(&mut self.arena);
        arena[slot.offset..slot.offset + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn read(&mut self, slot: &Slot, bytes: &mut [u8]) -> Result<()> {
        let arena: &[u8] = bytemuck::cast_slice(&self.arena);
        bytes.copy_from_slice(&arena[slot.offset..slot.offset + bytes.len()]);
        Ok(())
    }
}
