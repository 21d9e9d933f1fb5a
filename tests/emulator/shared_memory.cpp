// Linked into every library of kernels: its dynamic shared memory, and where all of its shared memory lies.
//
// `__shared__` is thread_local, and nothing else in such a library may be: its thread-local segment then is the shared
// memory of the block that the calling OS thread runs.
#include "cuda_emu.h"

#include <link.h>

extern "C" {
__attribute__((visibility("hidden"))) alignas(1024) thread_local unsigned char dynamic_shared[(228 << 10) + 1024];
}

namespace emu {

static int find_segment(dl_phdr_info* info, size_t, void* result) {
    auto* shared = static_cast<Shared*>(result);
    auto* data = static_cast<unsigned char*>(info->dlpi_tls_data);
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const auto& header = info->dlpi_phdr[i];
        if (header.p_type != PT_TLS || !data) continue;
        if (shared->dynamic < data || shared->dynamic >= data + header.p_memsz) continue;
        shared->first = data;
        shared->last = data + header.p_memsz;
        return 1;
    }
    return 0;
}

Shared shared_memory() {
    // Taking the address makes the C library allocate the segment of this OS thread.
    Shared shared{nullptr, nullptr, dynamic_shared, dynamic_shared + sizeof dynamic_shared};
    if (!dl_iterate_phdr(find_segment, &shared)) fail("shared memory not found");
    return shared;
}

}  // namespace emu
