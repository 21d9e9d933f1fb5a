// From a warp's sums to memory: what every convolution on tensor cores ends with.
//
//     y = relu?(mul ⊙ sum + bias + add), or scale · mul / (sum + bias + add)
//
// Sums are rounded at the same places whichever kernel made them and whichever way y is stored.
#pragma once

#include "common.cuh"

// What row m of the tile is: pixel (qy, qx) of the phase, in result number `result` of sample number `sample`.
struct Row {
    static constexpr u32 NONE = 0xffffffff;
    u32 result, sample;  // result = NONE: beyond the last
    i32 qy, qx;
};

DEVICE u64 block_of(const Value& v, const Row& row, u32 lanes) {
    return v.len * (v.lanes == lanes ? row.result : row.sample);
}

// Where a sum of the tile goes: element `at` of its result. valid = false: nowhere.
struct Place {
    Row row;
    u32 at;
    bool valid;
};

// E neighbours in memory, read or written at once.
template <typename V, int E> struct __align__(sizeof(V) * E < 16 ? sizeof(V) * E : 16) Packed {
    V v[E];
};

// Type of mul where there is never one.
struct None {};

DEVICE float to_float(None) { return 1.0f; }
DEVICE float to_float(float v) { return v; }
DEVICE float to_float(__half v) { return __half2float(v); }

template <typename V, int E> DEVICE Packed<V, E> rounded(const float (&v)[E]) {
    Packed<V, E> to = {};
#pragma unroll
    for (int e = 0; e < E; e += 2) {
        if constexpr (sizeof(V) == 2) {
            const __half2 pair = __floats2half2_rn(v[e], v[e + 1]);
            memcpy(&to.v[e], &pair, sizeof pair);
        } else {
            to.v[e] = v[e], to.v[e + 1] = v[e + 1];
        }
    }
    return to;
}

// One result, rounded at the same places whichever way it is stored. Whether it is divided is known when this is
// compiled: these lines stand a hundred times in a kernel, whose code else outgrows the instruction cache.
template <bool DIVIDES>
DEVICE float result_of(const ConvArgs& a, float sum, float mul, float bias, float add, bool& bad) {
    if constexpr (DIVIDES) {
        const float by = sum + bias + add;
        bad |= is_bad(by);  // what it divides would be 0
        return a.scale * quotient(a.divisor, a.eps, mul, by);
    }
    const float v = fmaf(sum, mul, bias) + add;
    return a.relu ? rectify(v) : v;
}

// Floats in a row of a warp's slab: ≡ 8 (mod 16), so that the pairs of four rows are in different banks.
template <int TILES_N> constexpr int SLAB_PITCH = 8 * TILES_N + 8;

// Applies the epilogue to a warp's sums of columns n0... and stores them as Y; M is the type of mul. A fragment holds
// pairs of columns; through `slab` (shared memory of this warp, 16 rows) each lane gets 16 bytes of a row of y, and
// neighbouring lanes neighbouring bytes. `place_of(row, column)` says where a sum goes. `add` may be y: an element is
// read by the lane that writes it.
template <typename Y, typename M, bool DIVIDES = false, int TILES_M, int TILES_N, class PlaceOf>
DEVICE void finish(const ConvArgs& a, float (&sum)[TILES_M][TILES_N][4], float* slab, i32 n0, PlaceOf place_of) {
    constexpr int E = 16 / sizeof(Y), N = 8 * TILES_N, PITCH = SLAB_PITCH<TILES_N>;
    constexpr int LANES = N / E, PASS = 32 / LANES, PASSES = 16 / PASS;  // lanes that share a row, rows of one pass
    constexpr float LIMIT = sizeof(Y) == 2 ? 65520.0f : INFINITY;        // from here on infinite when rounded to Y
    const int lane = threadIdx.x % 32, first = lane / LANES, col = lane % LANES * E;
    const i32 n = n0 + col;
    const u64 addresses = reinterpret_cast<u64>(a.y.data) | reinterpret_cast<u64>(a.add.data) |
                          reinterpret_cast<u64>(a.mul.data);
    const bool vectors = a.yc % E == 0 && addresses % 16 == 0, has_mul = sizeof(M) > 1 && a.mul.data;
    const auto element = [&](const Value& v, const Place& p) { return block_of(v, p.row, a.y.lanes) + p.at; };
    float bias[E];
#pragma unroll
    for (int e = 0; e < E; e++) bias[e] = a.bias && n + e < a.yc ? a.bias[n + e] : 0.0f;
    bool bad = false;
#pragma unroll
    for (int i = 0; i < TILES_M; i++) {
        Packed<Y, E> add[PASSES];
        Packed<M, E> mul[PASSES];
        // All reads are under way before the first is waited for.
#pragma unroll
        for (int pass = 0; pass < PASSES; pass++) {
            add[pass] = {};
            mul[pass] = {};
            const Place p = place_of(16 * i + first + pass * PASS, n);
            if (!vectors || !p.valid || n >= a.yc) continue;
            if (a.add.data) {
                add[pass] = *reinterpret_cast<const Packed<Y, E>*>(static_cast<Y*>(a.add.data) + element(a.add, p));
            }
            if (has_mul) {
                mul[pass] = *reinterpret_cast<const Packed<M, E>*>(static_cast<M*>(a.mul.data) + element(a.mul, p));
            }
        }
        __syncwarp();
#pragma unroll
        for (int j = 0; j < TILES_N; j++) {
            float* to = slab + lane / 4 * PITCH + 8 * j + lane % 4 * 2;
            *reinterpret_cast<float2*>(to) = make_float2(sum[i][j][0], sum[i][j][1]);
            *reinterpret_cast<float2*>(to + 8 * PITCH) = make_float2(sum[i][j][2], sum[i][j][3]);
        }
        __syncwarp();
        if (vectors) {
#pragma unroll
            for (int pass = 0; pass < PASSES; pass++) {
                const Place p = place_of(16 * i + first + pass * PASS, n);
                if (!p.valid || n >= a.yc) continue;
                // In packs: single floats of lanes that are E apart would meet in the same banks.
                const float* at = slab + (first + pass * PASS) * PITCH + col;
                const auto from = *reinterpret_cast<const Packed<float, E>*>(at);
                float v[E];
#pragma unroll
                for (int e = 0; e < E; e++) {
                    const float factor = has_mul ? to_float(mul[pass].v[e]) : 1.0f;
                    v[e] = result_of<DIVIDES>(a, from.v[e], factor, bias[e], to_float(add[pass].v[e]), bad);
                    bad |= !(fabsf(v[e]) < LIMIT);
                }
                *reinterpret_cast<Packed<Y, E>*>(static_cast<Y*>(a.y.data) + element(a.y, p)) = rounded<Y, E>(v);
            }
        } else {
#pragma unroll 1
            for (int j = lane; j < 16 * N; j += 32) {
                const i32 c = n0 + j % N;
                const Place p = place_of(16 * i + j / N, c);
                if (!p.valid || c >= a.yc) continue;
                const float mul_c = has_mul ? load(a.mul, element(a.mul, p)) : 1.0f;
                const float add_c = a.add.data ? load(a.add, element(a.add, p)) : 0.0f;
                const float sum_c = slab[j / N * PITCH + j % N], bias_c = a.bias ? a.bias[c] : 0.0f;
                const float v = result_of<DIVIDES>(a, sum_c, mul_c, bias_c, add_c, bad);
                store(a.y, element(a.y, p), v, a.bad);
            }
        }
    }
    if (bad) *a.bad = 1;
}
