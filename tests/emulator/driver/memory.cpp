// Entry points for memory, copies and fills.
#include "driver.h"

#include <string.h>

namespace drv {
namespace {

bool is_device(CUdeviceptr at, size_t bytes, const char* what) {
    const auto found = find_allocation(reinterpret_cast<void*>(at), bytes);
    if (found && found->device) return true;
    complain("%s of %zu bytes at %p is not within one device allocation", what, bytes, reinterpret_cast<void*>(at));
    return false;
}

bool is_pinned(const void* at, size_t bytes) {
    const auto found = find_allocation(at, bytes);
    return found && !found->device;
}

char* host(CUdeviceptr p) { return reinterpret_cast<char*>(p); }

// A call without a stream: nothing of it is left when it returns.
template <class F> CUresult at_once(F asynchronous) {
    if (CUresult e = forbid_in_capture()) return e;
    if (CUresult e = asynchronous(nullptr)) return e;
    drain_all();
    return SUCCESS;
}

CUresult to_device(CUdeviceptr to, const void* from, size_t bytes, void* stream) {
    if (!bytes) return SUCCESS;
    if (!from || !is_device(to, bytes, "copy to the device")) return INVALID_VALUE;
    const auto s = find_stream(stream);
    if (!s) return INVALID_HANDLE;
    if (is_pinned(from, bytes) || s->capture) return submit(stream, [=] { memcpy(host(to), from, bytes); });
    // The driver has taken pageable memory over when it returns.
    std::vector<char> staged(static_cast<const char*>(from), static_cast<const char*>(from) + bytes);
    return submit(stream, [to, staged = std::move(staged)] { memcpy(host(to), staged.data(), staged.size()); });
}

CUresult to_host(void* to, CUdeviceptr from, size_t bytes, void* stream) {
    if (!bytes) return SUCCESS;
    if (!to || !is_device(from, bytes, "copy to the host")) return INVALID_VALUE;
    const auto s = find_stream(stream);
    if (!s) return INVALID_HANDLE;
    if (CUresult e = submit(stream, [=] { memcpy(to, host(from), bytes); })) return e;
    if (!is_pinned(to, bytes) && !s->capture) drain(*s);  // into pageable memory the driver copies before it returns
    return SUCCESS;
}

CUresult on_device(CUdeviceptr to, CUdeviceptr from, size_t bytes, void* stream) {
    if (!bytes) return SUCCESS;
    if (!is_device(to, bytes, "copy") || !is_device(from, bytes, "copy")) return INVALID_VALUE;
    return submit(stream, [=] { memmove(host(to), host(from), bytes); });
}

template <class T> CUresult fill(CUdeviceptr to, T value, size_t count, void* stream) {
    if (!count) return SUCCESS;
    if (to % sizeof(T) || !is_device(to, count * sizeof(T), "fill")) return INVALID_VALUE;
    return submit(stream, [=] {
        for (size_t i = 0; i < count; i++) reinterpret_cast<T*>(to)[i] = value;
    });
}

}  // namespace
}  // namespace drv

using namespace drv;

API cuMemAlloc_v2(CUdeviceptr* pointer, size_t bytes) {
    ENTER();
    if (CUresult e = forbid_in_capture()) return e;
    return allocate(bytes, true, reinterpret_cast<char**>(pointer));
}

API cuMemFree_v2(CUdeviceptr pointer) {
    ENTER();
    if (CUresult e = forbid_in_capture()) return e;
    drain_all();
    return pointer ? release(host(pointer), true) : SUCCESS;
}

// In a capture the driver would record a node that allocates; the emulator knows no such graphs.
API cuMemAllocAsync(CUdeviceptr* pointer, size_t bytes, void* stream) {
    ENTER();
    const auto s = find_stream(stream);
    if (!s) return INVALID_HANDLE;
    if (CUresult e = forbid_on_capturing(*s)) return e;
    return allocate(bytes, true, reinterpret_cast<char**>(pointer));
}
API cuMemAllocFromPoolAsync(CUdeviceptr* pointer, size_t bytes, void*, void* stream) {
    return cuMemAllocAsync(pointer, bytes, stream);
}

API cuMemFreeAsync(CUdeviceptr pointer, void* stream) {
    ENTER();
    const auto s = find_stream(stream);
    if (!s) return INVALID_HANDLE;
    if (CUresult e = forbid_on_capturing(*s)) return e;
    if (!is_device(pointer, 0, "free")) return INVALID_VALUE;
    return submit(stream, [=] {
        if (release(host(pointer), true)) complain("cuMemFreeAsync of %p", reinterpret_cast<void*>(pointer));
    });
}

API cuMemGetInfo_v2(size_t* available, size_t* total) {
    ENTER();
    std::lock_guard<std::mutex> count(counters_mutex);
    *total = memory_limit();
    *available = memory_limit() - counters.live_bytes;
    return SUCCESS;
}

API cuDeviceTotalMem_v2(size_t* bytes, CUdevice device) {
    ENTER_WITHOUT_CONTEXT();
    if (device) return INVALID_DEVICE;
    *bytes = memory_limit();
    return SUCCESS;
}

API cuMemHostAlloc(void** pointer, size_t bytes, unsigned) {
    ENTER();
    if (CUresult e = forbid_in_capture()) return e;
    return allocate(bytes, false, reinterpret_cast<char**>(pointer));
}
API cuMemAllocHost_v2(void** pointer, size_t bytes) { return cuMemHostAlloc(pointer, bytes, 0); }

API cuMemFreeHost(void* pointer) {
    ENTER();
    if (CUresult e = forbid_in_capture()) return e;
    drain_all();
    return release(static_cast<char*>(pointer), false);
}

API cuMemGetAddressRange_v2(CUdeviceptr* base, size_t* bytes, CUdeviceptr pointer) {
    ENTER();
    const auto found = find_allocation(host(pointer), 0);
    if (!found || !found->device) return NOT_FOUND;
    if (base) *base = reinterpret_cast<CUdeviceptr>(found->first);
    if (bytes) *bytes = found->bytes;
    return SUCCESS;
}

API cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, size_t bytes, void* stream) {
    ENTER();
    return to_device(to, from, bytes, stream);
}
API cuMemcpyHtoD_v2(CUdeviceptr to, const void* from, size_t bytes) {
    ENTER();
    return at_once([=](void* stream) { return to_device(to, from, bytes, stream); });
}
API cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, size_t bytes, void* stream) {
    ENTER();
    return to_host(to, from, bytes, stream);
}
API cuMemcpyDtoH_v2(void* to, CUdeviceptr from, size_t bytes) {
    ENTER();
    return at_once([=](void* stream) { return to_host(to, from, bytes, stream); });
}
API cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, void* stream) {
    ENTER();
    return on_device(to, from, bytes, stream);
}
API cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
    ENTER();
    return at_once([=](void* stream) { return on_device(to, from, bytes, stream); });
}

#define FILL(bits, type)                                                                        \
    API cuMemsetD##bits##Async(CUdeviceptr to, type value, size_t count, void* stream) {        \
        ENTER();                                                                                \
        return fill<type>(to, value, count, stream);                                            \
    }                                                                                           \
    API cuMemsetD##bits##_v2(CUdeviceptr to, type value, size_t count) {                        \
        ENTER();                                                                                \
        return at_once([=](void* stream) { return fill<type>(to, value, count, stream); });     \
    }
FILL(8, unsigned char)
FILL(16, unsigned short)
FILL(32, unsigned)

// Pools exist in name: all memory comes from the one above, and nothing is kept.
static char the_pool;
API cuDeviceGetDefaultMemPool(void** pool, CUdevice) {
    ENTER_WITHOUT_CONTEXT();
    *pool = &the_pool;
    return SUCCESS;
}
API cuDeviceGetMemPool(void** pool, CUdevice device) { return cuDeviceGetDefaultMemPool(pool, device); }
API cuDeviceSetMemPool(CUdevice, void*) {
    ENTER_WITHOUT_CONTEXT();
    return SUCCESS;
}
API cuMemPoolTrimTo(void*, size_t) {
    ENTER();
    return SUCCESS;
}
API cuMemPoolSetAttribute(void*, int, void*) {
    ENTER();
    return SUCCESS;
}
API cuMemPoolGetAttribute(void*, int, void* value) {
    ENTER();
    *static_cast<uint64_t*>(value) = 0;
    return SUCCESS;
}
