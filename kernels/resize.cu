// Antialiased resizing of 8-bit pictures along one axis, as Pillow does it.
//
//     resize_across  y[r, s] = clip(Σ_k weights[k] · x[r, reach[s].first + k])
//     resize_down    y[r, s] = clip(Σ_k weights[k] · x[reach[r].first + k, s])
//
// Shapes: x has rows of `pitch` bytes in one of four formats, y [h, w, 3] bytes. reach has an entry for each result
// pixel along the resized axis, with `count` weights from `weights` on. A single weight of 2^22 each only makes it RGB.
// Launch: 256 threads, grid (ceil(w / 32), ceil(h / 8)): a block makes 8 rows of 32 pixels.
// Bytes: x and y once from memory; 3 integer multiply-adds a weight. The upload of x takes far longer.
// Numbers: 32-bit integers with 22 bits of fraction, rounded to nearest: bytes equal the CPU's.
// CPU twin: src/resize.rs. Test: tests/cuda.rs.
#include "common.cuh"

constexpr i32 BITS = 22;

DEVICE u32 pixel_bytes(u32 format) { return format == 2 ? 4 : format == 3 ? 1 : 3; }

// Where red, green and blue (c = 0, 1, 2) lie in a pixel.
DEVICE u32 byte_of(u32 format, u32 c) { return format == 3 ? 0 : format == 1 ? 2 - c : c; }

// One result pixel from source pixels that lie `step` bytes apart.
DEVICE void weigh(const ResizeArgs& a, const Reach& reach, const u8* source, u64 step, u8* result) {
    i32 sums[3] = {1 << (BITS - 1), 1 << (BITS - 1), 1 << (BITS - 1)};
    for (u32 k = 0; k < reach.count; ++k, source += step) {
        const i32 weight = a.weights[reach.weights + k];
        for (u32 c = 0; c < 3; ++c) sums[c] += weight * source[byte_of(a.format, c)];
    }
    for (u32 c = 0; c < 3; ++c) result[c] = static_cast<u8>(min(max(sums[c] >> BITS, 0), 255));
}

KERNEL(resize_across, ResizeArgs, 256, 4) {
    const u32 s = blockIdx.x * 32 + threadIdx.x % 32, r = blockIdx.y * 8 + threadIdx.x / 32;
    if (r >= a.h || s >= a.w) return;
    const Reach reach = a.reach[s];
    const u64 bytes = pixel_bytes(a.format);
    weigh(a, reach, a.x + a.pitch * r + bytes * reach.first, bytes, a.y + (static_cast<u64>(r) * a.w + s) * 3);
}

KERNEL(resize_down, ResizeArgs, 256, 4) {
    const u32 s = blockIdx.x * 32 + threadIdx.x % 32, r = blockIdx.y * 8 + threadIdx.x / 32;
    if (r >= a.h || s >= a.w) return;
    const Reach reach = a.reach[r];
    const u64 column = static_cast<u64>(s) * pixel_bytes(a.format);
    weigh(a, reach, a.x + a.pitch * reach.first + column, a.pitch, a.y + (static_cast<u64>(r) * a.w + s) * 3);
}
