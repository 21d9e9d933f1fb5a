// Convolution of fp16 by fp16 on tensor cores (mma m16n8k16): forward passes.
//
//     y[b, q, n] = relu?( Σ_taps Σ_c x[b, stride·q + first + tap, c] · w[tap·xc + c, n] + bias[n] + add[b, q, n] )
//     y[b, q, n] = scale · mul[b, q, n] / ( the same sum ), with `divides`
//
// x [count or count/lanes, xh, xw, xc] fp16; w [tap_rows·tap_cols·xc, yc] fp16; bias [yc] fp32 or null; y and add
// [count, yh, yw, yc], both fp16 or both fp32 (y.half); add may be null, may be y, and may have one lane; mul is null
// unless it is divided, and then fp32 as y.
// Pixel q of the ph × pw pixels of the phase is pixel origin + step·q of y. How: conv_tile.cuh.
//
// As a matrix product: M = count · ph · pw, N = yc, K = tap_rows · tap_cols · xc. Any sizes with M < 2³¹, and less than
// 2³¹ elements in a sample of x or y and in w. K = 0 gives bias + add.
// Grid: ceil(M / BM) · ceil(N / BN) blocks, one-dimensional; nothing to launch when M = 0.
//
//     kernel                 BM   BN  threads  dynamic shared  xc multiple of  x aligned to  meant for
//     conv_f16_256x128_v8   256  128      256         151552               8      16 bytes  more tiles than processors
//     conv_f16_128x128_v8   128  128      128          67584               8      16 bytes  yc > 64
//     conv_f16_128x64_v8    128   64      128          51200               8      16 bytes  yc <= 64
//     conv_f16_64x64_v8      64   64      128          66560               8      16 bytes  few tiles: more blocks
//     conv_f16_128x64_v4    128   64      128          51200               4       8 bytes  pixels of 4 channels
//     conv_f16_64x64_v1      64   64      128          25600               1       2 bytes  any
//
// Weights move by 16 bytes when yc is a multiple of 8 and w aligned to 16 bytes; results when yc is a multiple of 8
// (fp32: 4) and y and add aligned to 16 bytes. Otherwise element by element, by the same kernels.
//
// Why these tiles: ldmatrix moves (WARP_M + WARP_N) · 32 bytes for WARP_M · WARP_N · 16 products, and the larger a
// warp's share, the less shared memory limits the tensor cores: 64 × 64 leaves registers for eight warps on a
// multiprocessor. A tile reads (BM + BN) · 2 bytes of the second-level cache for BM · BN products: the larger, the less
// that limits them.
// Bytes: at least 2·(x + w + y). FLOPs: 2·M·N·K.
// Numbers: fp32 sums in ascending k, the same for all kernels; *bad = 1 when a stored result is infinite or no number.
// CPU twin: src/backend/cpu/gathered.rs. Test: tests/ops.rs.
#include "conv_tile.cuh"

//                            X       BM   BN  BK stages warps vector
using F16_256x128_v8 = Tile<__half, 256, 128, 64, 3, 4, 2, 8>;
using F16_128x128_v8 = Tile<__half, 128, 128, 32, 4, 2, 2, 8>;
using F16_128x64_v8 = Tile<__half, 128, 64, 32, 4, 2, 2, 8>;
using F16_64x64_v8 = Tile<__half, 64, 64, 64, 4, 2, 2, 8>;
using F16_128x64_v4 = Tile<__half, 128, 64, 32, 4, 2, 2, 4>;
using F16_64x64_v1 = Tile<__half, 64, 64, 32, 3, 2, 2, 1>;

static_assert(F16_256x128_v8::SHARED_BYTES == 151552 && F16_128x128_v8::SHARED_BYTES == 67584 &&
              F16_128x64_v8::SHARED_BYTES == 51200 && F16_64x64_v8::SHARED_BYTES == 66560 &&
              F16_128x64_v4::SHARED_BYTES == 51200 && F16_64x64_v1::SHARED_BYTES == 25600, "the table above");

KERNEL(conv_f16_256x128_v8, ConvArgs, F16_256x128_v8::THREADS, 1) { convolve<F16_256x128_v8>(a); }
KERNEL(conv_f16_128x128_v8, ConvArgs, F16_128x128_v8::THREADS, 2) { convolve<F16_128x128_v8>(a); }
KERNEL(conv_f16_128x64_v8, ConvArgs, F16_128x64_v8::THREADS, 3) { convolve<F16_128x64_v8>(a); }
KERNEL(conv_f16_64x64_v8, ConvArgs, F16_64x64_v8::THREADS, 3) { convolve<F16_64x64_v8>(a); }
KERNEL(conv_f16_128x64_v4, ConvArgs, F16_128x64_v4::THREADS, 3) { convolve<F16_128x64_v4>(a); }
KERNEL(conv_f16_64x64_v1, ConvArgs, F16_64x64_v1::THREADS, 4) { convolve<F16_64x64_v1>(a); }
