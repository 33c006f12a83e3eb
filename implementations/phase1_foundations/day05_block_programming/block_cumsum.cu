// Each block of threads owns BLOCK elements, each thread one pack of VEC neighbours. The scan
// has three steps, each over the totals of the one before: within a thread, over the lanes of a
// warp, over the warps.
//
// T: the element type. VEC: elements of a pack of 16 bytes, 1 where a block has fewer. THREADS: the
// threads of a block, a power of two, which may be less than a warp.
#include "access.cuh"

template <typename T, int VEC, int THREADS>
__global__ void __launch_bounds__(THREADS)
    block_cumsum_kernel(const T* __restrict__ x, T* __restrict__ out, long long N) {
    constexpr int BLOCK = THREADS * VEC, WARPS = THREADS < 32 ? 1 : THREADS / 32;
    // The lanes that a shuffle waits for: only those that exist, or it would wait for ever.
    constexpr unsigned LANE_MASK = THREADS < 32 ? (1u << THREADS % 32) - 1 : 0xffffffff;
    __shared__ float sTotals[WARPS];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const long long i = (long long)blockIdx.x * BLOCK + threadIdx.x * VEC;  // N may exceed 2^31

    Pack<T, VEC> pack;
    if (i + VEC <= N) {
        pack = load_pack<VEC>(x + i);
    } else {  // zeros beyond N: these threads still take part in the shuffles
#pragma unroll
        for (int k = 0; k < VEC; ++k) pack.v[k] = i + k < N ? x[i + k] : T(0.f);
    }

    float y[VEC];  // fp32: running sums in 16 bits would gather errors
    float total = 0.f;
#pragma unroll
    for (int k = 0; k < VEC; ++k) y[k] = total += float(pack.v[k]);

    float before = 0.f;  // the sum of all threads before this one
#pragma unroll
    for (int delta = 1; delta < (THREADS < 32 ? THREADS : 32); delta *= 2) {
        const float total_before = __shfl_up_sync(LANE_MASK, total, delta);  // of `delta` lanes
        if (lane >= delta) {
            before += total_before;
            total += total_before;
        }
    }
    if constexpr (WARPS > 1) {
        // Warps meet here only. Totals are written once, so no second barrier has to guard them.
        if (lane == 31) sTotals[warp] = total;
        __syncthreads();  // every warp's total is there
        // All lanes of a warp read the same word, which is a broadcast and no bank conflict.
#pragma unroll
        for (int w = 0; w < WARPS - 1; ++w)
            if (w < warp) before += sTotals[w];
    }

#pragma unroll
    for (int k = 0; k < VEC; ++k) pack.v[k] = T(before + y[k]);
    if (i + VEC <= N) {
        store_pack(out + i, pack);
    } else {
#pragma unroll
        for (int k = 0; k < VEC; ++k)
            if (i + k < N) out[i + k] = pack.v[k];
    }
}
