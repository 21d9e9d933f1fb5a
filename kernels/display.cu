// Maps on their way to the display, and over the photo.
//
//     map_range   y[lane] = {smallest, largest} of x[lane]
//     map_scale   (x − lo) / (hi − lo), 0 where hi = lo; flag: x / max(|lo|, |hi|), unchanged where that is 0
//     map_resize  bilinear, half-pixel centres, no antialiasing
//     map_gauss   Σ_i weights[i] · x at i − 2 along the rows, flag: along the columns; reflected at the border
//     overlay     photo under the palette's colour of the map's value; where the map says nothing the photo stays
//
// Shapes: x [lanes, from_h, from_w], y [lanes, h, w], fp32; both sizes are the same but in map_resize. map_scale reads
// range [lanes, 2]. overlay: map [map_h, map_w] raw, its range, y [h, w, 3] bytes.
// Launch: map_range: 1024 threads, grid (lanes). The other maps: 256 threads, grid (ceil(h·w / 256), lanes). overlay:
// 256 threads, grid (ceil(w / 32), ceil(h / 8)).
// Bytes: x once from memory, y once.
// Numbers: a value that is no number counts in no range. map_resize takes positions in double.
// Formulas are the CPU's to the letter, but multiply-adds are fused: overlay may round a byte to its neighbour.
// CPU twins: src/map.rs, src/grid.rs (Blend::new), src/render.rs (overlay), src/palette.rs (pick). Tests: tests/cuda.rs.
#include "common.cuh"

constexpr u32 THREADS = 256, RANGE_THREADS = 1024, BATCH = 8;

KERNEL(map_range, MapArgs, 1024, 1) {
    __shared__ float2 ranges[RANGE_THREADS];
    const u32 n = a.from_h * a.from_w, me = threadIdx.x;
    const float* x = a.x + static_cast<u64>(blockIdx.x) * n;
    float2 range = make_float2(INFINITY, -INFINITY);
    for (u32 i = me; i < n; i += RANGE_THREADS * BATCH) {
        float values[BATCH];
        for (u32 k = 0; k < BATCH; ++k) values[k] = i + k * RANGE_THREADS < n ? x[i + k * RANGE_THREADS] : NAN;
        for (float v : values) range = make_float2(fminf(range.x, v), fmaxf(range.y, v));
    }
    ranges[me] = range;
    for (u32 half = RANGE_THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (me >= half) continue;
        const float2 p = ranges[me], q = ranges[me + half];
        ranges[me] = make_float2(fminf(p.x, q.x), fmaxf(p.y, q.y));
    }
    if (me == 0) {
        a.y[blockIdx.x * 2] = ranges[0].x;
        a.y[blockIdx.x * 2 + 1] = ranges[0].y;
    }
}

// Calls f(lane's map, pixel) for this thread's pixel of y and stores what it returns.
template <class F> DEVICE void each(const MapArgs& a, F f) {
    const u32 pixel = blockIdx.x * THREADS + threadIdx.x, lane = blockIdx.y, n = a.h * a.w;
    if (pixel < n) {
        a.y[static_cast<u64>(lane) * n + pixel] = f(a.x + static_cast<u64>(lane) * a.from_h * a.from_w, pixel);
    }
}

KERNEL(map_scale, MapArgs, 256, 4) {
    const float lo = a.range[blockIdx.y * 2], hi = a.range[blockIdx.y * 2 + 1];
    each(a, [&](const float* x, u32 i) {
        if (a.flag) {
            const float top = fmaxf(fabsf(lo), fabsf(hi));
            return top > 0.0f ? x[i] / top : x[i];
        }
        const float span = hi - lo;
        return span > 0.0f ? (x[i] - lo) / span : 0.0f;
    });
}

DEVICE float lerp(float lo, float hi, float t) { return lo + t * (hi - lo); }

DEVICE float bilinear(const float* map, u32 width, const Blend& v, const Blend& u) {
    const float* lo = map + v.lo * width;
    const float* hi = map + v.hi * width;
    return lerp(lerp(lo[u.lo], lo[u.hi], u.t), lerp(hi[u.lo], hi[u.hi], u.t), v.t);
}

// Position d of `to` in a row of `from`.
DEVICE Blend blend(u32 d, u32 from, u32 to) {
    const double s = fmax((d + 0.5) * from / to - 0.5, 0.0);
    const u32 lo = min(static_cast<u32>(s), from - 1);
    return {lo, min(lo + 1, from - 1), static_cast<float>(s - lo)};
}

KERNEL(map_resize, MapArgs, 256, 4) {
    each(a, [&](const float* x, u32 i) {
        return bilinear(x, a.from_w, blend(i / a.w, a.from_h, a.h), blend(i % a.w, a.from_w, a.w));
    });
}

// Reflects i at the borders of 0..n without repeating them.
DEVICE i32 reflect(i32 i, i32 n) {
    const i32 last = n - 1;
    i = i < 0 ? -i : i;
    return min(max(i > last ? 2 * last - i : i, 0), last);
}

KERNEL(map_gauss, MapArgs, 256, 4) {
    each(a, [&](const float* x, u32 i) {
        const i32 w = a.w, row = i / w, col = i % w;
        float sum = 0.0f;
        for (i32 k = 0; k < 5; ++k) {
            const i32 at = a.flag ? reflect(row + k - 2, a.h) * w + col : row * w + reflect(col + k - 2, w);
            sum += a.weights[k] * x[at];
        }
        return sum;
    });
}

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
