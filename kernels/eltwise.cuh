// What elementwise kernels share: y[b, i] = f(a[b, i], b[b, i], c[b, i], add[b, i]).
//
// Shapes: every operand has y.len elements a lane, in fp16 or fp32 each, with y.lanes lanes or one. Operands that are
// absent, or that a kernel does not name, have a null pointer and read as 0.
// Launch: 256 threads, grid (ceil(y.len / 1024), min(count, 65535)); a block makes 1024 elements of each result b that
// its row of the grid visits.
// Bytes: each operand once, the result once. A thread takes four neighbours in one access of 8 or 16 bytes where length
// and pointers allow it, else single elements 256 apart.
// Numbers: fp32 throughout, rounded once when stored. No sums across threads. `add` may be y's own memory: an element
// is read and written by one thread, in that order.
#pragma once

#include "common.cuh"

constexpr u32 THREADS = 256, PACK = 4;

template <int N> DEVICE void fetch(const Value& v, u32 b, u32 lanes, u32 i, float (&x)[N]) {
    if (v.data) {
        load_pack(v, block_of(v, b, lanes) + i, x);
    } else {
        for (int j = 0; j < N; ++j) x[j] = 0.0f;
    }
}

template <int N, class F> DEVICE void apply(const EltwiseArgs& e, u32 b, u32 i, F f) {
    const u32 lanes = e.y.lanes;
    float p[N], q[N], r[N], s[N];
    fetch(e.a, b, lanes, i, p);
    fetch(e.b, b, lanes, i, q);
    fetch(e.c, b, lanes, i, r);
    fetch(e.add, b, lanes, i, s);
    for (int j = 0; j < N; ++j) p[j] = f(p[j], q[j], r[j], s[j]);
    store_pack(e.y, e.y.len * b + i, p, e.bad);
}

// `of(b)` is the function for result b.
template <class F> DEVICE void each_by(const EltwiseArgs& e, F of) {
    const u32 len = static_cast<u32>(e.y.len);
    const bool packed = len % PACK == 0 && packs(e.a) && packs(e.b) && packs(e.c) && packs(e.add) && packs(e.y);
    const u32 first = blockIdx.x * (THREADS * PACK);
    for (u32 b = blockIdx.y; b < e.count; b += gridDim.y) {
        const auto f = of(b);
        if (packed) {
            const u32 i = first + threadIdx.x * PACK;
            if (i < len) apply<PACK>(e, b, i, f);
        } else {
            for (u32 k = 0; k < PACK; ++k) {
                const u32 i = first + k * THREADS + threadIdx.x;
                if (i < len) apply<1>(e, b, i, f);
            }
        }
    }
}

template <class F> DEVICE void each(const EltwiseArgs& e, F f) {
    each_by(e, [=](u32) { return f; });
}
