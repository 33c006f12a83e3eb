// Each block of threads takes every gridDim-th BLOCK of elements, of which a thread takes PACKS
// packs of 16 bytes, and leaves the largest element. One block more takes these by the same kernel.
//
// T: the type of what is read. Out: the type of what is left, fp32 for the blocks' largest, as it
// holds all element types exactly. THREADS: the threads of a block. PACKS: packs that a thread has
// under way at once.
#include <math_constants.h>

#include "access.cuh"

// The larger of both, NaN where one of them is: fmaxf would drop the NaN.
__device__ __forceinline__ float maximum(float a, float b) {
    return a > b || isnan(a) ? a : b;
}

// The largest `value` of the threads of a block, in every one of them: a tree over the lanes of a
// warp, then one over the warps. Called once, so that one barrier suffices.
template <int THREADS>
__device__ __forceinline__ float reduce_block(float value) {
    constexpr int WARPS = THREADS / 32;
    __shared__ float sPartial[WARPS];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;

#pragma unroll
    for (int delta = 16; delta > 0; delta /= 2)
        value = maximum(value, __shfl_xor_sync(0xffffffff, value, delta));
    if (lane == 0) sPartial[warp] = value;
    __syncthreads();  // every warp's largest is there

    // Every warp repeats the tree over the warps' results. Lanes that read the same word share one
    // access, so banks do not conflict.
    value = sPartial[lane % WARPS];
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

    // The neutral element: 0 would exceed negative elements.
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

    // The last, partial BLOCK falls to the block of threads whose turn it is.
    for (long long i = start + tid; i < N; i += THREADS) largest = maximum(largest, float(x[i]));

    largest = reduce_block<THREADS>(largest);
    if (tid == 0) out[pid] = Out(largest);
}
