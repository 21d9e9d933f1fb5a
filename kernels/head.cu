// The network's head: classes, probabilities, seeds of the walk down, and the reordering before the first linear layer.
// b = sample · lanes + lane with lanes = y.lanes; class(b) = classes[lane].
//
//     flatten       y[b, channel, pixel] = x[b, pixel, channel]
//     flatten_back  y[b, pixel, channel] = x[b, channel, pixel] + add
//     softmax       y[b, i] = exp(x[b, i] − max x) / Σ exp(x − max x)
//     top_k         classes[0..k] = where x of the first sample is largest, largest first; of equal ones the first
//     pick          y[b] = x[sample, class(b)]
//     seed          y[b] = where a walk down starts, as the code says (backend::Seed)
//     class_row     y[b, i] = w[class(b), i] · scale
//     head_gradient  y[b] = gradient of AGF's head at the logits x[b]
//     head_shares    y[b, i] = |x[b, i]| / Σ|x| · (Σx + bias[class(b)]), 0 where Σx = 0
//
// Launch, all of 256 threads:
//     flatten, flatten_back  grid (ceil(channels / 32), ceil(pixels / 32), min(count, 65535))
//     softmax, seed, head_gradient, head_shares
//                            grid (count), a block a result
//     top_k                  grid (1)
//     pick                   grid (ceil(count / 256))
//     class_row              grid (ceil(y.len / 256), min(count, 65535))
// Bytes: each operand once, the result once (top_k: x k times, from cache). All are small beside a convolution.
// Numbers: sums are in double, in a fixed tree, and so is all of head_gradient; exponentials are computed anew rather than
// kept. As on the CPU
// a logit that is no number does not count as the maximum, and top_k takes one only when nothing before it is free.
// CPU twin: src/backend/cpu/head.rs, src/backend/cpu/layers.rs (flatten). Tests: tests/layers.rs,
// tests/instructions.rs.
#include "reduce.cuh"

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

KERNEL(softmax, HeadArgs, 256, 4) {
    const u32 b = blockIdx.x, n = static_cast<u32>(a.y.len);
    const u64 x = block_of(a.x, b, a.y.lanes);
    float top = -INFINITY;
    for (u32 i = threadIdx.x; i < n; i += THREADS) top = fmaxf(top, load(a.x, x + i));
    top = reduce<THREADS>(top, Largest());
    double sum = 0.0;
    for (u32 i = threadIdx.x; i < n; i += THREADS) sum += static_cast<double>(expf(load(a.x, x + i) - top));
    sum = reduce<THREADS>(sum, Sum());
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
        const Choice free = reduce<THREADS>(mine, [](Choice p, Choice q) {
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

enum Seed : u32 { ONE, VALUE, OTHERS, MAGNITUDE, OTHER_MAGNITUDES, SOFTMAX, OTHER_SOFTMAX };

KERNEL(seed, HeadArgs, 256, 4) {
    const u32 b = blockIdx.x, lanes = a.y.lanes, n = static_cast<u32>(a.y.len), k = a.classes[b % lanes];
    const u64 x = block_of(a.x, b, lanes);
    const float at = a.code == ONE ? 1.0f : load(a.x, x + k);
    float own = 0.0f;
    if (a.code == ONE || a.code == VALUE) own = at;
    if (a.code == MAGNITUDE) own = fabsf(at);
    if (a.code == SOFTMAX) {
        double rest = 0.0;
        for (u32 i = threadIdx.x; i < n; i += THREADS) rest += i == k ? 0.0 : static_cast<double>(load(a.x, x + i));
        own = at * static_cast<float>(reduce<THREADS>(rest, Sum())) + 1e-8f;
    }
    const float share = n > 1 ? at / static_cast<float>(n - 1) : 0.0f;
    for (u32 i = threadIdx.x; i < n; i += THREADS) {
        float v = a.code == OTHERS ? share : 0.0f;
        if (a.code == OTHER_MAGNITUDES) v = fabsf(load(a.x, x + i));
        if (a.code == OTHER_SOFTMAX) v = at * load(a.x, x + i);
        store(a.y, a.y.len * b + i, i == k ? own : v, a.bad);
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

// The logit that is farthest from the class's, the first of several.
struct Far {
    double distance;
    u32 at;
};

// q = softmax(u) with u_j = y_t · exp(−½(d_j/σ)²), d_j = y_j − y_t, σ = max |d|: the gradient of q_t at the logits y.
// 0 where all logits are equal.
KERNEL(head_gradient, HeadArgs, 256, 2) {
    const u32 b = blockIdx.x, lanes = a.y.lanes, n = static_cast<u32>(a.y.len), t = a.classes[b % lanes];
    const u64 x = block_of(a.x, b, lanes);
    const double target = static_cast<double>(load(a.x, x + t));
    const auto d = [&](u32 j) { return static_cast<double>(load(a.x, x + j)) - target; };
    Far mine = {0.0, t};
    for (u32 j = threadIdx.x; j < n; j += THREADS) {
        if (fabs(d(j)) > mine.distance) mine = {fabs(d(j)), j};
    }
    const Far far = reduce<THREADS>(mine, [](Far p, Far q) {
        const bool farther = q.distance > p.distance || (q.distance == p.distance && q.at < p.at);
        return farther ? q : p;
    });
    const double sigma = far.distance;
    if (sigma == 0.0) {
        for (u32 j = threadIdx.x; j < n; j += THREADS) store(a.y, a.y.len * b + j, 0.0f, a.bad);
        return;
    }
    const auto e = [&](u32 j) { return exp(-0.5 * (d(j) / sigma) * (d(j) / sigma)); };
    double top = -INFINITY, sum = 0.0;
    for (u32 j = threadIdx.x; j < n; j += THREADS) top = fmax(top, target * e(j));
    top = reduce<THREADS>(top, Largest());
    for (u32 j = threadIdx.x; j < n; j += THREADS) sum += exp(target * e(j) - top);
    sum = reduce<THREADS>(sum, Sum());
    const double q_t = exp(target - top) / sum;
    double at_target = 0.0, at_sigma = 0.0;
    for (u32 j = threadIdx.x; j < n; j += THREADS) {
        const double u = target * e(j), gu = q_t * ((j == t ? 1.0 : 0.0) - exp(u - top) / sum), far_by = d(j) / sigma;
        at_target += gu * (e(j) + u * far_by / sigma);
        at_sigma += gu * u * far_by * far_by / sigma;
    }
    at_target = reduce<THREADS>(at_target, Sum());
    at_sigma = reduce<THREADS>(at_sigma, Sum()) * (d(far.at) < 0.0 ? -1.0 : 1.0);
    for (u32 j = threadIdx.x; j < n; j += THREADS) {
        const double u = target * e(j), gu = q_t * ((j == t ? 1.0 : 0.0) - exp(u - top) / sum);
        double y = -gu * u * d(j) / (sigma * sigma);
        if (j == far.at) y += at_sigma;
        if (j == t) y += at_target - at_sigma;
        store(a.y, a.y.len * b + j, static_cast<float>(y), a.bad);
    }
}

KERNEL(head_shares, HeadArgs, 256, 4) {
    const u32 b = blockIdx.x, lanes = a.y.lanes, n = static_cast<u32>(a.y.len);
    const u64 x = block_of(a.x, b, lanes);
    double sum = 0.0, size = 0.0;
    for (u32 i = threadIdx.x; i < n; i += THREADS) {
        const double q = static_cast<double>(load(a.x, x + i));
        sum += q, size += fabs(q);
    }
    sum = reduce<THREADS>(sum, Sum());
    size = reduce<THREADS>(size, Sum());
    const double total = sum + (a.bias ? static_cast<double>(a.bias[a.classes[b % lanes]]) : 0.0);
    const double each = sum == 0.0 ? 0.0 : total / size;
    for (u32 i = threadIdx.x; i < n; i += THREADS) {
        store(a.y, a.y.len * b + i, static_cast<float>(fabs(static_cast<double>(load(a.x, x + i))) * each), a.bad);
    }
}
