// Convolution of fp16 by fp16 on Hopper's tensor cores (wgmma m64nNk16): forward passes.
//
// architectures: sm_90a
//
//     y[b, q, n] = relu?( Σ_taps Σ_c x[b, stride·q + first + tap, c] · w[tap·xc + c, n] + bias[n] + add[b, q, n] )
//
// Shapes, types, sizes and grid: as in conv.cu.
//
//     kernel                   BM   BN  threads  dynamic shared  xc multiple of  x aligned to  meant for
//     conv_wgmma_128x256_v8   128  256      256         198656               8      16 bytes  many channels
//     conv_wgmma_128x128_v8   128  128      256         100352               8      16 bytes  yc > 64
//     conv_wgmma_128x64_v8    128   64      256         100352               8      16 bytes  yc <= 64
//     conv_wgmma_64x64_v8      64   64      128         132096               8      16 bytes  few tiles: more blocks
//
// A block has one or two warpgroups, and every thread brings operands and starts products: while the tensor cores read
// one stage by themselves, the next ones arrive. The narrowest tile is for grids that leave most of the device idle; it
// has more steps under way, for there it is latency that counts.
// Bytes: at least 2·(x + w + y). FLOPs: 2·M·N·K.
// Numbers: fp32 sums in ascending k, the bits of conv_f16_*; *bad = 1 when a stored result is infinite or no number.
// CPU twin: src/backend/cpu/gathered.rs. Test: tests/ops.rs.
#include "conv_tile.cuh"

//                                  X       BM   BN  BK stages warps vector split wgmma
using Wgmma_128x256_v8 = Tile<__half, 128, 256, 64, 4, 8, 1, 8, 1, true>;
using Wgmma_128x128_v8 = Tile<__half, 128, 128, 64, 3, 8, 1, 8, 1, true>;
using Wgmma_128x64_v8 = Tile<__half, 128, 64, 64, 4, 8, 1, 8, 1, true>;
using Wgmma_64x64_v8 = Tile<__half, 64, 64, 64, 8, 4, 1, 8, 1, true>;

static_assert(Wgmma_128x256_v8::SHARED_BYTES == 198656 && Wgmma_128x128_v8::SHARED_BYTES == 100352 &&
              Wgmma_128x64_v8::SHARED_BYTES == 100352 && Wgmma_64x64_v8::SHARED_BYTES == 132096, "the table above");

KERNEL(conv_wgmma_128x256_v8, ConvArgs, Wgmma_128x256_v8::THREADS, 1) { convolve<Wgmma_128x256_v8>(a); }
KERNEL(conv_wgmma_128x128_v8, ConvArgs, Wgmma_128x128_v8::THREADS, 2) { convolve<Wgmma_128x128_v8>(a); }
KERNEL(conv_wgmma_128x64_v8, ConvArgs, Wgmma_128x64_v8::THREADS, 2) { convolve<Wgmma_128x64_v8>(a); }
KERNEL(conv_wgmma_64x64_v8, ConvArgs, Wgmma_64x64_v8::THREADS, 1) { convolve<Wgmma_64x64_v8>(a); }
