// Pixels of a value that all samples share: what overlapping patches have in common is computed once and cut out here.
//
//     gather  y[b, i, j, c] = x[rows[p, i], cols[q, j], c], or fill where there is no such row or column
//
// Shapes: x [from_h, from_w, channels], one sample; y [h, w, channels]; rows [grid rows, h], cols [grid_cols, w]. Sample
// b is the patch first + b, in row p and column q of the grid. x and y are of one type, fp16 or fp32.
// Launch: 256 threads, grid (ceil(y.len / 1024), min(count, 65535)); a block makes 1024 elements of each sample b.
// Bytes: the pixels that are read once, y once. A thread takes four channels in one access where their number allows it.
// Numbers: copied bit by bit; what is not finite was noticed where it was made.
// CPU twin: src/backend/cpu/resample.rs (gather). Tests: tests/instructions.rs.
#include "common.cuh"

constexpr u32 THREADS = 256, PACK = 4, OUTSIDE = 0xffffffffu;

// One access of 8 or 16 bytes.
template <class T> struct alignas(sizeof(T) * PACK) Four {
    T v[PACK];
};

template <class T, u32 N> DEVICE void copy(const GatherArgs& a, u32 b, u32 i) {
    const u32 pixel = i / a.channels, c = i % a.channels;
    const u32 p = (a.first + b) / a.grid_cols, q = (a.first + b) % a.grid_cols;
    const u32 row = a.rows[p * a.h + pixel / a.w], col = a.cols[q * a.w + pixel % a.w];
    T* to = static_cast<T*>(a.y.data) + a.y.len * b + i;
    if (row == OUTSIDE || col == OUTSIDE) {
        for (u32 j = 0; j < N; ++j) to[j] = static_cast<T>(a.fill);
        return;
    }
    const T* from = static_cast<const T*>(a.x.data) + (static_cast<u64>(row) * a.from_w + col) * a.channels + c;
    if (N == PACK) {
        *reinterpret_cast<Four<T>*>(to) = *reinterpret_cast<const Four<T>*>(from);
    } else {
        *to = *from;
    }
}

template <class T> DEVICE void gather_all(const GatherArgs& a) {
    const u32 len = static_cast<u32>(a.y.len), first = blockIdx.x * (THREADS * PACK);
    const bool packed = a.channels % PACK == 0 && packs(a.x) && packs(a.y);
    for (u32 b = blockIdx.y; b < a.count; b += gridDim.y) {
        if (packed) {
            const u32 i = first + threadIdx.x * PACK;
            if (i < len) copy<T, PACK>(a, b, i);
        } else {
            for (u32 k = 0; k < PACK; ++k) {
                const u32 i = first + k * THREADS + threadIdx.x;
                if (i < len) copy<T, 1>(a, b, i);
            }
        }
    }
}

KERNEL(gather, GatherArgs, 256, 8) {
    if (a.y.half) {
        gather_all<unsigned short>(a);
    } else {
        gather_all<u32>(a);
    }
}
