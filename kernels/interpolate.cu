// Values resampled to another size, bilinear or bicubic.
//
//     interpolate  y[b, row, col, c] = scale · Σ over taps of weight · x[b, tap, first + c] + add
//
// Shapes: x [from_h, from_w, channels], y and add [h, w, slice]; any operand fp16 or fp32, with y's lanes or one.
// Launch: 256 threads, grid (ceil(y.len / 1024), min(count, 65535)); a block makes 1024 elements of each result b.
// Bytes: x from cache, y once; 4 or 16 taps an element.
// Numbers: positions are quotients of integers, so that the fraction is rounded once; weights and sums in fp32. `add`
// may be y's own memory.
// CPU twin: src/backend/cpu/resize.rs. Test: tests/instructions.rs.
#include "common.cuh"

constexpr u32 THREADS = 256, EACH = 4;

enum Filter : u32 { BILINEAR, ALIGNED, BICUBIC };

// A position of the source: whole pixels, which may be −1, and the fraction beyond.
struct Position {
    i32 whole;
    float t;
};

// Where result d of `to` lies among `from` sources.
DEVICE Position position(u32 filter, u32 d, u32 from, u32 to) {
    if (filter == ALIGNED) {
        const u32 n = d * (from - 1), by = max(to - 1, 1u);
        return {static_cast<i32>(n / by), static_cast<float>(n % by) / static_cast<float>(by)};
    }
    // ((d + ½) · from / to − ½) + 1, which is positive, over 2 · to.
    const u32 n = (2 * d + 1) * from + to, by = 2 * to;
    return {static_cast<i32>(n / by) - 1, static_cast<float>(n % by) / static_cast<float>(by)};
}

// Keys' kernel with a = −0.75 at distances up to 1, and from 1 to 2.
DEVICE float near_weight(float x) { return (1.25f * x - 2.25f) * x * x + 1.0f; }
DEVICE float far_weight(float x) { return ((-0.75f * x + 3.75f) * x - 6.0f) * x + 3.0f; }

DEVICE Taps taps_of(u32 filter, u32 d, u32 from, u32 to) {
    const i32 last = static_cast<i32>(from) - 1;
    Position s = position(filter, d, from, to);
    if (filter != BICUBIC) {
        if (s.whole < 0) s = {0, 0.0f};
        const u32 lo = min(s.whole, last), hi = min(s.whole + 1, last);
        return {{lo, hi, lo, lo}, {1.0f - s.t, s.t, 0.0f, 0.0f}};
    }
    Taps taps;
    for (i32 i = 0; i < 4; ++i) taps.index[i] = min(max(s.whole - 1 + i, 0), last);
    taps.weight[0] = far_weight(1.0f + s.t), taps.weight[1] = near_weight(s.t);
    taps.weight[2] = near_weight(1.0f - s.t), taps.weight[3] = far_weight(2.0f - s.t);
    return taps;
}

template <int TAPS> DEVICE float weigh(const InterpolateArgs& a, u64 x, const Taps& rows, const Taps& cols) {
    float sum = 0.0f;
    for (int i = 0; i < TAPS; ++i) {
        for (int j = 0; j < TAPS; ++j) {
            const u64 pixel = static_cast<u64>(rows.index[i]) * a.from_w + cols.index[j];
            sum += a.scale * rows.weight[i] * cols.weight[j] * load(a.x, x + pixel * a.channels);
        }
    }
    return sum;
}

KERNEL(interpolate, InterpolateArgs, 256, 4) {
    const u32 len = static_cast<u32>(a.y.len), lanes = a.y.lanes;
    for (u32 b = blockIdx.y; b < a.count; b += gridDim.y) {
        for (u32 k = 0; k < EACH; ++k) {
            const u32 i = (blockIdx.x * EACH + k) * THREADS + threadIdx.x;
            if (i >= len) break;
            const u32 c = i % a.slice, pixel = i / a.slice;
            const Taps rows = taps_of(a.filter, pixel / a.w, a.from_h, a.h);
            const Taps cols = taps_of(a.filter, pixel % a.w, a.from_w, a.w);
            const u64 x = block_of(a.x, b, lanes) + a.first + c;
            float v = a.filter == BICUBIC ? weigh<4>(a, x, rows, cols) : weigh<2>(a, x, rows, cols);
            if (a.add.data) v += load(a.add, block_of(a.add, b, lanes) + i);
            store(a.y, a.y.len * b + i, v, a.bad);
        }
    }
}
