// Patches of the working image: crop, bicubic resize, normalise and cast in one pass.
//
//     y[b, r, s, c] = Σ_j cols[s].weight[j] · Σ_i rows[r].weight[i] · levels[c][image[row i, column j, c]]
//     row i = rows[r].index[i], column j = cols[s].index[j]
//
// Shapes: image [image_h, image_w, 3] bytes, dense; y [count, sh, sw, channels] fp16, channels beyond the third are 0.
// Patch first + b has the rows of its grid row and the columns of its grid column.
// Launch: 256 threads, grid (ceil(sw / 64), ceil(sh / 16), count): a block makes 16 × 64 pixels of a patch. It first
// goes down the columns that its pixels read, into shared memory, then across. Where these columns do not fit, for
// patches are scaled down or pixels of several are laid side by side, each pixel goes down its own four, with the same
// sums. Only the taps of one pixel need to ascend.
// Bytes: the result, 8 a pixel of 4 channels; the image stays in cache. FLOPs: 24 a pixel, and 24 a row of the tile for
// each column that it reads.
// Numbers: fp32, taps in order, down before across, rounded once to fp16.
// CPU twin: src/backend/cpu/resample.rs (unfold). Test: tests/cuda.rs.
#include "reduce.cuh"

constexpr u32 THREADS = 256, ROWS = 16, COLS = 64;
// Columns that a tile of one patch reads unless it is scaled down: the taps of its pixels lie at most one column apart.
constexpr u32 SPAN = COLS + 3;

typedef float Levels[3][256];

// One column of the image at one row of a patch.
DEVICE void down(const UnfoldArgs& a, const Levels& levels, const Taps& row, u32 column, float (&sums)[3]) {
    for (u32 c = 0; c < 3; ++c) sums[c] = 0.0f;
    for (u32 i = 0; i < 4; ++i) {
        const u8* pixel = a.image + (row.index[i] * a.image_w + column) * 3;
        for (u32 c = 0; c < 3; ++c) sums[c] += row.weight[i] * levels[c][pixel[c]];
    }
}

DEVICE void store_pixel(const UnfoldArgs& a, u64 pixel, const float (&value)[3]) {
    __half* y = a.y + pixel * a.channels;
    if (a.channels == 4) {
        const __half2 h[2] = {__floats2half2_rn(value[0], value[1]), __floats2half2_rn(value[2], 0.0f)};
        uint2 bits;
        memcpy(&bits, h, 8);
        *reinterpret_cast<uint2*>(y) = bits;
    } else {
        for (u32 c = 0; c < a.channels; ++c) {
            y[c] = __float2half_rn(c == 0 ? value[0] : c == 1 ? value[1] : c == 2 ? value[2] : 0.0f);
        }
    }
}

KERNEL(unfold, UnfoldArgs, 256, 4) {
    __shared__ Levels levels;
    __shared__ float lines[ROWS][3][SPAN];
    for (u32 i = threadIdx.x; i < 3 * 256; i += THREADS) levels[i / 256][i % 256] = a.levels[i];
    const u32 patch = a.first + blockIdx.z, top = blockIdx.y * ROWS, left = blockIdx.x * COLS;
    const Taps* rows = a.rows + patch / a.grid_cols * a.sh + top;
    const Taps* cols = a.cols + patch % a.grid_cols * a.sw + left;
    const u32 height = min(ROWS, a.sh - top), width = min(COLS, a.sw - left);
    const bool mine = threadIdx.x < width;
    const u32 first = ~reduce<THREADS>(mine ? ~cols[threadIdx.x].index[0] : 0u, Largest{});
    const u32 span = reduce<THREADS>(mine ? cols[threadIdx.x].index[3] : 0u, Largest{}) + 1 - first;
    const bool fits = span <= SPAN;
    for (u32 i = threadIdx.x; fits && i < height * span; i += THREADS) {
        const u32 row = i / span, column = i % span;
        float sums[3];
        down(a, levels, rows[row], first + column, sums);
        for (u32 c = 0; c < 3; ++c) lines[row][c][column] = sums[c];
    }
    __syncthreads();
    const u32 s = threadIdx.x % COLS;
    if (s >= width) return;
    const Taps across = cols[s];
    for (u32 r = threadIdx.x / COLS; r < height; r += THREADS / COLS) {
        float value[3] = {0.0f, 0.0f, 0.0f};
        for (u32 j = 0; j < 4; ++j) {
            float near[3];
            if (fits) {
                for (u32 c = 0; c < 3; ++c) near[c] = lines[r][c][across.index[j] - first];
            } else {
                down(a, levels, rows[r], across.index[j], near);
            }
            for (u32 c = 0; c < 3; ++c) value[c] += across.weight[j] * near[c];
        }
        store_pixel(a, (static_cast<u64>(blockIdx.z) * a.sh + top + r) * a.sw + left + s, value);
    }
}
