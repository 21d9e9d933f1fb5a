// What the parts of the stand-in libcuda.so.1 share. Types and numbers are those of the CUDA driver's interface.
// Objects that live as long as the process are never destroyed: other threads may run while it exits.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <stddef.h>
#include <stdint.h>
#include <string>
#include <thread>
#include <vector>

#define API extern "C" __attribute__((visibility("default"))) CUresult

typedef int CUresult;
typedef int CUdevice;
typedef uint64_t CUdeviceptr;

enum : CUresult {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    DEVICE_UNAVAILABLE = 46,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    NO_BINARY_FOR_GPU = 209,
    ECC_UNCORRECTABLE = 214,
    UNSUPPORTED_PTX_VERSION = 222,
    SHARED_OBJECT_INIT_FAILED = 303,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    NOT_READY = 600,
    ILLEGAL_ADDRESS = 700,
    LAUNCH_TIMEOUT = 702,
    CONTEXT_IS_DESTROYED = 709,
    LAUNCH_FAILED = 719,
    NOT_SUPPORTED = 801,
    STREAM_CAPTURE_UNSUPPORTED = 900,
    STREAM_CAPTURE_INVALIDATED = 901,
    STREAM_CAPTURE_MERGE = 902,
    STREAM_CAPTURE_UNMATCHED = 903,
    STREAM_CAPTURE_UNJOINED = 904,
    STREAM_CAPTURE_ISOLATION = 905,
    STREAM_CAPTURE_IMPLICIT = 906,
    CAPTURED_EVENT = 907,
    STREAM_CAPTURE_WRONG_THREAD = 908,
};

namespace drv {

// Work of a stream. It owns copies of all that the caller may change after the call.
using Op = std::function<void()>;

struct Stream;
struct Capture;
using View = std::map<const Stream*, size_t>;  // how far into each stream of a capture one can see

struct Event {
    bool timing;
    uint64_t recorded = 0, completed = 0;  // calls of record, and how many of them have happened
    double seconds = 0;
    std::shared_ptr<Stream> stream;         // of the last record
    std::shared_ptr<Capture> capture;       // if that was in a capture
    View view;
};

struct Stream {
    bool blocking;  // synchronises with the legacy stream
    unsigned flags;
    std::recursive_mutex mutex;
    std::vector<Op> queue;
    std::shared_ptr<Capture> capture;
};

struct Capture {
    int mode;  // 0 global, 1 of the thread, 2 relaxed
    std::thread::id thread;
    Stream* origin;
    uint64_t id;
    bool invalid = false;
    std::vector<Op> ops;
    std::map<const Stream*, View> views;
    View last;  // latest operation of each stream
};

// errors.cpp
// Every entry point begins with enter(): an injected failure, a lost device, no context.
CUresult enter(const char* name);
CUresult enter_without_context(const char* name);
#define RETURN_ERROR(call) do { if (CUresult error = (call)) return error; } while (0)
#define ENTER() RETURN_ERROR(drv::enter(__func__))
#define ENTER_WITHOUT_CONTEXT() RETURN_ERROR(drv::enter_without_context(__func__))
void complain(const char* format, ...) __attribute__((format(printf, 1, 2)));

// device.cpp
long setting(const char* name, long otherwise);
CUresult check_context();
int compute_capability();
int driver_version();
size_t shared_memory_limit();

// allocation.cpp
struct Range {
    char* first;
    size_t bytes;
    bool device;  // otherwise pinned
};
size_t memory_limit();
CUresult allocate(size_t bytes, bool device, char** result);
CUresult release(char* data, bool device);
std::optional<Range> find_allocation(const void* at, size_t bytes);

// stream.cpp
void drain_all();
extern std::mutex registry;  // of streams, events, graphs, captures and allocations; not held while work runs
std::shared_ptr<Stream> find_stream(void* handle);  // kept while another thread may destroy it
CUresult submit(void* handle, Op op);
void drain(Stream& stream);

// graph.cpp
CUresult capture_op(Stream& stream, Op op);  // under `registry`
CUresult capture_record(Stream& stream, Event& event);
CUresult capture_wait(Stream& stream, Event& event);
CUresult forbid_in_capture();                // for calls that no capture allows
CUresult forbid_on_capturing(Stream& stream);
CUresult check_legacy(const Stream& stream);
void forget_capture(Stream& stream);

// module.cpp and graph.cpp count
struct Counters {
    uint64_t live_bytes = 0, live_allocations = 0, launches = 0, graph_launches = 0;
};
extern Counters counters;
extern std::mutex counters_mutex;

}  // namespace drv
