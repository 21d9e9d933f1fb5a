// Capture of streams into graphs, and graphs. A graph is its operations in the order of capture, which respects every
// dependency; what streams may see of each other is followed only to report work that was not joined.
#include "driver.h"

#include <algorithm>
#include <atomic>
#include <unordered_map>

namespace drv {
namespace {

struct Graph {
    std::shared_ptr<const std::vector<Op>> ops;
};

auto& captures = *new std::vector<std::shared_ptr<Capture>>;  // not ended
auto& graphs = *new std::unordered_map<void*, std::unique_ptr<Graph>>;
auto& executables = *new std::unordered_map<void*, std::unique_ptr<Graph>>;
thread_local int thread_mode = 0;

enum { GLOBAL = 0, THREAD_LOCAL = 1, RELAXED = 2 };

void merge(View& into, const View& from) {
    for (auto& [stream, op] : from) into[stream] = std::max(into[stream], op);
}

void append(Stream& stream, Op op) {
    Capture& capture = *stream.capture;
    capture.ops.push_back(std::move(op));
    capture.last[&stream] = capture.views[&stream][&stream] = capture.ops.size();
}

Graph* find(std::unordered_map<void*, std::unique_ptr<Graph>>& among, void* handle) {
    std::lock_guard<std::mutex> lock(registry);
    auto found = among.find(handle);
    return found == among.end() ? nullptr : found->second.get();
}

CUresult invalidate(Capture& capture, CUresult code) {
    capture.invalid = true;
    return code;
}

}  // namespace

CUresult capture_op(Stream& stream, Op op) {
    if (stream.capture->invalid) return STREAM_CAPTURE_INVALIDATED;
    append(stream, std::move(op));
    return SUCCESS;
}

CUresult capture_record(Stream& stream, Event& event) {
    if (stream.capture->invalid) return STREAM_CAPTURE_INVALIDATED;
    event.capture = stream.capture;
    event.view = stream.capture->views[&stream];
    return SUCCESS;
}

// The waiting stream becomes part of the event's capture.
CUresult capture_wait(Stream& stream, Event& event) {
    if (stream.capture && stream.capture->invalid) return STREAM_CAPTURE_INVALIDATED;
    if (!event.capture) return invalidate(*stream.capture, STREAM_CAPTURE_ISOLATION);
    const bool active = std::find(captures.begin(), captures.end(), event.capture) != captures.end();
    if (!active) return stream.capture ? invalidate(*stream.capture, CAPTURED_EVENT) : CAPTURED_EVENT;
    if (event.capture->invalid) return STREAM_CAPTURE_INVALIDATED;
    if (stream.capture && stream.capture != event.capture) {
        invalidate(*event.capture, STREAM_CAPTURE_MERGE);
        return invalidate(*stream.capture, STREAM_CAPTURE_MERGE);
    }
    const bool joins = !stream.capture;
    stream.capture = event.capture;
    merge(stream.capture->views[&stream], event.view);
    if (joins) append(stream, [] {});
    return SUCCESS;
}

CUresult forbid_in_capture() {
    std::lock_guard<std::mutex> lock(registry);
    CUresult result = SUCCESS;
    for (auto& capture : captures) {
        const bool own = capture->thread == std::this_thread::get_id();
        const bool others = capture->mode == GLOBAL && thread_mode == GLOBAL;
        if (capture->mode == RELAXED || thread_mode == RELAXED || !(own || others)) continue;
        result = invalidate(*capture, STREAM_CAPTURE_UNSUPPORTED);
    }
    return result;
}

CUresult forbid_on_capturing(Stream& stream) {
    std::lock_guard<std::mutex> lock(registry);
    if (!stream.capture) return SUCCESS;
    if (stream.capture->invalid) return STREAM_CAPTURE_INVALIDATED;
    return invalidate(*stream.capture, STREAM_CAPTURE_UNSUPPORTED);
}

// The legacy stream waits for all blocking streams, which one that captures cannot allow.
CUresult check_legacy(const Stream& stream) {
    if (&stream != find_stream(nullptr).get()) return SUCCESS;
    std::lock_guard<std::mutex> lock(registry);
    for (auto& capture : captures) {
        for (auto& [member, view] : capture->views) {
            if (member->blocking) return invalidate(*capture, STREAM_CAPTURE_IMPLICIT);
        }
    }
    return SUCCESS;
}

void forget_capture(Stream& stream) {
    if (!stream.capture) return;
    stream.capture->invalid = true;
    stream.capture->views.erase(&stream);
    if (stream.capture->origin == &stream) {
        for (auto& [member, view] : stream.capture->views) const_cast<Stream*>(member)->capture = nullptr;
        captures.erase(std::find(captures.begin(), captures.end(), stream.capture));
    }
    stream.capture = nullptr;
}

}  // namespace drv

using namespace drv;

API cuStreamBeginCapture_v2(void* handle, int mode) {
    ENTER();
    static std::atomic<uint64_t> ids{1};
    const auto stream = find_stream(handle);
    if (!stream) return INVALID_HANDLE;
    if (stream == find_stream(nullptr)) return STREAM_CAPTURE_UNSUPPORTED;
    if (mode < GLOBAL || mode > RELAXED) return INVALID_VALUE;
    std::lock_guard<std::mutex> lock(registry);
    if (stream->capture) return invalidate(*stream->capture, STREAM_CAPTURE_UNSUPPORTED);
    stream->capture = std::make_shared<Capture>();
    *stream->capture = {mode, std::this_thread::get_id(), stream.get(), ids++, false, {}, {}, {}};
    stream->capture->views[stream.get()] = {};
    captures.push_back(stream->capture);
    return SUCCESS;
}

API cuStreamEndCapture(void* handle, void** graph) {
    const CUresult failure = drv::enter(__func__);  // which ends the capture too
    *graph = nullptr;
    const auto stream = find_stream(handle);
    if (!stream) return failure ? failure : INVALID_HANDLE;
    std::lock_guard<std::mutex> lock(registry);
    std::shared_ptr<Capture> capture = stream->capture;
    if (!capture) return failure ? failure : INVALID_VALUE;
    if (capture->origin != stream.get()) return invalidate(*capture, STREAM_CAPTURE_UNMATCHED);
    if (capture->mode != RELAXED && capture->thread != std::this_thread::get_id()) return STREAM_CAPTURE_WRONG_THREAD;
    for (auto& [member, view] : capture->views) const_cast<Stream*>(member)->capture = nullptr;
    captures.erase(std::find(captures.begin(), captures.end(), capture));
    if (failure) return failure;
    if (capture->invalid) return STREAM_CAPTURE_INVALIDATED;
    const View& seen = capture->views[stream.get()];
    for (auto& [member, op] : capture->last) {
        auto at = seen.find(member);
        if (at == seen.end() || at->second < op) return STREAM_CAPTURE_UNJOINED;
    }
    auto result = std::make_unique<Graph>();
    result->ops = std::make_shared<const std::vector<Op>>(std::move(capture->ops));
    *graph = result.get();
    graphs[*graph] = std::move(result);
    return SUCCESS;
}

API cuStreamIsCapturing(void* handle, int* status) {
    ENTER();
    const auto stream = find_stream(handle);
    if (!stream) return INVALID_HANDLE;
    std::lock_guard<std::mutex> lock(registry);
    *status = !stream->capture ? 0 : stream->capture->invalid ? 2 : 1;
    return SUCCESS;
}

// Dependencies and the graph under construction are not given.
static CUresult capture_info(void* handle, int* status, uint64_t* id) {
    if (CUresult e = cuStreamIsCapturing(handle, status)) return e;
    const auto stream = find_stream(handle);
    std::lock_guard<std::mutex> lock(registry);
    if (id) *id = stream->capture ? stream->capture->id : 0;
    return SUCCESS;
}
API cuStreamGetCaptureInfo_v2(void* handle, int* status, uint64_t* id, void** graph, const void** nodes,
                              size_t* count) {
    if (graph) *graph = nullptr;
    if (nodes) *nodes = nullptr;
    if (count) *count = 0;
    return capture_info(handle, status, id);
}
API cuStreamGetCaptureInfo_v3(void* handle, int* status, uint64_t* id, void** graph, const void** nodes,
                              const void** edges, size_t* count) {
    if (edges) *edges = nullptr;
    return cuStreamGetCaptureInfo_v2(handle, status, id, graph, nodes, count);
}

API cuThreadExchangeStreamCaptureMode(int* mode) {
    ENTER_WITHOUT_CONTEXT();
    std::swap(*mode, thread_mode);
    return SUCCESS;
}

API cuGraphGetNodes(void* handle, void** nodes, size_t* count) {
    ENTER();
    Graph* graph = find(graphs, handle);
    if (!graph) return INVALID_VALUE;
    if (nodes) return NOT_SUPPORTED;
    *count = graph->ops->size();
    return SUCCESS;
}

API cuGraphInstantiateWithFlags(void** executable, void* handle, unsigned long long) {
    ENTER();
    Graph* graph = find(graphs, handle);
    if (!graph) return INVALID_VALUE;
    auto copy = std::make_unique<Graph>(*graph);
    *executable = copy.get();
    std::lock_guard<std::mutex> lock(registry);
    executables[*executable] = std::move(copy);
    return SUCCESS;
}

API cuGraphUpload(void* executable, void* stream) {
    ENTER();
    if (!find(executables, executable)) return INVALID_VALUE;
    return find_stream(stream) ? SUCCESS : INVALID_HANDLE;
}

API cuGraphLaunch(void* executable, void* stream) {
    ENTER();
    Graph* graph = find(executables, executable);
    if (!graph) return INVALID_VALUE;
    return submit(stream, [ops = graph->ops] {
        for (const Op& op : *ops) op();
        std::lock_guard<std::mutex> lock(counters_mutex);
        counters.graph_launches++;
    });
}

static CUresult destroy(std::unordered_map<void*, std::unique_ptr<Graph>>& among, void* handle) {
    std::lock_guard<std::mutex> lock(registry);
    return among.erase(handle) ? SUCCESS : INVALID_VALUE;
}
API cuGraphDestroy(void* graph) {
    ENTER();
    return destroy(graphs, graph);
}
API cuGraphExecDestroy(void* executable) {
    ENTER();
    return destroy(executables, executable);
}
