// Elementwise kernels: y[b, i] = f(a[b, i], b[b, i], c[b, i], add[b, i]).
//
//     relu       rectify(a)                                  add        relu?(a + b), flag: rectify
//     relu_back  (a > 0 ? b : 0) + add, a: what relu made    part       flag ? rectify(a) : -rectify(-a)
//     divide     a / stabilise(b + c, eps)                   copy       a, in y's type
//     multiply   a · b + add
//
// Shapes: every operand has y.len elements a lane, in fp16 or fp32 each, with y.lanes lanes or one. Operands that are
// absent, or that a kernel does not name, have a null pointer and read as 0.
// Launch: 256 threads, grid (ceil(y.len / 1024), min(count, 65535)); a block makes 1024 elements of each result b that
// its row of the grid visits.
// Bytes: each operand once, the result once; up to 3 FLOPs an element, so memory alone sets the time. A thread takes
// four neighbours in one access of 8 or 16 bytes where length and pointers allow it, else single elements 256 apart.
// Numbers: fp32 throughout, rounded once when stored. No sums across threads. `add` may be y's own memory: an element
// is read and written by one thread, in that order.
// CPU twin: src/backend/cpu/layers.rs (unary, binary, divide). Tests: tests/layers.rs.
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

template <class F> DEVICE void each(const EltwiseArgs& e, F f) {
    const u32 len = static_cast<u32>(e.y.len);
    const bool packed = len % PACK == 0 && packs(e.a) && packs(e.b) && packs(e.c) && packs(e.add) && packs(e.y);
    const u32 first = blockIdx.x * (THREADS * PACK);
    for (u32 b = blockIdx.y; b < e.count; b += gridDim.y) {
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

KERNEL(eltwise_relu, EltwiseArgs, 256, 8) {
    each(a, [](float x, float, float, float) { return rectify(x); });
}

KERNEL(eltwise_relu_back, EltwiseArgs, 256, 8) {
    each(a, [](float y, float dy, float, float add) { return (y > 0.0f ? dy : 0.0f) + add; });
}

KERNEL(eltwise_add, EltwiseArgs, 256, 8) {
    const bool relu = a.flag;
    each(a, [=](float x, float z, float, float) { return relu ? rectify(x + z) : x + z; });
}

KERNEL(eltwise_divide, EltwiseArgs, 256, 8) {
    const float eps = a.eps;
    each(a, [=](float r, float z, float z2, float) { return r / stabilise(z + z2, eps); });
}

KERNEL(eltwise_multiply, EltwiseArgs, 256, 8) {
    each(a, [](float x, float c, float, float add) { return x * c + add; });
}

KERNEL(eltwise_part, EltwiseArgs, 256, 8) {
    const bool positive = a.flag;
    each(a, [=](float x, float, float, float) { return positive ? rectify(x) : -rectify(-x); });
}

KERNEL(eltwise_copy, EltwiseArgs, 256, 8) {
    each(a, [](float x, float, float, float) { return x; });
}
