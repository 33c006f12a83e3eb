// A block of threads takes every gridDim-th BLOCK of elements, a thread PACKS packs of 16 bytes of
// each, and leaves the largest; one more block takes these by the same kernel.
#include <math_constants.h>

#include "access.cuh"

// The larger of both, NaN where one is: fmaxf would drop it.
__device__ __forceinline__ float maximum(float a, float b) {
    return a > b || isnan(a) ? a : b;
}

// The largest `value` of the threads of a block, in every one of them: a tree over the lanes of a
// warp, then one over the warps. Called once, so that one barrier suffices.
template <int THREADS>
__device__ __forceinline__ float reduce_block(float value) {
    constexpr int WARPS = THREADS / 32;
    __shared__ float of_warp[WARPS];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;

#pragma unroll
    for (int delta = 16; delta > 0; delta /= 2)
        value = maximum(value, __shfl_xor_sync(0xffffffff, value, delta));
    if (lane == 0) of_warp[warp] = value;
    __syncthreads();  // every warp's largest is there

    value = of_warp[lane % WARPS];
#pragma unroll
    for (int delta = WARPS / 2; delta > 0; delta /= 2)
        value = maximum(value, __shfl_xor_sync(0xffffffff, value, delta));
    return value;
}

template <typename T, typename Out, int THREADS, int PACKS>
__global__ void __launch_bounds__(THREADS)
    vector_max_kernel(const T* __restrict__ x, Out* __restrict__ out, long long N) {
    constexpr int VEC = 16 / sizeof(T), BLOCK = THREADS * PACKS * VEC;
    const int pid = blockIdx.x, tid = threadIdx.x;
    const long long step = (long long)gridDim.x * BLOCK;

    float largest = -CUDART_INF_F;
    long long start = (long long)pid * BLOCK;  // 64-bit: N may exceed 2^31
    for (; start + BLOCK <= N; start += step) {
        Pack<T> pack[PACKS];
#pragma unroll
        for (int p = 0; p < PACKS; ++p)  // all loads are under way before the first is used
            pack[p] = load_pack<VEC>(x + start + (p * THREADS + tid) * VEC);

#pragma unroll
        for (int p = 0; p < PACKS; ++p)
#pragma unroll
            for (int k = 0; k < VEC; ++k) largest = maximum(largest, float(pack[p].v[k]));
    }

    // the last, partial BLOCK is left to the one whose turn it is
    for (long long i = start + tid; i < N; i += THREADS) largest = maximum(largest, float(x[i]));

    largest = reduce_block<THREADS>(largest);
    if (tid == 0) out[pid] = Out(largest);
}
