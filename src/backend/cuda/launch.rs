//! Launches of own kernels: their grids, and the arguments of those that read a program's tables.

use std::ops::Range;

use half::f16;

use super::args::*;
use super::kernels::{self as k, Kernel};
use super::tables::DeviceTables;
use super::{Cuda, Program, picture};
use crate::backend::Picks;
use crate::error::Result;
use crate::grid::Weighting;
use crate::methods::Level;
use crate::net::Shape;

/// Most blocks along the second and third axis of a grid.
pub(super) const MOST: usize = 65_535;

impl Cuda {
    pub(super) fn launch<A>(&self, kernel: &Kernel<A>, grid: [usize; 3], args: &A) -> Result<()> {
        // SAFETY: operands are slots of the arena, which the plan has laid out so that results overlap no other
        // operand but a term that is added in place, or buffers that live as long as this backend or the program.
        unsafe { self.kernels.launch(kernel, grid, args) }
    }

    /// A kernel whose blocks make 1024 elements, of `count` results of `len` each.
    pub(super) fn each<A>(&self, kernel: &Kernel<A>, len: usize, count: usize, args: &A) -> Result<()> {
        self.launch(kernel, [len.div_ceil(1024), count.min(MOST), 1], args)
    }

    /// A function of one number, by its code in `kernels/eltwise.cu`.
    pub(super) fn unary(&self, (code, s): (u32, f32), a: Value, y: Value, count: usize) -> Result<()> {
        let args = EltwiseArgs { a, y, code, s, bad: self.bad.pointer(0), ..EltwiseArgs::NONE };
        self.each(&k::UNARY, y.len as usize, count, &EltwiseArgs { count: count as u32, ..args })
    }

    /// A pattern, which `args` says.
    pub(super) fn fill(&self, args: FillArgs, count: usize) -> Result<()> {
        let len = args.y.len as usize;
        self.each(&k::FILL, len, count, &FillArgs { bad: self.bad.pointer(0), count: count as u32, ..args })
    }

    /// A kernel that reduces channels: a warp a pixel; a thread where there are few channels.
    pub(super) fn over_channels(&self, kernel: &Kernel<ChannelArgs>, args: &ChannelArgs) -> Result<()> {
        let pixels_of_block = if args.channels < 32 { 256 } else { 8 };
        self.launch(kernel, [args.pixels.div_ceil(pixels_of_block) as usize, (args.count as usize).min(MOST), 1], args)
    }

    pub(super) fn flatten(
        &self,
        kernel: &Kernel<FlattenArgs>,
        shape: Shape,
        x: Value,
        add: Value,
        y: Value,
        count: usize,
    ) -> Result<()> {
        let pixels = shape.h * shape.w;
        let (channels, bad) = (shape.c as u32, self.bad.pointer(0));
        let args = FlattenArgs { x, add, y, bad, pixels: pixels as u32, channels, count: count as u32, unused: 0 };
        self.launch(kernel, [shape.c.div_ceil(32), pixels.div_ceil(32), count.min(MOST)], &args)
    }

    pub(super) fn unfold(&self, program: &Program, y: Value, samples: Range<usize>) -> Result<()> {
        let tables = &program.tables;
        let sampling = &tables.host.resample;
        let (sh, sw) = (sampling.rows.patches[0].len(), sampling.cols.patches[0].len());
        let args = UnfoldArgs {
            image: self.picture.image.pointer(0),
            rows: tables.rows.pointer(0),
            cols: tables.cols.pointer(0),
            levels: tables.levels.pointer(0),
            y: y.data.cast(),
            image_w: sampling.image.1 as u32,
            sh: sh as u32,
            sw: sw as u32,
            channels: (y.len as usize / (sh * sw)) as u32,
            grid_cols: sampling.cols.patches.len() as u32,
            first: samples.start as u32,
            count: samples.len() as u32,
            unused: 0,
        };
        self.launch(&k::UNFOLD, [sw.div_ceil(64), sh.div_ceil(16), samples.len()], &args)
    }

    pub(super) fn fold(&self, program: &Program, maps: Value, p: Value, map: (usize, usize), y: Value) -> Result<()> {
        let DeviceTables { covers, firsts, host, .. } = &program.tables;
        let plan = &host.fold;
        let args = FoldArgs {
            maps: maps.data.cast(),
            p: p.data.cast(),
            row_first: firsts[0].pointer(0),
            rows: covers[0].pointer(0),
            col_first: firsts[1].pointer(0),
            cols: covers[1].pointer(0),
            y: y.data.cast(),
            bad: self.bad.pointer(0),
            h: plan.canvas.0 as u32,
            w: plan.canvas.1 as u32,
            map_h: map.0 as u32,
            map_w: map.1 as u32,
            grid_cols: plan.cols.len() as u32,
            patches: (plan.rows.len() * plan.cols.len()) as u32,
            lanes: y.lanes,
            extra: plan.extra as u32,
            weighting: match plan.weighting {
                Weighting::One => 0,
                Weighting::Exp => 1,
                Weighting::ExpOverMax => 2,
            },
            unused: 0,
        };
        self.launch(&k::FOLD, [(plan.canvas.0 * plan.canvas.1).div_ceil(256), y.lanes as usize, 1], &args)
    }

    pub(super) fn gather(
        &self,
        program: &Program,
        step: usize,
        picks: &Picks,
        [x, y]: [Value; 2],
        samples: Range<usize>,
    ) -> Result<()> {
        let Some([rows, cols]) = program.axes(step) else { return Ok(()) };
        let args = GatherArgs {
            x,
            y,
            rows: rows.pointer(0),
            cols: cols.pointer(0),
            h: picks.to.h as u32,
            w: picks.to.w as u32,
            channels: picks.to.c as u32,
            from_w: picks.from.w as u32,
            grid_cols: (picks.cols.len() / picks.to.w) as u32,
            first: samples.start as u32,
            count: samples.len() as u32,
            fill: if y.half != 0 { f16::from_f32(picks.fill).to_bits().into() } else { picks.fill.to_bits() },
        };
        self.each(&k::GATHER, y.len as usize, samples.len(), &args)
    }

    /// One launch a lane: each has a picture of its own.
    pub(super) fn overlay(
        &self,
        program: &Program,
        step: usize,
        size: (usize, usize),
        photo: (usize, usize),
        level: Level,
        [x, range, y]: [Value; 3],
    ) -> Result<()> {
        let found = program.axes(step).zip(program.palettes.as_ref());
        let Some(([rows, cols], [layer, input])) = found else { return Ok(()) };
        let is_layer = level == Level::Layer;
        for lane in 0..y.lanes as usize {
            let args = OverlayArgs {
                map: x.data.cast::<f32>().wrapping_add(lane * x.len as usize),
                range: range.data.cast::<f32>().wrapping_add(lane * 2),
                photo: self.picture.photo.pointer(0),
                rows: rows.pointer(0),
                cols: cols.pointer(0),
                palette: if is_layer { layer } else { input }.pointer(0),
                y: y.data.wrapping_add(lane * y.len as usize),
                pitch: self.picture.pitch as u64,
                format: picture::code(self.picture.format),
                h: photo.0 as u32,
                w: photo.1 as u32,
                map_h: size.0 as u32,
                map_w: size.1 as u32,
                layer: u32::from(is_layer),
            };
            self.launch(&k::OVERLAY, [photo.1.div_ceil(32), photo.0.div_ceil(8), 1], &args)?;
        }
        Ok(())
    }
}
