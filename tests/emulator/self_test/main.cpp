// The emulator's own test, a program of the driver interface. With an argument: makes the mistake of that name, which
// must end the process. `run` calls it in all ways.
#include "args.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <mutex>
#include <string.h>
#include <thread>
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

static int checks = 0, failures = 0;
static std::mutex checking;
static int check(bool condition, int line, const char* text) {
    std::lock_guard<std::mutex> lock(checking);
    checks++;
    if (!condition) failures++, printf("main.cpp:%d: not so: %s\n", line, text);
    return 0;
}
#define CHECK(condition) check(condition, __LINE__, #condition)

static void *module_handle, *context;
static thread_local void* stream;

static uint64_t device(size_t floats) {
    uint64_t p = 0;
    CHECK(cuMemAlloc_v2(&p, floats * 4) == 0);
    return p;
}

static uint64_t upload(const std::vector<float>& values) {
    const uint64_t p = device(values.size());
    CHECK(cuMemcpyHtoDAsync_v2(p, values.data(), values.size() * 4, stream) == 0);
    return p;
}

static std::vector<float> host(uint64_t p, size_t floats) {
    std::vector<float> values(floats);
    CHECK(cuMemcpyDtoHAsync_v2(values.data(), p, floats * 4, stream) == 0);
    CHECK(cuStreamSynchronize(stream) == 0);
    return values;
}

static int launch(const char* name, unsigned grid, unsigned block, TestArgs args, unsigned shared = 0) {
    void* function;
    if (int e = cuModuleGetFunction(&function, module_handle, name)) return e;
    void* params[] = {&args};
    return cuLaunchKernel(function, grid, 1, 1, block, 1, 1, shared, stream, params, nullptr);
}

static TestArgs args(uint64_t x, uint64_t y, unsigned n = 0, uint64_t count = 0) {
    return {reinterpret_cast<float*>(x), reinterpret_cast<float*>(y), reinterpret_cast<unsigned*>(count), n};
}

static void threads() {
    std::vector<float> x(64 * 256);
    for (size_t i = 0; i < x.size(); i++) x[i] = static_cast<float>(i % 7);
    const uint64_t dx = upload(x), dy = device(64 * 256);
    CHECK(launch("block_sum", 64, 256, args(dx, dy), 1024) == 0);
    const std::vector<float> sums = host(dy, 64);
    for (int b = 0; b < 64; b++) {
        float expected = 0;
        for (int i = 0; i < 256; i++) expected += x[static_cast<size_t>(b * 256 + i)];
        CHECK(sums[static_cast<size_t>(b)] == expected);
    }

    CHECK(launch("warp_operations", 1, 64, args(dx, dy)) == 0);
    const std::vector<float> w = host(dy, 64 * 8);
    for (int t = 0; t < 64; t++) {
        const int lane = t % 32;
        const float* y = &w[static_cast<size_t>(t * 8)];
        const float expected[8] = {5, static_cast<float>(lane / 8 * 8 + 3),
                                   static_cast<float>(lane % 16 + 4 < 16 ? lane + 4 : lane),
                                   static_cast<float>(lane >= 4 ? lane - 4 : lane), 11, 1,
                                   static_cast<float>(lane < 16 ? lane ^ 1 : lane ^ 2), static_cast<float>(31 - lane)};
        for (int i = 0; i < 8; i++) CHECK(y[i] == expected[i]);
    }

    const char* text = getenv("UCAG_EMU_ORDER");
    const bool reverse = text && !strcmp(text, "reverse");
    const uint64_t counter = device(1);
    CHECK(cuMemsetD32Async(counter, 0, 1, stream) == 0);
    CHECK(launch("order", 1, 64, args(dx, dy, 0, counter)) == 0);
    const std::vector<float> order = host(dy, 192);
    for (int i = 0; i < 192; i++) {
        // Warp by warp up to the barrier; within a warp all lanes up to the warp operation, then all after it.
        const int before = i / 64 * 32 + i % 32, thread = i < 128 ? before : i - 128;
        CHECK(order[static_cast<size_t>(i)] == static_cast<float>(reverse ? 63 - thread : thread));
    }

    CHECK(launch("poison", 16, 32, args(dx, dy), 128) == 0);
    for (float v : host(dy, 16 * 64)) CHECK(isnan(v));

    CHECK(launch("copies", 1, 32, args(dx, dy)) == 0);
    const std::vector<float> c = host(dy, 32 * 6);
    for (size_t i = 0; i < 32; i++) {
        CHECK(isnan(c[i * 6]) && c[i * 6 + 1] == x[i * 4 + 3] && isnan(c[i * 6 + 2]));
        CHECK(c[i * 6 + 3] == x[i * 4] && c[i * 6 + 4] == 0.0f);
    }
    for (uint64_t p : {dx, dy, counter}) CHECK(cuMemFree_v2(p) == 0);
}

static void memory() {
    size_t before, after, total;
    CHECK(cuMemGetInfo_v2(&before, &total) == 0);
    const uint64_t p = device(100);
    CHECK(cuMemGetInfo_v2(&after, &total) == 0 && before - after == 512);
    CHECK(p % 256 == 0);
    for (float v : host(p, 100)) CHECK(isnan(v));
    float value[101] = {};
    CHECK(cuMemcpyHtoDAsync_v2(p, value, 404, stream) == 1);
    CHECK(cuMemcpyHtoDAsync_v2(p + 4, value, 400, stream) == 1);
    CHECK(cuMemcpyDtoHAsync_v2(value, p - 4, 4, stream) == 1);
    CHECK(cuMemsetD8Async(p, 0, 401, stream) == 1);
    CHECK(cuMemFree_v2(p + 4) == 1);
    CHECK(cuMemFree_v2(p) == 0);
    CHECK(cuMemFree_v2(p) == 1);
    uint64_t huge;
    CHECK(cuMemAlloc_v2(&huge, total + 1) == 2);
    CHECK(cuMemAlloc_v2(&huge, 0) == 1);
}

static void launches() {
    const uint64_t p = upload({1, 2, 3});
    CHECK(launch("no_such_kernel", 1, 1, args(p, p)) == 500);
    CHECK(launch("add_one", 0, 1, args(p, p)) == 1);
    CHECK(launch("add_one", 1, 257, args(p, p)) == 1);   // more than its bound
    CHECK(launch("add_one", 1, 32, args(p, p), 49 << 10) == 1);
    void *function, *other;
    CHECK(cuModuleGetFunction(&function, module_handle, "add_one") == 0);
    CHECK(cuFuncSetAttribute(function, 8, 164 << 10) == 1);
    CHECK(cuFuncSetAttribute(function, 8, 100 << 10) == 0);
    TestArgs a = args(p, p, 3);
    void* params[] = {&a};
    CHECK(cuLaunchKernel(function, 1, 1, 1, 32, 1, 1, 100 << 10, stream, params, nullptr) == 0);
    CHECK(host(p, 3)[2] == 4);
    CHECK(cuModuleLoadData(&other, "neither code nor text") == 200);
    CHECK(cuMemFree_v2(p) == 0);
}

static void graphs() {
    void *graph, *executable, *start, *end, *second, *fork, *join;
    int status;
    const uint64_t x = upload({1, 2, 3, 4}), y = device(4);
    float* pinned;
    CHECK(cuMemHostAlloc(reinterpret_cast<void**>(&pinned), 16, 0) == 0);
    CHECK(cuEventCreate(&start, 0) == 0 && cuEventCreate(&end, 0) == 0);
    CHECK(cuStreamBeginCapture_v2(nullptr, 1) == 900);
    CHECK(cuStreamBeginCapture_v2(stream, 1) == 0);
    CHECK(cuEventRecordWithFlags(start, stream, 1) == 0);
    CHECK(launch("add_one", 1, 32, args(x, y, 4)) == 0);
    CHECK(cuMemcpyDtoHAsync_v2(pinned, y, 16, stream) == 0);
    CHECK(cuEventRecordWithFlags(end, stream, 1) == 0);
    CHECK(cuStreamIsCapturing(stream, &status) == 0 && status == 1);
    CHECK(cuStreamEndCapture(stream, &graph) == 0);
    CHECK(cuGraphInstantiateWithFlags(&executable, graph, 0) == 0);
    pinned[3] = -1;
    for (float value : {10.0f, 20.0f}) {
        CHECK(pinned[3] != value + 1);
        const float values[4] = {value, value, value, value};
        CHECK(cuMemcpyHtoDAsync_v2(x, values, 16, stream) == 0);
        CHECK(cuGraphLaunch(executable, stream) == 0);
        CHECK(cuStreamSynchronize(stream) == 0);
        CHECK(pinned[3] == value + 1);
        float elapsed = -1;
        CHECK(cuEventSynchronize(end) == 0 && cuEventElapsedTime_v2(&elapsed, start, end) == 0 && elapsed >= 0);
    }
    CHECK(cuGraphExecDestroy(executable) == 0 && cuGraphDestroy(graph) == 0);
    CHECK(cuGraphLaunch(executable, stream) == 1);

    // What a capture does not allow ends it, and the stream can be used again.
    uint64_t p;
    float value;
    const auto refused = [&](int expected, int code) {
        CHECK(code == expected);
        CHECK(cuStreamIsCapturing(stream, &status) == 0 && status == 2);
        CHECK(launch("add_one", 1, 32, args(x, y, 4)) == 901);
        CHECK(cuStreamEndCapture(stream, &graph) == 901 && graph == nullptr);
        CHECK(launch("add_one", 1, 32, args(x, y, 4)) == 0);
        CHECK(cuStreamBeginCapture_v2(stream, 1) == 0);
    };
    CHECK(cuEventRecordWithFlags(start, stream, 0) == 0);
    CHECK(cuStreamBeginCapture_v2(stream, 1) == 0);
    refused(900, cuMemAlloc_v2(&p, 4));
    refused(900, cuStreamSynchronize(stream));
    refused(900, cuMemcpyDtoH_v2(&value, y, 4));
    refused(900, cuMemFree_v2(x));
    refused(905, cuStreamWaitEvent(stream, start, 0));
    CHECK(cuStreamEndCapture(stream, &graph) == 0 && cuGraphDestroy(graph) == 0);

    // A second stream takes part by an event, and must be joined.
    CHECK(cuStreamCreate(&second, 1) == 0 && cuEventCreate(&fork, 2) == 0 && cuEventCreate(&join, 2) == 0);
    for (bool joined : {true, false}) {
        CHECK(cuStreamBeginCapture_v2(stream, 1) == 0);
        CHECK(cuEventRecordWithFlags(fork, stream, 0) == 0 && cuStreamWaitEvent(second, fork, 0) == 0);
        CHECK(cuMemsetD8Async(y, 0, 16, second) == 0);
        CHECK(cuEventRecordWithFlags(join, second, 0) == 0);
        if (joined) CHECK(cuStreamWaitEvent(stream, join, 0) == 0);
        CHECK(cuEventSynchronize(join) == 900);
        CHECK(cuStreamEndCapture(stream, &graph) == 901);
        CHECK(cuEventSynchronize(join) == 907);
        CHECK(cuStreamBeginCapture_v2(stream, 1) == 0);
        CHECK(cuEventRecordWithFlags(fork, stream, 0) == 0 && cuStreamWaitEvent(second, fork, 0) == 0);
        CHECK(cuMemsetD8Async(y, 0, 16, second) == 0);
        CHECK(cuEventRecordWithFlags(join, second, 0) == 0);
        if (joined) CHECK(cuStreamWaitEvent(stream, join, 0) == 0);
        CHECK(cuStreamEndCapture(stream, &graph) == (joined ? 0 : 904));
        if (joined) CHECK(cuGraphDestroy(graph) == 0);
    }
    CHECK(cuStreamDestroy_v2(second) == 0);
    for (void* event : {start, end, fork, join}) CHECK(cuEventDestroy_v2(event) == 0);
    CHECK(cuMemFreeHost(pinned) == 0);
    CHECK(cuMemFree_v2(x) == 0 && cuMemFree_v2(y) == 0);
}

// Work that nobody waited for has not happened, if UCAG_EMU_STREAMS=deferred.
static void streams() {
    const char* text = getenv("UCAG_EMU_STREAMS");
    const bool deferred = text && !strcmp(text, "deferred");
    void *second, *event;
    CHECK(cuStreamCreate(&second, 1) == 0 && cuEventCreate(&event, 2) == 0);
    const uint64_t x = upload({1}), y = upload({0});
    CHECK(cuStreamSynchronize(stream) == 0);
    float* pinned;
    CHECK(cuMemHostAlloc(reinterpret_cast<void**>(&pinned), 4, 0) == 0);
    *pinned = -1;
    CHECK(launch("add_one", 1, 32, args(x, y, 1)) == 0);
    CHECK(cuEventRecordWithFlags(event, stream, 0) == 0);
    CHECK(cuStreamWaitEvent(second, event, 0) == 0);
    CHECK(cuMemcpyDtoHAsync_v2(pinned, y, 4, second) == 0);
    CHECK(*pinned == (deferred ? -1 : 2));
    CHECK(cuStreamSynchronize(second) == 0);
    CHECK(*pinned == 2);
    CHECK(cuStreamDestroy_v2(second) == 0 && cuEventDestroy_v2(event) == 0);
    CHECK(cuMemFreeHost(pinned) == 0 && cuMemFree_v2(x) == 0 && cuMemFree_v2(y) == 0);
}

static void injected() {
    uint64_t p = 0;
    emu_fail("cuMemAlloc", 2, 2);
    CHECK(cuMemAlloc_v2(&p, 4) == 0 && cuMemFree_v2(p) == 0);
    CHECK(cuMemAlloc_v2(&p, 4) == 2);
    CHECK(cuMemAlloc_v2(&p, 4) == 0 && cuMemFree_v2(p) == 0);
    emu_fail("cuStreamSynchronize", 1, 719);
    CHECK(cuStreamSynchronize(stream) == 719);
    CHECK(cuMemAlloc_v2(&p, 4) == 719);  // a lost device stays lost
    emu_fail(nullptr, 0, 0);
    CHECK(cuStreamSynchronize(stream) == 0);
}

// As tests of one program do: several threads, each with a stream.
static void parallel() {
    std::vector<std::thread> all;
    for (int t = 0; t < 6; t++) {
        all.emplace_back([t] {
            CHECK(cuCtxSetCurrent(context) == 0 && cuStreamCreate(&stream, 1) == 0);
            const uint64_t x = upload(std::vector<float>(32 * 64, static_cast<float>(t))), y = device(32);
            for (int i = 0; i < 50; i++) {
                CHECK(launch("block_sum", i % 32 + 1, 64, args(x, y), 256) == 0);
                CHECK(host(y, 32)[static_cast<size_t>(i % 32)] == static_cast<float>(64 * t));
            }
            CHECK(cuMemFree_v2(x) == 0 && cuMemFree_v2(y) == 0 && cuStreamDestroy_v2(stream) == 0);
        });
    }
    for (std::thread& thread : all) thread.join();
}

int matmul_checks(void* stream, int* checks);  // matmul.cpp

static void mistake(const char* name) {
    const uint64_t x = upload(std::vector<float>(256, 1.0f)), y = device(5);
    launch(name, 1, strstr(name, "barrier") && !strstr(name, "shuffle") ? 64 : 32, args(x, y, 5), 64);
    cuStreamSynchronize(stream);
    cuMemFree_v2(y);
}

int main(int count, char** values) {
    CHECK(cuInit(0) == 0 && cuDevicePrimaryCtxRetain(&context, 0) == 0);
    uint64_t early;
    CHECK(cuMemAlloc_v2(&early, 4) == 201);
    CHECK(cuCtxSetCurrent(context) == 0 && cuStreamCreate(&stream, 1) == 0);
    CHECK(cuModuleLoadData(&module_handle, ".version 9.0\n.target sm_80\n") == 0);
    if (count > 1) return mistake(values[1]), 0;
    threads();
    memory();
    launches();
    graphs();
    streams();
    injected();
    parallel();
    failures += matmul_checks(stream, &checks);
    uint64_t report[4];
    emu_report(report);
    CHECK(report[0] == 0 && report[1] == 0 && report[2] > 0 && report[3] == 2);
    printf("%d checks, %d failures\n", checks, failures);
    return failures != 0;
}
