// Each block of threads sums every gridDim-th BLOCK of elements, of which a thread takes PACKS
// packs of 16 bytes, and leaves one partial sum. One block more sums these by the same kernel.
// There are no atomics: the order of all additions is fixed, and every run gives the same bits.
//
// T: the type of what is read. THREADS: the threads of a block. PACKS: packs that a thread has
// under way at once.
#include "access.cuh"

// The sum of `value` over the threads of a block, in every one of them: a tree over the lanes of a
// warp, then one over the warps. Called once, so that one barrier suffices.
template <int THREADS>
__device__ __forceinline__ float reduce_block(float value) {
    constexpr int WARPS = THREADS / 32;
    __shared__ float sPartial[WARPS];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;

#pragma unroll
    for (int delta = 16; delta > 0; delta /= 2) value += __shfl_xor_sync(0xffffffff, value, delta);
    if (lane == 0) sPartial[warp] = value;
    __syncthreads();  // every warp's sum is there

    // Every warp repeats the tree over the warps' sums. Lanes that read the same word share one
    // access, so banks do not conflict.
    value = sPartial[lane % WARPS];
#pragma unroll
    for (int delta = WARPS / 2; delta > 0; delta /= 2)
        value += __shfl_xor_sync(0xffffffff, value, delta);
    return value;
}

template <typename T, int THREADS, int PACKS>
__global__ void __launch_bounds__(THREADS)
    vector_sum_kernel(const T* __restrict__ x, float* __restrict__ out, long long N) {
    constexpr int VEC = 16 / sizeof(T), BLOCK = THREADS * PACKS * VEC;
    const int pid = blockIdx.x, tid = threadIdx.x;
    const long long step = (long long)gridDim.x * BLOCK;

    // fp32: a sum in 16 bits would stop growing, or overflow.
    float total = 0.f;
    long long start = (long long)pid * BLOCK;  // 64-bit: N may exceed 2^31
    for (; start + BLOCK <= N; start += step) {
        Pack<T> pack[PACKS];
#pragma unroll
        for (int p = 0; p < PACKS; ++p)  // all loads are under way before the first is used
            pack[p] = load_pack<VEC>(x + start + (p * THREADS + tid) * VEC);

#pragma unroll
        for (int p = 0; p < PACKS; ++p)
#pragma unroll
            for (int k = 0; k < VEC; ++k) total += float(pack[p].v[k]);
    }

    // The last, partial BLOCK falls to the block of threads whose turn it is.
    for (long long i = start + tid; i < N; i += THREADS) total += float(x[i]);

    total = reduce_block<THREADS>(total);
    if (tid == 0) out[pid] = total;
}
