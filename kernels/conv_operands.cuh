// From memory to shared memory: how a tile of conv_tile.cuh is cut, and what brings its operands step by step.
#pragma once

#include "epilogue.cuh"

// One instantiation. X: type of x. M, N, K: tile. WARPS_M × WARPS_N warps share the tile. VECTOR: elements of x that
// one copy gathers; xc is a multiple of it. SPLIT: a float of x is read as the sum of so many numbers of tf32. WGMMA: a
// warpgroup multiplies at once; rows of A then are 128 bytes. So are those of w: blocks of 64 columns, or with tf32 the
// columns themselves, for w is [yc, K] in floats then.
template <typename X_, int M_, int N_, int K_, int STAGES_, int WARPS_M_, int WARPS_N_, int VECTOR_, int SPLIT_ = 1,
          bool WGMMA_ = false>
struct Tile {
    using X = X_;
    static constexpr int M = M_, N = N_, K = K_, STAGES = STAGES_, WARPS_N = WARPS_N_, VECTOR = VECTOR_, SPLIT = SPLIT_;
    static constexpr bool WGMMA = WGMMA_, TURNED = WGMMA && sizeof(X) == 4;
    static constexpr int THREADS = 32 * WARPS_M_ * WARPS_N_;
    static constexpr int WARP_M = M / WARPS_M_, WARP_N = N / WARPS_N_;  // sums of one warp
    static constexpr int A_CHUNKS = K * sizeof(X) / 16, B_CHUNKS = N / 8;  // 16-byte chunks in a row of A and of w
    static constexpr bool PARTED = N == 16;                             // columns may be of several pixels
    static constexpr bool DIVIDES = SPLIT == 1 && !TURNED && N <= 128;  // more would be too much code
    static constexpr int W_CHUNKS = WGMMA ? 8 : B_CHUNKS;  // of them side by side
    static constexpr int A_BYTES = M * A_CHUNKS * 16, STAGE_BYTES = A_BYTES + (TURNED ? N * 128 : K * B_CHUNKS * 16);
    static constexpr int SHARED_BYTES = M * 16 + STAGES * STAGE_BYTES;
};

// Byte of a chunk in a tile of CHUNKS chunks a row. ldmatrix reads one chunk of 8 rows, whose banks are the same when
// they are multiples of 128 bytes apart: XOR with the row (counted in such multiples) spreads them over all banks.
template <int CHUNKS> DEVICE int swizzled(int row, int chunk) {
    constexpr int WIDTH = CHUNKS < 8 ? CHUNKS : 8;
    return (row * CHUNKS + (chunk ^ (row / (8 / WIDTH) % WIDTH))) * 16;
}

// Elements from global to shared memory, zeros when not `valid`; in the background where the hardware can.
template <int COUNT, typename E> DEVICE void copy(E* shared, const E* global, bool valid) {
    if constexpr (COUNT * sizeof(E) >= 4) {
        cp_async<COUNT * sizeof(E)>(shared, global, valid);
    } else {
        *shared = valid ? *global : E{};
    }
}

// Brings A. A thread serves the same chunk of several rows, so that its place in K is the same for all of them.
template <class T> struct Gather {
    using X = typename T::X;
    static constexpr int CHUNK = 16 / sizeof(X), PASS = T::THREADS / T::A_CHUNKS, ROWS = T::M / PASS;
    static_assert(PASS % 8 == 0 && T::M % PASS == 0, "rows of a thread are swizzled alike");

    const X* from[ROWS];      // tap (0, 0) of each row; not necessarily inside the source
    i32 y[ROWS], x[ROWS];     // its pixel
    i32 tap_y, tap_x, c;      // place in K
    i32 add_y, add_x, add_c;  // what a step adds to it
    int to;                   // byte in the tile

    __device__ __forceinline__ Gather(const ConvArgs& a, const Row* rows) {
        const int chunk = threadIdx.x % T::A_CHUNKS, first = threadIdx.x / T::A_CHUNKS;
        const i32 cols = a.tap_cols > 0 ? a.tap_cols : 1;
        tap_y = chunk * CHUNK / a.xc / cols, tap_x = chunk * CHUNK / a.xc % cols, c = chunk * CHUNK % a.xc;
        add_y = T::K / a.xc / cols, add_x = T::K / a.xc % cols, add_c = T::K % a.xc;
        to = swizzled<T::A_CHUNKS>(first, chunk);
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            const Row row = rows[first + i * PASS];
            const bool none = row.result == Row::NONE;
            y[i] = none ? -0x40000000 : a.stride_y * row.qy + a.first_y;  // no tap reaches the source from there
            x[i] = none ? 0 : a.stride_x * row.qx + a.first_x;
            from[i] = static_cast<const X*>(a.x.data);
            if (!none) from[i] += static_cast<i64>(block_of(a.x, row, a.y.lanes)) + (y[i] * a.xw + x[i]) * a.xc;
        }
    }

    // Fetches this step's part of the tile and moves on to the next step.
    __device__ __forceinline__ void load(const ConvArgs& a, unsigned char* tile) {
        i32 ty = tap_y, tx = tap_x, channel = c;
#pragma unroll
        for (int part = 0; part < CHUNK; part += T::VECTOR) {
            const i32 offset = (ty * a.xw + tx) * a.xc + channel;
#pragma unroll
            for (int i = 0; i < ROWS; i++) {
                const bool inside = ty < a.tap_rows && static_cast<u32>(y[i] + ty) < static_cast<u32>(a.xh) &&
                                    static_cast<u32>(x[i] + tx) < static_cast<u32>(a.xw);
                X* chunk = reinterpret_cast<X*>(tile + to + i * PASS * T::A_CHUNKS * 16);
                copy<T::VECTOR>(chunk + part, from[i] + offset, inside);
            }
            channel += T::VECTOR;
            if (channel >= a.xc) channel = 0, tx++;
            if (tx >= a.tap_cols) tx = 0, ty++;
        }
        c += add_c, tap_x += add_x, tap_y += add_y;
        if (c >= a.xc) c -= a.xc, tap_x++;
        if (tap_x >= a.tap_cols) tap_x -= a.tap_cols, tap_y++;
    }
};

// Brings w. A thread serves the same 8 columns of several rows.
template <class T> struct Weights {
    static constexpr int PASS = T::THREADS / T::B_CHUNKS, PASSES = (T::K + PASS - 1) / PASS;
    static_assert(PASS % 8 == 0, "rows of a thread are swizzled alike");

    const __half* from;
    i32 row, k, depth;  // row in the tile; row of w, and their number
    i32 columns;        // how many of the 8 exist
    bool vectors;       // rows of w are aligned for 16-byte copies
    int to;             // byte in the tile

    __device__ __forceinline__ Weights(const ConvArgs& a, i32 n0) {
        const i32 chunk = threadIdx.x % T::B_CHUNKS, n = n0 + chunk * 8;
        row = k = threadIdx.x / T::B_CHUNKS;
        depth = a.tap_rows * a.tap_cols * a.xc;
        columns = a.yc - n;
        vectors = a.yc % 8 == 0 && reinterpret_cast<u64>(a.w) % 16 == 0;
        from = a.w + (static_cast<i64>(k) * a.yc + n);
        to = chunk / T::W_CHUNKS * T::K * T::W_CHUNKS * 16 + swizzled<T::W_CHUNKS>(row, chunk % T::W_CHUNKS);
    }

    // Fetches this step's part of the tile and moves on to the next step.
    __device__ __forceinline__ void load(const ConvArgs& a, unsigned char* tile) {
        if (vectors) {
#pragma unroll
            for (int i = 0; i < PASSES; i++) {
                if (T::K % PASS != 0 && row + i * PASS >= T::K) break;
                __half* chunk = reinterpret_cast<__half*>(tile + to + i * PASS * T::W_CHUNKS * 16);
                copy<8>(chunk, from + i * PASS * a.yc, k + i * PASS < depth && columns > 0);
            }
        } else {
#pragma unroll 1
            for (int i = 0; i < PASSES; i++) {
                if (T::K % PASS != 0 && row + i * PASS >= T::K) break;
                __half* chunk = reinterpret_cast<__half*>(tile + to + i * PASS * T::W_CHUNKS * 16);
#pragma unroll
                for (int e = 0; e < 8; e++) {
                    copy<1>(chunk + e, from + i * PASS * a.yc + e, k + i * PASS < depth && columns > e);
                }
            }
        }
        from += T::K * a.yc, k += T::K;
    }
};

// The same where w is [yc, K] in floats. A thread serves the same four values of K of several columns.
template <class T> struct Columns {
    static constexpr int PASS = T::THREADS / 8, PASSES = T::N / PASS;
    static_assert(PASS % 8 == 0 && T::N % PASS == 0 && T::K == 32, "columns of a thread are swizzled alike");

    const float* from;
    i32 k, depth;
    i32 columns;  // how many there are from this thread's first one on
    int to;       // byte in the tile

    __device__ __forceinline__ Columns(const ConvArgs& a, i32 n0) {
        const i32 chunk = threadIdx.x % 8, column = threadIdx.x / 8;
        k = chunk * 4;
        depth = a.tap_rows * a.tap_cols * a.xc;
        columns = a.yc - n0 - column;
        from = reinterpret_cast<const float*>(a.w) + (static_cast<i64>(n0 + column) * depth + k);
        to = swizzled<8>(column, chunk);
    }

    __device__ __forceinline__ void load(const ConvArgs&, unsigned char* tile) {
#pragma unroll
        for (int i = 0; i < PASSES; i++) {
            float* chunk = reinterpret_cast<float*>(tile + to + i * PASS * 128);
            copy<4>(chunk, from + i * PASS * depth, k < depth && i * PASS < columns);
        }
        from += T::K, k += T::K;
    }
};
