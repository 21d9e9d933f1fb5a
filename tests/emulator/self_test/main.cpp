// The emulator's own test, a program of the driver interface. With an argument: makes the mistake of that name, which
// must end the process. `run` calls it in all ways.
#include "test.h"

#include <stdlib.h>
#include <thread>

int checks = 0, failures = 0;
void *module_handle, *context;
thread_local void* stream;

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
    products();
    uint64_t report[4];
    emu_report(report);
    CHECK(report[0] == 0 && report[1] == 0 && report[2] > 0 && report[3] == 2);
    printf("%d checks, %d failures\n", checks, failures);
    return failures != 0;
}
