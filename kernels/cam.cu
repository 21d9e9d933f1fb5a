// Reductions of [pixels, channels] over its pixels or over its channels, and products with a number a channel.
//
//     pixel_sum      y[b, channel] = scale · Σ over pixels of x[b, pixel, channel]
//     channel_sum    y[b, pixel] = Σ over channels of x[b, pixel, channel] · weights[b, channel], or without weights Σ x
//     channel_max    y[b, pixel] = max over channels of |x[b, pixel, channel]|
//     channel_scale  y[b, pixel, channel] = x[b, pixel, channel] · weights[b, channel]
//     channel_spread  y[b, pixel, channel] = x[b, pixel]
//
// Shapes: x [pixels, channels] and weights [channels] with one lane or y's; any operand fp16 or fp32.
// Launch: 256 threads. pixel_sum: grid (ceil(channels / 32), min(count, 65535)): a block makes 32 channels and its 8
// warps share the pixels. channel_sum, channel_max: grid (ceil(pixels / 8), min(count, 65535)), a warp a pixel; below 32
// channels (ceil(pixels / 256), min(count, 65535)), a thread a pixel. channel_scale, channel_spread: grid (ceil(pixels ·
// channels / 1024), min(count, 65535)), a block makes 1024 elements.
// Bytes: x once, 2 FLOPs an element at most, so memory alone sets the time. Warps read neighbouring channels.
// Numbers: fp32 sums. pixel_sum: 8 interleaved partial sums, added in order. channel_sum: 32 interleaved partial sums,
// joined in halves. Both depend on the shape alone. channel_max: exact; what is no number wins.
// CPU twin: src/backend/cpu/reduce.rs, src/backend/cpu/elementwise.rs. Tests: tests/layers.rs, tests/instructions.rs.
#include "common.cuh"

constexpr u32 THREADS = 256, WARPS = THREADS / 32;

// Σ term(i) over i = first, first + every, ... < n. Terms are loaded in batches: a load a turn would wait for each.
template <class F> DEVICE float strided_sum(u32 first, u32 every, u32 n, F term) {
    constexpr u32 BATCH = 8;
    float sum = 0.0f;
    for (u32 i = first; i < n; i += every * BATCH) {
        float terms[BATCH];
        for (u32 k = 0; k < BATCH; ++k) terms[k] = i + k * every < n ? term(i + k * every) : 0.0f;
        for (u32 k = 0; k < BATCH; ++k) sum += terms[k];
    }
    return sum;
}

KERNEL(pixel_sum, ChannelArgs, 256, 4) {
    __shared__ float partial[WARPS][32];
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, channel = blockIdx.x * 32 + lane;
    for (u32 b = blockIdx.y; b < a.count; b += gridDim.y) {
        float sum = 0.0f;
        if (channel < a.channels) {
            sum = typed(a.x, block_of(a.x, b, a.y.lanes) + channel, [&](auto* x) {
                return strided_sum(warp, WARPS, a.pixels, [&](u32 i) { return widen(x[i * a.channels]); });
            });
        }
        partial[warp][lane] = sum;
        __syncthreads();
        if (warp == 0 && channel < a.channels) {
            for (u32 w = 1; w < WARPS; ++w) sum += partial[w][lane];
            store(a.y, a.y.len * b + channel, sum * a.scale, a.bad);
        }
        __syncthreads();
    }
}

KERNEL(channel_sum, ChannelArgs, 256, 4) {
    const u32 team = a.channels < 32 ? 1 : 32;  // threads a pixel
    const u32 pixel = blockIdx.x * (THREADS / team) + threadIdx.x / team, rank = threadIdx.x % team, n = a.channels;
    if (pixel >= a.pixels) return;  // whole warps where a warp has a pixel
    for (u32 b = blockIdx.y; b < a.count; b += gridDim.y) {
        float sum = typed(a.x, block_of(a.x, b, a.y.lanes) + static_cast<u64>(pixel) * n, [&](auto* x) {
            if (!a.weights.data) return strided_sum(rank, team, n, [&](u32 i) { return widen(x[i]); });
            return typed(a.weights, block_of(a.weights, b, a.y.lanes), [&](auto* w) {
                return strided_sum(rank, team, n, [&](u32 i) { return widen(x[i]) * widen(w[i]); });
            });
        });
        for (u32 half = team / 2; half > 0; half /= 2) sum += __shfl_down_sync(0xffffffff, sum, half);
        if (rank == 0) store(a.y, a.y.len * b + pixel, sum, a.bad);
    }
}

// The larger of a and b; what is no number is larger than all.
DEVICE float larger(float a, float b) { return b > a || b != b ? b : a; }

KERNEL(channel_max, ChannelArgs, 256, 4) {
    const u32 team = a.channels < 32 ? 1 : 32;  // threads a pixel
    const u32 pixel = blockIdx.x * (THREADS / team) + threadIdx.x / team, rank = threadIdx.x % team, n = a.channels;
    if (pixel >= a.pixels) return;  // whole warps where a warp has a pixel
    for (u32 b = blockIdx.y; b < a.count; b += gridDim.y) {
        float most = typed(a.x, block_of(a.x, b, a.y.lanes) + static_cast<u64>(pixel) * n, [&](auto* x) {
            float most = 0.0f;
            for (u32 i = rank; i < n; i += team) most = larger(most, fabsf(widen(x[i])));
            return most;
        });
        for (u32 half = team / 2; half > 0; half /= 2) {
            most = larger(most, __shfl_down_sync(0xffffffff, most, half));
        }
        if (rank == 0) store(a.y, a.y.len * b + pixel, most, a.bad);
    }
}

// y[b, i] = f(x's block, weights' block, i) for the elements that this block makes.
template <class F> DEVICE void each(const ChannelArgs& a, F f) {
    const u32 len = a.pixels * a.channels;
    for (u32 b = blockIdx.y; b < a.count; b += gridDim.y) {
        const u64 x = block_of(a.x, b, a.y.lanes), weights = block_of(a.weights, b, a.y.lanes);
        for (u32 k = 0; k < 4; ++k) {
            const u32 i = (blockIdx.x * 4 + k) * THREADS + threadIdx.x;
            if (i < len) store(a.y, a.y.len * b + i, f(x, weights, i), a.bad);
        }
    }
}

KERNEL(channel_scale, ChannelArgs, 256, 8) {
    each(a, [&](u64 x, u64 weights, u32 i) { return load(a.x, x + i) * load(a.weights, weights + i % a.channels); });
}

KERNEL(channel_spread, ChannelArgs, 256, 8) {
    each(a, [&](u64 x, u64, u32 i) { return load(a.x, x + i / a.channels); });
}
