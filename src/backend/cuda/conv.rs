//! Which kernel a convolution runs on. All give the same bits, so the choice may look at the size of the batch.

use super::args::ConvArgs;
use super::kernels::Kernel;
use crate::backend::ConvGeom;
use crate::backend::taps::Phase;
use crate::net::Shape;

/// How a kernel reads the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Read {
    /// It is fp16.
    F16,
    /// The same by a warpgroup of Hopper's, to the same bits.
    F16Wgmma,
    /// Rounded to TF32.
    Tf32,
    /// As the sum of two numbers of TF32, which hold all but its last bit.
    Tf32Twice,
    /// The same two by a warpgroup of Hopper's, with the weight turned.
    Tf32Wgmma,
    Tf32TwiceWgmma,
}

impl Read {
    /// How an input-gradient reads `dy` of so many channels, for a result of so many.
    pub fn back(exact: bool, source: usize, result: usize, limits: Limits) -> Self {
        /// Fewer channels of the result would leave most of a warpgroup's tile empty.
        const WIDE: usize = 32;
        match (limits.wgmma && source.is_multiple_of(4) && result >= WIDE, exact) {
            (true, true) => Self::Tf32TwiceWgmma,
            (true, false) => Self::Tf32Wgmma,
            (false, true) => Self::Tf32Twice,
            (false, false) => Self::Tf32,
        }
    }

    /// Whether it is by a warpgroup.
    pub fn is_wgmma(self) -> bool {
        matches!(self, Self::F16Wgmma | Self::Tf32Wgmma | Self::Tf32TwiceWgmma)
    }
}

/// One instance of the tiled kernels in `kernels/conv*.cu`; the numbers are from there.
pub(super) struct Tile {
    pub name: &'static str,
    /// Pixels and result channels of a tile.
    m: usize,
    n: usize,
    threads: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// What the source's channels must be a multiple of.
    source: usize,
    read: Read,
    /// TFLOP/s of an H100 in layers that fill it; a guess where no other tile competes.
    rate: usize,
}

const fn tile(
    name: &'static str,
    [m, n]: [usize; 2],
    threads: u32,
    shared: u32,
    source: usize,
    read: Read,
    rate: usize,
) -> Tile {
    Tile { name, m, n, threads, shared, source, read, rate }
}

impl Tile {
    /// Whether a device can run it.
    pub fn runs_on(&self, limits: Limits) -> bool {
        self.shared <= limits.shared && (limits.wgmma || !self.read.is_wgmma())
    }

    /// Its kernel, and the number of blocks for so many pixels of so many channels.
    pub fn launch(&self, pixels: usize, result: usize) -> (Kernel<ConvArgs>, usize) {
        (Kernel::with_shared(self.name, self.threads, self.shared), self.blocks(pixels, result))
    }

    fn blocks(&self, pixels: usize, result: usize) -> usize {
        pixels.div_ceil(self.m) * result.div_ceil(self.n)
    }
}

/// All of them; of equal ones the first is taken.
pub(super) const TILES: &[Tile] = &[
    tile("conv_wgmma_f16_128x256_v8", [128, 256], 256, 198_656, 8, Read::F16Wgmma, 610),
    tile("conv_wgmma_f16_128x128_v8", [128, 128], 256, 100_352, 8, Read::F16Wgmma, 506),
    tile("conv_wgmma_f16_128x64_v8", [128, 64], 256, 100_352, 8, Read::F16Wgmma, 388),
    tile("conv_wgmma_f16_64x64_v8", [64, 64], 128, 66_560, 8, Read::F16Wgmma, 297),
    tile("conv_wgmma_tf32_128x128_v4", [128, 128], 256, 100_352, 4, Read::Tf32Wgmma, 213),
    tile("conv_wgmma_tf32_128x64_v4", [128, 64], 256, 100_352, 4, Read::Tf32Wgmma, 153),
    tile("conv_wgmma_tf32_64x64_v4", [64, 64], 128, 66_560, 4, Read::Tf32Wgmma, 137),
    tile("conv_wgmma_tf32x2_128x64_v4", [128, 64], 256, 100_352, 4, Read::Tf32TwiceWgmma, 80),
    tile("conv_f16_256x128_v8", [256, 128], 256, 151_552, 8, Read::F16, 375),
    tile("conv_f16_128x128_v8", [128, 128], 128, 67_584, 8, Read::F16, 339),
    tile("conv_f16_128x64_v8", [128, 64], 128, 51_200, 8, Read::F16, 276),
    tile("conv_f16_64x64_v8", [64, 64], 128, 66_560, 8, Read::F16, 273),
    tile("conv_f16_128x64_v4", [128, 64], 128, 51_200, 4, Read::F16, 284),
    tile("conv_f16_64x64_v1", [64, 64], 128, 25_600, 1, Read::F16, 50),
    tile("conv_tf32_128x128_v4", [128, 128], 128, 51_200, 4, Read::Tf32, 145),
    tile("conv_tf32_128x64_v4", [128, 64], 128, 43_008, 4, Read::Tf32, 121),
    tile("conv_tf32_64x64_v4", [64, 64], 128, 50_176, 4, Read::Tf32, 132),
    NARROW,
    tile("conv_tf32_64x64_v1", [64, 64], 128, 37_888, 1, Read::Tf32, 30),
    tile("conv_tf32x2_64x64_v4", [64, 64], 128, 50_176, 4, Read::Tf32Twice, 70),
    tile("conv_tf32x2_64x64_v1", [64, 64], 128, 37_888, 1, Read::Tf32Twice, 15),
];

/// The one that makes all phases of an input-gradient at once, where the result has few channels: see
/// `kernels/conv_back.cu`.
pub(super) const NARROW: Tile = tile("conv_tf32_128x16_v4", [128, 16], 128, 54_272, 4, Read::Tf32, 50);

/// Whether it makes all phases of this one.
pub(super) fn is_narrow(g: &ConvGeom, exact: bool) -> bool {
    let parts = g.window.stride[0] * g.window.stride[1];
    parts > 1 && !exact && g.x.c.is_multiple_of(4) && g.y.c.is_multiple_of(4) && parts * g.x.c <= NARROW.n
}

/// The 7×7 kernel for a network's first layer, see `kernels/stem.cu`.
pub(super) const STEM: Kernel<ConvArgs> = Kernel::with_shared("stem_f16_7x7", 256, 71_648);

/// Whether the stem's kernel serves a convolution.
pub(super) fn is_stem(phase: &Phase, source: Shape, result: Shape) -> bool {
    let seven = (phase.taps, phase.stride, phase.first, phase.step) == ([7, 7], [2, 2], [-3, -3], [1, 1]);
    seven && source.c == 4 && result.c.is_multiple_of(8)
}

/// Grid of the stem's kernel, whose blocks walk over tiles of 16 × 16 pixels for 64 channels.
pub(super) fn stem_grid(result: Shape, count: usize, multiprocessors: usize) -> [usize; 3] {
    let tiles = count * result.h.div_ceil(16) * result.w.div_ceil(16);
    [tiles.min(2 * multiprocessors), result.c.div_ceil(64), 1]
}

/// What of a device matters to the choice.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub multiprocessors: usize,
    /// Most bytes of shared memory of a block.
    pub shared: u32,
    /// Whether it is a Hopper, with matrix products of warpgroups.
    pub wgmma: bool,
}

/// The kernel for `pixels` pixels of a phase, and the number of its blocks. `divides`: the result is a divisor.
pub(super) fn choose(
    read: Read,
    pixels: usize,
    source: usize,
    result: usize,
    divides: bool,
    limits: Limits,
) -> (Kernel<ConvArgs>, usize) {
    /// Wider tiles do not divide: `Tile::DIVIDES` in `kernels/conv_operands.cuh`.
    const WIDE: usize = 128;
    /// So that times are whole numbers that differ where rates do.
    const RATES: usize = 1000;
    // Wide loads of the source, where its channels allow them; where they do, a warpgroup's products.
    let whole = source.is_multiple_of(8) && limits.wgmma;
    let read = if read == Read::F16 && whole { Read::F16Wgmma } else { read };
    let kind = || TILES.iter().filter(|t| t.read == read && t.runs_on(limits) && (!divides || t.n <= WIDE));
    let width = kind().map(|t| t.source).filter(|n| source.is_multiple_of(*n)).max();
    // What the multiprocessor with most tiles has to do.
    let time = |t: &&Tile| (t.blocks(pixels, result).div_ceil(limits.multiprocessors) * t.m * t.n * RATES) / t.rate;
    let tile = kind().filter(|t| Some(t.source) == width).min_by_key(time);
    let tile = tile.unwrap_or_else(|| unreachable!("some tile takes any number of channels"));
    tile.launch(pixels, result)
}

/// Arguments of one phase; the caller fills in what is not geometry.
pub(super) fn arguments(phase: &Phase, source: Shape, result: Shape) -> ConvArgs {
    let i = |n: usize| n as i32;
    ConvArgs {
        xh: i(source.h),
        xw: i(source.w),
        xc: i(source.c),
        yh: i(result.h),
        yw: i(result.w),
        yc: i(result.c),
        ph: i(phase.h),
        pw: i(phase.w),
        origin_y: i(phase.origin[0]),
        origin_x: i(phase.origin[1]),
        step_y: i(phase.step[0]),
        step_x: i(phase.step[1]),
        stride_y: i(phase.stride[0]),
        stride_x: i(phase.stride[1]),
        first_y: phase.first[0] as i32,
        first_x: phase.first[1] as i32,
        tap_rows: i(phase.taps[0]),
        tap_cols: i(phase.taps[1]),
        part_rows: 1,
        part_cols: 1,
        ..ConvArgs::NONE
    }
}
