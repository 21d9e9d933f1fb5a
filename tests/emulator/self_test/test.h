// What the self-test's files share: the interface of the driver, checks, short forms of common calls.
#pragma once

#include "args.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <mutex>
#include <string.h>
#include <vector>

extern "C" {
int cuInit(unsigned);
int cuDevicePrimaryCtxRetain(void**, int);
int cuCtxSetCurrent(void*);
int cuModuleLoadData(void**, const void*);
int cuModuleGetFunction(void**, void*, const char*);
int cuFuncSetAttribute(void*, int, int);
int cuLaunchKernel(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**, void**);
int cuMemAlloc_v2(uint64_t*, size_t);
int cuMemFree_v2(uint64_t);
int cuMemGetInfo_v2(size_t*, size_t*);
int cuMemHostAlloc(void**, size_t, unsigned);
int cuMemFreeHost(void*);
int cuMemcpyHtoDAsync_v2(uint64_t, const void*, size_t, void*);
int cuMemcpyDtoHAsync_v2(void*, uint64_t, size_t, void*);
int cuMemcpyDtoH_v2(void*, uint64_t, size_t);
int cuMemsetD8Async(uint64_t, unsigned char, size_t, void*);
int cuMemsetD32Async(uint64_t, unsigned, size_t, void*);
int cuStreamCreate(void**, unsigned);
int cuStreamDestroy_v2(void*);
int cuStreamSynchronize(void*);
int cuStreamWaitEvent(void*, void*, unsigned);
int cuStreamBeginCapture_v2(void*, int);
int cuStreamEndCapture(void*, void**);
int cuStreamIsCapturing(void*, int*);
int cuGraphInstantiateWithFlags(void**, void*, unsigned long long);
int cuGraphLaunch(void*, void*);
int cuGraphExecDestroy(void*);
int cuGraphDestroy(void*);
int cuEventCreate(void**, unsigned);
int cuEventDestroy_v2(void*);
int cuEventRecordWithFlags(void*, void*, unsigned);
int cuEventSynchronize(void*);
int cuEventElapsedTime_v2(float*, void*, void*);
void emu_fail(const char*, int, int);
void emu_report(uint64_t[4]);
}

extern int checks, failures;
extern void *module_handle, *context;
extern thread_local void* stream;  // of the test's OS thread

inline int check(bool condition, const char* file, int line, const char* text) {
    static std::mutex mutex;
    std::lock_guard<std::mutex> lock(mutex);
    checks++;
    if (!condition) failures++, printf("%s:%d: not so: %s\n", file, line, text);
    return 0;
}
#define CHECK(condition) check(condition, __FILE__, __LINE__, #condition)

inline uint64_t device(size_t floats) {
    uint64_t p = 0;
    CHECK(cuMemAlloc_v2(&p, floats * 4) == 0);
    return p;
}

inline uint64_t upload(const std::vector<float>& values) {
    const uint64_t p = device(values.size());
    CHECK(cuMemcpyHtoDAsync_v2(p, values.data(), values.size() * 4, stream) == 0);
    return p;
}

inline std::vector<float> host(uint64_t p, size_t floats) {
    std::vector<float> values(floats);
    CHECK(cuMemcpyDtoHAsync_v2(values.data(), p, floats * 4, stream) == 0);
    CHECK(cuStreamSynchronize(stream) == 0);
    return values;
}

inline int launch(const char* name, unsigned grid, unsigned block, TestArgs args, unsigned shared = 0) {
    void* function;
    if (int e = cuModuleGetFunction(&function, module_handle, name)) return e;
    void* params[] = {&args};
    return cuLaunchKernel(function, grid, 1, 1, block, 1, 1, shared, stream, params, nullptr);
}

inline TestArgs args(uint64_t x, uint64_t y, unsigned n = 0, uint64_t count = 0) {
    return {reinterpret_cast<float*>(x), reinterpret_cast<float*>(y), reinterpret_cast<unsigned*>(count), n};
}

void graphs();    // graphs.cpp
void streams();
void products();  // matmul.cpp
