// Two-factor fit of [pixels, channels] by the sign of a map: AGF's `fact`.
//
//     factor  y[b, pixel] = max(f₊, 0) − max(f₋, 0), the pixel's fit by the means over pixels with φ > 0 and φ < 0
//
// With r₊, r₋ those means of x over the pixels (0 where there are none) and Q = [r₋, r₊]: (f₋, f₊) = (QᵀQ + 1)⁻¹ Qᵀ x.
// Shapes: x [pixels, channels], φ = weights [pixels], y [pixels]; any operand fp16 or fp32, with y's lanes or one.
// Launch: 1024 threads and 8 · channels bytes of dynamic shared memory, grid (count), a block a result.
// Bytes: x twice, φ once for every 32 channels; 8 FLOPs in double an element.
// Numbers: sums in double, warp by warp and then in order; the means are kept in fp32.
// CPU twin: src/backend/cpu/reduce.rs (factor). Test: tests/instructions.rs.
#include "reduce.cuh"

constexpr u32 THREADS = 1024, WARPS = THREADS / 32;

// Σ over a warp, the same tree for all; every lane gets it.
DEVICE double warp_sum(double v) {
    for (u32 half = 16; half > 0; half /= 2) v += __shfl_xor_sync(0xffffffff, v, half);
    return v;
}

// Means of all channels over the pixels where sign · φ is positive. A warp sums every 32nd pixel, a lane a channel.
DEVICE void means(const ChannelArgs& a, u64 x, u64 phi, float sign, float* result) {
    __shared__ double partial[WARPS][32];
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u32 count = 0;
    for (u32 p = threadIdx.x; p < a.pixels; p += THREADS) count += sign * load(a.weights, phi + p) > 0.0f;
    count = reduce<THREADS>(count, Sum());
    for (u32 first = 0; first < a.channels; first += 32) {
        const u32 channel = first + lane;
        double sum = 0.0;
        for (u32 p = warp; p < a.pixels; p += WARPS) {
            if (!(sign * load(a.weights, phi + p) > 0.0f) || channel >= a.channels) continue;
            sum += static_cast<double>(load(a.x, x + static_cast<u64>(p) * a.channels + channel));
        }
        partial[warp][lane] = sum;
        __syncthreads();
        if (warp == 0 && channel < a.channels) {
            for (u32 w = 1; w < WARPS; ++w) sum += partial[w][lane];
            result[channel] = static_cast<float>(sum / static_cast<double>(max(count, 1u)));
        }
        __syncthreads();
    }
}

KERNEL(factor, ChannelArgs, 1024, 1) {
    extern __shared__ __align__(16) unsigned char dynamic_shared[];
    float* low = reinterpret_cast<float*>(dynamic_shared);
    float* high = low + a.channels;
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, b = blockIdx.x;
    const u64 x = block_of(a.x, b, a.y.lanes), phi = block_of(a.weights, b, a.y.lanes);
    means(a, x, phi, -1.0f, low);
    means(a, x, phi, 1.0f, high);
    // Every warp forms the same three products.
    double p = 0.0, q = 0.0, r = 0.0;
    for (u32 c = lane; c < a.channels; c += 32) {
        const double l = low[c], h = high[c];
        p += l * l, q += l * h, r += h * h;
    }
    p = warp_sum(p) + 1.0, q = warp_sum(q), r = warp_sum(r) + 1.0;
    const double determinant = p * r - q * q;
    for (u32 pixel = warp; pixel < a.pixels; pixel += WARPS) {
        double by_low = 0.0, by_high = 0.0;
        for (u32 c = lane; c < a.channels; c += 32) {
            const double v = static_cast<double>(load(a.x, x + static_cast<u64>(pixel) * a.channels + c));
            by_low += low[c] * v, by_high += high[c] * v;
        }
        by_low = warp_sum(by_low), by_high = warp_sum(by_high);
        const double up = fmax((p * by_high - q * by_low) / determinant, 0.0);
        const double down = fmax((r * by_low - q * by_high) / determinant, 0.0);
        if (lane == 0) store(a.y, a.y.len * b + pixel, static_cast<float>(up - down), a.bad);
    }
}
