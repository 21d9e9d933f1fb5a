// Matrix products of a warpgroup, which Hopper's tensor cores (sm_90a) read from shared memory by themselves, in the
// background; each also in plain C++ for the emulator, at once.
//
// Operands lie in rows of 128 bytes, eight chunks of 16; chunk c of row r is at place c XOR r mod 8, and whole rows
// begin at multiples of 1024 bytes: what the PTX manual calls a 128-byte swizzle, and what ldmatrix likes as well.
#pragma once

#include "ptx.cuh"

#ifndef EMU_HOST

// Makes what this thread has stored to shared memory visible to the tensor cores; a barrier must follow.
DEVICE void wgmma_publish() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Before the first product, and after sums were touched.
DEVICE void wgmma_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// Closes a group of products.
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most PENDING of the latest groups are under way.
template <int PENDING> DEVICE void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// Where an operand begins; eight rows are 1024 bytes. `blocks`: bytes between blocks of 64 columns.
DEVICE unsigned long long wgmma_operand(const void* p, int blocks) {
    constexpr unsigned long long SWIZZLE = 1ull << 62, EIGHT_ROWS = 1024ull >> 4 << 32;
    return SWIZZLE | EIGHT_ROWS | static_cast<unsigned long long>(blocks >> 4) << 16 | (shared_address(p) >> 4 & 0x3fff);
}

#define SUMS_0 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
#define SUMS_1 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define SUMS_2 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
#define SUMS_3 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define SUMS_4 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
#define SUMS_5 "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
#define SUMS_6 "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
#define SUMS_7 "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define TILE(j) "+f"(c[j][0]), "+f"(c[j][1]), "+f"(c[j][2]), "+f"(c[j][3])
#define TILES(j) TILE(j), TILE(j + 1), TILE(j + 2), TILE(j + 3), TILE(j + 4), TILE(j + 5), TILE(j + 6), TILE(j + 7)

// c[64×N] += a[64×16] · b[16×N] in halves with fp32 sums; N = 8 · TILES_N. Each warp holds 16 rows, as of mma m16n8k16.
// a: rows of 64 values of K, the product's 16 from its address on. b: 16 rows of 64 columns, the next 64 columns
// `blocks` bytes on.
template <int TILES_N> DEVICE void wgmma_f16(float (&c)[TILES_N][4], const void* a, const void* b, int blocks) {
    static_assert(TILES_N == 8 || TILES_N == 16 || TILES_N == 32, "one of the instructions below");
    const unsigned long long left = wgmma_operand(a, 16), right = wgmma_operand(b, blocks);
    // The operands after the sums: both matrices, add to the sums, signs, and that K is the slower axis of b.
    if constexpr (TILES_N == 8) {
        asm volatile("{.reg .pred add; setp.eq.u32 add, 0, 0; wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 "
                     "{" SUMS_0 SUMS_1 "}, %32, %33, add, 1, 1, 0, 1;}" : TILES(0) : "l"(left), "l"(right));
    } else if constexpr (TILES_N == 16) {
        asm volatile("{.reg .pred add; setp.eq.u32 add, 0, 0; wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 "
                     "{" SUMS_0 SUMS_1 SUMS_2 SUMS_3 "}, %64, %65, add, 1, 1, 0, 1;}"
                     : TILES(0), TILES(8) : "l"(left), "l"(right));
    } else {
        asm volatile("{.reg .pred add; setp.eq.u32 add, 0, 0; wgmma.mma_async.sync.aligned.m64n256k16.f32.f16.f16 "
                     "{" SUMS_0 SUMS_1 SUMS_2 SUMS_3 SUMS_4 SUMS_5 SUMS_6 SUMS_7 "}, %128, %129, add, 1, 1, 0, 1;}"
                     : TILES(0), TILES(8), TILES(16), TILES(24) : "l"(left), "l"(right));
    }
}

// c[64×N] += a[64×8] · b[8×N] in tf32, that is in floats whose last 13 bits are zero, with fp32 sums. a: the fragments of
// mma m16n8k8, in registers that must stay until the product is waited for. b: rows of 32 values of K, one a column, the
// product's 8 from its address on.
template <int TILES_N> DEVICE void wgmma_tf32(float (&c)[TILES_N][4], const unsigned (&a)[4], const void* b) {
    static_assert(TILES_N == 8 || TILES_N == 16, "one of the instructions below");
    const unsigned long long right = wgmma_operand(b, 16);
    if constexpr (TILES_N == 8) {
        asm volatile("{.reg .pred add; setp.eq.u32 add, 0, 0; wgmma.mma_async.sync.aligned.m64n64k8.f32.tf32.tf32 "
                     "{" SUMS_0 SUMS_1 "}, {%32, %33, %34, %35}, %36, add, 1, 1;}"
                     : TILES(0) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(right));
    } else {
        asm volatile("{.reg .pred add; setp.eq.u32 add, 0, 0; wgmma.mma_async.sync.aligned.m64n128k8.f32.tf32.tf32 "
                     "{" SUMS_0 SUMS_1 SUMS_2 SUMS_3 "}, {%64, %65, %66, %67}, %68, add, 1, 1;}"
                     : TILES(0), TILES(8) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(right));
    }
}

#undef SUMS_0
#undef SUMS_1
#undef SUMS_2
#undef SUMS_3
#undef SUMS_4
#undef SUMS_5
#undef SUMS_6
#undef SUMS_7
#undef TILE
#undef TILES

#else

DEVICE void wgmma_publish() {}
DEVICE void wgmma_begin() {}
DEVICE void wgmma_commit() {}
template <int PENDING> DEVICE void wgmma_wait() {}

template <int TILES_N> DEVICE void wgmma_f16(float (&c)[TILES_N][4], const void* a, const void* b, int blocks) {
    const auto *left = static_cast<const unsigned char*>(a), *right = static_cast<const unsigned char*>(b);
    const int first = static_cast<int>(reinterpret_cast<uintptr_t>(left) % 128 / 16);  // chunk of K
    left -= first * 16;
    const auto value = [](const unsigned char* at) {
        __half v;
        memcpy(&v, at, sizeof v);
        return __half2float(v);
    };
    const int lane = threadIdx.x % 32, top = threadIdx.x / 32 % 4 * 16 + lane / 4;
    for (int j = 0; j < TILES_N; j++) {
        for (int i = 0; i < 4; i++) {
            const int row = top + i / 2 * 8, col = 8 * j + lane % 4 * 2 + i % 2;
            for (int k = 0; k < 16; k++) {
                const int x_chunk = (first + k / 8) ^ row % 8, w_chunk = col % 64 / 8 ^ k % 8;
                const float x = value(left + row * 128 + x_chunk * 16 + k % 8 * 2);
                c[j][i] += x * value(right + col / 64 * blocks + k * 128 + w_chunk * 16 + col % 8 * 2);
            }
        }
    }
}

template <int TILES_N> DEVICE void wgmma_tf32(float (&c)[TILES_N][4], const unsigned (&a)[4], const void* b) {
    const auto* right = static_cast<const unsigned char*>(b);
    const int first = static_cast<int>(reinterpret_cast<uintptr_t>(right) % 128 / 16);  // chunk of K
    right -= first * 16;
    const int lane = threadIdx.x % 32, row = lane / 4;
    for (int j = 0; j < TILES_N; j++) {
        unsigned w[2];
        for (int i = 0; i < 2; i++) {
            memcpy(&w[i], right + (8 * j + row) * 128 + ((first + i) ^ row) * 16 + lane % 4 * 4, sizeof w[i]);
        }
        mma_tf32(c[j], a, w[0], w[1]);
    }
}

#endif
