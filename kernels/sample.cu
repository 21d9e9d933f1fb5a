// Numbers of whole samples, and elements changed by them.
//
//     totals    y[b] = {Σ x[b], number of x[b] that are not 0}
//     range     y[b] = {smallest, largest} of x[b], over the first `own` of every `stored` elements
//     shift     y = a − [b ≠ 0] · (Σ of second − Σ of third) / n, n: what first counts
//     contrast  y = a − b · (Σ of first / Σ of second), a where that is 0
//     scale     y = a scaled by the range `first`, as the code says
//
// Shapes: any number of elements a lane, in fp16 or fp32; pairs [2] with y's lanes or one.
// Launch: totals, range: 1024 threads, grid (count), a block a result. The others: eltwise.cuh.
// Bytes: each operand once, the result once, so memory alone sets the time; of a single large sample, what one
// multiprocessor can read.
// Numbers: totals sums in double, thread by thread and then in a fixed tree. A value that is no number counts in no
// range. Nothing depends on other results.
// CPU twin: src/backend/cpu/reduce.rs, src/backend/cpu/elementwise.rs. Tests: tests/instructions.rs.
#include "eltwise.cuh"
#include "reduce.cuh"

constexpr u32 WIDE = 1024, BATCH = 8;

// Calls f(i, x[b, i]) for this thread's elements i. They are loaded in batches: a load a turn would wait for each.
template <class F> DEVICE void visit(const Value& x, u64 first, F f) {
    const u32 n = static_cast<u32>(x.len);
    typed(x, first, [&](auto* p) {
        for (u32 i = threadIdx.x; i < n; i += WIDE * BATCH) {
            float values[BATCH];
            for (u32 k = 0; k < BATCH; ++k) values[k] = i + k * WIDE < n ? widen(p[i + k * WIDE]) : 0.0f;
            for (u32 k = 0; k < BATCH; ++k) {
                if (i + k * WIDE < n) f(i + k * WIDE, values[k]);
            }
        }
    });
}

KERNEL(totals, ReduceArgs, 1024, 1) {
    const u32 b = blockIdx.x;
    double sum = 0.0;
    u32 count = 0;
    visit(a.x, block_of(a.x, b, a.y.lanes), [&](u32, float v) { sum += static_cast<double>(v), count += v != 0.0f; });
    sum = reduce<WIDE>(sum, Sum());
    count = reduce<WIDE>(count, Sum());
    if (threadIdx.x == 0) {
        store(a.y, a.y.len * b, static_cast<float>(sum), a.bad);
        store(a.y, a.y.len * b + 1, static_cast<float>(count), a.bad);
    }
}

KERNEL(range, ReduceArgs, 1024, 1) {
    const u32 b = blockIdx.x, stored = a.stored, own = a.own;
    float lo = INFINITY, hi = -INFINITY;
    visit(a.x, block_of(a.x, b, a.y.lanes), [&](u32 i, float v) {
        if (own == stored || i % stored < own) lo = fminf(lo, v), hi = fmaxf(hi, v);
    });
    lo = -reduce<WIDE>(-lo, Largest());
    hi = reduce<WIDE>(hi, Largest());
    // Not `store`: of no numbers the ends are infinite.
    if (threadIdx.x < 2) static_cast<float*>(a.y.data)[a.y.len * b + threadIdx.x] = threadIdx.x ? hi : lo;
}

// One of the pair of numbers that result b reads; 0 where there is none.
DEVICE float number(const Value& v, u32 b, u32 lanes, u32 which) {
    return v.data ? load(v, block_of(v, b, lanes) + which) : 0.0f;
}

KERNEL(shift, SampleArgs, 256, 8) {
    const u32 lanes = a.e.y.lanes;
    each_by(a.e, [&](u32 b) {
        const float moved = number(a.second, b, lanes, 0) - number(a.third, b, lanes, 0);
        const float step = quotient(NONZERO, 0.0f, moved, number(a.first, b, lanes, 1));
        return [=](float x, float mask, float, float) { return x - (mask != 0.0f ? step : 0.0f); };
    });
}

KERNEL(contrast, SampleArgs, 256, 8) {
    const u32 lanes = a.e.y.lanes;
    each_by(a.e, [&](u32 b) {
        const float ratio = quotient(NONZERO, 0.0f, number(a.first, b, lanes, 0), number(a.second, b, lanes, 0));
        return [=](float x, float other, float, float) { return x - other * ratio; };
    });
}

// x − scale · lo, divided by what the code says (backend::Scaling): 0: hi − lo, 0 where all are equal; 1: hi − lo + s;
// beyond 2: hi, as Divisor code − 2 says.
KERNEL(scale, SampleArgs, 256, 8) {
    const u32 lanes = a.e.y.lanes, code = a.e.code;
    const float s = a.e.s, scale = a.e.scale;
    each_by(a.e, [&](u32 b) {
        const float lo = number(a.first, b, lanes, 0), hi = number(a.first, b, lanes, 1);
        return [=](float x, float, float, float) {
            if (code >= 2) return quotient(code - 2, s, x, hi);
            if (code == 1) return (x - scale * lo) / (hi - lo + s);
            return hi > lo ? (x - lo) / (hi - lo) : 0.0f;
        };
    });
}
