// A block of threads owns BLOCK elements, a thread one pack of VEC neighbours. Three scans, each
// over the totals of the one before: in a thread, over the lanes of a warp, over the warps.
#include "access.cuh"

template <typename T, int VEC, int THREADS>
__global__ void __launch_bounds__(THREADS)
    block_cumsum_kernel(const T* __restrict__ x, T* __restrict__ out, long long N) {
    constexpr int BLOCK = THREADS * VEC, WARPS = THREADS < 32 ? 1 : THREADS / 32;
    constexpr unsigned LANES = THREADS < 32 ? (1u << THREADS % 32) - 1 : 0xffffffff;
    __shared__ float totals[WARPS];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const long long i = (long long)blockIdx.x * BLOCK + threadIdx.x * VEC;  // N may exceed 2^31

    Pack<T, VEC> pack;
    if (i + VEC <= N) {
        pack = load_pack<VEC>(x + i);
    } else {  // zeros beyond N: these threads still take part in the shuffles
#pragma unroll
        for (int k = 0; k < VEC; ++k) pack.v[k] = i + k < N ? x[i + k] : T(0.f);
    }

    float y[VEC];
    float total = 0.f;
#pragma unroll
    for (int k = 0; k < VEC; ++k) y[k] = total += float(pack.v[k]);

    float before = 0.f;  // the sum of all threads before this one
#pragma unroll
    for (int delta = 1; delta < (THREADS < 32 ? THREADS : 32); delta *= 2) {
        const float left = __shfl_up_sync(LANES, total, delta);  // the sum of `delta` lanes
        if (lane >= delta) {
            before += left;
            total += left;
        }
    }
    if constexpr (WARPS > 1) {
        if (lane == 31) totals[warp] = total;
        __syncthreads();  // every warp's total is there
#pragma unroll
        for (int w = 0; w < WARPS - 1; ++w)
            if (w < warp) before += totals[w];
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
