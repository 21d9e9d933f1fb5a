// Device and pinned memory: host memory between guards, filled with NaN.
#include "driver.h"

#include <stdlib.h>
#include <string.h>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size) (void)0
#define ASAN_UNPOISON_MEMORY_REGION(address, size) (void)0
#endif

namespace drv {
namespace {

constexpr size_t ALIGNMENT = 256;
constexpr size_t GUARD = 256;
constexpr unsigned char POISON = 0xff;  // NaN in every format
constexpr uint16_t GUARD_WORD = 0xfffe; // also NaN, but another

struct Allocation {
    size_t bytes;
    bool device;
};

std::mutex mutex;
auto& allocations = *new std::map<char*, Allocation>;  // by first address

}  // namespace

size_t memory_limit() { return static_cast<size_t>(setting("UCAG_EMU_MEMORY", 16 << 10)) << 20; }

namespace {

size_t padded(size_t bytes) { return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT; }

uint16_t* guard_before(char* data) { return reinterpret_cast<uint16_t*>(data - GUARD); }

// The guard behind begins with the first byte that was not asked for.
size_t guard_bytes(size_t bytes) { return padded(bytes) - bytes + GUARD; }

unsigned char guard_byte(const char* at) {
    return reinterpret_cast<uintptr_t>(at) % 2 ? GUARD_WORD >> 8 : GUARD_WORD & 0xff;
}

void check_guards(char* data, size_t bytes) {
    ASAN_UNPOISON_MEMORY_REGION(data - GUARD, GUARD);
    ASAN_UNPOISON_MEMORY_REGION(data + bytes, guard_bytes(bytes));
    for (size_t i = 0; i < guard_bytes(bytes); i++) {
        if (static_cast<unsigned char>(data[bytes + i]) == guard_byte(data + bytes + i)) continue;
        complain("write %zu bytes behind the end of a device allocation of %zu bytes", i, bytes);
        abort();
    }
    for (size_t i = 0; i < GUARD / 2; i++) {
        if (guard_before(data)[i] == GUARD_WORD) continue;
        complain("write %zu bytes before a device allocation of %zu bytes", GUARD - 2 * i, bytes);
        abort();
    }
}

}  // namespace

CUresult allocate(size_t bytes, bool device, char** result) {
    if (!bytes || !result) return INVALID_VALUE;
    std::lock_guard<std::mutex> lock(mutex);
    std::lock_guard<std::mutex> count(counters_mutex);
    const size_t available = memory_limit() - counters.live_bytes;
    if (device && (bytes > available || padded(bytes) > available)) return OUT_OF_MEMORY;
    char* memory = static_cast<char*>(aligned_alloc(ALIGNMENT, GUARD + padded(bytes) + GUARD));
    if (!memory) return OUT_OF_MEMORY;
    char* data = memory + GUARD;
    memset(data, POISON, bytes);
    for (size_t i = 0; i < guard_bytes(bytes); i++) data[bytes + i] = static_cast<char>(guard_byte(data + bytes + i));
    for (size_t i = 0; i < GUARD / 2; i++) guard_before(data)[i] = GUARD_WORD;
    ASAN_POISON_MEMORY_REGION(data - GUARD, GUARD);
    ASAN_POISON_MEMORY_REGION(data + bytes, guard_bytes(bytes));
    allocations[data] = {bytes, device};
    if (device) {
        counters.live_bytes += padded(bytes);
        counters.live_allocations++;
    }
    *result = data;
    return SUCCESS;
}

CUresult release(char* data, bool device) {
    std::lock_guard<std::mutex> lock(mutex);
    auto found = allocations.find(data);
    if (found == allocations.end() || found->second.device != device) return INVALID_VALUE;
    const size_t bytes = found->second.bytes;
    check_guards(data, bytes);
    allocations.erase(found);
    memset(data, POISON, bytes);  // what still reads it reads NaN
    free(data - GUARD);
    std::lock_guard<std::mutex> count(counters_mutex);
    if (device) {
        counters.live_bytes -= padded(bytes);
        counters.live_allocations--;
    }
    return SUCCESS;
}

// The allocation that holds [at, at + bytes).
std::optional<Range> find_allocation(const void* at, size_t bytes) {
    std::lock_guard<std::mutex> lock(mutex);
    char* address = static_cast<char*>(const_cast<void*>(at));
    auto next = allocations.upper_bound(address);
    if (next == allocations.begin()) return {};
    --next;
    if (static_cast<size_t>(address - next->first) + bytes > next->second.bytes) return {};
    return Range{next->first, next->second.bytes, next->second.device};
}

static void check_all_guards() {
    std::lock_guard<std::mutex> lock(mutex);
    for (auto& [data, allocation] : allocations) {
        check_guards(data, allocation.bytes);
        ASAN_POISON_MEMORY_REGION(data - GUARD, GUARD);
        ASAN_POISON_MEMORY_REGION(data + allocation.bytes, guard_bytes(allocation.bytes));
    }
}

// What was never freed, at the end of the process (UCAG_EMU_LEAKS=1).
__attribute__((destructor)) void report_leaks() {
    check_all_guards();
    if (setting("UCAG_EMU_LEAKS", 0) && counters.live_allocations) {
        complain("%llu bytes in %llu device allocations were never freed",
                 static_cast<unsigned long long>(counters.live_bytes),
                 static_cast<unsigned long long>(counters.live_allocations));
    }
}

}  // namespace drv
