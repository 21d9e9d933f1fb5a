// Kernels for the emulator's own test: what must work, and mistakes that must be found. Built as kernels/*.cu are.
#include "args.h"

KERNEL(add_one, TestArgs, 256, 1) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < a.n) a.y[i] = a.x[i] + 1.0f;
}

// y[i] = sum over a block of x, through static and dynamic shared memory and shuffles.
KERNEL(block_sum, TestArgs, 256, 1) {
    __shared__ float part[8];
    extern __shared__ __align__(16) unsigned char dynamic_shared[];
    float* turned = reinterpret_cast<float*>(dynamic_shared);
    turned[blockDim.x - 1 - threadIdx.x] = a.x[blockIdx.x * blockDim.x + threadIdx.x];
    __syncthreads();
    float sum = turned[threadIdx.x];
    for (int by = 16; by > 0; by >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, by);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (unsigned i = 1; i < blockDim.x / 32; i++) sum += part[i];
        a.y[blockIdx.x] = sum;
    }
}

// Eight results a thread, which main.cpp knows.
KERNEL(warp_operations, TestArgs, 64, 1) {
    const int lane = threadIdx.x % 32;
    float* y = a.y + threadIdx.x * 8;
    y[0] = __shfl_sync(0xffffffffu, lane, 5);
    y[1] = __shfl_sync(0xffffffffu, lane, 3, 8);
    y[2] = __shfl_down_sync(0xffffffffu, lane, 4, 16);
    y[3] = __shfl_up_sync(0xffffffffu, lane, 4);
    y[4] = __popc(__ballot_sync(0xffffffffu, lane % 3 == 0));
    y[5] = __any_sync(0xffffffffu, lane == 31) + 2 * __all_sync(0xffffffffu, lane < 31);
    // Halves of a warp apart, each with its mask.
    if (lane < 16) y[6] = __shfl_xor_sync(0x0000ffffu, lane, 1);
    else y[6] = __shfl_xor_sync(0xffff0000u, lane, 2);
    __syncwarp();
    struct Operand { int in, out; } operand{lane, 0};
    emu::warp_op(&operand, [](emu::Warp* w) {
        for (unsigned i = 0; i < w->n; i++) {
            static_cast<Operand*>(w->lane[i]->arg)->out = static_cast<Operand*>(w->lane[w->n - 1 - i]->arg)->in;
        }
    });
    y[7] = operand.out;
}

// The order in which the threads of a block run, before and after a barrier and a warp operation.
KERNEL(order, TestArgs, 64, 1) {
    a.y[a.count[0]++] = threadIdx.x;
    __syncwarp();
    a.y[a.count[0]++] = threadIdx.x;
    __syncthreads();
    a.y[a.count[0]++] = threadIdx.x;
}

// Shared memory holds NaN before it is written, in every block.
KERNEL(poison, TestArgs, 32, 1) {
    __shared__ float fixed[32];
    extern __shared__ __align__(16) unsigned char dynamic_shared[];
    float* dynamic = reinterpret_cast<float*>(dynamic_shared);
    float* y = a.y + blockIdx.x * 64;
    y[threadIdx.x] = fixed[threadIdx.x];
    y[32 + threadIdx.x] = dynamic[threadIdx.x];
    fixed[threadIdx.x] = dynamic[threadIdx.x] = 1.0f;
}

// What is in shared memory before the wait of each of two groups of copies, and after it.
KERNEL(copies, TestArgs, 32, 1) {
    __shared__ float4 tile[2][32];
    const unsigned i = threadIdx.x;
    tile[0][i] = tile[1][i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    float* y = a.y + i * 6;
    emu::cp_async(&tile[0][i], a.x + 4 * i, 16, 16);
    emu::cp_commit();
    emu::cp_async(&tile[1][i], a.x + 4 * i, 16, 4);
    emu::cp_commit();
    y[0] = tile[0][i].x;
    emu::cp_wait(1);
    y[1] = tile[0][i].w;
    y[2] = tile[1][i].x;
    emu::cp_wait(0);
    y[3] = tile[1][i].x;
    y[4] = tile[1][i].y;
    y[5] = 0.0f;
}

// Mistakes.

KERNEL(part_of_a_block_at_a_barrier, TestArgs, 64, 1) {
    if (threadIdx.x < 40) __syncthreads();
}

KERNEL(different_barriers, TestArgs, 64, 1) {
    if (threadIdx.x < 32) {
        __syncthreads();
    } else {
        __syncthreads();
    }
}

KERNEL(half_a_warp_shuffles, TestArgs, 32, 1) {
    if (threadIdx.x < 16) a.y[threadIdx.x] = __shfl_xor_sync(0xffffffffu, threadIdx.x, 1);
}

KERNEL(different_shuffles, TestArgs, 32, 1) {
    if (threadIdx.x < 16) a.y[threadIdx.x] = __shfl_xor_sync(0xffffffffu, threadIdx.x, 1);
    else a.y[threadIdx.x] = __shfl_xor_sync(0xffffffffu, threadIdx.x, 1);
}

KERNEL(different_masks, TestArgs, 32, 1) {
    a.y[threadIdx.x] = __shfl_xor_sync(threadIdx.x < 16 ? 0xffffffffu : 0xffff0000u, threadIdx.x, 1);
}

KERNEL(not_in_its_own_mask, TestArgs, 32, 1) {
    a.y[threadIdx.x] = __shfl_xor_sync(0x0000ffffu, threadIdx.x, 1);
}

KERNEL(barrier_against_shuffle, TestArgs, 32, 1) {
    if (threadIdx.x < 16) a.y[threadIdx.x] = __shfl_xor_sync(0xffffffffu, threadIdx.x, 1);
    else __syncthreads();
}

KERNEL(copies_never_waited_for, TestArgs, 32, 1) {
    __shared__ float4 tile[32];
    emu::cp_async(&tile[threadIdx.x], a.x, 16, 16);
    emu::cp_commit();
}

KERNEL(copy_to_nowhere, TestArgs, 32, 1) {
    emu::cp_async(a.y, a.x, 16, 16);
}

KERNEL(too_little_shared_memory, TestArgs, 32, 1) {
    extern __shared__ __align__(16) unsigned char dynamic_shared[];
    dynamic_shared[64 + threadIdx.x] = 0;  // launched with 64 bytes
}

KERNEL(store_behind_the_end, TestArgs, 32, 1) {
    if (threadIdx.x == 0) a.y[a.n] = 1.0f;
}

KERNEL(deep_recursion, TestArgs, 32, 1) {
    struct Deep {
        static float sum(float* p, int depth) {
            volatile float frame[256];
            frame[depth % 256] = p[0];
            return depth == 0 ? frame[0] : sum(p, depth - 1) + frame[depth % 256];
        }
    };
    a.y[threadIdx.x] = Deep::sum(a.x, 100000);
}
