// What several kernels need.
#pragma once

#include "args.cuh"

#ifndef EMU_HOST
// Defines a kernel whose blocks have `threads` threads, with at least `blocks` of them on a multiprocessor.
#define KERNEL(name, Args, threads, blocks) \
    extern "C" __global__ void __launch_bounds__(threads, blocks) name(const __grid_constant__ Args a)
#endif

// max(v, 0), but what is no number stays so (backend::rectify).
DEVICE float rectify(float v) { return v < 0.0f ? 0.0f : v; }

// How quotients are kept finite (backend::Divisor).
enum Divisor : u32 { SIGNED, NONZERO, SHIFTED };

// a / z, kept finite. In fp32: 1e-6 is below the smallest normal number of fp16.
DEVICE float quotient(u32 divisor, float eps, float a, float z) {
    const bool nothing = divisor != SIGNED && z == 0.0f;
    const float shifted = divisor == SIGNED && !(z >= 0.0f) ? z - eps : z + eps;
    // One division, for it is many instructions, and convolutions repeat it for each sum.
    const float by = divisor == NONZERO ? z : divisor == SHIFTED && shifted == 0.0f ? eps : shifted;
    return nothing ? 0.0f : a / by;
}

DEVICE bool is_bad(float v) { return !(fabsf(v) <= 3.402823466e38f); }

// First element, within its operand, of what result b reads.
DEVICE u64 block_of(const Value& v, u32 b, u32 lanes) { return v.len * (v.lanes == lanes ? b : b / lanes); }

DEVICE float load(const Value& v, u64 i) {
    return v.half ? __half2float(static_cast<const __half*>(v.data)[i]) : static_cast<const float*>(v.data)[i];
}

// Calls f with the typed address of element i.
template <class F> DEVICE auto typed(const Value& v, u64 i, F f) {
    return v.half ? f(static_cast<const __half*>(v.data) + i) : f(static_cast<const float*>(v.data) + i);
}

// Stores and reports values that are infinite or no number, also those that only fp16 cannot hold.
DEVICE void store(const Value& v, u64 i, float value, u32* bad) {
    if (v.half) {
        const __half h = __float2half_rn(value);
        static_cast<__half*>(v.data)[i] = h;
        value = __half2float(h);
    } else {
        static_cast<float*>(v.data)[i] = value;
    }
    if (is_bad(value)) *bad = 1;
}

DEVICE float widen(float v) { return v; }
DEVICE float widen(__half v) { return __half2float(v); }

// N neighbouring elements of an operand in one access. Halves move as integers: nvcc splits vectors of __half2.
template <int N> DEVICE void load_pack(const Value& v, u64 i, float (&x)[N]) {
    if constexpr (N == 1) {
        x[0] = load(v, i);
    } else if (v.half) {
        const uint2 bits = *reinterpret_cast<const uint2*>(static_cast<const __half*>(v.data) + i);
        __half2 h[2];
        memcpy(h, &bits, 8);
        const float2 lo = __half22float2(h[0]), hi = __half22float2(h[1]);
        x[0] = lo.x, x[1] = lo.y, x[2] = hi.x, x[3] = hi.y;
    } else {
        const float4 f = *reinterpret_cast<const float4*>(static_cast<const float*>(v.data) + i);
        x[0] = f.x, x[1] = f.y, x[2] = f.z, x[3] = f.w;
    }
}

template <int N> DEVICE void store_pack(const Value& v, u64 i, const float (&x)[N], u32* bad) {
    if constexpr (N == 1) {
        store(v, i, x[0], bad);
    } else if (v.half) {
        const __half2 h[2] = {__floats2half2_rn(x[0], x[1]), __floats2half2_rn(x[2], x[3])};
        uint2 bits;
        memcpy(&bits, h, 8);
        *reinterpret_cast<uint2*>(static_cast<__half*>(v.data) + i) = bits;
        const float2 lo = __half22float2(h[0]), hi = __half22float2(h[1]);
        if (is_bad(lo.x) || is_bad(lo.y) || is_bad(hi.x) || is_bad(hi.y)) *bad = 1;
    } else {
        *reinterpret_cast<float4*>(static_cast<float*>(v.data) + i) = make_float4(x[0], x[1], x[2], x[3]);
        if (is_bad(x[0]) || is_bad(x[1]) || is_bad(x[2]) || is_bad(x[3])) *bad = 1;
    }
}

// Whether an operand's address allows packs of four. One that is absent does.
DEVICE bool packs(const Value& v) { return reinterpret_cast<u64>(v.data) % (v.half ? 8 : 16) == 0; }
