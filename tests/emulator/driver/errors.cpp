// Names of errors, failures that tests ask for, and what tests can ask about the process.
#include "driver.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

namespace drv {
namespace {

struct Name {
    CUresult code;
    const char *name, *text;
};
const Name NAMES[] = {
    {0, "CUDA_SUCCESS", "no error"},
    {1, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {3, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {46, "CUDA_ERROR_DEVICE_UNAVAILABLE", "CUDA-capable device(s) is/are busy or unavailable"},
    {100, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {101, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {200, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {201, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {209, "CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for execution on the device"},
    {214, "CUDA_ERROR_ECC_UNCORRECTABLE", "uncorrectable ECC error encountered"},
    {218, "CUDA_ERROR_INVALID_PTX", "a PTX JIT compilation failed"},
    {222, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "the provided PTX was compiled with an unsupported toolchain."},
    {303, "CUDA_ERROR_SHARED_OBJECT_INIT_FAILED", "shared object initialization failed"},
    {400, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {500, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {600, "CUDA_ERROR_NOT_READY", "device not ready"},
    {700, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {701, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "too many resources requested for launch"},
    {702, "CUDA_ERROR_LAUNCH_TIMEOUT", "the launch timed out and was terminated"},
    {709, "CUDA_ERROR_CONTEXT_IS_DESTROYED", "context is destroyed"},
    {719, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {801, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {900, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
    {901, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "operation failed due to a previous error during capture"},
    {902, "CUDA_ERROR_STREAM_CAPTURE_MERGE", "operation would result in a merge of separate capture sequences"},
    {903, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", "capture was not ended in the same stream as it began"},
    {904, "CUDA_ERROR_STREAM_CAPTURE_UNJOINED", "capturing stream has unjoined work"},
    {905, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION", "dependency created on uncaptured work in another stream"},
    {906, "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT", "operation would make the legacy stream depend on a capturing stream"},
    {907, "CUDA_ERROR_CAPTURED_EVENT", "operation not permitted on an event last recorded in a capturing stream"},
    {908, "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD", "attempt to end a capture from another thread"},
    {999, "CUDA_ERROR_UNKNOWN", "unknown error"},
};

const Name* find_name(CUresult code) {
    for (const Name& name : NAMES) {
        if (name.code == code) return &name;
    }
    return nullptr;
}

// Errors after which the device's context can do no more.
bool is_sticky(CUresult code) {
    for (CUresult sticky : {DEVICE_UNAVAILABLE, ECC_UNCORRECTABLE, ILLEGAL_ADDRESS, LAUNCH_TIMEOUT, LAUNCH_FAILED}) {
        if (code == sticky) return true;
    }
    return false;
}

struct Failure {
    std::string what;  // beginning of the entry point's name
    int nth;
    CUresult code;
};

std::mutex failures_mutex;
auto& failures = *new std::vector<Failure>;
CUresult lost = SUCCESS;

// UCAG_EMU_FAIL=cuMemAlloc:3:2,cuGraphInstantiate:1:801
void read_environment() {
    const char* text = getenv("UCAG_EMU_FAIL");
    std::string all = text ? text : "";
    for (char* part = strtok(all.data(), ","); part; part = strtok(nullptr, ",")) {
        char what[64];
        Failure failure;
        if (sscanf(part, "%63[^:]:%d:%d", what, &failure.nth, &failure.code) != 3) {
            fprintf(stderr, "cuda emulator: UCAG_EMU_FAIL: '%s' is not name:nth:code\n", part);
            abort();
        }
        failure.what = what;
        failures.push_back(failure);
    }
}

}  // namespace

void complain(const char* format, ...) {
    fputs("cuda emulator: ", stderr);
    va_list list;
    va_start(list, format);
    vfprintf(stderr, format, list);
    va_end(list);
    fputc('\n', stderr);
}

}  // namespace drv

// The code that the call of `name` must return, or 0. Also used by the stand-in cuBLASLt, whose codes are its own.
extern "C" __attribute__((visibility("default"))) int emu_failure(const char* name) {
    std::lock_guard<std::mutex> lock(drv::failures_mutex);
    static const bool once = (drv::read_environment(), true);
    (void)once;
    int code = 0;
    for (size_t i = 0; i < drv::failures.size();) {
        drv::Failure& failure = drv::failures[i];
        if (!strncmp(name, failure.what.c_str(), failure.what.size()) && --failure.nth == 0) {
            if (!code) code = failure.code;
            drv::failures.erase(drv::failures.begin() + static_cast<std::ptrdiff_t>(i));
        } else {
            i++;
        }
    }
    return code;
}

// Makes the nth next call (1: the next) of each entry point whose name begins with `what` return `code`; null forgets
// all such wishes and brings a lost device back.
extern "C" __attribute__((visibility("default"))) void emu_fail(const char* what, int nth, int code) {
    std::lock_guard<std::mutex> lock(drv::failures_mutex);
    if (what) return drv::failures.push_back({what, nth, code});
    drv::failures.clear();
    drv::lost = SUCCESS;
}

namespace drv {

CUresult enter_without_context(const char* name) {
    if (CUresult code = emu_failure(name)) {
        std::lock_guard<std::mutex> lock(failures_mutex);
        if (is_sticky(code)) lost = code;
        return code;
    }
    return SUCCESS;
}

CUresult enter(const char* name) {
    if (CUresult code = enter_without_context(name)) return code;
    {
        std::lock_guard<std::mutex> lock(failures_mutex);
        if (lost) return lost;
    }
    return check_context();
}

Counters counters;
std::mutex counters_mutex;

}  // namespace drv

// live bytes, live allocations, kernel launches, graph launches
extern "C" __attribute__((visibility("default"))) void emu_report(uint64_t out[4]) {
    std::lock_guard<std::mutex> lock(drv::counters_mutex);
    out[0] = drv::counters.live_bytes;
    out[1] = drv::counters.live_allocations;
    out[2] = drv::counters.launches;
    out[3] = drv::counters.graph_launches;
}

API cuGetErrorName(CUresult code, const char** text) {
    const drv::Name* name = drv::find_name(code);
    *text = name ? name->name : nullptr;
    return name ? SUCCESS : INVALID_VALUE;
}

API cuGetErrorString(CUresult code, const char** text) {
    const drv::Name* name = drv::find_name(code);
    *text = name ? name->text : nullptr;
    return name ? SUCCESS : INVALID_VALUE;
}
