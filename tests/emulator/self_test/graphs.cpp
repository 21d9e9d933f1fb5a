// Capture, graphs, and when the work of streams happens.
#include "test.h"

#include <stdlib.h>

void graphs() {
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
void streams() {
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
