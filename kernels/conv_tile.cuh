// Implicit matrix product of a convolution: what conv.cu, conv_back.cu and conv_hopper.cu have in common.
//
//     sum[m, n] = Σ_k A[m, k] · w[k, n]      M = count · ph · pw pixels, N = yc, K = tap_rows · tap_cols · xc
//
// A is never built: element (m, k) is gathered from x where it is needed, k = (tap row, tap column, channel). A block
// makes one tile of M × N sums in separable parts: Gather and Weights (conv_operands.cuh) bring a step of K into shared
// memory, `multiply` feeds the tensor cores from there, `finish` (epilogue.cuh) applies the epilogue on the way to memory.
//
// Every sum runs over k in ascending order in instructions of one depth, whichever tile it falls into. So results
// depend neither on the tile size nor on the number of samples.
#pragma once

#include "conv_operands.cuh"
#include "wgmma.cuh"

// Bits of two halves as bits of floats, which tf32 holds exactly.
DEVICE uint2 widened(unsigned pair) {
    __half2 halves;
    memcpy(&halves, &pair, sizeof pair);
    const float2 v = __half22float2(halves);
    return make_uint2(__float_as_uint(v.x), __float_as_uint(v.y));
}

// Adds the product of a staged step to a warp's sums; `warp_m`, `warp_n`: where they begin in the tile.
//
// 16 rows × 32 bytes of A are one fragment in either type. tf32 wants k = t and k = t + 4 of w in one lane, where
// ldmatrix gives the rows 2t and 2t + 1 of a matrix: so the matrix takes its rows in the order 0 4 1 5 2 6 3 7.
template <class T>
DEVICE void multiply(const unsigned char* stage, int warp_m, int warp_n,
                     float (&sum)[T::WARP_M / 16][T::WARP_N / 8][4]) {
    constexpr bool TF32 = sizeof(typename T::X) == 4;
    constexpr int TILES_M = T::WARP_M / 16, TILES_N = T::WARP_N / 8;
    const int lane = threadIdx.x % 32, r = lane % 8;
    const int row = lane % 16 - r + (TF32 ? r / 2 + r % 2 * 4 : r), half = lane / 16;
    // Of the first fragments. Others lie whole multiples of 8 rows further, or at another chunk, which is an XOR.
    const int x_at = swizzled<T::A_CHUNKS>(warp_m + lane % 16, half);
    const int w_at = swizzled<T::B_CHUNKS>(row, warp_n / 8 + half);
#pragma unroll
    for (int k = 0; k < T::K; k += 16) {
        unsigned w[TILES_N / 2][4];
#pragma unroll
        for (int j = 0; j < TILES_N / 2; j++) {
            ldmatrix_x4_trans(w[j], stage + T::A_BYTES + k * T::B_CHUNKS * 16 + (w_at ^ j * 32));
        }
#pragma unroll
        for (int part = 0; part < (TF32 ? 2 : 1); part++) {
            unsigned x[T::SPLIT][TILES_M][4];
#pragma unroll
            for (int i = 0; i < TILES_M; i++) {
                const int k_at = k * static_cast<int>(sizeof(typename T::X)) + part * 32;
                ldmatrix_x4(x[0][i], stage + i * T::A_CHUNKS * 256 + (x_at ^ k_at));
                if constexpr (TF32) {
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        float rest = __uint_as_float(x[0][i][e]);
#pragma unroll
                        for (int s = 0; s < T::SPLIT; s++) {
                            x[s][i][e] = round_tf32(__float_as_uint(rest));
                            rest -= __uint_as_float(x[s][i][e]);
                        }
                    }
                }
            }
#pragma unroll
            for (int j = 0; j < TILES_N; j++) {
                if constexpr (TF32) {
                    const uint2 pair = widened(w[j / 2][j % 2 * 2 + part]);
#pragma unroll
                    for (int s = 0; s < T::SPLIT; s++) {
#pragma unroll
                        for (int i = 0; i < TILES_M; i++) mma_tf32(sum[i][j], x[s][i], pair.x, pair.y);
                    }
                } else {
#pragma unroll
                    for (int i = 0; i < TILES_M; i++) {
                        mma_f16(sum[i][j], x[0][i], w[j / 2][j % 2 * 2], w[j / 2][j % 2 * 2 + 1]);
                    }
                }
            }
        }
    }
}

// The same by a warpgroup, whose rows begin at `warp_m`. The products are under way when this returns.
template <class T>
DEVICE void multiply_behind(const unsigned char* stage, int warp_m, float (&sum)[1][T::WARP_N / 8][4]) {
    static_assert(T::A_CHUNKS == 8 && T::WARP_M == 16, "as the instructions read their operands");
    const unsigned char* w = stage + T::A_BYTES;
    if constexpr (T::TURNED) {
        const int lane = threadIdx.x % 32, x_at = swizzled<8>(warp_m + lane % 16, lane / 16);
        unsigned x[T::K / 8][T::SPLIT][4];
#pragma unroll
        for (int i = 0; i < T::K / 8; i++) {
            ldmatrix_x4(x[i][0], stage + (x_at ^ i * 32));
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const unsigned bits = x[i][0][e];
                x[i][0][e] = round_tf32(bits);
                if constexpr (T::SPLIT == 2) {
                    x[i][1][e] = round_tf32(__float_as_uint(__uint_as_float(bits) - __uint_as_float(x[i][0][e])));
                }
            }
        }
        wgmma_begin();
#pragma unroll
        for (int i = 0; i < T::K / 8; i++) {
#pragma unroll
            for (int s = 0; s < T::SPLIT; s++) wgmma_tf32(sum[0], x[i][s], w + i * 32);
        }
    } else {
        const unsigned char* x = stage + warp_m / 64 * 64 * 128;
        wgmma_begin();
#pragma unroll
        for (int k = 0; k < T::K; k += 16) wgmma_f16(sum[0], x + k * 2, w + k * 128, T::K * 128);
    }
    wgmma_commit();
}

// Tile of this block. Blocks that run together cover a band of BAND tiles of pixels and all of w, so both stay in the
// second-level cache.
template <class T> DEVICE void tile_of_block(const ConvArgs& a, u32 rows, u32& m0, i32& n0) {
    constexpr u32 BAND = 8;
    const u32 tiles_m = (rows + T::M - 1) / T::M, tiles_n = (a.yc + T::N - 1) / T::N;
    const u32 band = blockIdx.x / (BAND * tiles_n), within = blockIdx.x % (BAND * tiles_n);
    const u32 height = min(BAND, tiles_m - band * BAND);
    m0 = (band * BAND + within % height) * T::M;
    n0 = static_cast<i32>(within / height * T::N);
}

// The whole kernel: finds the rows of the tile, runs the pipeline over K, stores.
template <class T> DEVICE void convolve(const ConvArgs& a) {
    extern __shared__ __align__(1024) unsigned char dynamic_shared[];
    Row* rows = reinterpret_cast<Row*>(dynamic_shared);
    unsigned char* stages = dynamic_shared + T::M * sizeof(Row);

    const u32 pixels = static_cast<u32>(a.ph * a.pw), total = pixels * a.count;
    u32 m0;
    i32 n0;
    tile_of_block<T>(a, total, m0, n0);
    for (int i = threadIdx.x; i < T::M; i += T::THREADS) {
        const u32 m = m0 + i, result = m / pixels, pixel = m % pixels;
        const i32 qy = static_cast<i32>(pixel / a.pw), qx = static_cast<i32>(pixel % a.pw);
        rows[i] = m < total ? Row{result, result / a.y.lanes, qy, qx} : Row{Row::NONE, 0, 0, 0};
    }
    __syncthreads();

    Gather<T> gather(a, rows);
    std::conditional_t<T::TURNED, Columns<T>, Weights<T>> weights(a, n0);
    const int steps = (weights.depth + T::K - 1) / T::K;
    int next = 0, fill = 0, use = 0;  // step to fetch, stages to fill and to use
    const auto fetch = [&] {
        if (next < steps) {
            gather.load(a, stages + fill * T::STAGE_BYTES);
            weights.load(a, stages + fill * T::STAGE_BYTES + T::A_BYTES);
        }
        cp_commit();  // also an empty group, so that the number of groups tells which step has arrived
        next++;
        fill = fill + 1 == T::STAGES ? 0 : fill + 1;
    };
    const int warp = threadIdx.x / 32;
    const int warp_m = warp / T::WARPS_N * T::WARP_M, warp_n = warp % T::WARPS_N * T::WARP_N;
    float sum[T::WARP_M / 16][T::WARP_N / 8][4] = {};
    // One stage is in use. The one before may still be read in the background, unless its operands are in registers too,
    // which the next step needs.
    constexpr int BEHIND = T::WGMMA && !T::TURNED ? 1 : 0, AHEAD = T::STAGES - 1 - BEHIND;
    for (int i = 0; i < AHEAD; i++) fetch();
    for (int step = 0; step < steps; step++) {
        cp_wait<AHEAD - 1>();
        const unsigned char* stage = stages + use * T::STAGE_BYTES;
        if constexpr (T::WGMMA) {
            wgmma_publish();
            if constexpr (BEHIND == 1) wgmma_wait<1>();
        }
        __syncthreads();  // the step has arrived for all, and all have used the stage that is filled next
        if constexpr (T::WGMMA) {
            multiply_behind<T>(stage, warp_m, sum);
            fetch();
            if constexpr (BEHIND == 0) wgmma_wait<0>();
        } else {
            fetch();
            multiply<T>(stage, warp_m, warp_n, sum);
        }
        use = use + 1 == T::STAGES ? 0 : use + 1;
    }
    cp_wait<0>();
    if constexpr (T::WGMMA) wgmma_wait<0>();
    __syncthreads();  // the stages become slabs

    const auto place_of = [&](int i, i32 n) {
        const Row row = rows[warp_m + i];
        i32 y = a.origin_y + a.step_y * row.qy, x = a.origin_x + a.step_x * row.qx, channels = a.yc;
        if constexpr (T::PARTED) {
            channels = a.yc / (a.part_rows * a.part_cols);
            const i32 part = n / channels;
            y += part / a.part_cols, x += part % a.part_cols, n %= channels;
        }
        const bool valid = row.result != Row::NONE && (!T::PARTED || (y < a.yh && x < a.yw));
        return Place{row, static_cast<u32>((y * a.yw + x) * channels + n), valid};
    };
    constexpr int SLAB = 16 * SLAB_PITCH<T::WGMMA ? 8 : T::WARP_N / 8>;
    static_assert(T::THREADS / 32 * SLAB * 4 <= T::STAGES * T::STAGE_BYTES, "the slabs do not fit");
    float* slab = reinterpret_cast<float*>(stages) + warp * SLAB;
    const auto store_as = [&](auto y, auto mul, auto divides) {
        // More columns at once would cost a warpgroup's threads, which have few rows, too many registers.
        constexpr int TILES_N = T::WGMMA ? 16 / sizeof y : T::WARP_N / 8, PARTS = T::WARP_N / 8 / TILES_N;
        static_assert(PARTS == 1 || T::WARP_M == 16, "parts of the sums lie one after the other");
        auto& parts = reinterpret_cast<float (&)[PARTS][T::WARP_M / 16][TILES_N][4]>(sum);
#pragma unroll
        for (int i = 0; i < PARTS; i++) {
            const i32 first = n0 + warp_n + i * TILES_N * 8;
            finish<decltype(y), decltype(mul), decltype(divides)::value>(a, parts[i], slab, first, place_of);
        }
    };
    if constexpr (T::DIVIDES) {
        if (a.divides) return store_as(float{}, float{}, std::true_type{});
    }
    if constexpr (sizeof(typename T::X) == 2) {
        if (a.y.half) store_as(__half{}, None{}, std::false_type{});
        else store_as(float{}, None{}, std::false_type{});
    } else {
        if (a.mul.half) store_as(float{}, __half{}, std::false_type{});
        else store_as(float{}, float{}, std::false_type{});
    }
}
