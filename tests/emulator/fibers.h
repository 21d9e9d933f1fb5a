// The fibers of one block at a time: stacks, switching between them, and the order in which they run.
#pragma once

#include "cuda_emu.h"

#include <memory>

namespace emu {

// One OS thread's place to run blocks. Stacks are kept from block to block and from launch to launch. A thread gets the
// stack that was used last when it begins: threads that never wait all share one.
class Machine {
public:
    void run(const Launch& launch, const dim3& index);

private:
    void begin(Fiber& fiber);
    void poison_shared();
    void check_shared();
    void run_ready(Warp& warp);
    void release_barrier();

    const Launch* launch_ = nullptr;
    Shared shared_{};
    Block block_{};
    unsigned threads_ = 0;
    std::vector<std::unique_ptr<Fiber>> fibers_;
    std::vector<Warp> warps_;
    std::vector<void*> stacks_;  // not in use

    friend void describe(const Machine&);
    friend void fiber_main();
};

// Threads run from the highest to the lowest (UCAG_EMU_ORDER=reverse).
bool reverse_order();

// Gives a fiber what it begins with; switches to it until it suspends itself.
void prepare(Fiber& fiber, void (*entry)());
void resume(Fiber& fiber);
void suspend();

// cuda_emu.cpp: a kernel runs on this OS thread.
bool in_kernel();

// crash.cpp
void watch_for_crashes();

// Stacks below which a page cannot be accessed.
void map_stacks(unsigned count, std::vector<void*>& stacks);

}  // namespace emu
