// Runs the threads of a block: barriers, warp operations, asynchronous copies, and the checks on all of them.
#include "fibers.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string>

namespace emu {

__thread const Block* current_block __attribute__((tls_model("initial-exec")));
static __thread const Machine* machine __attribute__((tls_model("initial-exec")));

constexpr unsigned char POISON = 0xff;  // NaN as fp16, as fp32 and as fp64
constexpr size_t GUARD = 1024;          // bytes behind dynamic shared memory that must stay poisoned

void describe(const Machine&);

bool in_kernel() { return machine != nullptr; }

void fail(const char* format, ...) {
    fputs("cuda emulator: ", stderr);
    va_list list;
    va_start(list, format);
    vfprintf(stderr, format, list);
    va_end(list);
    fputc('\n', stderr);
    if (machine) describe(*machine);
    abort();
}

bool reverse_order() {
    static const bool reverse = [] {
        const char* order = getenv("UCAG_EMU_ORDER");
        if (!order || !*order || !strcmp(order, "forward")) return false;
        if (strcmp(order, "reverse")) fail("UCAG_EMU_ORDER is forward or reverse, not '%s'", order);
        return true;
    }();
    return reverse;
}

static bool same(const Place& a, const Place& b) {
    return a.line == b.line && (a.file == b.file || !strcmp(a.file, b.file)) &&
           (a.operation == b.operation || !strcmp(a.operation, b.operation));
}

static std::string text(const Fiber& fiber) {
    if (fiber.state == State::Done) return "have returned";
    if (fiber.state == State::Ready) return "can run";
    char line[512];
    snprintf(line, sizeof line, "wait at %s (%s:%d)", fiber.place.operation, fiber.place.file, fiber.place.line);
    std::string all = line;
    if (fiber.state == State::Warp) {
        snprintf(line, sizeof line, " with mask %08x", fiber.mask);
        all += line;
    }
    return all;
}

// The kernel, the block, and what each run of threads is doing.
void describe(const Machine& m) {
    fprintf(stderr, "  kernel %s, block (%u, %u, %u) of (%u, %u, %u), %u threads\n", m.launch_->name, m.block_.index.x,
            m.block_.index.y, m.block_.index.z, m.block_.grid.x, m.block_.grid.y, m.block_.grid.z, m.threads_);
    const Fiber* now = current;
    if (now->state == State::Ready) {
        fprintf(stderr, "  running: thread (%u, %u, %u)\n", now->thread.x, now->thread.y, now->thread.z);
    }
    const auto print = [](unsigned first, unsigned last, const std::string& what) {
        if (first == last) fprintf(stderr, "  thread %u: %s\n", first, what.c_str());
        else fprintf(stderr, "  threads %u to %u: %s\n", first, last, what.c_str());
    };
    unsigned first = 0, lines = 0;
    std::string what = text(*m.fibers_[0]);
    for (unsigned i = 1; i < m.threads_; i++) {
        std::string next = text(*m.fibers_[i]);
        if (next == what) continue;
        print(first, i - 1, what);
        if (++lines == 16) return void(fputs("  ...\n", stderr));
        first = i;
        what = std::move(next);
    }
    print(first, m.threads_ - 1, what);
}

void barrier(const Place& place) {
    Fiber* me = current;
    me->place = place;
    me->state = State::Block;
    me->warp->ready &= ~(1u << me->lane);
    suspend();
}

bool arrive(void* arg, unsigned mask, const Place& place) {
    Fiber* me = current;
    Warp* w = me->warp;
    if (w->n < 32) mask &= (1u << w->n) - 1;  // lanes beyond the end of the block do not take part
    if (!(mask >> me->lane & 1)) fail("%s: lane %u is not in its own mask %08x", place.operation, me->lane, mask);
    me->arg = arg;
    me->mask = mask;
    me->place = place;
    me->state = State::Warp;
    w->ready &= ~(1u << me->lane);
    w->waiting |= 1u << me->lane;
    bool all = (w->waiting & mask) == mask;
    for (unsigned rest = mask; all && rest; rest &= rest - 1) {
        const Fiber* other = w->lane[__builtin_ctz(rest)];
        all = other->mask == mask && same(other->place, place);
    }
    if (!all) {  // lanes that wait for different things are reported when nothing can run any more
        suspend();
        return false;
    }
    w->active = mask;
    return true;
}

void finish() {
    Warp* w = current->warp;
    for (unsigned rest = w->active; rest; rest &= rest - 1) w->lane[__builtin_ctz(rest)]->state = State::Ready;
    w->ready |= w->active;
    w->waiting &= ~w->active;
    suspend();  // also the last lane, so that all go on in the order of the lanes
}

unsigned ballot(unsigned mask, bool predicate, const Place& place) {
    struct Vote {
        bool predicate;
        unsigned result;
    } vote{predicate, 0};
    warp_op(mask, &vote, [](Warp* w) {
        unsigned result = 0;
        for (unsigned rest = w->active; rest; rest &= rest - 1) {
            const int i = __builtin_ctz(rest);
            if (static_cast<Vote*>(w->lane[i]->arg)->predicate) result |= 1u << i;
        }
        for (unsigned rest = w->active; rest; rest &= rest - 1) {
            static_cast<Vote*>(w->lane[__builtin_ctz(rest)]->arg)->result = result;
        }
    }, place);
    return vote.result;
}

void synchronise(unsigned mask, const Place& place) {
    warp_op(mask, nullptr, [](Warp*) {}, place);
}

static __thread Shared shared_range __attribute__((tls_model("initial-exec")));

void cp_async(void* shared, const void* global, unsigned bytes, unsigned valid) {
    const auto* to = static_cast<unsigned char*>(shared);
    if ((bytes != 4 && bytes != 8 && bytes != 16) || valid > bytes) fail("cp.async of %u of %u bytes", valid, bytes);
    if (to < shared_range.first || to + bytes > shared_range.last) fail("cp.async to %p: not shared memory", shared);
    if (reinterpret_cast<uintptr_t>(shared) % bytes) fail("cp.async: %p is not aligned to %u", shared, bytes);
    if (reinterpret_cast<uintptr_t>(global) % bytes) fail("cp.async: %p is not aligned to %u", global, bytes);
    memset(shared, POISON, bytes);
    current->copies.push_back({shared, global, bytes, valid, current->groups});
}

void cp_commit() { current->groups++; }

void cp_wait(int pending) {
    Fiber* me = current;
    while (me->first_copy < me->copies.size()) {
        const Copy& copy = me->copies[me->first_copy];
        if (copy.group + static_cast<unsigned>(pending) >= me->groups) return;
        memcpy(copy.to, copy.from, copy.valid);
        memset(static_cast<char*>(copy.to) + copy.valid, 0, copy.bytes - copy.valid);
        me->first_copy++;
    }
    me->copies.clear();
    me->first_copy = 0;
}

// Never returns, so AddressSanitizer must not guard its frame: the next thread on this stack would run into the guards.
__attribute__((no_sanitize("address"))) void fiber_main() {
    machine->launch_->run(machine->launch_->args);
    Fiber* me = current;
    if (!me->copies.empty()) {
        fail("thread (%u, %u, %u) returns with cp.async copies pending", me->thread.x, me->thread.y, me->thread.z);
    }
    me->state = State::Done;
    me->warp->ready &= ~(1u << me->lane);
    suspend();
    __builtin_unreachable();
}

void Machine::begin(Fiber& fiber) {
    if (stacks_.empty()) map_stacks(32, stacks_);
    fiber.stack = stacks_.back();
    stacks_.pop_back();
    prepare(fiber, fiber_main);
}

void Machine::poison_shared() {
    static __thread Shared (*owner)() __attribute__((tls_model("initial-exec")));
    if (owner != launch_->shared) {
        owner = launch_->shared;
        shared_range = owner();
    }
    shared_ = shared_range;
    const size_t capacity = static_cast<size_t>(shared_.dynamic_end - shared_.dynamic);
    if (launch_->shared_bytes + GUARD > capacity) fail("%u bytes of shared memory", launch_->shared_bytes);
    memset(shared_.first, POISON, static_cast<size_t>(shared_.dynamic - shared_.first));
    memset(shared_.dynamic, POISON, launch_->shared_bytes + GUARD);
    memset(shared_.dynamic_end, POISON, static_cast<size_t>(shared_.last - shared_.dynamic_end));
}

void Machine::check_shared() {
    const unsigned char* end = shared_.dynamic + launch_->shared_bytes;
    for (size_t i = 0; i < GUARD; i++) {
        if (end[i] != POISON) fail("write %zu bytes beyond the end of dynamic shared memory", i);
    }
}

void Machine::run_ready(Warp& warp) {
    const bool reverse = reverse_order();
    while (warp.ready) {
        Fiber& fiber = *warp.lane[reverse ? 31 - __builtin_clz(warp.ready) : __builtin_ctz(warp.ready)];
        if (!fiber.stack) begin(fiber);
        resume(fiber);
        if (fiber.state != State::Done) continue;
        stacks_.push_back(fiber.stack);
        fiber.stack = nullptr;
    }
}

void Machine::release_barrier() {
    for (unsigned i = 0; i < threads_; i++) {
        const Fiber& fiber = *fibers_[i];
        if (fiber.state != State::Block) fail("part of the threads cannot go on");
        if (!same(fiber.place, fibers_[0]->place)) fail("threads of a block wait at different barriers");
    }
    for (unsigned i = 0; i < threads_; i++) {
        fibers_[i]->state = State::Ready;
        fibers_[i]->warp->ready |= 1u << fibers_[i]->lane;
    }
}

void Machine::run(const Launch& launch, const dim3& index) {
    const dim3 shape = launch.block;
    launch_ = &launch;
    block_ = {launch.grid, shape, index};
    threads_ = shape.x * shape.y * shape.z;
    while (fibers_.size() < threads_) fibers_.push_back(std::make_unique<Fiber>());
    watch_for_crashes();
    warps_.assign((threads_ + 31) / 32, Warp{});
    for (unsigned i = 0; i < threads_; i++) {
        Fiber& fiber = *fibers_[i];
        fiber.thread = dim3(i % shape.x, i / shape.x % shape.y, i / shape.x / shape.y);
        fiber.warp = &warps_[i / 32];
        fiber.lane = i % 32;
        fiber.state = State::Ready;
        fiber.groups = 0;
        fiber.warp->lane[fiber.warp->n++] = &fiber;
        fiber.warp->ready |= 1u << fiber.lane;
    }
    machine = this;
    current_block = &block_;
    poison_shared();
    for (;;) {
        unsigned done = 0;
        for (size_t i = 0; i < warps_.size(); i++) run_ready(warps_[reverse_order() ? warps_.size() - 1 - i : i]);
        for (unsigned i = 0; i < threads_; i++) done += fibers_[i]->state == State::Done;
        if (done == threads_) break;
        release_barrier();
    }
    check_shared();
    machine = nullptr;
}

}  // namespace emu
