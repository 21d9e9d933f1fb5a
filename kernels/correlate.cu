// Convolutions whose weight belongs to the sample: what input and result correlate by, and that weight's way forward
// and back.
//
//     correlate     v[b, tap, i, o] = Σ over pixels q of x[b, stride·q + first + tap, i] · y[b, q, o]
//     conv_by       y[b, q, o] = Σ_taps Σ_i x[b, stride·q + first + tap, i] · v[b, tap, i, o]
//     conv_back_by  y[b, origin + step·q, i] = mul ⊙ Σ_taps Σ_o x[b, q + first + tap, o] · v[b, tap, i, o] + add
//
// Shapes: x [xh, xw, xc] and y [yh, yw, yc] as in ConvArgs, v [kernel positions, input channels, output channels]; any
// operand fp16 or fp32, with the result's lanes or one. Source pixels outside of x are 0. conv_back_by is launched for
// each phase of the input-gradient; one without taps gives add, which may be y's own memory.
// Launch: 256 threads, grid (tiles, min(count, 65535)): a tile is 64 × 64 results of a product of depth K, and there are
// ceil(M / 64) · ceil(N / 64) of them, in correlate so many for each tap.
//     kernel        M                 N   K
//     correlate     xc                yc  yh · yw
//     conv_by       pixels            yc  taps · xc
//     conv_back_by  pixels of a phase yc  taps · xc
// Bytes: each operand once from memory, tiles M / 64 or N / 64 times from cache. FLOPs: 2·M·N·K a result, so from about
// 30 channels on arithmetic sets the time: 16 FLOPs a byte that a tile reads.
// Numbers: fp32 without tensor cores, for what is 0 must stay 0 and the products meet once more on the way back. Sums
// run in ascending k, which the shape fixes.
// CPU twin: src/backend/cpu/correlate.rs. Test: tests/instructions.rs.
#include "common.cuh"

constexpr i32 THREADS = 256, TILE = 64, DEPTH = 32, PITCH = TILE + 4, LOADS = TILE * DEPTH / THREADS;

// One of the two operands' tile. Each thread loads LOADS elements of it, so that warps read along the memory: `DEEP`
// operands lie along k, the others along the rows or columns of the result.
template <bool DEEP> struct Loader {
    static __device__ i32 line(i32 i) { return DEEP ? threadIdx.x / DEPTH + THREADS / DEPTH * i : threadIdx.x % TILE; }
    static __device__ i32 depth(i32 i) { return DEEP ? threadIdx.x % DEPTH : threadIdx.x / TILE + THREADS / TILE * i; }
};

// The tile of a product that begins at (row, col) and adds up `depth` terms: `left(k, values)` and `right(k, values)`
// load what a thread loads of the terms from k on, `finish(row, col, sum)` takes each result.
template <bool LEFT_DEEP, bool RIGHT_DEEP, class L, class R, class F>
DEVICE void multiply(i32 row, i32 col, i32 depth, L left, R right, F finish) {
    __shared__ __align__(16) float lefts[DEPTH][PITCH], rights[DEPTH][PITCH];
    const i32 own_row = threadIdx.x / 16 * 4, own_col = threadIdx.x % 16 * 4;
    float sums[4][4] = {}, l[LOADS], r[LOADS];
    if (depth > 0) left(0, l), right(0, r);
    for (i32 k = 0; k < depth; k += DEPTH) {
        for (i32 i = 0; i < LOADS; ++i) {
            lefts[Loader<LEFT_DEEP>::depth(i)][Loader<LEFT_DEEP>::line(i)] = l[i];
            rights[Loader<RIGHT_DEEP>::depth(i)][Loader<RIGHT_DEEP>::line(i)] = r[i];
        }
        __syncthreads();
        // The next tile is on its way while this one is multiplied.
        if (k + DEPTH < depth) left(k + DEPTH, l), right(k + DEPTH, r);
        for (i32 d = 0; d < DEPTH; ++d) {
            const float4 p = *reinterpret_cast<const float4*>(&lefts[d][own_row]);
            const float4 q = *reinterpret_cast<const float4*>(&rights[d][own_col]);
            const float ps[4] = {p.x, p.y, p.z, p.w}, qs[4] = {q.x, q.y, q.z, q.w};
            for (i32 i = 0; i < 4; ++i) {
                for (i32 j = 0; j < 4; ++j) sums[i][j] += ps[i] * qs[j];
            }
        }
        __syncthreads();
    }
    for (i32 i = 0; i < 4; ++i) {
        for (i32 j = 0; j < 4; ++j) finish(row + own_row + i, col + own_col + j, sums[i][j]);
    }
}

// Where a tile begins.
struct Corner {
    i32 row, col, tap;
};

DEVICE Corner corner(i32 rows, i32 cols) {
    const i32 down = (rows + TILE - 1) / TILE, across = (cols + TILE - 1) / TILE, i = blockIdx.x;
    return {i / across % down * TILE, i % across * TILE, i / (across * down)};
}

// Element of the source at a pixel and channel; 0 outside.
DEVICE float source(const ConvArgs& g, u64 x, i32 row, i32 col, i32 c) {
    if (row < 0 || row >= g.xh || col < 0 || col >= g.xw) return 0.0f;
    return load(g.x, x + static_cast<u32>((row * g.xw + col) * g.xc + c));
}

KERNEL(correlate, SampleConvArgs, 256, 2) {
    const ConvArgs& g = a.conv;
    const Corner at = corner(g.xc, g.yc);
    const i32 pixels = g.yh * g.yw, lanes = a.v.lanes;
    const i32 first_y = g.first_y + at.tap / a.kernel_cols, first_x = g.first_x + at.tap % a.kernel_cols;
    const i32 ci = at.row + Loader<false>::line(0), co = at.col + Loader<false>::line(0);
    for (u32 b = blockIdx.y; b < g.count; b += gridDim.y) {
        const u64 x = block_of(g.x, b, lanes), y = block_of(g.y, b, lanes);
        const auto left = [&](i32 k, float (&values)[LOADS]) {
            for (i32 i = 0; i < LOADS; ++i) {
                const i32 q = k + Loader<false>::depth(i);
                const bool there = q < pixels && ci < g.xc;
                values[i] = 0.0f;
                if (there) {
                    values[i] = source(g, x, q / g.yw * g.stride_y + first_y, q % g.yw * g.stride_x + first_x, ci);
                }
            }
        };
        const auto right = [&](i32 k, float (&values)[LOADS]) {
            for (i32 i = 0; i < LOADS; ++i) {
                const i32 q = k + Loader<false>::depth(i);
                values[i] = q < pixels && co < g.yc ? load(g.y, y + static_cast<u32>(q * g.yc + co)) : 0.0f;
            }
        };
        multiply<false, false>(at.row, at.col, pixels, left, right, [&](i32 i, i32 o, float sum) {
            if (i >= g.xc || o >= g.yc) return;
            store(a.v, a.v.len * b + static_cast<u32>((at.tap * g.xc + i) * g.yc + o), sum, g.bad);
        });
    }
}

// The product of gathered pixels with the weight, which `weight(k, values)` loads.
template <bool DEEP, class W> DEVICE void convolve(const SampleConvArgs& a, const Corner& at, W weight) {
    const ConvArgs& g = a.conv;
    const i32 pixels = g.ph * g.pw, depth = g.tap_rows * g.tap_cols * g.xc, lanes = g.y.lanes;
    // Source of the first tap for each pixel that this thread loads; far outside where there is no pixel.
    i32 rows[LOADS], cols[LOADS];
    for (i32 i = 0; i < LOADS; ++i) {
        const i32 q = at.row + Loader<true>::line(i);
        rows[i] = q < pixels ? q / g.pw * g.stride_y + g.first_y : -(1 << 30);
        cols[i] = q % g.pw * g.stride_x + g.first_x;
    }
    for (u32 b = blockIdx.y; b < g.count; b += gridDim.y) {
        const u64 x = block_of(g.x, b, lanes), v = block_of(a.v, b, lanes);
        const auto left = [&](i32 k, float (&values)[LOADS]) {
            k += Loader<true>::depth(0);
            const i32 tap = k / g.xc, c = k % g.xc, row = tap / g.tap_cols, col = tap % g.tap_cols;
            for (i32 i = 0; i < LOADS; ++i) {
                values[i] = k < depth ? source(g, x, rows[i] + row, cols[i] + col, c) : 0.0f;
            }
        };
        const auto right = [&](i32 k, float (&values)[LOADS]) { weight(v, k, depth, values); };
        multiply<true, DEEP>(at.row, at.col, depth, left, right, [&](i32 q, i32 n, float sum) {
            if (q >= pixels || n >= g.yc) return;
            const i32 row = g.origin_y + g.step_y * (q / g.pw), col = g.origin_x + g.step_x * (q % g.pw);
            const u32 i = (row * g.yw + col) * g.yc + n;
            if (g.mul.data) sum *= load(g.mul, block_of(g.mul, b, lanes) + i);
            if (g.add.data) sum += load(g.add, block_of(g.add, b, lanes) + i);
            store(g.y, g.y.len * b + i, sum, g.bad);
        });
    }
}

KERNEL(conv_by, SampleConvArgs, 256, 2) {
    const ConvArgs& g = a.conv;
    const Corner at = corner(g.ph * g.pw, g.yc);
    const i32 n = at.col + Loader<false>::line(0);
    convolve<false>(a, at, [&](u64 v, i32 k, i32 depth, float (&values)[LOADS]) {
        for (i32 i = 0; i < LOADS; ++i) {
            const i32 d = k + Loader<false>::depth(i);
            values[i] = d < depth && n < g.yc ? load(a.v, v + static_cast<u32>(d * g.yc + n)) : 0.0f;
        }
    });
}

KERNEL(conv_back_by, SampleConvArgs, 256, 2) {
    const ConvArgs& g = a.conv;
    const Corner at = corner(g.ph * g.pw, g.yc);
    convolve<true>(a, at, [&](u64 v, i32 k, i32 depth, float (&values)[LOADS]) {
        k += Loader<true>::depth(0);
        const i32 tap = k / g.xc, o = k % g.xc;
        const i32 row = a.tap_y + a.turn_y * (tap / g.tap_cols), col = a.tap_x + a.turn_x * (tap % g.tap_cols);
        for (i32 i = 0; i < LOADS; ++i) {
            const i32 n = at.col + Loader<true>::line(i);
            const u32 at_weight = ((row * a.kernel_cols + col) * g.yc + n) * g.xc + o;
            values[i] = k < depth && n < g.yc ? load(a.v, v + at_weight) : 0.0f;
        }
    });
}
