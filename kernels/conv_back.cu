// Convolution of fp32 by fp16 on tensor cores (mma m16n8k8 in tf32): input-gradients, one launch for each phase.
//
//     y[b, origin + step·q, n] = mul ⊙ Σ_taps Σ_c x[b, stride·q + first + tap, c] · w[tap·xc + c, n] + add
//
// x [count or count/lanes, xh, xw, xc] fp32 (gradients, relevance); w [tap_rows·tap_cols·xc, yc] fp16, the phase's
// matrix; y and add [count, yh, yw, yc] fp32; mul of that shape, fp16 or fp32 (mul.half). mul and add may be null and
// may have one lane, add may be y. bias, relu and `divides` work as in conv.cu, but not with several parts. A phase
// without taps, where the stride exceeds the kernel, gives add. How: conv_tile.cuh.
//
// Where the result has few channels, one launch of conv_tf32_128x16_v4 serves all phases, for they read nearly the same
// pixels: w has a column for each channel of each of part_rows × part_cols neighbouring pixels of y, the first of which
// is pixel origin + step·q, with zeros where a tap does not reach a pixel. Four channels a vector: y.c is a multiple of 4
// unless there is one part.
//
// Sizes and grid: as in conv.cu, ceil(M / BM) · ceil(N / BN) blocks with M = count · ph · pw, N = yc.
//
//     kernel                 BM   BN  threads  dynamic shared  xc multiple of  x aligned to  meant for
//     conv_tf32_128x128_v4  128  128      128          51200               4      16 bytes  yc > 64
//     conv_tf32_128x64_v4   128   64      128          43008               4      16 bytes  yc <= 64
//     conv_tf32_64x64_v4     64   64      128          50176               4      16 bytes  few tiles: more blocks
//     conv_tf32_128x16_v4   128   16      128          54272               4      16 bytes  yc <= 16: image gradient
//     conv_tf32_64x64_v1     64   64      128          37888               1       4 bytes  any
//     conv_tf32x2_64x64_v4   64   64      128          50176               4      16 bytes  exact
//     conv_tf32x2_64x64_v1   64   64      128          37888               1       4 bytes  exact, any
//
// Weights move by 16 bytes when yc is a multiple of 8 and w aligned to 16 bytes; results when yc is a multiple of 4
// and y, add and mul aligned to 16 bytes. Otherwise element by element, by the same kernels.
// Bytes: at least 4·(x + y) + 2·w. FLOPs: 2·M·N·K; conv_tf32x2_* spend twice as many.
// Numbers: x is rounded to tf32 (11 bits, to nearest), w is exact in it; conv_tf32x2_* multiply what that takes away too,
// again in tf32, which leaves out no more than a float's last bit. fp32 sums in ascending k, the same for all kernels of
// a kind; *bad = 1 when a stored result is infinite or no number.
// CPU twin: src/backend/cpu/gathered.rs. Test: tests/ops.rs.
#include "conv_tile.cuh"

//                             X      BM   BN  BK stages warps vector split
using Tf32_128x128_v4 = Tile<float, 128, 128, 16, 4, 2, 2, 4>;
using Tf32_128x64_v4 = Tile<float, 128, 64, 16, 4, 2, 2, 4>;
using Tf32_64x64_v4 = Tile<float, 64, 64, 32, 4, 2, 2, 4>;
using Tf32_128x16_v4 = Tile<float, 128, 16, 32, 3, 4, 1, 4>;
using Tf32_64x64_v1 = Tile<float, 64, 64, 32, 3, 2, 2, 1>;
using Tf32x2_64x64_v4 = Tile<float, 64, 64, 32, 4, 2, 2, 4, 2>;
using Tf32x2_64x64_v1 = Tile<float, 64, 64, 32, 3, 2, 2, 1, 2>;

static_assert(Tf32_128x128_v4::SHARED_BYTES == 51200 && Tf32_128x64_v4::SHARED_BYTES == 43008 &&
              Tf32_64x64_v4::SHARED_BYTES == 50176 && Tf32_128x16_v4::SHARED_BYTES == 54272 &&
              Tf32_64x64_v1::SHARED_BYTES == 37888 && Tf32x2_64x64_v4::SHARED_BYTES == 50176 &&
              Tf32x2_64x64_v1::SHARED_BYTES == 37888, "the table above");

KERNEL(conv_tf32_128x128_v4, ConvArgs, Tf32_128x128_v4::THREADS, 2) { convolve<Tf32_128x128_v4>(a); }
KERNEL(conv_tf32_128x64_v4, ConvArgs, Tf32_128x64_v4::THREADS, 3) { convolve<Tf32_128x64_v4>(a); }
KERNEL(conv_tf32_64x64_v4, ConvArgs, Tf32_64x64_v4::THREADS, 4) { convolve<Tf32_64x64_v4>(a); }
KERNEL(conv_tf32_128x16_v4, ConvArgs, Tf32_128x16_v4::THREADS, 4) { convolve<Tf32_128x16_v4>(a); }
KERNEL(conv_tf32_64x64_v1, ConvArgs, Tf32_64x64_v1::THREADS, 4) { convolve<Tf32_64x64_v1>(a); }
KERNEL(conv_tf32x2_64x64_v4, ConvArgs, Tf32x2_64x64_v4::THREADS, 4) { convolve<Tf32x2_64x64_v4>(a); }
KERNEL(conv_tf32x2_64x64_v1, ConvArgs, Tf32x2_64x64_v1::THREADS, 4) { convolve<Tf32x2_64x64_v1>(a); }
