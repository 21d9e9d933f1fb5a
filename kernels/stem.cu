// The first convolution of a residual network: 7×7, stride 2, padding 3, on pixels of 4 channels (the fourth is 0).
//
//     y[b, oy, ox, n] = relu?( Σ_{ky, kx, c} x[b, 2·oy + ky − 3, 2·ox + kx − 3, c] · w[(7·ky + kx)·4 + c, n]
//                              + bias[n] + add[b, oy, ox, n] )
//
// x [count or count/lanes, xh, xw, 4] fp16, w [196, yc] fp16, y and add (or null, or y) [count, yh, yw, yc] fp16, mul
// null: the arguments of conv_f16 with one phase. yc is a multiple of 8, w aligned to 16 bytes, x to 8; less than 2³¹
// elements in a sample, less than 2³¹ tiles.
//
// Two neighbouring pixels are 16 bytes: one row of an ldmatrix, eight values of K. Output pixel ox reads taps 2j and
// 2j + 1 of a row at pixel 2·(ox + j) of the tile, so eight output pixels read 128 bytes that lie side by side: the
// fragments of A come from the image itself, without im2col and without bank conflicts. An eighth tap, whose weights
// are 0, completes the last pair: K = 7 rows · 8 taps · 4 channels = 14 steps of 16.
//
// Block: 256 threads, 71648 bytes of dynamic shared memory. Grid: (min(tiles, 2 · multiprocessors), ceil(yc / 64)) with
// tiles = count · ceil(yh / 16) · ceil(yw / 16); results do not depend on its width. A block keeps the weights of its
// 64 channels and walks over tiles; while it works on one, the next arrives.
// Bytes: 2·(4·xh·xw + yh·yw·yc) a result. FLOPs: 2·147·yh·yw·yc of 2·224·yh·yw·yc that the tensor cores do.
// Numbers: fp32 sums in ascending k; equal to conv_f16 up to rounding, whose k falls into other instructions.
// CPU twin: src/backend/cpu/gathered.rs. Test: tests/ops.rs.
#include "conv_tile.cuh"

namespace stem {

constexpr int SIDE = 16;               // output pixels of a tile, each way
constexpr int ROWS = 2 * SIDE + 5;     // input rows they reach
constexpr int COLS = 2 * SIDE + 6;     // and columns, with the eighth tap
constexpr int PIXEL = 8;               // bytes
constexpr int THREADS = 256, CHANNELS = 64, K = 7 * 8 * 4;
constexpr int TILE_BYTES = ROWS * COLS * PIXEL, WEIGHT_BYTES = K * CHANNELS * 2;
constexpr int WARPS_N = 2, TILES_M = 4, TILES_N = CHANNELS / WARPS_N / 8;  // a warp: 4 rows of 16 pixels, 32 channels
constexpr int SLAB_BYTES = 16 * SLAB_PITCH<TILES_N> * 4;
constexpr int SHARED_BYTES = WEIGHT_BYTES + 2 * TILE_BYTES + THREADS / 32 * SLAB_BYTES;
static_assert(SHARED_BYTES == 71648, "as the host asks for");

// Its result and sample, and its first output pixel.
DEVICE Row tile_at(const ConvArgs& a, u32 tile) {
    const u32 across = (a.yw + SIDE - 1) / SIDE, down = (a.yh + SIDE - 1) / SIDE;
    const u32 result = tile / (across * down), within = tile % (across * down);
    return Row{result, result / a.y.lanes, static_cast<i32>(within / across * SIDE),
               static_cast<i32>(within % across * SIDE)};
}

// Row (ky·8 + kx)·4 + c of the staged weights is row (ky·7 + kx)·4 + c of w, or 0 for kx = 7.
DEVICE void load_weights(const ConvArgs& a, unsigned char* weights, i32 n0) {
    constexpr int CHUNKS = CHANNELS / 8;
    for (int i = threadIdx.x; i < K * CHUNKS; i += THREADS) {
        const int k = i / CHUNKS, chunk = i % CHUNKS, tap_row = k / 32, within = k % 32, n = n0 + chunk * 8;
        const bool there = within < 28 && n < a.yc;
        cp_async<16>(weights + swizzled<CHUNKS>(k, chunk), a.w + (tap_row * 28 + within) * a.yc + n, there);
    }
}

DEVICE void load_tile(const ConvArgs& a, unsigned char* tile, const Row& at) {
    const __half* x = static_cast<const __half*>(a.x.data) + block_of(a.x, at, a.y.lanes);
    for (int i = threadIdx.x; i < ROWS * COLS; i += THREADS) {
        const i32 row = 2 * at.qy - 3 + i / COLS, col = 2 * at.qx - 3 + i % COLS;
        const bool inside = static_cast<u32>(row) < static_cast<u32>(a.xh) &&
                            static_cast<u32>(col) < static_cast<u32>(a.xw);
        cp_async<PIXEL>(tile + i * PIXEL, x + (row * a.xw + col) * 4, inside);
    }
}

// The warp's rows of 16 output pixels begin at `tile`, its channels at chunk `chunk` of the weights.
DEVICE void multiply(const unsigned char* tile, const unsigned char* weights, int chunk,
                     float (&sum)[TILES_M][TILES_N][4]) {
    const int lane = threadIdx.x % 32;
    const unsigned char* x_at = tile + (lane % 16 + lane / 16) * 2 * PIXEL;
    const int w_at = swizzled<CHANNELS / 8>(lane % 16, chunk + lane / 16);
#pragma unroll 2
    for (int k = 0; k < K; k += 16) {
        const int tap_row = k / 32, pair = k % 32 / 8;
        unsigned w[TILES_N / 2][4];
#pragma unroll
        for (int j = 0; j < TILES_N / 2; j++) ldmatrix_x4_trans(w[j], weights + k * CHANNELS * 2 + (w_at ^ j * 32));
#pragma unroll
        for (int i = 0; i < TILES_M; i++) {
            unsigned x[4];
            ldmatrix_x4(x, x_at + ((2 * i + tap_row) * COLS + 2 * pair) * PIXEL);
#pragma unroll
            for (int j = 0; j < TILES_N; j++) mma_f16(sum[i][j], x, w[j / 2][j % 2 * 2], w[j / 2][j % 2 * 2 + 1]);
        }
    }
}

}  // namespace stem

KERNEL(stem_f16_7x7, ConvArgs, stem::THREADS, 2) {
    using namespace stem;
    extern __shared__ __align__(1024) unsigned char dynamic_shared[];
    unsigned char* weights = dynamic_shared;
    unsigned char* tiles = weights + WEIGHT_BYTES;  // two of them, in turn

    const int warp = threadIdx.x / 32, first_row = warp / WARPS_N * TILES_M, first_n = warp % WARPS_N * TILES_N * 8;
    float* slab = reinterpret_cast<float*>(tiles + 2 * TILE_BYTES + warp * SLAB_BYTES);
    const i32 n0 = blockIdx.y * CHANNELS;
    const u32 total = a.count * ((a.yh + SIDE - 1) / SIDE) * ((a.yw + SIDE - 1) / SIDE);

    load_weights(a, weights, n0);
    if (blockIdx.x < total) load_tile(a, tiles, tile_at(a, blockIdx.x));
    cp_commit();
    int use = 0;
    for (u32 tile = blockIdx.x; tile < total; tile += gridDim.x, use ^= 1) {
        if (tile + gridDim.x < total) load_tile(a, tiles + (use ^ 1) * TILE_BYTES, tile_at(a, tile + gridDim.x));
        cp_commit();
        cp_wait<1>();
        __syncthreads();
        float sum[TILES_M][TILES_N][4] = {};
        multiply(tiles + use * TILE_BYTES + 2 * first_row * COLS * PIXEL, weights, first_n / 8, sum);
        __syncthreads();  // all have used this tile before it is filled anew
        const Row at = tile_at(a, tile);
        finish<__half, None>(a, sum, slab, n0 + first_n, [&](int i, i32 n) {
            const i32 y = at.qy + first_row + i / SIDE, x = at.qx + i % SIDE;
            return Place{at, static_cast<u32>((y * a.yw + x) * a.yc + n), y < a.yh && x < a.yw};
        });
    }
    cp_wait<0>();
}
