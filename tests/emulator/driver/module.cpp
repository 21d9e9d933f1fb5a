// Modules, functions and launches. Whatever image is loaded, its functions are those of the library of emulated kernels
// that lies beside this one.
#include "driver.h"

#include <algorithm>
#include <ctype.h>
#include <dlfcn.h>
#include <string.h>
#include <unordered_map>

namespace drv {
namespace {

typedef void Entry(const unsigned* grid, const unsigned* block, unsigned shared_bytes, void** params);

struct Function {
    std::string name;
    Entry* entry;
    size_t args;      // bytes of the one argument
    unsigned threads;  // bound of the launch
    size_t shared = 48 << 10;  // largest dynamic shared memory
};

struct Module {
    std::vector<std::unique_ptr<Function>> functions;
};

std::mutex mutex;
auto& modules = *new std::unordered_map<void*, std::unique_ptr<Module>>;
auto& functions = *new std::unordered_map<void*, Function*>;

void* kernels() {
    static void* library = [] {
        std::string path;
        Dl_info info;
        if (const char* given = getenv("UCAG_EMU_KERNELS")) {
            path = given;
        } else if (dladdr(reinterpret_cast<void*>(&kernels), &info)) {
            path = info.dli_fname;
            path.erase(path.find_last_of('/') + 1);
            path += "libucag_emulated_kernels.so";
        }
        void* opened = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
        if (!opened) complain("%s", dlerror());
        return opened;
    }();
    return library;
}

bool is_image(const void* image) {
    uint32_t magic;
    memcpy(&magic, image, sizeof magic);
    const bool fatbin = magic == 0xba55ed50 || magic == 0x466243b1, elf = magic == 0x464c457f;
    if (fatbin || elf) return true;
    // PTX: comments, then its version. It ends with a 0, which other bytes need not.
    std::string text;
    for (const char* c = static_cast<const char*>(image); isprint(*c) || isspace(*c); c++) {
        text += *c;
        if (text.size() >= 8 && text.compare(text.size() - 8, 8, ".version") == 0) return true;
    }
    return false;
}

Function* find_function(void* handle) {
    std::lock_guard<std::mutex> lock(mutex);
    auto found = functions.find(handle);
    return found == functions.end() ? nullptr : found->second;
}

struct Geometry {
    unsigned grid[3], block[3], shared;
};

CUresult launch(void* handle, const Geometry& g, void* stream, void** params, void** extra) {
    Function* function = find_function(handle);
    if (!function) return INVALID_HANDLE;
    if (!params || extra) return extra ? NOT_SUPPORTED : INVALID_VALUE;
    const uint64_t threads = uint64_t(g.block[0]) * g.block[1] * g.block[2];
    const auto within = [](const unsigned (&size)[3], unsigned x, unsigned y, unsigned z) {
        return size[0] && size[1] && size[2] && size[0] <= x && size[1] <= y && size[2] <= z;
    };
    const bool grid = within(g.grid, 0x7fffffff, 65535, 65535), block = within(g.block, 1024, 1024, 64);
    if (!grid || !block || threads > function->threads || g.shared > function->shared) {
        complain("%s: grid (%u, %u, %u), block (%u, %u, %u), at most %u threads, %u of %zu bytes of shared memory",
                 function->name.c_str(), g.grid[0], g.grid[1], g.grid[2], g.block[0], g.block[1], g.block[2],
                 function->threads, g.shared, function->shared);
        return INVALID_VALUE;
    }
    std::vector<max_align_t> args(function->args / sizeof(max_align_t) + 1);
    memcpy(args.data(), params[0], function->args);
    return submit(stream, [entry = function->entry, g, args]() mutable {
        void* param = args.data();
        entry(g.grid, g.block, g.shared, &param);
        std::lock_guard<std::mutex> lock(counters_mutex);
        counters.launches++;
    });
}

int blocks_on_multiprocessor(const Function& function, int threads, size_t dynamic) {
    if (threads <= 0 || static_cast<unsigned>(threads) > function.threads || dynamic > function.shared) return 0;
    const size_t by_memory = (shared_memory_limit() + 1024) / (dynamic + 1024);
    return static_cast<int>(std::min<size_t>({static_cast<size_t>(2048 / threads), by_memory, 32}));
}

}  // namespace
}  // namespace drv

using namespace drv;

API cuModuleLoadData(void** module, const void* image) {
    ENTER();
    if (CUresult e = forbid_in_capture()) return e;
    if (!image) return INVALID_VALUE;
    if (!is_image(image)) return INVALID_IMAGE;
    if (driver_version() < 13000) return UNSUPPORTED_PTX_VERSION;  // the images are those of CUDA 13.0
    if (compute_capability() < 80) return NO_BINARY_FOR_GPU;       // ... for 8.0 and later
    if (!kernels()) return SHARED_OBJECT_INIT_FAILED;
    auto loaded = std::make_unique<Module>();
    *module = loaded.get();
    std::lock_guard<std::mutex> lock(drv::mutex);
    modules[*module] = std::move(loaded);
    return SUCCESS;
}
API cuModuleLoadDataEx(void** module, const void* image, unsigned, int*, void**) {
    return cuModuleLoadData(module, image);
}
API cuModuleLoadFatBinary(void** module, const void* image) { return cuModuleLoadData(module, image); }

API cuModuleUnload(void* handle) {
    ENTER();
    if (CUresult e = forbid_in_capture()) return e;
    std::lock_guard<std::mutex> lock(drv::mutex);
    auto found = modules.find(handle);
    if (found == modules.end()) return INVALID_HANDLE;
    for (auto& function : found->second->functions) functions.erase(function.get());
    modules.erase(found);
    return SUCCESS;
}

API cuModuleGetFunction(void** handle, void* module, const char* name) {
    ENTER();
    std::lock_guard<std::mutex> lock(drv::mutex);
    auto found = modules.find(module);
    if (found == modules.end()) return INVALID_HANDLE;
    const std::string text = name;
    auto* entry = reinterpret_cast<Entry*>(dlsym(kernels(), ("emu_" + text).c_str()));
    auto* args = static_cast<const unsigned long*>(dlsym(kernels(), ("emu_sizeof_" + text).c_str()));
    auto* threads = static_cast<const unsigned long*>(dlsym(kernels(), ("emu_threads_" + text).c_str()));
    if (!entry || !args || !threads) return NOT_FOUND;
    found->second->functions.push_back(std::unique_ptr<Function>(
        new Function{text, entry, *args, static_cast<unsigned>(*threads)}));
    Function* function = found->second->functions.back().get();
    functions[function] = function;
    *handle = function;
    return SUCCESS;
}

API cuModuleGetGlobal_v2(CUdeviceptr*, size_t*, void*, const char*) {
    ENTER();
    return NOT_FOUND;
}

API cuFuncGetAttribute(int* value, int which, void* handle) {
    ENTER();
    Function* function = find_function(handle);
    if (!function) return INVALID_HANDLE;
    switch (which) {
        case 0: *value = static_cast<int>(function->threads); break;
        case 4: *value = 32; break;                                 // registers: not known here
        case 5: case 6: *value = compute_capability(); break;       // PTX and machine code
        case 8: *value = static_cast<int>(function->shared); break;
        default: *value = 0;                                        // static shared, constant, local memory: not known
    }
    return SUCCESS;
}

API cuFuncSetAttribute(void* handle, int which, int value) {
    ENTER();
    Function* function = find_function(handle);
    if (!function) return INVALID_HANDLE;
    if (which == 8) {
        if (value < 0 || static_cast<size_t>(value) > shared_memory_limit()) return INVALID_VALUE;
        function->shared = static_cast<size_t>(value);
    }
    return which == 8 || which == 9 ? SUCCESS : INVALID_VALUE;
}

API cuFuncSetCacheConfig(void* handle, int) {
    ENTER();
    return find_function(handle) ? SUCCESS : INVALID_HANDLE;
}

API cuFuncGetName(const char** name, void* handle) {
    ENTER();
    Function* function = find_function(handle);
    if (!function) return INVALID_HANDLE;
    *name = function->name.c_str();
    return SUCCESS;
}

API cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void* stream, void** params, void** extra) {
    ENTER();
    return launch(function, {{gx, gy, gz}, {bx, by, bz}, shared}, stream, params, extra);
}

struct LaunchConfig {
    Geometry geometry;
    void* stream;
    void* attributes;
    unsigned attribute_count;
};

// Attributes (clusters, programmatic launch, priorities) would not be honoured.
API cuLaunchKernelEx(const LaunchConfig* config, void* function, void** params, void** extra) {
    ENTER();
    if (config->attribute_count) return NOT_SUPPORTED;
    return launch(function, config->geometry, config->stream, params, extra);
}

API cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, void* handle, int threads, size_t dynamic,
                                                         unsigned) {
    ENTER();
    Function* function = find_function(handle);
    if (!function) return INVALID_HANDLE;
    *blocks = blocks_on_multiprocessor(*function, threads, dynamic);
    return SUCCESS;
}
API cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void* function, int threads, size_t dynamic) {
    return cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, function, threads, dynamic, 0);
}
