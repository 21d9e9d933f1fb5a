// The maps of all patches put together: each pixel of the canvas is the weighted mean of the maps that cover it.
//
//     y[lane, d, e] = Σ_i Σ_j weight(patch) · bilinear(maps[patch, lane], rows[i], cols[j]) / (patches there + extra)
//     weight(patch) = 1, exp(p[patch, lane]), or that divided by its maximum over the patches
//
// Shapes: maps [patches, lanes, map_h, map_w], p [patches, lanes], y [lanes, h, w], all fp32. rows[row_first[d]..] to
// row_first[d + 1] cover row d, likewise the columns; patch = rows[i].patch · grid_cols + cols[j].patch.
// Launch: 256 threads, grid (ceil(h·w / 256), lanes): a thread a pixel. Each block finds the maximum itself.
// Bytes: 4 reads a covering patch, nearly all from cache: the maps are small; the result once.
// Numbers: fp32, patches in order, rows before columns. A gather, so no result depends on the order of blocks.
// CPU twin: src/backend/cpu/resample.rs (fold). Test: tests/cuda.rs.
#include "common.cuh"

constexpr u32 THREADS = 256;

// max over the patches of exp(p); every thread of the block gets it. What is no number does not count.
DEVICE float largest(const FoldArgs& a, u32 lane) {
    __shared__ float values[THREADS];
    float top = 0.0f;
    for (u32 i = threadIdx.x; i < a.patches; i += THREADS) top = fmaxf(top, expf(a.p[i * a.lanes + lane]));
    values[threadIdx.x] = top;
    for (u32 half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) values[threadIdx.x] = fmaxf(values[threadIdx.x], values[threadIdx.x + half]);
    }
    __syncthreads();
    return values[0];
}

DEVICE float lerp(float lo, float hi, float t) { return lo + t * (hi - lo); }

KERNEL(fold, FoldArgs, 256, 4) {
    const u32 lane = blockIdx.y, pixel = blockIdx.x * THREADS + threadIdx.x;
    const float top = a.weighting == 2 ? largest(a, lane) : 1.0f;
    if (pixel >= a.h * a.w) return;
    const u32 d = pixel / a.w, e = pixel % a.w;
    const u32 row_first = a.row_first[d], row_end = a.row_first[d + 1];
    const u32 col_first = a.col_first[e], col_end = a.col_first[e + 1];
    float sum = 0.0f;
    for (u32 i = row_first; i < row_end; ++i) {
        const Cover v = a.rows[i];
        for (u32 j = col_first; j < col_end; ++j) {
            const Cover u = a.cols[j];
            const u64 map = static_cast<u64>(v.patch * a.grid_cols + u.patch) * a.lanes + lane;
            const float* m = a.maps + map * (a.map_h * a.map_w);
            const float* lo = m + v.lo * a.map_w;
            const float* hi = m + v.hi * a.map_w;
            const float value = lerp(lerp(lo[u.lo], lo[u.hi], u.t), lerp(hi[u.lo], hi[u.hi], u.t), v.t);
            const float weight = a.weighting == 0 ? 1.0f : expf(a.p[map]) / top;
            sum += weight * value;
        }
    }
    sum /= static_cast<float>((row_end - row_first) * (col_end - col_first) + a.extra);
    a.y[static_cast<u64>(lane) * a.h * a.w + pixel] = sum;
    if (is_bad(sum)) *a.bad = 1;
}
