// Convolution on Hopper's tensor cores: fp16 by fp16 (wgmma m64nNk16) in forward passes, fp32 by fp16 (m64nNk8 in tf32)
// for input-gradients.
//
// architectures: sm_90a
//
//     y[b, origin + step·q, n] = relu?( mul ⊙ Σ_taps Σ_c x[b, stride·q + first + tap, c] · w[tap·xc + c, n] + bias + add )
//
// Shapes, types, sizes and grid: as in conv.cu and conv_back.cu, but conv_wgmma_tf32* take w as [yc, K] in fp32, of
// values that fp16 holds, aligned to 16 bytes.
//
//     kernel                         BM   BN  threads  dynamic shared  xc multiple of  x aligned to  meant for
//     conv_wgmma_f16_128x256_v8     128  256      256         198656               8      16 bytes  many channels
//     conv_wgmma_f16_128x128_v8     128  128      256         100352               8      16 bytes  yc > 64
//     conv_wgmma_f16_128x64_v8      128   64      256         100352               8      16 bytes  yc <= 64
//     conv_wgmma_f16_64x64_v8        64   64      128          66560               8      16 bytes  few tiles: more blocks
//     conv_wgmma_tf32_128x128_v4    128  128      256         100352               4      16 bytes  yc > 64
//     conv_wgmma_tf32_128x64_v4     128   64      256         100352               4      16 bytes  yc <= 64
//     conv_wgmma_tf32_64x64_v4       64   64      128          66560               4      16 bytes  few tiles: more blocks
//     conv_wgmma_tf32x2_128x64_v4   128   64      256         100352               4      16 bytes  exact
//
// Of these, conv_wgmma_f16_* up to 128 columns divide. A block has one or two warpgroups, and every thread brings operands
// and starts products: while the tensor cores read one stage by themselves, the next ones arrive.
// In tf32 the instructions want both operands along K, and would cut x off where it is to be rounded: so w is turned, and
// x passes through registers. Two blocks on a multiprocessor take turns at that.
// Bytes: at least 2·(x + w + y), in tf32 4·(x + w + y). FLOPs: 2·M·N·K; conv_wgmma_tf32x2_* spend twice as many.
// Numbers: as in conv.cu and conv_back.cu; fp16 and tf32 in one part gave the bits of their kernels on an H100.
// CPU twin: src/backend/cpu/gathered.rs. Test: tests/ops.rs.
#include "conv_tile.cuh"

//                                     X       BM   BN  BK stages warps vector split wgmma
using Wgmma_f16_128x256_v8 = Tile<__half, 128, 256, 64, 4, 8, 1, 8, 1, true>;
using Wgmma_f16_128x128_v8 = Tile<__half, 128, 128, 64, 3, 8, 1, 8, 1, true>;
using Wgmma_f16_128x64_v8 = Tile<__half, 128, 64, 64, 4, 8, 1, 8, 1, true>;
using Wgmma_f16_64x64_v8 = Tile<__half, 64, 64, 64, 4, 4, 1, 8, 1, true>;
using Wgmma_tf32_128x128_v4 = Tile<float, 128, 128, 32, 3, 8, 1, 4, 1, true>;
using Wgmma_tf32_128x64_v4 = Tile<float, 128, 64, 32, 4, 8, 1, 4, 1, true>;
using Wgmma_tf32_64x64_v4 = Tile<float, 64, 64, 32, 4, 4, 1, 4, 1, true>;
using Wgmma_tf32x2_128x64_v4 = Tile<float, 128, 64, 32, 4, 8, 1, 4, 2, true>;

static_assert(Wgmma_f16_128x256_v8::SHARED_BYTES == 198656 && Wgmma_f16_128x128_v8::SHARED_BYTES == 100352 &&
              Wgmma_f16_128x64_v8::SHARED_BYTES == 100352 && Wgmma_f16_64x64_v8::SHARED_BYTES == 66560 &&
              Wgmma_tf32_128x128_v4::SHARED_BYTES == 100352 && Wgmma_tf32_128x64_v4::SHARED_BYTES == 100352 &&
              Wgmma_tf32_64x64_v4::SHARED_BYTES == 66560 && Wgmma_tf32x2_128x64_v4::SHARED_BYTES == 100352,
              "the table above");

KERNEL(conv_wgmma_f16_128x256_v8, ConvArgs, Wgmma_f16_128x256_v8::THREADS, 1) { convolve<Wgmma_f16_128x256_v8>(a); }
KERNEL(conv_wgmma_f16_128x128_v8, ConvArgs, Wgmma_f16_128x128_v8::THREADS, 2) { convolve<Wgmma_f16_128x128_v8>(a); }
KERNEL(conv_wgmma_f16_128x64_v8, ConvArgs, Wgmma_f16_128x64_v8::THREADS, 2) { convolve<Wgmma_f16_128x64_v8>(a); }
KERNEL(conv_wgmma_f16_64x64_v8, ConvArgs, Wgmma_f16_64x64_v8::THREADS, 3) { convolve<Wgmma_f16_64x64_v8>(a); }
KERNEL(conv_wgmma_tf32_128x128_v4, ConvArgs, Wgmma_tf32_128x128_v4::THREADS, 2) { convolve<Wgmma_tf32_128x128_v4>(a); }
KERNEL(conv_wgmma_tf32_128x64_v4, ConvArgs, Wgmma_tf32_128x64_v4::THREADS, 2) { convolve<Wgmma_tf32_128x64_v4>(a); }
KERNEL(conv_wgmma_tf32_64x64_v4, ConvArgs, Wgmma_tf32_64x64_v4::THREADS, 3) { convolve<Wgmma_tf32_64x64_v4>(a); }
KERNEL(conv_wgmma_tf32x2_128x64_v4, ConvArgs, Wgmma_tf32x2_128x64_v4::THREADS, 2) {
    convolve<Wgmma_tf32x2_128x64_v4>(a);
}
