// Maps on their way to the display, and over the photo.
//
//     map_gauss  Σ_i weights[i] · x at i − 2 along the rows, or along the columns; reflected at the border
//     overlay    photo under the palette's colour of the map's value; where the map says nothing the photo stays
//
// Shapes: x and y [lanes, h, w], fp32. overlay: map [map_h, map_w] raw, its range, y [h, w, 3] bytes.
// Launch: 256 threads. map_gauss: grid (ceil(h·w / 256), lanes). overlay: grid (ceil(w / 32), ceil(h / 8)).
// Bytes: x once from memory, y once.
// Numbers: formulas are the CPU's to the letter, but multiply-adds are fused: overlay may round a byte to its neighbour.
// CPU twins: src/map.rs, src/render.rs (overlay), src/palette.rs (pick). Tests: tests/cuda.rs.
#include "common.cuh"

constexpr u32 THREADS = 256;

// Reflects i at the borders of 0..n without repeating them.
DEVICE i32 reflect(i32 i, i32 n) {
    const i32 last = n - 1;
    i = i < 0 ? -i : i;
    return min(max(i > last ? 2 * last - i : i, 0), last);
}

KERNEL(map_gauss, MapArgs, 256, 4) {
    const u32 n = a.h * a.w, pixel = blockIdx.x * THREADS + threadIdx.x;
    if (pixel >= n) return;
    const float* x = a.x + static_cast<u64>(blockIdx.y) * n;
    const i32 w = a.w, row = pixel / a.w, col = pixel % a.w;
    float sum = 0.0f;
    for (i32 k = 0; k < 5; ++k) {
        const i32 at = a.vertical ? reflect(row + k - 2, a.h) * w + col : row * w + reflect(col + k - 2, w);
        sum += a.weights[k] * x[at];
    }
    a.y[static_cast<u64>(blockIdx.y) * n + pixel] = sum;
}

DEVICE float lerp(float lo, float hi, float t) { return lo + t * (hi - lo); }

struct Colour {
    u8 c[3];
};

DEVICE Colour mix(const Colour& below, const Colour& above, float share) {
    Colour result;
    for (u32 c = 0; c < 3; ++c) {
        const float v = roundf(below.c[c] * (1.0f - share) + above.c[c] * share);
        result.c[c] = static_cast<u8>(fminf(fmaxf(v, 0.0f), 255.0f));
    }
    return result;
}

// The colour at t from 0 to 1; what is no number counts as 0.
DEVICE Colour pick(const u8* palette, float t) {
    constexpr u32 LAST = 510;
    const u8* c = palette + static_cast<u32>(roundf(fminf(fmaxf(t, 0.0f), 1.0f) * LAST)) * 3;
    return {{c[0], c[1], c[2]}};
}

DEVICE Colour grey(u8 v) { return {{v, v, v}}; }

DEVICE Colour cover(const OverlayArgs& a, const Colour& pixel, float value) {
    const float strength = sqrtf(fabsf(value));
    const Colour plain = grey(static_cast<u8>((299u * pixel.c[0] + 587u * pixel.c[1] + 114u * pixel.c[2]) / 1000u));
    if (a.layer) return mix(mix(pixel, plain, 0.5f), pick(a.palette, value), 0.25f + 0.45f * strength);
    const Colour pale = mix(mix(pixel, plain, 0.85f), grey(255), 0.3f);
    const float shown = copysignf(0.6f + 0.4f * fabsf(value), value);
    return mix(pale, pick(a.palette, (shown + 1.0f) / 2.0f), 0.9f * strength);
}

// What the map's values are reduced by and divided by; a divisor of 0 where the map says nothing.
DEVICE float2 scale_of(const OverlayArgs& a) {
    const float lo = a.range[0], hi = a.range[1], top = fmaxf(fabsf(lo), fabsf(hi));
    if ((a.layer && hi <= 0.0f) || hi - lo <= 1e-6f * top) return make_float2(0.0f, 0.0f);
    const float base = fmaxf(lo, 0.0f);
    return a.layer ? make_float2(base, hi - base) : make_float2(0.0f, top);
}

DEVICE Colour photo_pixel(const OverlayArgs& a, u32 r, u32 s) {
    const u8* row = a.photo + a.pitch * r;
    const u8* p = row + static_cast<u64>(s) * (a.format == 2 ? 4 : a.format == 3 ? 1 : 3);
    if (a.format == 3) return grey(p[0]);
    return a.format == 1 ? Colour{{p[2], p[1], p[0]}} : Colour{{p[0], p[1], p[2]}};
}

KERNEL(overlay, OverlayArgs, 256, 4) {
    const u32 s = blockIdx.x * 32 + threadIdx.x % 32, r = blockIdx.y * 8 + threadIdx.x / 32;
    if (r >= a.h || s >= a.w) return;
    const Blend v = a.rows[r], u = a.cols[s];
    const float2 scale = scale_of(a);
    Colour pixel = photo_pixel(a, r, s);
    if (scale.y != 0.0f && v.lo != 0xffffffff && u.lo != 0xffffffff) {
        const auto at = [&](u32 i, u32 j) {
            const float m = a.map[i * a.map_w + j];
            return ((a.layer ? fmaxf(m, 0.0f) : m) - scale.x) / scale.y;
        };
        const auto across = [&](u32 i) { return lerp(at(i, u.lo), at(i, u.hi), u.t); };
        pixel = cover(a, pixel, lerp(across(v.lo), across(v.hi), v.t));
    }
    u8* y = a.y + (static_cast<u64>(r) * a.w + s) * 3;
    for (u32 c = 0; c < 3; ++c) y[c] = pixel.c[c];
}
