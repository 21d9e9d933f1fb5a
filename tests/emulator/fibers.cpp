// Stacks and the switch between fibers: nine instructions on x86-64, ucontext (a system call a switch) elsewhere.
#include "fibers.h"

#include <sys/mman.h>
#include <unistd.h>
#if !defined(__x86_64__) || defined(EMU_UCONTEXT)
#include <ucontext.h>
#define EMU_USE_UCONTEXT 1
#endif

namespace emu {

// The thread that runs, and the one that scheduled it.
__thread Fiber* current __attribute__((tls_model("initial-exec")));
static __thread void* scheduler __attribute__((tls_model("initial-exec")));

#ifdef __SANITIZE_ADDRESS__
constexpr size_t STACK = 512 << 10;  // frames are several times larger
#else
constexpr size_t STACK = 64 << 10;
#endif

void map_stacks(unsigned count, std::vector<void*>& stacks) {
    const size_t guard = static_cast<size_t>(sysconf(_SC_PAGESIZE)), each = guard + STACK;
    void* memory = mmap(nullptr, each * count, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    if (memory == MAP_FAILED) fail("no memory for %u stacks", count);
    for (unsigned i = 0; i < count; i++) {
        char* low = static_cast<char*>(memory) + i * each;
        if (mprotect(low, guard, PROT_NONE) != 0) fail("cannot protect the end of a stack");
        stacks.push_back(low + guard);
    }
}

#ifdef EMU_USE_UCONTEXT

void prepare(Fiber& fiber, void (*entry)()) {
    if (!fiber.context) fiber.context = new ucontext_t;
    auto* context = static_cast<ucontext_t*>(fiber.context);
    getcontext(context);
    context->uc_stack.ss_sp = fiber.stack;
    context->uc_stack.ss_size = STACK;
    context->uc_link = nullptr;
    makecontext(context, entry, 0);
}

void resume(Fiber& fiber) {
    ucontext_t here;
    scheduler = &here;
    current = &fiber;
    swapcontext(&here, static_cast<ucontext_t*>(fiber.context));
}

void suspend() {
    swapcontext(static_cast<ucontext_t*>(current->context), static_cast<ucontext_t*>(scheduler));
}

#else

extern "C" void emu_switch(void** save, void* to);
asm(R"(.text
.globl emu_switch
.hidden emu_switch
.type emu_switch,@function
emu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emu_switch, .-emu_switch
)");

void prepare(Fiber& fiber, void (*entry)()) {
    // Tops of stacks are a multiple of the page size apart: without this shift all of them share a few cache sets.
    char* top = static_cast<char*>(fiber.stack) + STACK - fiber.lane % 16 * 256;
    void** slot = reinterpret_cast<void**>(top);
    *--slot = nullptr;  // where a caller's return address would be: keeps the stack aligned, ends back traces
    *--slot = reinterpret_cast<void*>(entry);
    for (int saved = 0; saved < 6; saved++) *--slot = nullptr;
    fiber.context = slot;
}

void resume(Fiber& fiber) {
    current = &fiber;
    emu_switch(&scheduler, fiber.context);
}

void suspend() { emu_switch(&current->context, scheduler); }

#endif

}  // namespace emu
