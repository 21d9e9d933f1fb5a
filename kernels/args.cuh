// What host and device share: the argument of every kernel.
//
// Every kernel takes exactly one structure, by value. `src/backend/cuda/args.rs` mirrors them field by field, and both
// assert the same sizes. Arrays are dense: a value of the program holds `len` elements for each lane of each sample, channels
// innermost.
#pragma once

#include "ptx.cuh"

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int i32;
typedef long long i64;

// An operand or a result. `data` is null where there is none. Result b of a kernel, counted over samples and lanes,
// reads element block b of an operand with as many lanes, and block b / lanes of an operand with one lane.
struct Value {
    void* data;
    u64 len;
    u32 half;   // elements are fp16 rather than fp32
    u32 lanes;
};

// Shared by the elementwise kernels; their files say what a, b and c mean, and which function a code stands for.
struct EltwiseArgs {
    Value a, b, c, add, y;
    u32* bad;   // set to 1 when a result is infinite or no number
    u32 count;  // results: samples · lanes
    u32 code;
    float s;    // the function's parameter: a factor, a summand, the ε of a quotient
    float scale;
};

// The same with a second result.
struct SplitArgs {
    EltwiseArgs e;
    Value other;
    u32 whole;  // e.b is the sum of both terms, and not the first one
    u32 unused;
};

// Elementwise with a number a lane.
struct LaneArgs {
    EltwiseArgs e;
    float factors[8];
    u32 n;  // how many of them there are
    u32 unused;
};

// Elementwise with pairs of numbers of whole samples.
struct SampleArgs {
    EltwiseArgs e;
    Value first, second, third;  // [2] each
};

// Pixels of a value that all samples share.
struct GatherArgs {
    Value x, y;
    const u32 *rows, *cols;  // [grid rows, h] and [grid_cols, w]; 2^32 - 1 stands for none
    u32 h, w, channels, from_w;
    u32 grid_cols, first, count;
    u32 fill;  // bits of what stands where there is none, in y's type
};

// Two numbers of a whole sample.
struct ReduceArgs {
    Value x, y;
    u32* bad;
    u32 count;
    u32 stored, own;  // range: the first `own` of every `stored` elements count
    u32 unused;
};

// Results that repeat a pattern of `channels` numbers: those of `vector`, or one end of a range, or `values`.
struct FillArgs {
    Value range, y;
    const float* vector;
    u32* bad;
    float values[4];
    u32 channels;
    u32 own, upper;  // of a range: the channels that get the negative of its lower or upper end; the others get 0
    u32 count;
};

struct PerturbArgs {
    Value x, range, y;
    u32* bad;
    u64 seed;
    u32 draw, first;  // of the first lane; patch of the first sample
    u32 stored, own;  // noise for the first `own` of every `stored` channels
    u32 count;
    float sigma;
};

// A convolution, or one phase of its input-gradient, as a gather (see src/backend/taps.rs): pixel q = (qy, qx) of a
// phase of ph × pw pixels gives result pixel origin + step · q and reads the source at
// stride · q + first + (ky, kx) for each tap (ky, kx) of a grid of tap_rows × tap_cols. Taps outside of the source are 0.
//     y[b, pixel, n] = relu?( mul ⊙ Σ_taps Σ_c x[b, source pixel, c] · w[(tap·xc + c), n] + bias[n] + add )
// With `divides`, mul is divided by the sum instead: y = scale · mul / (Σ_taps Σ_c … + bias[n] + add), kept finite as
// `divisor` and `eps` say (backend::Divisor); mul, add and y are fp32 then.
struct ConvArgs {
    Value x;            // [count or count/lanes, xh, xw, xc]; fp32 in kernels of tf32, else fp16
    Value mul, add, y;  // shape of the result; mul and y fp16 or fp32, add of y's type
    const __half* w;    // [tap_rows · tap_cols · xc, yc], yc contiguous; turned and fp32 in conv_wgmma_tf32*
    const float* bias;  // [yc] or null
    u32* bad;
    i32 xh, xw, xc;
    i32 yh, yw, yc;     // yc: columns of w, which are channels of y unless there are parts
    i32 ph, pw;
    i32 origin_y, origin_x, step_y, step_x;
    i32 stride_y, stride_x;
    i32 first_y, first_x;
    i32 tap_rows, tap_cols;
    u32 count;  // results: samples · lanes
    u32 relu;
    u32 divides, divisor;
    float eps, scale;
    i32 part_rows, part_cols;  // conv_tf32_128x16_v4: neighbouring pixels whose channels a row of w has, row by row
};

// Convolutions whose weight v [kernel rows, kernel_cols, input channels, output channels] belongs to the sample. The
// rest is as in ConvArgs; correlate reads x and y and writes v. Tap (i, j) is kernel position
// (tap_y + turn_y · i, tap_x + turn_x · j).
struct SampleConvArgs {
    ConvArgs conv;
    Value v;
    i32 kernel_cols;
    i32 tap_y, tap_x, turn_y, turn_x;
    u32 unused;
};

struct PoolArgs {
    Value x, add, y;
    Value index;  // winners [yh, yw, c] in bytes: position in the window, row-major; null when not asked for
    u32* bad;
    i32 xh, xw, yh, yw, c;  // of the pooling itself, also in its backward pass
    i32 kernel_y, kernel_x, stride_y, stride_x, pad_y, pad_x;
    u32 count;
};

struct AverageArgs {
    Value x, mul, add, y;
    u32* bad;
    i32 xh, xw, yh, yw, c;
    i32 kernel_y, kernel_x, stride_y, stride_x, pad_y, pad_x;  // of a sliding window, whose divisor is the whole kernel
    i32 adaptive;  // torch's adaptive bins [i·n/bins, ceil((i+1)·n/bins)) instead
    u32 count;
};

struct FlattenArgs {
    Value x, add, y;
    u32* bad;
    u32 pixels, channels, count;
    u32 unused;
};

// Probabilities, classes, seeds. `classes` holds one index a lane.
struct HeadArgs {
    Value x, y;
    u32* classes;
    const __half* w;    // class_row: [outputs, len of y]
    const float* bias;  // head_shares: [outputs] or null
    u32* bad;
    u32 count;
    u32 k;     // top_k: how many
    u32 code;  // seed: which
    float scale;
};

// Reductions over the pixels or over the channels of [pixels, channels], and products with a number a channel.
// factor: the weights are numbers of the pixels.
struct ChannelArgs {
    Value x, weights, y;
    u32* bad;
    u32 pixels, channels, count;
    float scale;  // pixel_sum: of the sums
};

// Four taps along one axis.
struct Taps {
    u32 index[4];
    float weight[4];
};

struct UnfoldArgs {
    const u8* image;      // working image, RGB, image_w pixels a row, dense
    const Taps* rows;     // [grid rows][sh]
    const Taps* cols;     // [grid columns][sw]
    const float* levels;  // [3][256]: normalised value of each level of red, green and blue
    __half* y;            // [count, sh, sw, channels]; channels beyond the third are 0
    u32 image_w;
    u32 sh, sw, channels;
    u32 grid_cols;
    u32 first, count;     // patches first..first + count; patch i·grid_cols + j has rows i and columns j
    u32 unused;
};

// Source pixels of one result pixel of the antialiased resize, and where their weights begin.
struct Reach {
    u32 first, count, weights;
};

struct ResizeArgs {
    const u8* x;
    u8* y;                 // RGB, dense
    const Reach* reach;    // one a result pixel along the resized axis
    const i32* weights;    // fixed point, 22 bits of fraction
    u64 pitch;             // bytes between rows of x
    u32 format;            // of x: 0 RGB, 1 BGR, 2 RGBA, 3 grey
    u32 h, w;              // rows and columns of y
    u32 unused;
};

// A patch that covers a row (or column) of the canvas: its place along the axis and how its map is read there.
struct Cover {
    u32 patch, lo, hi;
    float t;
};

struct FoldArgs {
    const float* maps;       // [patches, lanes, map_h, map_w]
    const float* p;          // [patches, lanes]
    const u32* row_first;    // [h + 1]: rows[row_first[d] .. row_first[d + 1]) cover row d
    const Cover* rows;
    const u32* col_first;    // [w + 1]
    const Cover* cols;
    float* y;                // [lanes, h, w]
    u32* bad;
    u32 h, w, map_h, map_w;
    u32 grid_cols, patches, lanes;
    u32 extra;               // added to the number of covering patches
    u32 weighting;           // 0: 1, 1: exp(p), 2: exp(p) / max over the patches of exp(p)
    u32 unused;
};

struct InterpolateArgs {
    Value x, add, y;
    u32* bad;
    u32 from_h, from_w, channels;  // of x
    u32 first, slice;              // its channels that are resampled
    u32 h, w;                      // of y
    u32 filter;                    // 0: bilinear, 1: bilinear with corners on corners, 2: bicubic
    u32 count;
    float scale;
};

// A blur of maps [lanes, h, w].
struct MapArgs {
    const float* x;
    float* y;
    u32 h, w;
    u32 vertical;      // along the columns
    float weights[5];  // of taps −2..2
};

// Two neighbours along one axis and the weight of the second. lo = 0xffffffff: nothing of the map is there.
struct Blend {
    u32 lo, hi;
    float t;
};

struct OverlayArgs {
    const float* map;    // [map_h, map_w], as it came from the fold
    const float* range;  // [2]
    const u8* photo;
    const Blend* rows;   // [h]
    const Blend* cols;   // [w]
    const u8* palette;   // [511][3]
    u8* y;               // [h, w, 3]
    u64 pitch;           // bytes between rows of the photo
    u32 format;          // as in ResizeArgs
    u32 h, w, map_h, map_w;
    u32 layer;           // map of a layer (ReLU, min-max, sequential) rather than of the input (signed, diverging)
};

#define SIZE(type, bytes) static_assert(sizeof(type) == bytes, "src/backend/cuda/args.rs has another size")
SIZE(Value, 24);
SIZE(EltwiseArgs, 144);
SIZE(SplitArgs, 176);
SIZE(LaneArgs, 184);
SIZE(SampleArgs, 216);
SIZE(ReduceArgs, 72);
SIZE(GatherArgs, 96);
SIZE(FillArgs, 96);
SIZE(PerturbArgs, 112);
SIZE(ConvArgs, 224);
SIZE(SampleConvArgs, 272);
SIZE(PoolArgs, 152);
SIZE(AverageArgs, 160);
SIZE(FlattenArgs, 96);
SIZE(HeadArgs, 96);
SIZE(ChannelArgs, 96);
SIZE(Taps, 32);
SIZE(UnfoldArgs, 72);
SIZE(Reach, 12);
SIZE(ResizeArgs, 56);
SIZE(Cover, 16);
SIZE(FoldArgs, 104);
SIZE(InterpolateArgs, 120);
SIZE(MapArgs, 48);
SIZE(Blend, 12);
SIZE(OverlayArgs, 88);
#undef SIZE
