// Elementwise kernels: functions of one and of two numbers, and quotients. How they work: eltwise.cuh.
//
//     unary   f(a)
//     binary  f(a, b) + add
//     divide  scale · a / (b + c), kept finite as the code says
//     split   b · a / (b + c), and c · a / (b + c) as another result
//
// Codes: in the order of the cases below, which is that of src/backend/cuda/fill.rs; of quotients `Divisor`.
// Bytes: each operand once (split: the second time from a cache), each result once; a few FLOPs an element, so memory
// alone sets the time.
// Numbers: exp and tanh are the device's, within 2 units in the last place.
// CPU twin: src/backend/cpu/elementwise.rs (unary, binary, divide, split). Tests: tests/layers.rs, tests/instructions.rs,
// tests/fused.rs.
#include "eltwise.cuh"

KERNEL(eltwise_unary, EltwiseArgs, 256, 8) {
    const float s = a.s;
    const auto of = [&](auto f) { each(a, [=](float x, float, float, float) { return f(x); }); };
    switch (a.code) {
        case 0: return of([](float x) { return rectify(x); });
        case 1: return of([](float x) { return -rectify(-x); });
        case 2: return of([](float x) { return fabsf(x); });
        case 3: return of([](float x) { return sqrtf(x); });
        case 4: return of([=](float x) { return s * x; });
        case 5: return of([=](float x) { return x + s; });
        case 6: return of([=](float x) { return 1.0f / (1.0f + expf(-s * x)); });
        case 7: return of([=](float x) { return tanhf(s * x); });
    }
}

KERNEL(eltwise_binary, EltwiseArgs, 256, 8) {
    const auto of = [&](auto f) { each(a, [=](float p, float q, float, float add) { return f(p, q) + add; }); };
    switch (a.code) {
        case 0: return of([](float p, float q) { return p + q; });
        case 1: return of([](float p, float q) { return rectify(p + q); });
        case 2: return of([](float p, float q) { return p * q; });
        case 3: return of([](float p, float q) { return fmaxf(p, q); });
        case 4: return of([](float x, float c) { return x / (1.0f + expf(-c)); });
        case 5: return of([](float x, float r) { return x > 0.0f ? r : 0.0f; });
        case 6: return of([](float x, float r) { return x < 0.0f ? r : 0.0f; });
        case 7: return of([](float x, float r) { return x != 0.0f ? r : 0.0f; });
    }
}

KERNEL(eltwise_divide, EltwiseArgs, 256, 8) {
    const u32 divisor = a.code;
    const float eps = a.s, scale = a.scale;
    each(a, [=](float r, float z, float z2, float) { return scale * quotient(divisor, eps, r, z + z2); });
}

KERNEL(eltwise_split, SplitArgs, 256, 8) {
    const u32 divisor = a.e.code;
    const float eps = a.e.s;
    const bool whole = a.whole;
    EltwiseArgs other = a.e;
    other.y = a.other;
    // One result after the other.
    each(a.e, [=](float r, float p, float q, float) {
        return (whole ? p - q : p) * quotient(divisor, eps, r, whole ? p : p + q);
    });
    each(other, [=](float r, float p, float q, float) { return q * quotient(divisor, eps, r, whole ? p : p + q); });
}
