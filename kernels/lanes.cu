// Lanes scaled one by one, and added to one another.
//
//     lane_scale  y[b, i] = factors[lane mod n] · a[b, i]
//     lane_sum    y[b, i] = add + Σ over k < terms of a[b · terms + k, i]
//
// Shapes: lane_scale: a with y's lanes or one; lane = b mod y.lanes. lane_sum: a with terms · y.lanes lanes, add with y's or
// one. Any operand fp16 or fp32.
// Launch: 256 threads, grid (ceil(y.len / 1024), min(count, 65535)): a block makes 1024 elements of each result b that
// its row of the grid visits.
// Bytes: each operand once, the result once, so memory alone sets the time.
// Numbers: fp32. lane_sum adds term after term to `add`, which may be y's own memory: so the bits of a longer sum do not
// depend on how many launches it takes.
// CPU twin: src/backend/cpu/elementwise.rs (lane_scale), src/backend/cpu/reduce.rs (lane_sum). Tests: tests/instructions.rs.
#include "eltwise.cuh"

KERNEL(lane_scale, LaneArgs, 256, 8) {
    each_by(a.e, [&](u32 b) {
        const float factor = a.factors[b % a.e.y.lanes % a.n];
        return [=](float x, float, float, float) { return factor * x; };
    });
}

KERNEL(lane_sum, EltwiseArgs, 256, 8) {
    const u32 len = static_cast<u32>(a.y.len), terms = a.a.lanes / a.y.lanes;
    for (u32 b = blockIdx.y; b < a.count; b += gridDim.y) {
        for (u32 k = 0; k < PACK; ++k) {
            const u32 i = (blockIdx.x * PACK + k) * THREADS + threadIdx.x;
            if (i >= len) break;
            float sum = a.add.data ? load(a.add, block_of(a.add, b, a.y.lanes) + i) : 0.0f;
            for (u32 term = 0; term < terms; ++term) {
                sum += load(a.a, a.a.len * (static_cast<u64>(b) * terms + term) + i);
            }
            store(a.y, a.y.len * b + i, sum, a.bad);
        }
    }
}
