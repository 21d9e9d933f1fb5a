// One value of all threads of a block.
#pragma once

#include "common.cuh"

struct Sum {
    template <class T> __device__ T operator()(T p, T q) const { return p + q; }
};

struct Largest {
    __device__ float operator()(float p, float q) const { return fmaxf(p, q); }
    __device__ double operator()(double p, double q) const { return fmax(p, q); }
    __device__ u32 operator()(u32 p, u32 q) const { return max(p, q); }
};

// Joins one value a thread with `join`, which is associative, in a tree that is always the same; every thread gets the
// result.
template <u32 THREADS, class T, class F> DEVICE T reduce(T value, F join) {
    __shared__ T values[THREADS];
    values[threadIdx.x] = value;
    for (u32 half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) values[threadIdx.x] = join(values[threadIdx.x], values[threadIdx.x + half]);
    }
    __syncthreads();
    value = values[0];
    __syncthreads();
    return value;
}
