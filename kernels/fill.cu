// Values that a few numbers make: patterns that repeat, and noise.
//
//     fill     y[b, pixel, c] = values[c], or vector[c], or −range[upper] in the first `own` channels and 0 in the others
//     perturb  y[b, pixel, c] = x + sigma · (hi − lo) · n(seed, draw + lane, patch, pixel · own + c) in the first `own` channels
//
// Shapes: y [pixels, channels], x of y's shape, range [2], each with y's lanes or one, in fp16 or fp32.
// Launch: 256 threads, grid (ceil(y.len / 1024), min(count, 65535)); a block makes 1024 elements of each result b.
// Bytes: x once, y once. perturb: about 100 instructions an element, on a par with its memory.
// Numbers: n is normal, by Box and Muller from two integers of 32 bits, of which integer arithmetic makes the same as on
// the CPU; the rest is fp32, exact to a few units in the last place.
// CPU twin: src/backend/cpu/elementwise.rs (fill, bound), src/backend/cpu/noise.rs. Tests: tests/instructions.rs.
#include "common.cuh"

constexpr u32 THREADS = 256, PACK = 4;

KERNEL(fill, FillArgs, 256, 8) {
    const u32 len = static_cast<u32>(a.y.len), first = (blockIdx.x * THREADS + threadIdx.x) * PACK;
    const bool packed = len % PACK == 0 && packs(a.y);
    for (u32 b = blockIdx.y; b < a.count; b += gridDim.y) {
        float end = 0.0f;
        if (a.range.data) end = -load(a.range, block_of(a.range, b, a.y.lanes) + a.upper);
        float y[PACK];
        for (u32 j = 0; j < PACK; ++j) {
            const u32 c = (first + j) % a.channels;
            y[j] = a.vector ? a.vector[c] : a.range.data ? (c < a.own ? end : 0.0f) : a.values[c & 3];
        }
        if (packed) {
            if (first < len) store_pack(a.y, a.y.len * b + first, y, a.bad);
        } else {
            for (u32 j = 0; j < PACK && first + j < len; ++j) store(a.y, a.y.len * b + first + j, y[j], a.bad);
        }
    }
}

// The finaliser of splitmix64.
DEVICE u64 mix(u64 z) {
    z += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
}

DEVICE float normal(u64 stream, u64 element) {
    constexpr float UNIT = 1.0f / 4294967296.0f;
    const u64 bits = mix(stream ^ element);
    const u32 high = static_cast<u32>(bits >> 32), low = static_cast<u32>(bits);
    // ln((high + 1) / 2³²); near 1 from the distance to 1, which is exact.
    const float log = high < 0x80000000u ? logf((static_cast<float>(high) + 1.0f) * UNIT)
                                         : log1pf(-static_cast<float>(~high) * UNIT);
    return sqrtf(-2.0f * log) * cospif(static_cast<float>(static_cast<i32>(low)) * (2.0f * UNIT));
}

KERNEL(perturb, PerturbArgs, 256, 4) {
    const u32 len = static_cast<u32>(a.y.len), lanes = a.y.lanes;
    for (u32 b = blockIdx.y; b < a.count; b += gridDim.y) {
        const u64 x = block_of(a.x, b, lanes), range = block_of(a.range, b, lanes);
        const float sigma = a.sigma * (load(a.range, range + 1) - load(a.range, range));
        const u64 stream = mix(mix(a.seed) ^ (static_cast<u64>(a.first + b / lanes) << 32 | (a.draw + b % lanes)));
        for (u32 k = 0; k < PACK; ++k) {
            const u32 i = (blockIdx.x * PACK + k) * THREADS + threadIdx.x;
            if (i >= len) break;
            const u32 pixel = i / a.stored, c = i % a.stored;
            float v = load(a.x, x + i);
            if (c < a.own) v += sigma * normal(stream, static_cast<u64>(pixel) * a.own + c);
            store(a.y, a.y.len * b + i, v, a.bad);
        }
    }
}
