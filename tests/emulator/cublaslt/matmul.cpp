// D = epilogue(alpha · op(A) op(B) + beta · C) in fp32: operands become dense fp32, then rows of B are added up.
#include "problem.h"

#include "../cuda_types.h"

#include <algorithm>
#include <vector>

namespace {

float read(const void* p, int type, size_t i) {
    return type == R_16F ? static_cast<float>(static_cast<const _Float16*>(p)[i]) : static_cast<const float*>(p)[i];
}

// The product rounds its operands to ten bits of fraction, ties away from zero.
float round_tf32(float v) {
    const uint32_t bits = emu::bits<uint32_t>(v);
    if ((bits & 0x7f800000) == 0x7f800000) return v;
    return emu::bits<float>((bits + 0x1000) & ~0x1fffu);
}

size_t offset(const Layout& l, int batch, uint64_t row, uint64_t col) {
    const auto ld = static_cast<uint64_t>(l.ld);
    return static_cast<size_t>(batch * l.stride) + (l.order == COLUMNS ? col * ld + row : row * ld + col);
}

// op(X) of one batch as dense fp32, [rows, cols] or, turned, [cols, rows].
std::vector<float> gather(const void* p, const Layout& l, int batch, bool transpose, int compute) {
    const uint64_t rows = transpose ? l.cols : l.rows, cols = transpose ? l.rows : l.cols;
    std::vector<float> dense(rows * cols);
    for (uint64_t i = 0; i < rows; i++) {
        for (uint64_t j = 0; j < cols; j++) {
            float v = read(p, l.type, transpose ? offset(l, batch, j, i) : offset(l, batch, i, j));
            if (compute == COMPUTE_32F_FAST_TF32) v = round_tf32(v);
            if (compute == COMPUTE_32F_FAST_16F) v = static_cast<float>(static_cast<_Float16>(v));
            dense[i * cols + j] = v;
        }
    }
    return dense;
}

void multiply(const Problem& p, int batch) {
    const std::vector<float> a = gather(p.pa, p.a, batch, p.desc.transpose_a, p.desc.compute);
    const std::vector<float> b = gather(p.pb, p.b, batch, p.desc.transpose_b, p.desc.compute);
    const uint64_t m = p.d.rows, n = p.d.cols, k = b.size() / n;
    const int bias_type = p.desc.bias_type == -1 ? p.d.type : p.desc.bias_type;
    const size_t bias = static_cast<size_t>(batch * p.desc.bias_stride);
    const bool relu = p.desc.epilogue == RELU || p.desc.epilogue == RELU_BIAS;
    constexpr uint64_t WIDTH = 256;  // columns at a time: sums and a row of B stay in the first cache
    for (uint64_t first = 0; first < n; first += WIDTH) {
        const uint64_t width = std::min(WIDTH, n - first);
        for (uint64_t i = 0; i < m; i++) {
            float sum[WIDTH] = {};
            for (uint64_t l = 0; l < k; l++) {
                const float left = a[i * k + l];
                const float* right = &b[l * n + first];
                for (uint64_t j = 0; j < width; j++) sum[j] += left * right[j];
            }
            for (uint64_t j = 0; j < width; j++) {
                float v = p.alpha * sum[j];
                // As in the library, C is not read when it does not count.
                if (p.beta != 0.0f) v += p.beta * read(p.pc, p.c.type, offset(p.c, batch, i, first + j));
                if (is_biased(p.desc)) v += read(p.desc.bias, bias_type, bias + i);
                // As the library does: what is no number becomes 0.
                if (relu && !(v > 0.0f)) v = 0.0f;
                const size_t at = offset(p.d, batch, i, first + j);
                if (p.d.type == R_16F) static_cast<_Float16*>(p.pd)[at] = static_cast<_Float16>(v);
                else static_cast<float*>(p.pd)[at] = v;
            }
        }
    }
}

}  // namespace

void multiply(void* data) {
    const Problem& p = *static_cast<Problem*>(data);
    for (int batch = 0; batch < p.d.batch; batch++) multiply(p, batch);
}
