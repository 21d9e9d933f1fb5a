// Says which kernel it was when one touches memory that is not there or exhausts its stack.
#include "fibers.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

namespace emu {

#ifdef __SANITIZE_ADDRESS__

void watch_for_crashes() {}  // AddressSanitizer says more

#else

static struct sigaction previous[2];

static void handle(int signal, siginfo_t* info, void*) {
    // What is not ours happens again, and the owner sees it; so does a crash in here.
    sigaction(signal, &previous[signal == SIGBUS], nullptr);
    if (in_kernel()) fail("%s at address %p", signal == SIGSEGV ? "invalid access" : "bus error", info->si_addr);
}

void watch_for_crashes() {
    static const bool once = [] {
        struct sigaction action = {};
        action.sa_sigaction = handle;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
        sigaction(SIGSEGV, &action, &previous[0]);
        sigaction(SIGBUS, &action, &previous[1]);
        return true;
    }();
    (void)once;
    // The handler cannot run on a stack that is exhausted.
    stack_t stack;
    if (sigaltstack(nullptr, &stack) != 0 || !(stack.ss_flags & SS_DISABLE)) return;
    stack = {};
    stack.ss_size = 64 << 10;
    stack.ss_sp = malloc(stack.ss_size);  // as long as the thread, of which there are few
    sigaltstack(&stack, nullptr);
}

#endif

}  // namespace emu
