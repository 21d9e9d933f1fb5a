// Stand-in libcublasLt.so.13: products run on the CPU as work of a stream of the stand-in driver. One algorithm, which
// accepts what the device's accept of types, orders, transposes, epilogues and batches.
#include "problem.h"

#include <algorithm>
#include <string.h>

#define API extern "C" __attribute__((visibility("default")))

extern "C" int emu_enqueue(void* stream, void (*run)(void*), const void* data, size_t bytes);
extern "C" int emu_failure(const char* name);

namespace {

enum Status {
    SUCCESS = 0,
    NOT_INITIALIZED = 1,
    ALLOC_FAILED = 3,
    INVALID_VALUE = 7,
    EXECUTION_FAILED = 13,
    NOT_SUPPORTED = 15,
};
constexpr uint64_t ALGORITHM = 0x756361672d656d75;  // what an algorithm's first word must be
constexpr size_t WORKSPACE = 0;

struct Preference {
    uint64_t workspace = 0;
    uint32_t reductions = ~0u;  // ways to split sums that are allowed; there is none here
    uint32_t alignment[4] = {256, 256, 256, 256};  // of A, B, C, D
};

struct Field {
    void* at;
    size_t bytes;
};

// Where an attribute lives; none: one that is not emulated.
Field field(Desc& d, int attribute) {
    switch (attribute) {
        case 0: return {&d.compute, 4};
        case 1: return {&d.scale, 4};
        case 2: return {&d.pointer_mode, 4};
        case 3: return {&d.transpose_a, 4};
        case 4: return {&d.transpose_b, 4};
        case 5: return {&d.transpose_c, 4};
        case 6: return {&d.fill, 4};
        case 7: return {&d.epilogue, 4};
        case 8: return {&d.bias, 8};
        case 10: return {&d.bias_stride, 8};
        case 26: return {&d.bias_type, 4};
        default: return {nullptr, 0};
    }
}

Field field(Layout& l, int attribute) {
    switch (attribute) {
        case 0: return {&l.type, 4};
        case 1: return {&l.order, 4};
        case 2: return {&l.rows, 8};
        case 3: return {&l.cols, 8};
        case 4: return {&l.ld, 8};
        case 5: return {&l.batch, 4};
        case 6: return {&l.stride, 8};
        default: return {nullptr, 0};
    }
}

Field field(Preference& p, int attribute) {
    if (attribute == 1) return {&p.workspace, 8};
    if (attribute == 3) return {&p.reductions, 4};
    if (attribute >= 5 && attribute <= 8) return {&p.alignment[attribute - 5], 4};
    return {nullptr, 0};
}

template <class T> Status set(T* object, int attribute, const void* from, size_t bytes) {
    if (!object || !from) return INVALID_VALUE;
    const Field f = field(*object, attribute);
    if (!f.at) return NOT_SUPPORTED;
    if (bytes < f.bytes) return INVALID_VALUE;
    memcpy(f.at, from, f.bytes);
    return SUCCESS;
}

template <class T> Status get(T* object, int attribute, void* to, size_t bytes, size_t* written) {
    if (!object) return INVALID_VALUE;
    const Field f = field(*object, attribute);
    if (!f.at) return NOT_SUPPORTED;
    if (written) *written = f.bytes;
    if (bytes == 0) return SUCCESS;
    if (!to || bytes < f.bytes) return INVALID_VALUE;
    memcpy(to, f.at, f.bytes);
    return SUCCESS;
}

size_t size_of(int type) { return type == R_16F ? 2 : 4; }

bool is_valid(const Layout& l) {
    if ((l.type != R_16F && l.type != R_32F) || (l.order != COLUMNS && l.order != ROWS)) return false;
    const uint64_t least = l.order == COLUMNS ? l.rows : l.cols;
    return l.rows > 0 && l.cols > 0 && l.ld >= static_cast<int64_t>(least) && l.batch >= 1 && l.stride >= 0;
}

// What the library would refuse.
Status check(const Desc& d, const Layout& a, const Layout& b, const Layout& c, const Layout& out) {
    if (!is_valid(a) || !is_valid(b) || !is_valid(c) || !is_valid(out)) return INVALID_VALUE;
    const uint64_t m = d.transpose_a ? a.cols : a.rows, k = d.transpose_a ? a.rows : a.cols;
    const uint64_t n = d.transpose_b ? b.rows : b.cols, k_b = d.transpose_b ? b.cols : b.rows;
    if (k != k_b || m != out.rows || n != out.cols || c.rows != m || c.cols != n) return INVALID_VALUE;
    if (a.batch != out.batch || b.batch != out.batch || c.batch != out.batch) return INVALID_VALUE;
    if (d.scale != R_32F || d.pointer_mode != 0 || d.transpose_c || d.fill) return NOT_SUPPORTED;
    if (a.type != b.type || c.type != out.type || c.order != out.order) return NOT_SUPPORTED;
    if (a.type == R_32F && out.type != R_32F) return NOT_SUPPORTED;
    const bool plain = d.compute == COMPUTE_32F || d.compute == COMPUTE_32F_PEDANTIC;
    const bool fast = d.compute == COMPUTE_32F_FAST_TF32 || d.compute == COMPUTE_32F_FAST_16F;
    if (!plain && !(fast && a.type == R_32F)) return NOT_SUPPORTED;
    if (d.epilogue != DEFAULT && d.epilogue != RELU && !is_biased(d)) return NOT_SUPPORTED;
    if (!is_biased(d)) return SUCCESS;
    const bool type = d.bias_type == -1 || d.bias_type == out.type || (a.type == R_16F && d.bias_type == R_16F);
    return type && out.order == COLUMNS ? SUCCESS : NOT_SUPPORTED;
}

bool is_aligned(const void* p, size_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

char the_handle;

#define FAILURE() do { if (int failure = emu_failure(__func__)) return static_cast<Status>(failure); } while (0)

}  // namespace

struct Algorithm {
    uint64_t word, alignment[4], rest[3];  // the alignments it was chosen for
};
struct Heuristic {
    Algorithm algorithm;
    size_t workspace;
    int32_t state;
    float waves;
    int32_t reserved[4];
};

API Status cublasLtCreate(void** handle) {
    FAILURE();
    *handle = &the_handle;
    return SUCCESS;
}
API Status cublasLtDestroy(void* handle) { return handle == &the_handle ? SUCCESS : NOT_INITIALIZED; }
API size_t cublasLtGetVersion() { return 130000; }
API size_t cublasLtGetCudartVersion() { return 13000; }

API const char* cublasLtGetStatusName(int status) {
    switch (status) {
        case SUCCESS: return "CUBLAS_STATUS_SUCCESS";
        case NOT_INITIALIZED: return "CUBLAS_STATUS_NOT_INITIALIZED";
        case ALLOC_FAILED: return "CUBLAS_STATUS_ALLOC_FAILED";
        case INVALID_VALUE: return "CUBLAS_STATUS_INVALID_VALUE";
        case 8: return "CUBLAS_STATUS_ARCH_MISMATCH";
        case EXECUTION_FAILED: return "CUBLAS_STATUS_EXECUTION_FAILED";
        case 14: return "CUBLAS_STATUS_INTERNAL_ERROR";
        case NOT_SUPPORTED: return "CUBLAS_STATUS_NOT_SUPPORTED";
        default: return "unknown status";
    }
}
API const char* cublasLtGetStatusString(int status) { return cublasLtGetStatusName(status); }

API Status cublasLtMatmulDescCreate(Desc** desc, int compute, int scale) {
    FAILURE();
    *desc = new Desc{compute, scale};
    return SUCCESS;
}
API Status cublasLtMatmulDescDestroy(Desc* desc) { return delete desc, SUCCESS; }
API Status cublasLtMatmulDescSetAttribute(Desc* desc, int attribute, const void* from, size_t bytes) {
    return set(desc, attribute, from, bytes);
}
API Status cublasLtMatmulDescGetAttribute(Desc* desc, int attribute, void* to, size_t bytes, size_t* written) {
    return get(desc, attribute, to, bytes, written);
}

API Status cublasLtMatrixLayoutCreate(Layout** layout, int type, uint64_t rows, uint64_t cols, int64_t ld) {
    FAILURE();
    *layout = new Layout{type, COLUMNS, rows, cols, ld};
    return SUCCESS;
}
API Status cublasLtMatrixLayoutDestroy(Layout* layout) { return delete layout, SUCCESS; }
API Status cublasLtMatrixLayoutSetAttribute(Layout* layout, int attribute, const void* from, size_t bytes) {
    return set(layout, attribute, from, bytes);
}
API Status cublasLtMatrixLayoutGetAttribute(Layout* layout, int attribute, void* to, size_t bytes, size_t* written) {
    return get(layout, attribute, to, bytes, written);
}

API Status cublasLtMatmulPreferenceCreate(Preference** preference) {
    FAILURE();
    *preference = new Preference;
    return SUCCESS;
}
API Status cublasLtMatmulPreferenceDestroy(Preference* preference) { return delete preference, SUCCESS; }
API Status cublasLtMatmulPreferenceSetAttribute(Preference* preference, int attribute, const void* from, size_t bytes) {
    return set(preference, attribute, from, bytes);
}
API Status cublasLtMatmulPreferenceGetAttribute(Preference* preference, int attribute, void* to, size_t bytes,
                                                size_t* written) {
    return get(preference, attribute, to, bytes, written);
}

API Status cublasLtMatmulAlgoGetHeuristic(void* handle, Desc* desc, Layout* a, Layout* b, Layout* c, Layout* d,
                                          Preference* preference, int wanted, Heuristic* results, int* found) {
    *found = 0;
    FAILURE();
    if (handle != &the_handle) return NOT_INITIALIZED;
    if (!desc || !a || !b || !c || !d || !preference || !results || wanted < 1) return INVALID_VALUE;
    if (Status e = check(*desc, *a, *b, *c, *d)) return e;
    if (preference->workspace < WORKSPACE) return NOT_SUPPORTED;
    results[0] = {{ALGORITHM, {}, {}}, WORKSPACE, SUCCESS, 1.0f, {}};
    std::copy(preference->alignment, preference->alignment + 4, results[0].algorithm.alignment);
    *found = 1;
    return SUCCESS;
}

API Status cublasLtMatmulAlgoCheck(void* handle, Desc* desc, Layout* a, Layout* b, Layout* c, Layout* d,
                                   const Algorithm* algorithm, Heuristic* result) {
    FAILURE();
    if (handle != &the_handle) return NOT_INITIALIZED;
    if (!algorithm || algorithm->word != ALGORITHM || !desc || !a || !b || !c || !d) return INVALID_VALUE;
    if (Status e = check(*desc, *a, *b, *c, *d)) return e;
    if (result) *result = {*algorithm, WORKSPACE, SUCCESS, 1.0f, {}};
    return SUCCESS;
}

API Status cublasLtMatmul(void* handle, Desc* desc, const float* alpha, const void* pa, Layout* a, const void* pb,
                          Layout* b, const float* beta, const void* pc, Layout* c, void* pd, Layout* d,
                          const Algorithm* algorithm, void* workspace, size_t workspace_bytes, void* stream) {
    FAILURE();
    if (handle != &the_handle) return NOT_INITIALIZED;
    if (!desc || !alpha || !beta || !pa || !pb || !pc || !pd || !a || !b || !c || !d) return INVALID_VALUE;
    if (Status e = check(*desc, *a, *b, *c, *d)) return e;
    if (workspace_bytes && !is_aligned(workspace, 16)) return INVALID_VALUE;
    // Without an algorithm the library asks its heuristic for one that fits the addresses.
    const uint64_t element[4] = {size_of(a->type), size_of(b->type), size_of(c->type), size_of(d->type)};
    const uint64_t* alignment = algorithm ? algorithm->alignment : element;
    if (algorithm && algorithm->word != ALGORITHM) return INVALID_VALUE;
    const void* pointers[4] = {pa, pb, pc, pd};
    for (int i = 0; i < 4; i++) {
        if (!is_aligned(pointers[i], std::max(element[i], alignment[i]))) return INVALID_VALUE;
    }
    if (pc == pd && (c->ld != d->ld || c->stride != d->stride)) return INVALID_VALUE;
    if (is_biased(*desc) && !desc->bias) return INVALID_VALUE;
    const Problem problem{*desc, *a, *b, *c, *d, pa, pb, pc, pd, *alpha, *beta};
    return emu_enqueue(stream, multiply, &problem, sizeof problem) ? EXECUTION_FAILED : SUCCESS;
}
