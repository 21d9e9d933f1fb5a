// Pooling over the windows of [h, w, c], forward and as a gather backward.
//
//     max_pool       y[o, c] = max over the window of x; index = the first pixel of the window to hold it
//     max_pool_back  y[i, c] = Σ over the windows o that hold pixel i and whose winner it is of x[o, c], + add
//     avg_pool       y[o, c] = Σ over the bin of x / divisor
//     avg_pool_back  y[i, c] = mul · Σ over the bins o that hold pixel i of x[o, c] / divisor, + add
//
// Shapes: forward x [count, xh, xw, c] and y [count, yh, yw, c]; backward x = dy [count, yh, yw, c] and
// y = dx [count, xh, xw, c]. Any operand fp16 or fp32. index is [yh, yw, c] of
// bytes, backward with y's lanes or one.
// Launch: 256 threads, grid (ceil(y.len / 1024), min(count, 65535)): a block makes 1024 elements of each result b that
// its row of the grid visits. avg_pool of a single bin (yh = yw = 1): grid (ceil(c / 32), min(count, 65535)): a block
// makes 32 channels and its 8 warps share the pixels.
// Bytes: x once from memory (windows that overlap meet in cache), the result once; one FLOP a window pixel, so memory
// alone sets the time. A thread takes four channels in one access where c and pointers allow it, else single ones.
// Numbers: padding never wins and counts in no sum, but the divisor of a sliding window is the whole kernel; adaptive
// bins divide by their size. A value that is no number wins. Sums are fp32, row by row; of a single bin 8 interleaved
// partial sums, added in order. `add` may be y's own memory.
// CPU twin: src/backend/cpu/layers.rs. Tests: tests/layers.rs.
#include "common.cuh"

constexpr u32 THREADS = 256, PACK = 4;
constexpr i32 WARPS = THREADS / 32;

struct Range {
    i32 lo, hi;
};

// Pixels of n that window i covers.
DEVICE Range covered(i32 i, i32 kernel, i32 stride, i32 pad, i32 n) {
    const i32 start = i * stride - pad;
    return {max(start, 0), min(start + kernel, n)};
}

// Windows of `count` that hold pixel p.
DEVICE Range holding(i32 p, i32 kernel, i32 stride, i32 pad, i32 count) {
    p += pad;
    return {(max(p + 1 - kernel, 0) + stride - 1) / stride, min(p / stride + 1, count)};
}

// Pixels of n in bin i of `bins`, and the other way round.
DEVICE Range bin(i32 i, i32 bins, i32 n) {
    return {i * n / bins, ((i + 1) * n + bins - 1) / bins};
}

// Calls body(pack, b, pixel, channel) for each pack of channels of each result that this block makes.
template <class A, class F> DEVICE void each(const A& a, u32 pixels, bool packed, F body) {
    const u32 c = a.c, len = pixels * c;
    const u32 first = blockIdx.x * (THREADS * PACK);
    for (u32 b = blockIdx.y; b < a.count; b += gridDim.y) {
        if (packed) {
            const u32 i = first + threadIdx.x * PACK;
            float sums[PACK];
            if (i < len) body(sums, b, i / c, i % c);
        } else {
            for (u32 k = 0; k < PACK; ++k) {
                const u32 i = first + k * THREADS + threadIdx.x;
                float sum[1];
                if (i < len) body(sum, b, i / c, i % c);
            }
        }
    }
}

template <int N> DEVICE void finish(const Value& add, const Value& y, u32 b, u64 i, float (&sums)[N], u32* bad) {
    if (add.data) {
        float more[N];
        load_pack(add, block_of(add, b, y.lanes) + i, more);
        for (int j = 0; j < N; ++j) sums[j] += more[j];
    }
    store_pack(y, y.len * b + i, sums, bad);
}

// Winners of N neighbouring channels.
template <int N> DEVICE void load_winners(const u8* index, u32 (&winners)[N]) {
    if constexpr (N == 1) {
        winners[0] = *index;
    } else {
        const uchar4 w = *reinterpret_cast<const uchar4*>(index);
        winners[0] = w.x, winners[1] = w.y, winners[2] = w.z, winners[3] = w.w;
    }
}

template <int N> DEVICE void store_winners(u8* index, const u32 (&winners)[N]) {
    if constexpr (N == 1) {
        *index = static_cast<u8>(winners[0]);
    } else {
        *reinterpret_cast<uchar4*>(index) = make_uchar4(winners[0], winners[1], winners[2], winners[3]);
    }
}

DEVICE bool packs_winners(const Value& index) { return reinterpret_cast<u64>(index.data) % PACK == 0; }

KERNEL(max_pool, PoolArgs, 256, 4) {
    const bool packed = a.c % PACK == 0 && packs(a.x) && packs(a.y) && packs_winners(a.index);
    each(a, a.yh * a.yw, packed, [&](auto& best, u32 b, u32 pixel, u32 channel) {
        constexpr int N = sizeof(best) / sizeof(float);
        const i32 oy = pixel / a.yw, ox = pixel % a.yw;
        const Range rows = covered(oy, a.kernel_y, a.stride_y, a.pad_y, a.xh);
        const Range cols = covered(ox, a.kernel_x, a.stride_x, a.pad_x, a.xw);
        const u64 sample = block_of(a.x, b, a.y.lanes) + channel;
        u32 winners[N];
        for (int j = 0; j < N; ++j) best[j] = -INFINITY, winners[j] = 0;
        for (i32 iy = rows.lo; iy < rows.hi; ++iy) {
            for (i32 ix = cols.lo; ix < cols.hi; ++ix) {
                const i32 ky = iy + a.pad_y - oy * a.stride_y, kx = ix + a.pad_x - ox * a.stride_x;
                float x[N];
                load_pack(a.x, sample + static_cast<u32>((iy * a.xw + ix) * a.c), x);
                for (int j = 0; j < N; ++j) {
                    if (x[j] > best[j] || x[j] != x[j]) best[j] = x[j], winners[j] = ky * a.kernel_x + kx;
                }
            }
        }
        const u64 i = a.y.len * b + pixel * a.c + channel;
        store_pack(a.y, i, best, a.bad);
        if (a.index.data) store_winners(static_cast<u8*>(a.index.data) + i, winners);
    });
}

KERNEL(max_pool_back, PoolArgs, 256, 4) {
    const bool packed = a.c % PACK == 0 && packs(a.x) && packs(a.add) && packs(a.y) && packs_winners(a.index);
    each(a, a.xh * a.xw, packed, [&](auto& sums, u32 b, u32 pixel, u32 channel) {
        constexpr int N = sizeof(sums) / sizeof(float);
        const i32 iy = pixel / a.xw, ix = pixel % a.xw;
        const Range rows = holding(iy, a.kernel_y, a.stride_y, a.pad_y, a.yh);
        const Range cols = holding(ix, a.kernel_x, a.stride_x, a.pad_x, a.yw);
        const u64 sample = block_of(a.x, b, a.y.lanes) + channel;
        const u8* index = static_cast<const u8*>(a.index.data) + block_of(a.index, b, a.y.lanes) + channel;
        for (int j = 0; j < N; ++j) sums[j] = 0.0f;
        for (i32 oy = rows.lo; oy < rows.hi; ++oy) {
            for (i32 ox = cols.lo; ox < cols.hi; ++ox) {
                const i32 ky = iy + a.pad_y - oy * a.stride_y, kx = ix + a.pad_x - ox * a.stride_x;
                const u32 at = (oy * a.yw + ox) * a.c, position = (ky * a.kernel_x + kx) & 255;
                float dy[N];
                u32 winners[N];
                load_pack(a.x, sample + at, dy);
                load_winners(index + at, winners);
                for (int j = 0; j < N; ++j) sums[j] += winners[j] == position ? dy[j] : 0.0f;
            }
        }
        finish(a.add, a.y, b, pixel * a.c + channel, sums, a.bad);
    });
}

// Pixels of bin i along an axis of n, and its share of the divisor.
DEVICE Range bin_of(const AverageArgs& a, bool across, i32 i, i32& divisor) {
    const i32 n = across ? a.xw : a.xh, kernel = across ? a.kernel_x : a.kernel_y;
    if (a.adaptive) {
        const Range pixels = bin(i, across ? a.yw : a.yh, n);
        divisor = pixels.hi - pixels.lo;
        return pixels;
    }
    divisor = kernel;
    return covered(i, kernel, across ? a.stride_x : a.stride_y, across ? a.pad_x : a.pad_y, n);
}

// Σ x over every eighth of a bin's pixels. They are loaded in batches: a load a turn would wait for each.
template <class T> DEVICE float sum_pixels(const T* x, const AverageArgs& a, Range rows, Range cols, i32 first) {
    const i32 width = max(cols.hi - cols.lo, 0), pixels = width * max(rows.hi - rows.lo, 0);
    constexpr i32 BATCH = 8;
    float sum = 0.0f;
    for (i32 i = first; i < pixels; i += WARPS * BATCH) {
        float terms[BATCH];
        for (i32 k = 0; k < BATCH; ++k) {
            const i32 p = min(i + k * WARPS, pixels - 1), at = (rows.lo + p / width) * a.xw + cols.lo + p % width;
            terms[k] = widen(x[static_cast<u32>(at * a.c)]);
        }
        for (i32 k = 0; k < BATCH; ++k) sum += i + k * WARPS < pixels ? terms[k] : 0.0f;
    }
    return sum;
}

// The mean of a single bin, of 32 channels: few results of many pixels each, so warps share the pixels.
DEVICE void single_bin(const AverageArgs& a) {
    __shared__ float partial[WARPS][32];
    i32 dh, dw;
    const Range rows = bin_of(a, false, 0, dh), cols = bin_of(a, true, 0, dw);
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, channel = blockIdx.x * 32 + lane;
    for (u32 b = blockIdx.y; b < a.count; b += gridDim.y) {
        const u64 sample = block_of(a.x, b, a.y.lanes) + channel;
        float sum = 0.0f;
        if (channel < static_cast<u32>(a.c)) {
            sum = a.x.half ? sum_pixels(static_cast<const __half*>(a.x.data) + sample, a, rows, cols, warp)
                           : sum_pixels(static_cast<const float*>(a.x.data) + sample, a, rows, cols, warp);
        }
        partial[warp][lane] = sum;
        __syncthreads();
        if (warp == 0 && channel < static_cast<u32>(a.c)) {
            for (i32 w = 1; w < WARPS; ++w) sum += partial[w][lane];
            store(a.y, a.y.len * b + channel, sum / static_cast<float>(dh * dw), a.bad);
        }
        __syncthreads();
    }
}

KERNEL(avg_pool, AverageArgs, 256, 4) {
    if (a.yh * a.yw == 1) return single_bin(a);
    const bool packed = a.c % PACK == 0 && packs(a.x) && packs(a.y);
    each(a, a.yh * a.yw, packed, [&](auto& sums, u32 b, u32 pixel, u32 channel) {
        constexpr int N = sizeof(sums) / sizeof(float);
        i32 dh, dw;
        const Range rows = bin_of(a, false, pixel / a.yw, dh), cols = bin_of(a, true, pixel % a.yw, dw);
        const u64 sample = block_of(a.x, b, a.y.lanes) + channel;
        for (int j = 0; j < N; ++j) sums[j] = 0.0f;
        for (i32 iy = rows.lo; iy < rows.hi; ++iy) {
            for (i32 ix = cols.lo; ix < cols.hi; ++ix) {
                float x[N];
                load_pack(a.x, sample + static_cast<u32>((iy * a.xw + ix) * a.c), x);
                for (int j = 0; j < N; ++j) sums[j] += x[j];
            }
        }
        for (int j = 0; j < N; ++j) sums[j] /= static_cast<float>(dh * dw);
        store_pack(a.y, a.y.len * b + pixel * a.c + channel, sums, a.bad);
    });
}

// Bins along an axis that hold pixel p.
DEVICE Range bins_of(const AverageArgs& a, bool across, i32 p) {
    const i32 n = across ? a.xw : a.xh, bins = across ? a.yw : a.yh;
    if (a.adaptive) return bin(p, n, bins);
    const i32 kernel = across ? a.kernel_x : a.kernel_y, stride = across ? a.stride_x : a.stride_y;
    return holding(p, kernel, stride, across ? a.pad_x : a.pad_y, bins);
}

KERNEL(avg_pool_back, AverageArgs, 256, 4) {
    const bool packed = a.c % PACK == 0 && packs(a.x) && packs(a.mul) && packs(a.add) && packs(a.y);
    each(a, a.xh * a.xw, packed, [&](auto& sums, u32 b, u32 pixel, u32 channel) {
        constexpr int N = sizeof(sums) / sizeof(float);
        const Range rows = bins_of(a, false, pixel / a.xw), cols = bins_of(a, true, pixel % a.xw);
        const u64 sample = block_of(a.x, b, a.y.lanes) + channel;
        const u32 i = pixel * a.c + channel;
        for (int j = 0; j < N; ++j) sums[j] = 0.0f;
        for (i32 oy = rows.lo; oy < rows.hi; ++oy) {
            for (i32 ox = cols.lo; ox < cols.hi; ++ox) {
                i32 dh, dw;
                bin_of(a, false, oy, dh), bin_of(a, true, ox, dw);
                float dy[N];
                load_pack(a.x, sample + static_cast<u32>((oy * a.yw + ox) * a.c), dy);
                for (int j = 0; j < N; ++j) sums[j] += dy[j] / static_cast<float>(dh * dw);
            }
        }
        if (a.mul.data) {
            float mul[N];
            load_pack(a.mul, block_of(a.mul, b, a.y.lanes) + i, mul);
            for (int j = 0; j < N; ++j) sums[j] *= mul[j];
        }
        finish(a.add, a.y, b, i, sums, a.bad);
    });
}
