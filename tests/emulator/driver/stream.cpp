// Streams and events. Work runs when it is submitted, or, with UCAG_EMU_STREAMS=deferred, as late as a program may rely
// on: when something waits for it. What a host reads too early then is not there yet.
#include "driver.h"

#include <chrono>
#include <stdlib.h>
#include <string.h>
#include <unordered_map>

namespace drv {

std::mutex registry;

namespace {

auto& streams = *new std::unordered_map<void*, std::shared_ptr<Stream>>;
auto& events = *new std::unordered_map<void*, std::shared_ptr<Event>>;

bool deferred() {
    static const bool value = [] {
        const char* text = getenv("UCAG_EMU_STREAMS");
        return text && !strcmp(text, "deferred");
    }();
    return value;
}

const auto& legacy = *new std::shared_ptr<Stream>(new Stream{true, 0, {}, {}, {}});

double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Runs the oldest operation; false if there is none.
bool step(Stream& stream) {
    std::lock_guard<std::recursive_mutex> lock(stream.mutex);
    if (stream.queue.empty()) return false;
    Op op = std::move(stream.queue.front());
    stream.queue.erase(stream.queue.begin());
    op();
    return true;
}

std::vector<std::shared_ptr<Stream>> all_streams() {
    std::lock_guard<std::mutex> lock(registry);
    std::vector<std::shared_ptr<Stream>> all{legacy};
    for (auto& [handle, stream] : streams) all.push_back(stream);
    return all;
}

std::shared_ptr<Event> find_event(void* handle) {
    std::lock_guard<std::mutex> lock(registry);
    auto found = events.find(handle);
    return found == events.end() ? nullptr : found->second;
}

bool reached(const Event& event, uint64_t target) {
    std::lock_guard<std::mutex> lock(registry);
    return event.completed >= target;
}

std::shared_ptr<Stream> stream_of(const Event& event) {
    std::lock_guard<std::mutex> lock(registry);
    return event.stream;
}

// Runs what precedes the target-th record of the event.
void reach(Event& event, uint64_t target) {
    const auto stream = stream_of(event);
    while (!reached(event, target)) {
        if (!stream || !step(*stream)) return;
    }
}

}  // namespace

void drain(Stream& stream) {
    while (step(stream)) {
    }
}

void drain_all() {
    if (!deferred()) return;
    for (auto& stream : all_streams()) drain(*stream);
}

std::shared_ptr<Stream> find_stream(void* handle) {
    const auto number = reinterpret_cast<uintptr_t>(handle);
    if (number <= 2) return legacy;  // the default stream, by its three names
    std::lock_guard<std::mutex> lock(registry);
    auto found = streams.find(handle);
    return found == streams.end() ? nullptr : found->second;
}

// Runs, queues or captures.
CUresult submit(void* handle, Op op) {
    const auto stream = find_stream(handle);
    if (!stream) return INVALID_HANDLE;
    {
        std::lock_guard<std::mutex> lock(registry);
        if (stream->capture) return capture_op(*stream, std::move(op));
    }
    if (CUresult e = check_legacy(*stream)) return e;
    if (deferred() && stream->blocking) {
        // Blocking streams and the legacy stream wait for each other.
        for (auto& other : all_streams()) {
            if (other != stream && other->blocking && (other == legacy || stream == legacy)) drain(*other);
        }
    }
    std::lock_guard<std::recursive_mutex> lock(stream->mutex);
    if (deferred()) stream->queue.push_back(std::move(op));
    else op();
    return SUCCESS;
}

}  // namespace drv

using namespace drv;

// For the stand-in cuBLASLt: `run` with a copy of `bytes` of `data`, in the order of the stream.
extern "C" __attribute__((visibility("default"))) int emu_enqueue(void* stream, void (*run)(void*), const void* data,
                                                                   size_t bytes) {
    std::vector<max_align_t> copy(bytes / sizeof(max_align_t) + 1);
    memcpy(copy.data(), data, bytes);
    return submit(stream, [run, copy]() mutable { run(copy.data()); });
}

API cuStreamCreateWithPriority(void** handle, unsigned flags, int) {
    ENTER();
    if (flags > 1) return INVALID_VALUE;
    std::shared_ptr<Stream> stream(new Stream{flags == 0, flags, {}, {}, {}});
    *handle = stream.get();
    std::lock_guard<std::mutex> lock(registry);
    streams[*handle] = std::move(stream);
    return SUCCESS;
}
API cuStreamCreate(void** handle, unsigned flags) { return cuStreamCreateWithPriority(handle, flags, 0); }

API cuStreamDestroy_v2(void* handle) {
    ENTER();
    const auto stream = find_stream(handle);
    if (!stream || reinterpret_cast<uintptr_t>(handle) <= 2) return INVALID_HANDLE;
    drain(*stream);
    std::lock_guard<std::mutex> lock(registry);
    forget_capture(*stream);
    streams.erase(handle);
    return SUCCESS;
}

API cuStreamSynchronize(void* handle) {
    ENTER();
    const auto stream = find_stream(handle);
    if (!stream) return INVALID_HANDLE;
    if (CUresult e = forbid_on_capturing(*stream)) return e;
    drain(*stream);
    return SUCCESS;
}

// Not ready while something is queued, which each question brings nearer to its end.
API cuStreamQuery(void* handle) {
    ENTER();
    const auto stream = find_stream(handle);
    if (!stream) return INVALID_HANDLE;
    if (CUresult e = forbid_on_capturing(*stream)) return e;
    return step(*stream) ? NOT_READY : SUCCESS;
}

API cuStreamGetFlags(void* handle, unsigned* flags) {
    ENTER();
    const auto stream = find_stream(handle);
    if (!stream) return INVALID_HANDLE;
    *flags = stream->flags;
    return SUCCESS;
}

API cuStreamWaitEvent(void* handle, void* event_handle, unsigned flags) {
    ENTER();
    const auto stream = find_stream(handle);
    std::shared_ptr<Event> event = find_event(event_handle);
    if (!stream || !event || flags > 1) return INVALID_HANDLE;
    const bool external = flags == 1;
    uint64_t target;
    {
        std::lock_guard<std::mutex> lock(registry);
        if (!external && (stream->capture || event->capture)) return capture_wait(*stream, *event);
        target = event->recorded;
    }
    return submit(handle, [event, target] { reach(*event, target); });
}

API cuEventCreate(void** handle, unsigned flags) {
    ENTER();
    if (flags > 7) return INVALID_VALUE;
    auto event = std::make_shared<Event>();
    event->timing = !(flags & 2);
    *handle = event.get();
    std::lock_guard<std::mutex> lock(registry);
    events[*handle] = event;
    return SUCCESS;
}

API cuEventDestroy_v2(void* handle) {
    ENTER();
    std::lock_guard<std::mutex> lock(registry);
    return events.erase(handle) ? SUCCESS : INVALID_HANDLE;
}

// In a capture, an external record (flag 1) becomes work of the graph; a plain one orders the capture's streams.
API cuEventRecordWithFlags(void* handle, void* stream_handle, unsigned flags) {
    ENTER();
    const auto stream = find_stream(stream_handle);
    std::shared_ptr<Event> event = find_event(handle);
    if (!stream || !event || flags > 1) return INVALID_HANDLE;
    bool graph;
    {
        std::lock_guard<std::mutex> lock(registry);
        graph = stream->capture != nullptr;
        if (graph && flags == 0) return capture_record(*stream, *event);
        event->capture = nullptr;
        event->stream = stream;
        if (!graph) event->recorded++;
    }
    return submit(stream_handle, [event, graph] {
        std::lock_guard<std::mutex> lock(registry);
        event->seconds = now();
        if (graph) event->recorded++;
        event->completed++;
    });
}
API cuEventRecord(void* event, void* stream) { return cuEventRecordWithFlags(event, stream, 0); }

API cuEventSynchronize(void* handle) {
    ENTER();
    if (CUresult e = forbid_in_capture()) return e;
    std::shared_ptr<Event> event = find_event(handle);
    if (!event) return INVALID_HANDLE;
    if (event->capture) return CAPTURED_EVENT;
    reach(*event, event->recorded);
    return SUCCESS;
}

API cuEventQuery(void* handle) {
    ENTER();
    if (CUresult e = forbid_in_capture()) return e;
    std::shared_ptr<Event> event = find_event(handle);
    if (!event) return INVALID_HANDLE;
    if (event->capture) return CAPTURED_EVENT;
    if (reached(*event, event->recorded)) return SUCCESS;
    if (const auto stream = stream_of(*event)) step(*stream);
    return NOT_READY;
}

API cuEventElapsedTime_v2(float* milliseconds, void* from, void* to) {
    ENTER();
    std::shared_ptr<Event> start = find_event(from), end = find_event(to);
    if (!start || !end || !start->timing || !end->timing) return INVALID_HANDLE;
    if (start->capture || end->capture) return CAPTURED_EVENT;
    if (!start->recorded || !end->recorded) return INVALID_HANDLE;
    if (!reached(*start, start->recorded) || !reached(*end, end->recorded)) return NOT_READY;
    *milliseconds = static_cast<float>((end->seconds - start->seconds) * 1e3);
    return SUCCESS;
}
API cuEventElapsedTime(float* milliseconds, void* from, void* to) {
    return cuEventElapsedTime_v2(milliseconds, from, to);
}

API cuLaunchHostFunc(void* stream, void (*function)(void*), void* data) {
    ENTER();
    return submit(stream, [=] { function(data); });
}
