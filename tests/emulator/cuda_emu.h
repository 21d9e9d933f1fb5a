// Lets a host C++ compiler build CUDA kernels and run them: force-included (-include cuda_emu.h) into every .cu file.
//
// A CUDA thread is a fiber, a block runs on one OS thread, and the fibers of a block run one after the other between
// synchronisation points, in ascending or descending order (UCAG_EMU_ORDER). Shared memory is thread-local to the OS
// thread and is filled with NaN before each block.
#pragma once

#ifndef EMU_HOST
#define EMU_HOST 1
#endif

#include "cuda_types.h"

#include <vector>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __shared__ thread_local

namespace emu __attribute__((visibility("default"))) {

struct Warp;

// Where a thread waits, for the check that all threads of an operation wait at the same one, and for messages.
struct Place {
    const char* operation;
    const char* file;
    int line;
};

struct Copy {
    void* to;
    const void* from;
    unsigned bytes, valid, group;
};

enum class State : uint8_t { Ready, Warp, Block, Done };

struct Fiber {
    dim3 thread;
    Warp* warp;
    unsigned lane;
    State state;
    unsigned mask;  // of the warp operation waited for
    void* arg;      // operand of that operation
    Place place;
    std::vector<Copy> copies;  // cp.async, oldest first; not yet done from `first_copy` on
    size_t first_copy;
    unsigned groups;  // committed so far
    void* stack;      // lowest usable address; null before the thread begins and after it ends
    void* context;    // saved stack pointer, or a ucontext_t
};

struct Warp {
    Fiber* lane[32];  // null beyond n
    unsigned n;
    unsigned ready, waiting;  // sets of lanes
    unsigned active;          // lanes of the operation under way
};

struct Block {
    dim3 grid, block, index;
};

// In the initial-exec model a thread index is two loads, not a call. (Shared memory, which is large, cannot use it.)
extern __thread Fiber* current __attribute__((tls_model("initial-exec")));
extern __thread const Block* current_block __attribute__((tls_model("initial-exec")));

[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Waits until every thread of the block is here.
void barrier(const Place& place);

// A lane arrives at a warp operation; true for the last of `mask`, which then runs the operation for all and calls
// finish(). All others return false when the operation is done.
bool arrive(void* arg, unsigned mask, const Place& place);
void finish();

// An operation of the lanes in `mask`: lane i's operand is w->lane[i]->arg for each i in w->active.
template <class F> inline void warp_op(unsigned mask, void* arg, F operation, const Place& place) {
    if (arrive(arg, mask, place)) {
        operation(current->warp);
        finish();
    }
}

// An operation of all lanes of the warp, of which there are w->n.
template <class F>
inline void warp_op(void* arg, F operation, const char* name = __builtin_FUNCTION(),
                    const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    warp_op(0xffffffffu, arg, operation, Place{name, file, line});
}

// cp.async: the destination holds NaN until the wait that covers the copy's group; bytes beyond `valid` become 0.
void cp_async(void* shared, const void* global, unsigned bytes, unsigned valid);
void cp_commit();
void cp_wait(int pending);

// Shared memory of the calling OS thread in the library of kernels that defines it (shared_memory.cpp).
struct Shared {
    unsigned char *first, *last;  // all of it
    unsigned char *dynamic, *dynamic_end;
};
__attribute__((visibility("hidden"))) Shared shared_memory();

struct Launch {
    const char* name;
    void (*run)(const void* args);
    const void* args;
    Shared (*shared)();
    dim3 grid, block;
    unsigned shared_bytes;
};
void launch(const Launch&);

template <class T> struct Shuffle {
    T in, out;
    int source;
};

template <class T> inline T shuffle(unsigned mask, T value, int source, const Place& place) {
    Shuffle<T> operand{value, value, source};
    warp_op(mask, &operand, [](Warp* w) {
        for (unsigned i = 0; i < w->n; i++) {
            if (!(w->active >> i & 1)) continue;
            auto* to = static_cast<Shuffle<T>*>(w->lane[i]->arg);
            const bool there = to->source < static_cast<int>(w->n) && (w->active >> to->source & 1);
            if (there) to->out = static_cast<Shuffle<T>*>(w->lane[to->source]->arg)->in;
            else memset(static_cast<void*>(&to->out), 0xff, sizeof to->out);  // undefined on the device
        }
    }, place);
    return operand.out;
}

// Lanes of `mask` for which the predicate holds.
unsigned ballot(unsigned mask, bool predicate, const Place& place);
void synchronise(unsigned mask, const Place& place);

inline int lane() { return static_cast<int>(current->lane); }

}  // namespace emu

#define threadIdx (emu::current->thread)
#define blockIdx (emu::current_block->index)
#define blockDim (emu::current_block->block)
#define gridDim (emu::current_block->grid)
static constexpr int warpSize = 32;

// Macros, so that the place is the caller's line.
#define EMU_PLACE(name) emu::Place{name, __FILE__, __LINE__}
#define __syncthreads() emu::barrier(EMU_PLACE("__syncthreads"))
#define __syncwarp(...) emu::synchronise(emu::mask_or_all(__VA_ARGS__), EMU_PLACE("__syncwarp"))
#define __ballot_sync(mask, p) emu::ballot(mask, p, EMU_PLACE("__ballot_sync"))
#define __any_sync(mask, p) (emu::ballot(mask, p, EMU_PLACE("__any_sync")) != 0)
#define __all_sync(mask, p) (emu::ballot(mask, !(p), EMU_PLACE("__all_sync")) == 0)
#define __shfl_sync(mask, ...) emu::shuffle_index(mask, EMU_PLACE("__shfl_sync"), __VA_ARGS__)
#define __shfl_xor_sync(mask, ...) emu::shuffle_xor(mask, EMU_PLACE("__shfl_xor_sync"), __VA_ARGS__)
#define __shfl_down_sync(mask, ...) emu::shuffle_down(mask, EMU_PLACE("__shfl_down_sync"), __VA_ARGS__)
#define __shfl_up_sync(mask, ...) emu::shuffle_up(mask, EMU_PLACE("__shfl_up_sync"), __VA_ARGS__)
#define __activemask() static_assert(false, "what is active is not defined; name the lanes")

namespace emu {
inline unsigned mask_or_all(unsigned mask = 0xffffffffu) { return mask; }

// The source lane stays within the segment of `width` lanes; a lane whose source is outside keeps its own value.
template <class T> inline T shuffle_index(unsigned mask, const Place& place, T value, int source, int width = 32) {
    return shuffle(mask, value, lane() / width * width + (source & (width - 1)), place);
}
template <class T> inline T shuffle_xor(unsigned mask, const Place& place, T value, int bits, int width = 32) {
    const int source = lane() ^ bits;
    return shuffle(mask, value, source / width > lane() / width ? lane() : source, place);
}
template <class T> inline T shuffle_down(unsigned mask, const Place& place, T value, unsigned by, int width = 32) {
    const int source = lane() + static_cast<int>(by);
    return shuffle(mask, value, source / width == lane() / width ? source : lane(), place);
}
template <class T> inline T shuffle_up(unsigned mask, const Place& place, T value, unsigned by, int width = 32) {
    const int source = lane() - static_cast<int>(by);
    return shuffle(mask, value, source < lane() / width * width ? lane() : source, place);
}
}  // namespace emu

// Defines a kernel with its entry emu_<name>, laid out as the driver's launch, and what the driver checks of it.
#define EMU_EXPORT extern "C" __attribute__((visibility("default")))
#define KERNEL(name, Args, threads, blocks)                                                                       \
    static void name(const Args a);                                                                               \
    EMU_EXPORT const unsigned long emu_sizeof_##name;                                                             \
    EMU_EXPORT const unsigned long emu_threads_##name;                                                            \
    const unsigned long emu_sizeof_##name = sizeof(Args);                                                         \
    const unsigned long emu_threads_##name = (threads);                                                           \
    EMU_EXPORT void emu_##name(const unsigned* grid, const unsigned* block, unsigned shared_bytes, void** params) { \
        emu::launch({#name, [](const void* args) { name(*static_cast<const Args*>(args)); }, params[0],            \
                     emu::shared_memory, dim3(grid[0], grid[1], grid[2]), dim3(block[0], block[1], block[2]),      \
                     shared_bytes});                                                                              \
    }                                                                                                             \
    static void name([[maybe_unused]] const Args a)
