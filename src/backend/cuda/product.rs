//! Products: matrix products by cuBLASLt, convolutions by own kernels, with shared weights or each sample's own.

use super::Cuda;
use super::args::*;
use super::conv::{self, Read};
use super::fill::{self, Place};
use super::gemm::{Kind, Operands};
use super::kernels::{self as k, Kernel};
use super::launch::MOST;
use crate::backend::taps::{self, Direction, Phase};
use crate::backend::{ConvGeom, Divisor, Dtype, Slot, Variant, WeightRef};
use crate::error::Result;
use crate::net::{Shape, Window};

/// Samples for which the algorithms of matrix products are chosen, unless a program has fewer in all.
const TYPICAL_SAMPLES: usize = 32;

/// Where a product's weight comes from and which kernels can compute it.
pub(super) struct Product<'a> {
    pub w: &'a WeightRef,
    pub source: Shape,
    pub result: Shape,
    pub bias: Option<Variant>,
    pub x: &'a Slot,
    pub add: Option<&'a Slot>,
    pub relu: bool,
    /// What the result divides, if it is a divisor.
    pub quotient: Option<Quotient<'a>>,
    pub y: &'a Slot,
}

/// `scale · r / sum`, kept finite.
#[derive(Clone, Copy)]
pub(super) struct Quotient<'a> {
    pub r: &'a Slot,
    pub by: Divisor,
    pub scale: f32,
}

/// A convolution that is a plain matrix product over pixels.
pub(super) fn is_plain(g: &ConvGeom) -> bool {
    g.window == Window::square(1, 1, 0)
}

/// The matrix product that a layer is, where cuBLASLt can load its rows in whole vectors and nothing is divided.
///
/// `samples`: of all batches. Lanes do not count: how many inputs run at once depends on the memory.
///
/// The library's rectifier turns what is no number into 0 and tells nobody of overflows. Convolutions lie between own
/// kernels, which see infinities; chains of linear layers (`linear`) do not, so they are rectified by an own kernel.
pub(super) fn kind(product: &Product<'_>, linear: bool, samples: usize) -> Option<Kind> {
    let (inputs, outputs) = (product.source.c, product.result.c);
    let whole = inputs.is_multiple_of(8) && outputs.is_multiple_of(8);
    (whole && product.x.dtype == Dtype::F16 && product.quotient.is_none()).then(|| Kind {
        typical_rows: product.result.h * product.result.w * samples.min(TYPICAL_SAMPLES),
        outputs,
        inputs,
        transposed: linear,
        half: product.y.dtype == Dtype::F16,
        bias: product.bias.is_some(),
        add: product.add.is_some(),
        relu: product.relu && !linear,
    })
}

/// A linear layer as a convolution of a single pixel.
pub(super) fn point(source: Shape) -> Phase {
    let one = [1, 1];
    Phase {
        origin: [0, 0],
        step: one,
        h: 1,
        w: 1,
        stride: one,
        first: [0, 0],
        taps: one,
        positions: vec![0],
        weight: 0,
        depth: source.c,
    }
}

/// Operands of an input-gradient.
pub(super) struct ConvBackArgs {
    pub source: Shape,
    pub result: Shape,
    pub read: Read,
    pub dy: Value,
    pub mul: Value,
    pub add: Value,
    pub dx: Value,
}

impl Cuda {
    /// A convolution.
    pub(super) fn conv(&mut self, g: &ConvGeom, product: &Product<'_>, at: &Place) -> Result<()> {
        let weight = self.weights.conv(g, *product.w, Direction::Forward)?;
        match is_plain(g).then(|| kind(product, false, at.all)).flatten() {
            Some(kind) => self.multiply(&kind, product, weight, at),
            None => self.convolve(product, &taps::phases(g, Direction::Forward)[0], weight, at),
        }
    }

    /// A product by cuBLASLt.
    pub(super) fn multiply(&mut self, kind: &Kind, product: &Product<'_>, weight: u64, at: &Place) -> Result<()> {
        let rows = at.count(product.y) * product.result.h * product.result.w;
        let address = |slot: &Slot| at.value(slot).data as u64;
        let operands = Operands {
            x: address(product.x),
            w: weight,
            bias: self.weights.bias(product.w.param, product.bias, kind.half)?,
            add: product.add.map_or(0, address),
            y: address(product.y),
        };
        // SAFETY: slots of the arena, which the plan has laid out for at least these samples, and a resident weight.
        unsafe { self.gemm.run(kind, rows, &operands) }
    }

    /// A product by an own kernel.
    pub(super) fn convolve(&mut self, product: &Product<'_>, phase: &Phase, weight: u64, at: &Place) -> Result<()> {
        let count = at.count(product.y);
        let bias = self.weights.bias(product.w.param, product.bias, false)?;
        let ((divisor, eps), scale) = product.quotient.map_or(((0, 0.0), 1.0), |q| (fill::divisor(q.by), q.scale));
        let args = ConvArgs {
            x: at.value(product.x),
            mul: product.quotient.map_or(Value::NONE, |q| at.value(q.r)),
            divides: u32::from(product.quotient.is_some()),
            divisor,
            eps,
            scale,
            add: product.add.map_or(Value::NONE, |slot| at.value(slot)),
            y: at.value(product.y),
            w: weight as *const half::f16,
            bias: bias as *const f32,
            bad: self.bad.pointer(0),
            count: count as u32,
            relu: u32::from(product.relu),
            ..conv::arguments(phase, product.source, product.result)
        };
        let read = if product.x.dtype == Dtype::F16 { Read::F16 } else { Read::Tf32 };
        let stem = conv::is_stem(phase, product.source, product.result) && product.add.is_none();
        if stem && read == Read::F16 && product.y.dtype == Dtype::F16 {
            let grid = conv::stem_grid(product.result, count, self.limits.multiprocessors);
            return self.launch(&conv::STEM, grid, &args);
        }
        let pixels = count * phase.h * phase.w;
        let (kernel, blocks) =
            conv::choose(read, pixels, product.source.c, product.result.c, product.quotient.is_some(), self.limits);
        self.launch(&kernel, [blocks, 1, 1], &args)
    }

    /// Makes the weight of an input-gradient resident, in the form that its kernel wants.
    pub(super) fn back_weight(&mut self, g: &ConvGeom, w: WeightRef, exact: bool) -> Result<u64> {
        if conv::is_narrow(g, exact) {
            self.weights.merged(g, w)
        } else if Read::back(exact, g.y.c, g.x.c, self.limits).is_wgmma() {
            self.weights.columns(g, w)
        } else {
            self.weights.conv(g, w, Direction::Backward)
        }
    }

    /// An input-gradient.
    pub(super) fn conv_back(
        &mut self,
        g: &ConvGeom,
        w: WeightRef,
        exact: bool,
        back: &ConvBackArgs,
        count: usize,
    ) -> Result<()> {
        let weight = self.back_weight(g, w, exact)?;
        if !conv::is_narrow(g, exact) {
            let phases = taps::phases(g, Direction::Backward);
            return phases.iter().try_for_each(|phase| self.convolve_back(back, phase, weight, count));
        }
        let (phase, _) = taps::merged(g);
        let [part_rows, part_cols] = g.window.stride.map(|n| n as i32);
        let args = self.back_args(back, &phase, weight, count);
        let args = ConvArgs { part_rows, part_cols, yc: args.yc * part_rows * part_cols, ..args };
        let (kernel, blocks) = conv::NARROW.launch(count * phase.h * phase.w, args.yc as usize);
        self.launch(&kernel, [blocks, 1, 1], &args)
    }

    /// One phase of an input-gradient.
    pub(super) fn convolve_back(&self, back: &ConvBackArgs, phase: &Phase, weight: u64, count: usize) -> Result<()> {
        let element = if back.read.is_wgmma() { size_of::<f32>() } else { size_of::<half::f16>() };
        let args = self.back_args(back, phase, weight + (phase.weight * element) as u64, count);
        let pixels = count * phase.h * phase.w;
        let (kernel, blocks) = conv::choose(back.read, pixels, back.source.c, back.result.c, false, self.limits);
        self.launch(&kernel, [blocks, 1, 1], &args)
    }

    fn back_args(&self, back: &ConvBackArgs, phase: &Phase, weight: u64, count: usize) -> ConvArgs {
        ConvArgs {
            x: back.dy,
            mul: back.mul,
            add: back.add,
            y: back.dx,
            w: weight as *const half::f16,
            bad: self.bad.pointer(0),
            count: count as u32,
            ..conv::arguments(phase, back.source, back.result)
        }
    }

    /// The weight by which input and result of each sample correlate.
    pub(super) fn correlate(&self, g: &ConvGeom, x: Value, dy: Value, v: Value, count: usize) -> Result<()> {
        let phase = &taps::phases(g, Direction::Forward)[0];
        let conv = ConvArgs { x, y: dy, ..conv::arguments(phase, g.x, g.y) };
        self.by_sample(&k::CORRELATE, [g.x.c, g.y.c], phase.taps[0] * phase.taps[1], count, in_order(g, conv, v))
    }

    /// A convolution by each sample's own weight.
    pub(super) fn convolve_by(&self, g: &ConvGeom, v: Value, x: Value, y: Value, count: usize) -> Result<()> {
        let phase = &taps::phases(g, Direction::Forward)[0];
        let conv = ConvArgs { x, y, ..conv::arguments(phase, g.x, g.y) };
        self.by_sample(&k::CONV_BY, [phase.h * phase.w, g.y.c], 1, count, in_order(g, conv, v))
    }

    /// The input-gradient of that.
    pub(super) fn convolve_back_by(&self, g: &ConvGeom, v: Value, back: &ConvBackArgs, count: usize) -> Result<()> {
        let turn = g.window.stride.map(|s| -(s as i32));
        for (phase, (_, positions)) in taps::phases(g, Direction::Backward).iter().zip(taps::reaching_phases(g)) {
            let geometry = conv::arguments(phase, back.source, back.result);
            let conv = ConvArgs { x: back.dy, mul: back.mul, add: back.add, y: back.dx, ..geometry };
            let [tap_y, tap_x] = positions.map(|taps| taps.first().map_or(0, |tap| tap.0 as i32));
            let args = SampleConvArgs { tap_y, tap_x, turn_y: turn[0], turn_x: turn[1], ..in_order(g, conv, v) };
            self.by_sample(&k::CONV_BACK_BY, [phase.h * phase.w, back.result.c], 1, count, args)?;
        }
        Ok(())
    }

    /// Launches a kernel whose blocks make tiles of `rows` × `cols` results, for each of `taps`.
    fn by_sample(
        &self,
        kernel: &Kernel<SampleConvArgs>,
        [rows, cols]: [usize; 2],
        taps: usize,
        count: usize,
        mut args: SampleConvArgs,
    ) -> Result<()> {
        /// Rows and columns of a tile.
        const TILE: usize = 64;
        (args.conv.bad, args.conv.count) = (self.bad.pointer(0), count as u32);
        self.launch(kernel, [rows.div_ceil(TILE) * cols.div_ceil(TILE) * taps, count.min(MOST), 1], &args)
    }
}

/// Taps that are the kernel's positions, one after the other.
fn in_order(g: &ConvGeom, conv: ConvArgs, v: Value) -> SampleConvArgs {
    let kernel_cols = g.window.kernel[1] as i32;
    SampleConvArgs { conv, v, kernel_cols, turn_y: 1, turn_x: 1, ..SampleConvArgs::NONE }
}
