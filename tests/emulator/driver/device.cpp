// Initialisation, the one device, its primary context.
#include "driver.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

namespace drv {

long setting(const char* name, long otherwise) {
    const char* text = getenv(name);
    return text && *text ? strtol(text, nullptr, 10) : otherwise;
}

int driver_version() { return static_cast<int>(setting("UCAG_EMU_DRIVER", 13000)); }
int compute_capability() { return static_cast<int>(setting("UCAG_EMU_COMPUTE", 80)); }

size_t shared_memory_limit() {
    switch (compute_capability()) {
        case 75: return 64 << 10;
        case 80: return 163 << 10;
        case 90: return 227 << 10;
        default: return 99 << 10;
    }
}

namespace {

std::mutex mutex;
bool initialised = false;
int retained = 0;
char primary;  // its address is the context's handle
__thread void* current_context __attribute__((tls_model("initial-exec"))) = nullptr;

int devices() { return setting("UCAG_EMU_DEVICES", 1) > 0 ? 1 : 0; }

int attribute(int which) {
    const int compute = compute_capability();
    switch (which) {
        case 1: return 1024;                                       // threads a block
        case 2: case 3: return 1024;                               // block x, y
        case 4: return 64;                                         // block z
        case 5: return 0x7fffffff;                                 // grid x
        case 6: case 7: return 65535;                              // grid y, z
        case 8: return 48 << 10;                                   // shared memory a block
        case 9: return 64 << 10;                                   // constant memory
        case 10: return 32;                                        // warp
        case 11: return 0x7fffffff;                                // pitch
        case 12: case 82: return 65536;                            // registers a block, a multiprocessor
        case 13: return 1410000;                                   // clock, kHz
        case 14: return 512;                                       // texture alignment
        case 16: return static_cast<int>(setting("UCAG_EMU_MULTIPROCESSORS", 4));
        case 36: return 1215000;                                   // memory clock, kHz
        case 37: return 5120;                                      // bus width, bits
        case 38: return 40 << 20;                                  // L2
        case 39: return compute == 75 ? 1024 : compute % 10 && compute < 90 ? 1536 : 2048;  // threads a multiprocessor
        case 40: return 3;                                         // copy engines
        case 75: return compute / 10;
        case 76: return compute % 10;
        case 81: return static_cast<int>(shared_memory_limit()) + (compute == 75 ? 0 : 1024);
        case 97: return static_cast<int>(shared_memory_limit());   // opt-in
        case 106: return 32;                                       // blocks a multiprocessor
        case 111: return compute == 75 ? 0 : 1024;                 // reserved shared memory a block
        case 108: return 30 << 20;                                 // persisting L2
        case 120: return compute >= 90;                            // clusters
        case 127: return compute >= 90;                            // tensor maps
        case 15: case 19: case 31: case 41: case 78: case 79: case 80: case 90: case 95: case 99: case 115: return 1;
        default: return 0;
    }
}

}  // namespace

CUresult check_context() {
    std::lock_guard<std::mutex> lock(mutex);
    if (!initialised) return NOT_INITIALIZED;
    if (!current_context) return INVALID_CONTEXT;
    return retained > 0 ? SUCCESS : CONTEXT_IS_DESTROYED;
}

}  // namespace drv

using namespace drv;

static CUresult check_device(CUdevice device) {
    std::lock_guard<std::mutex> lock(drv::mutex);
    if (!initialised) return NOT_INITIALIZED;
    return device == 0 && devices() ? SUCCESS : INVALID_DEVICE;
}
#define ENTER_DEVICE(device) \
    ENTER_WITHOUT_CONTEXT(); \
    RETURN_ERROR(check_device(device))

API cuInit(unsigned flags) {
    ENTER_WITHOUT_CONTEXT();
    if (flags) return INVALID_VALUE;
    if (!devices()) return NO_DEVICE;
    std::lock_guard<std::mutex> lock(drv::mutex);
    initialised = true;
    return SUCCESS;
}

API cuDriverGetVersion(int* version) {
    ENTER_WITHOUT_CONTEXT();
    *version = driver_version();
    return SUCCESS;
}

API cuDeviceGet(CUdevice* device, int ordinal) {
    ENTER_DEVICE(ordinal);
    *device = ordinal;
    return SUCCESS;
}

API cuDeviceGetCount(int* count) {
    ENTER_DEVICE(0);
    *count = devices();
    return SUCCESS;
}

API cuDeviceGetName(char* name, int length, CUdevice device) {
    ENTER_DEVICE(device);
    snprintf(name, static_cast<size_t>(length), "CUDA emulator (CPU)");
    return SUCCESS;
}

API cuDeviceGetUuid_v2(unsigned char uuid[16], CUdevice device) {
    ENTER_DEVICE(device);
    memcpy(uuid, "emulated on CPU", 16);
    return SUCCESS;
}
API cuDeviceGetUuid(unsigned char uuid[16], CUdevice device) { return cuDeviceGetUuid_v2(uuid, device); }

API cuDeviceGetAttribute(int* value, int which, CUdevice device) {
    ENTER_DEVICE(device);
    if (which <= 0) return INVALID_VALUE;
    *value = attribute(which);
    return SUCCESS;
}

API cuDeviceGetPCIBusId(char* id, int length, CUdevice device) {
    ENTER_DEVICE(device);
    snprintf(id, static_cast<size_t>(length), "0000:00:00.0");
    return SUCCESS;
}

API cuDevicePrimaryCtxRetain(void** context, CUdevice device) {
    ENTER_DEVICE(device);
    std::lock_guard<std::mutex> lock(drv::mutex);
    retained++;
    *context = &primary;
    return SUCCESS;
}

API cuDevicePrimaryCtxRelease_v2(CUdevice device) {
    ENTER_DEVICE(device);
    drain_all();
    std::lock_guard<std::mutex> lock(drv::mutex);
    if (retained == 0) return INVALID_CONTEXT;
    retained--;
    return SUCCESS;
}

API cuDevicePrimaryCtxGetState(CUdevice device, unsigned* flags, int* active) {
    ENTER_DEVICE(device);
    std::lock_guard<std::mutex> lock(drv::mutex);
    *flags = 0;
    *active = retained > 0;
    return SUCCESS;
}
API cuDevicePrimaryCtxSetFlags_v2(CUdevice device, unsigned) {
    ENTER_DEVICE(device);
    return SUCCESS;
}

API cuCtxSetCurrent(void* context) {
    ENTER_WITHOUT_CONTEXT();
    if (context && context != &primary) return INVALID_CONTEXT;
    current_context = context;
    return SUCCESS;
}

API cuCtxGetCurrent(void** context) {
    ENTER_WITHOUT_CONTEXT();
    *context = current_context;
    return SUCCESS;
}

API cuCtxGetDevice(CUdevice* device) {
    ENTER();
    *device = 0;
    return SUCCESS;
}

API cuCtxSynchronize() {
    ENTER();
    if (CUresult e = forbid_in_capture()) return e;
    drain_all();
    return SUCCESS;
}

API cuCtxGetStreamPriorityRange(int* least, int* greatest) {
    ENTER();
    if (least) *least = 0;
    if (greatest) *greatest = -5;
    return SUCCESS;
}

API cuCtxSetLimit(int, size_t) {
    ENTER();
    return SUCCESS;
}
API cuCtxGetLimit(size_t* value, int) {
    ENTER();
    *value = 0;
    return SUCCESS;
}
API cuCtxSetCacheConfig(int) {
    ENTER();
    return SUCCESS;
}
API cuCtxSetFlags(unsigned) {
    ENTER();
    return SUCCESS;
}

API cuGetProcAddress_v2(const char* name, void** function, int, uint64_t, int* status) {
    *function = dlsym(RTLD_DEFAULT, name);
    Dl_info info;
    // The library may have been opened without its names being visible to the process.
    if (!*function && dladdr(reinterpret_cast<void*>(&cuInit), &info)) {
        if (void* self = dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD)) *function = dlsym(self, name);
    }
    if (status) *status = *function ? 0 : 1;
    return *function ? SUCCESS : NOT_FOUND;
}
