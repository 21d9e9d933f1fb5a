// Instructions that C++ has no words for, each once as inline PTX and once as its meaning on the host, where the
// emulator of tests/emulator runs the same kernels.
//
// Fragments are named as in the PTX manual: lane l of a warp holds row g = l / 4 and columns around t = l % 4.
#pragma once

#ifndef EMU_HOST
#include <cuda_fp16.h>
#endif

#define DEVICE static __device__ __forceinline__

#ifndef EMU_HOST

DEVICE unsigned shared_address(const void* p) { return static_cast<unsigned>(__cvta_generic_to_shared(p)); }

// Copies BYTES (4, 8 or 16) from global to shared memory in the background; zeros when not `valid`, and
// nothing is read. 16 bytes bypass the first-level cache, which only they can.
template <int BYTES> DEVICE void cp_async(void* shared, const void* global, bool valid) {
    const unsigned to = shared_address(shared), read = valid ? BYTES : 0;
    if constexpr (BYTES == 16) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(read) : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(global), "n"(BYTES), "r"(read)
                     : "memory");
    }
}

// Closes a group of copies.
DEVICE void cp_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most PENDING of the latest groups are under way.
template <int PENDING> DEVICE void cp_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory"); }

// Loads 8×8 matrices of 16-bit elements: lanes 8i..8i + 7 point to the rows of matrix i (16 bytes each), and r[i] gets
// elements (g, 2t) and (g, 2t + 1) of it, or with _trans (2t, g) and (2t + 1, g).
DEVICE void ldmatrix_x4(unsigned (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
}

DEVICE void ldmatrix_x2(unsigned (&r)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1]) : "r"(shared_address(row)) : "memory");
}

DEVICE void ldmatrix_x4_trans(unsigned (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
}

DEVICE void ldmatrix_x2_trans(unsigned (&r)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1]) : "r"(shared_address(row)) : "memory");
}

// c[16×8] += a[16×16] · b[16×8] in halves with fp32 sums.
DEVICE void mma_f16(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// c[16×8] += a[16×8] · b[8×8] in tf32, that is in floats whose last 13 bits are zero, with fp32 sums.
DEVICE void mma_tf32(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Rounds the bits of a float to tf32, to nearest, ties away from zero.
DEVICE unsigned round_tf32(unsigned bits) {
    unsigned rounded;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(__uint_as_float(bits)));
    return rounded;
}

#else

template <int BYTES> DEVICE void cp_async(void* shared, const void* global, bool valid) {
    emu::cp_async(shared, global, BYTES, valid ? BYTES : 0);
}

DEVICE void cp_commit() { emu::cp_commit(); }

template <int PENDING> DEVICE void cp_wait() { emu::cp_wait(PENDING); }

template <int COUNT, bool TRANS> DEVICE void ldmatrix(unsigned (&r)[COUNT], const void* row) {
    struct Lane { const void* row; unsigned* r; } me{row, r};
    emu::warp_op(&me, [](emu::Warp* w) {
        const auto lane = [w](int l) { return static_cast<const Lane*>(w->lane[l]->arg); };
        for (int l = 0; l < 32; l++) {
            for (int i = 0; i < COUNT; i++) {
                unsigned short pair[2];
                for (int e = 0; e < 2; e++) {
                    const int from = TRANS ? l % 4 * 2 + e : l / 4, at = TRANS ? l / 4 : l % 4 * 2 + e;
                    memcpy(&pair[e], static_cast<const char*>(lane(i * 8 + from)->row) + 2 * at, 2);
                }
                memcpy(&lane(l)->r[i], pair, 4);
            }
        }
    });
}

DEVICE void ldmatrix_x4(unsigned (&r)[4], const void* row) { ldmatrix<4, false>(r, row); }
DEVICE void ldmatrix_x2(unsigned (&r)[2], const void* row) { ldmatrix<2, false>(r, row); }
DEVICE void ldmatrix_x4_trans(unsigned (&r)[4], const void* row) { ldmatrix<4, true>(r, row); }
DEVICE void ldmatrix_x2_trans(unsigned (&r)[2], const void* row) { ldmatrix<2, true>(r, row); }

static inline float as_float(__half v) { return __half2float(v); }
static inline float as_float(float v) { return v; }

// c[16×8] += a[16×K] · b[K×8], k in ascending order. A register holds EACH elements next to each other in k.
template <typename Element, int K> DEVICE void mma(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    struct Lane { float* c; const unsigned* a; unsigned b[2]; } me{c, a, {b0, b1}};
    emu::warp_op(&me, [](emu::Warp* w) {
        constexpr int EACH = 4 / sizeof(Element);
        float left[16][K], right[K][8];
        for (int l = 0; l < 32; l++) {
            const Lane* lane = static_cast<const Lane*>(w->lane[l]->arg);
            const int g = l / 4, t = l % 4 * EACH;
            Element e[EACH];
            for (int i = 0; i < 4; i++) {
                memcpy(e, &lane->a[i], 4);
                for (int k = 0; k < EACH; k++) left[g + i % 2 * 8][t + k + i / 2 * K / 2] = as_float(e[k]);
            }
            for (int i = 0; i < 2; i++) {
                memcpy(e, &lane->b[i], 4);
                for (int k = 0; k < EACH; k++) right[t + k + i * K / 2][g] = as_float(e[k]);
            }
        }
        for (int l = 0; l < 32; l++) {
            float* sum = static_cast<const Lane*>(w->lane[l]->arg)->c;
            for (int i = 0; i < 4; i++) {
                const int row = l / 4 + i / 2 * 8, col = l % 4 * 2 + i % 2;
                for (int k = 0; k < K; k++) sum[i] += left[row][k] * right[k][col];
            }
        }
    });
}

DEVICE void mma_f16(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) { mma<__half, 16>(c, a, b0, b1); }
DEVICE void mma_tf32(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) { mma<float, 8>(c, a, b0, b1); }

DEVICE unsigned round_tf32(unsigned bits) {
    const bool finite = (bits & 0x7f800000) != 0x7f800000;
    return finite ? (bits + 0x1000) & ~0x1fffu : bits;
}

#endif
