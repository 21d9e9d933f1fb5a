// The stand-in cuBLASLt against a sum in double precision, over types, orders, transposes, epilogues and batches.
#include "test.h"

extern "C" {
int cublasLtCreate(void**);
int cublasLtDestroy(void*);
int cublasLtMatmulDescCreate(void**, int, int);
int cublasLtMatmulDescDestroy(void*);
int cublasLtMatmulDescSetAttribute(void*, int, const void*, size_t);
int cublasLtMatrixLayoutCreate(void**, int, uint64_t, uint64_t, int64_t);
int cublasLtMatrixLayoutDestroy(void*);
int cublasLtMatrixLayoutSetAttribute(void*, int, const void*, size_t);
int cublasLtMatmulPreferenceCreate(void**);
int cublasLtMatmulPreferenceDestroy(void*);
int cublasLtMatmulAlgoGetHeuristic(void*, void*, void*, void*, void*, void*, void*, int, void*, int*);
int cublasLtMatmul(void*, void*, const float*, const void*, void*, const void*, void*, const float*, const void*, void*,
                   void*, void*, const void*, void*, size_t, void*);
}

namespace {

struct Matrix {
    int type, order;
    uint64_t rows, cols;
    int64_t ld, stride;
    int batch;
    std::vector<double> values;  // as stored
    uint64_t device = 0;
    void* layout = nullptr;

    Matrix(int type, int order, uint64_t rows, uint64_t cols, int batch)
        : type(type), order(order), rows(rows), cols(cols), batch(batch) {
        ld = static_cast<int64_t>(order ? cols : rows) + 3;
        stride = ld * static_cast<int64_t>(order ? rows : cols) + 5;
        const size_t count = static_cast<size_t>(stride * batch);
        for (size_t i = 0; i < count; i++) values.push_back(static_cast<double>((i * 37 + rows) % 17) / 4 - 2);
        cuMemAlloc_v2(&device, count * 4);
        cublasLtMatrixLayoutCreate(&layout, type, rows, cols, ld);
        cublasLtMatrixLayoutSetAttribute(layout, 1, &order, 4);
        cublasLtMatrixLayoutSetAttribute(layout, 5, &batch, 4);
        cublasLtMatrixLayoutSetAttribute(layout, 6, &stride, 8);
    }
    ~Matrix() {
        cuMemFree_v2(device);
        cublasLtMatrixLayoutDestroy(layout);
    }
    void upload() {
        std::vector<char> bytes(values.size() * 4);
        for (size_t i = 0; i < values.size(); i++) {
            const _Float16 half = static_cast<_Float16>(static_cast<float>(values[i]));
            const float single = static_cast<float>(values[i]);
            if (type == 2) memcpy(&bytes[i * 2], &half, 2);
            else memcpy(&bytes[i * 4], &single, 4);
        }
        cuMemcpyHtoDAsync_v2(device, bytes.data(), values.size() * (type == 2 ? 2 : 4), stream);
    }
    void download() {
        std::vector<char> bytes(values.size() * 4);
        cuMemcpyDtoHAsync_v2(bytes.data(), device, values.size() * (type == 2 ? 2 : 4), stream);
        cuStreamSynchronize(stream);
        for (size_t i = 0; i < values.size(); i++) {
            _Float16 half;
            float single;
            memcpy(&half, &bytes[i * 2], 2);
            memcpy(&single, &bytes[i * (type == 2 ? 2 : 4)], type == 2 ? 2 : 4);
            values[i] = type == 2 ? static_cast<float>(half) : single;
        }
    }
    double& at(int b, uint64_t r, uint64_t c) {
        const auto l = static_cast<uint64_t>(ld);
        return values[static_cast<size_t>(b * stride) + (order ? r * l + c : c * l + r)];
    }
    void* pointer() const { return reinterpret_cast<void*>(device); }
};

struct Algorithm { uint64_t words[8]; size_t workspace; int state; float waves; int reserved[4]; };

}  // namespace

void products() {
    void *handle, *preference;
    CHECK(cublasLtCreate(&handle) == 0 && cublasLtMatmulPreferenceCreate(&preference) == 0);
    const uint64_t m = 37, n = 300, k = 41;
    struct Types { int in, out, compute; };
    for (Types types : {Types{2, 2, 68}, {2, 0, 68}, {0, 0, 68}, {0, 0, 77}}) for (int turned = 0; turned < 4; turned++)
    for (int order : {0, 1}) for (int epilogue : {1, 2, 4, 6}) {
        if (order && epilogue >= 4) continue;
        const int ta = turned & 1, tb = turned >> 1, batch = turned + 1;
        Matrix a(types.in, order, ta ? k : m, ta ? m : k, batch);
        Matrix b(types.in, order ^ ta, tb ? n : k, tb ? k : n, batch);
        Matrix c(types.out, order, m, n, batch), bias(types.in, 0, m, 1, 1);
        for (Matrix* x : {&a, &b, &c, &bias}) x->upload();
        void* desc;
        CHECK(cublasLtMatmulDescCreate(&desc, types.compute, 0) == 0);
        CHECK(cublasLtMatmulDescSetAttribute(desc, 3, &ta, 4) == 0);
        CHECK(cublasLtMatmulDescSetAttribute(desc, 4, &tb, 4) == 0);
        CHECK(cublasLtMatmulDescSetAttribute(desc, 7, &epilogue, 4) == 0);
        CHECK(cublasLtMatmulDescSetAttribute(desc, 8, &bias.device, 8) == 0);
        CHECK(cublasLtMatmulDescSetAttribute(desc, 26, &types.in, 4) == 0);
        Algorithm algorithm;
        int found = 0;
        const auto choose = [&](const Matrix& left, const Matrix& right) {
            return cublasLtMatmulAlgoGetHeuristic(handle, desc, left.layout, right.layout, c.layout, c.layout,
                                                  preference, 1, &algorithm, &found);
        };
        CHECK(choose(a, b) == 0 && found == 1);
        const float alpha = 0.5f, beta = 2;
        const auto multiply = [&](const void* left, void* result) {
            return cublasLtMatmul(handle, desc, &alpha, left, a.layout, b.pointer(), b.layout, &beta, result, c.layout,
                                  result, c.layout, &algorithm, nullptr, 0, stream);
        };
        CHECK(multiply(static_cast<char*>(a.pointer()) + 8, c.pointer()) == 7);  // less aligned than was asked for
        CHECK(multiply(a.pointer(), c.pointer()) == 0);
        Matrix d(types.out, order, m, n, batch);
        std::swap(d.values, c.values);
        c.values.resize(d.values.size());
        c.download();
        double worst = 0;
        for (int p = 0; p < batch; p++) for (uint64_t i = 0; i < m; i++) for (uint64_t j = 0; j < n; j++) {
            double sum = 0;
            for (uint64_t l = 0; l < k; l++) {
                sum += (ta ? a.at(p, l, i) : a.at(p, i, l)) * (tb ? b.at(p, j, l) : b.at(p, l, j));
            }
            double v = 0.5 * sum + 2 * d.at(p, i, j) + (epilogue >= 4 ? bias.values[i] : 0);
            if (epilogue & 2) v = v < 0 ? 0 : v;
            worst = fmax(worst, fabs(v - c.at(p, i, j)) / (fabs(v) + 1));
        }
        CHECK(worst < (types.out == 2 ? 1e-3 : 1e-6));
        CHECK(c.values.back() == d.values.back());  // beyond the last column: not written
        emu_fail("cublasLtMatmulAlgoGetHeuristic", 1, 15);
        CHECK(choose(a, b) == 15 && found == 0);
        CHECK(choose(b, a) == 7);
        CHECK(cublasLtMatmulDescDestroy(desc) == 0);
    }
    CHECK(cublasLtMatmulPreferenceDestroy(preference) == 0 && cublasLtDestroy(handle) == 0);
}
