// The network's head: classes, probabilities, seeds of the walk down, and the reordering before the first linear layer.
// b = sample · lanes + lane with lanes = y.lanes; class(b) = classes[lane].
//
//     flatten       y[b, channel, pixel] = x[b, pixel, channel]
//     flatten_back  y[b, pixel, channel] = x[b, channel, pixel] + add
//     softmax       y[b, i] = exp(x[b, i] − max x) / Σ exp(x − max x)
//     top_k         classes[0..k] = where x of the first sample is largest, largest first; of equal ones the first
//     pick          y[b] = x[sample, class(b)]
//     seed          y[b, i] = i = class(b) ? (x ? x[b, i] : 1) : 0
//     class_row     y[b, i] = w[class(b), i] · scale
//
// Launch, all of 256 threads:
//     flatten, flatten_back  grid (ceil(channels / 32), ceil(pixels / 32), min(count, 65535))
//     softmax                grid (count), a block a sample (lanes are 1)
//     top_k                  grid (1)
//     pick                   grid (ceil(count / 256))
//     seed, class_row        grid (ceil(y.len / 256), min(count, 65535))
// Bytes: each operand once, the result once (top_k: x k times, from cache). All are small beside a convolution.
// Numbers: softmax sums in double, in a fixed tree; its exponentials are computed twice rather than kept. As on the CPU
// a logit that is no number does not count as the maximum, and top_k takes one only when nothing before it is free.
// CPU twin: src/backend/cpu/layers.rs. Tests: tests/layers.rs.
#include "common.cuh"

constexpr u32 THREADS = 256, TILE = 32;

// y[b, j, i] = x[b, i, j] + add for the tile of `rows` × `cols` matrices that begins at (row, col). Reads and writes
// run along rows of their own matrix; the turn happens in shared memory, one column wider against bank conflicts.
DEVICE void transpose(const FlattenArgs& a, u32 rows, u32 cols, u32 row, u32 col) {
    __shared__ float tile[TILE][TILE + 1];
    const u32 lane = threadIdx.x % TILE, warp = threadIdx.x / TILE, lanes = a.y.lanes;
    for (u32 b = blockIdx.z; b < a.count; b += gridDim.z) {
        const u64 x = block_of(a.x, b, lanes), add = block_of(a.add, b, lanes);
        for (u32 r = warp; r < TILE; r += THREADS / TILE) {
            if (row + r < rows && col + lane < cols) tile[r][lane] = load(a.x, x + (row + r) * cols + col + lane);
        }
        __syncthreads();
        for (u32 c = warp; c < TILE; c += THREADS / TILE) {
            if (col + c >= cols || row + lane >= rows) continue;
            const u32 i = (col + c) * rows + row + lane;
            const float term = a.add.data ? load(a.add, add + i) : 0.0f;
            store(a.y, a.y.len * b + i, tile[lane][c] + term, a.bad);
        }
        __syncthreads();
    }
}

KERNEL(flatten, FlattenArgs, 256, 4) {
    transpose(a, a.pixels, a.channels, blockIdx.y * TILE, blockIdx.x * TILE);
}

KERNEL(flatten_back, FlattenArgs, 256, 4) {
    transpose(a, a.channels, a.pixels, blockIdx.x * TILE, blockIdx.y * TILE);
}

// Joins one value a thread with `join`, which is associative; every thread gets the result.
template <class T, class F> DEVICE T reduce(T value, F join) {
    __shared__ T values[THREADS];
    values[threadIdx.x] = value;
    for (u32 half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) values[threadIdx.x] = join(values[threadIdx.x], values[threadIdx.x + half]);
    }
    __syncthreads();
    value = values[0];
    __syncthreads();
    return value;
}

KERNEL(softmax, HeadArgs, 256, 4) {
    const u32 b = blockIdx.x, n = static_cast<u32>(a.y.len);
    const u64 x = block_of(a.x, b, a.y.lanes);
    float top = -INFINITY;
    for (u32 i = threadIdx.x; i < n; i += THREADS) top = fmaxf(top, load(a.x, x + i));
    top = reduce(top, [](float p, float q) { return fmaxf(p, q); });
    double sum = 0.0;
    for (u32 i = threadIdx.x; i < n; i += THREADS) sum += static_cast<double>(expf(load(a.x, x + i) - top));
    sum = reduce(sum, [](double p, double q) { return p + q; });
    for (u32 i = threadIdx.x; i < n; i += THREADS) {
        const double p = static_cast<double>(expf(load(a.x, x + i) - top)) / sum;
        store(a.y, a.y.len * b + i, static_cast<float>(p), a.bad);
    }
}

// What is left to choose from: the best number, and the first of all values, number or not.
struct Choice {
    float best, first;
    u32 best_at, first_at;
};

KERNEL(top_k, HeadArgs, 256, 1) {
    constexpr u32 NONE = 0xffffffff;
    const u32 n = static_cast<u32>(a.x.len);
    // Numbers are taken in order of (value, index), others in order of their index: the last ones tell what is taken.
    float last = INFINITY;
    u32 next = 0, next_other = 0;
    for (u32 k = 0; k < a.k; ++k) {
        Choice mine = {0.0f, 0.0f, NONE, NONE};
        for (u32 i = threadIdx.x; i < n; i += THREADS) {
            const float v = load(a.x, i);
            const bool number = v == v;
            if (number ? v > last || (v == last && i < next) : i < next_other) continue;
            if (mine.first_at == NONE) mine.first = v, mine.first_at = i;
            if (number && (mine.best_at == NONE || v > mine.best)) mine.best = v, mine.best_at = i;
        }
        const Choice free = reduce(mine, [](Choice p, Choice q) {
            if (q.first_at < p.first_at) p.first = q.first, p.first_at = q.first_at;
            const bool better = q.best > p.best || (q.best == p.best && q.best_at < p.best_at);
            if (q.best_at != NONE && (p.best_at == NONE || better)) p.best = q.best, p.best_at = q.best_at;
            return p;
        });
        const bool other = free.first != free.first;
        const u32 chosen = other ? free.first_at : free.best_at;
        if (threadIdx.x == 0) a.classes[k] = chosen == NONE ? 0 : chosen;
        if (other) {
            next_other = chosen + 1;
        } else if (chosen != NONE) {
            last = free.best;
            next = chosen + 1;
        }
    }
}

KERNEL(pick, HeadArgs, 256, 4) {
    const u32 b = blockIdx.x * THREADS + threadIdx.x, lanes = a.y.lanes;
    if (b < a.count) store(a.y, b, load(a.x, block_of(a.x, b, lanes) + a.classes[b % lanes]), a.bad);
}

KERNEL(seed, HeadArgs, 256, 4) {
    const u32 i = blockIdx.x * THREADS + threadIdx.x, lanes = a.y.lanes;
    if (i >= a.y.len) return;
    for (u32 b = blockIdx.y; b < a.count; b += gridDim.y) {
        float v = 0.0f;
        if (i == a.classes[b % lanes]) v = a.x.data ? load(a.x, block_of(a.x, b, lanes) + i) : 1.0f;
        store(a.y, a.y.len * b + i, v, a.bad);
    }
}

KERNEL(class_row, HeadArgs, 256, 4) {
    const u32 i = blockIdx.x * THREADS + threadIdx.x, lanes = a.y.lanes;
    if (i >= a.y.len) return;
    for (u32 b = blockIdx.y; b < a.count; b += gridDim.y) {
        const u64 row = a.y.len * a.classes[b % lanes];
        store(a.y, a.y.len * b + i, __half2float(a.w[row + i]) * a.scale, a.bad);
    }
}
