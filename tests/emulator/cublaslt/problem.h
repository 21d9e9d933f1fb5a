// A matrix product as the stand-in cuBLASLt describes it. Numbers are those of the library's interface.
#pragma once

#include <stddef.h>
#include <stdint.h>

enum Type { R_32F = 0, R_16F = 2 };
enum Compute { COMPUTE_32F = 68, COMPUTE_32F_PEDANTIC = 69, COMPUTE_32F_FAST_16F = 74, COMPUTE_32F_FAST_TF32 = 77 };
enum Epilogue { RELU = 2, BIAS = 4, RELU_BIAS = 6, DEFAULT = 1 };
enum Order { COLUMNS = 0, ROWS = 1 };

struct Layout {
    int32_t type, order = COLUMNS;
    uint64_t rows, cols;
    int64_t ld;
    int32_t batch = 1;
    int64_t stride = 0;  // elements
};

struct Desc {
    int32_t compute, scale;
    int32_t pointer_mode = 0, transpose_a = 0, transpose_b = 0, transpose_c = 0, fill = 0, epilogue = DEFAULT;
    const void* bias = nullptr;
    int64_t bias_stride = 0;
    int32_t bias_type = -1;  // of D
};

inline bool is_biased(const Desc& d) { return d.epilogue == BIAS || d.epilogue == RELU_BIAS; }

struct Problem {
    Desc desc;
    Layout a, b, c, d;
    const void *pa, *pb, *pc;
    void* pd;
    float alpha, beta;
};

// Computes it; `data` is a Problem.
void multiply(void* data);
