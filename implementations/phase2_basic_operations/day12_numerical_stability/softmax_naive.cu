// Each row belongs to THREADS threads, which read it twice and keep nothing of it. In a step, each
// of them takes PACKS packs of VEC elements. While THREADS fit a warp, a block has ROWS rows and
// shuffles reduce; else it has one row, and its warps meet in shared memory.
//
// T: the element type. VEC: elements of a pack of 16 bytes, 1 where rows are not aligned. PACKS:
// packs of a thread in a step. THREADS: the threads of a row, a power of two. ROWS: the rows of a
// block, 1 where THREADS exceed a warp: `sPartial` has room for the warps of one row.
#include <math_constants.h>

#include "access.cuh"
#include "reduce.cuh"

// Loads a thread's packs of one step, the first from x[n] on. Beyond N they are -inf, whose
// exponential adds nothing to a sum.
template <int THREADS, typename T, int VEC, int PACKS>
__device__ __forceinline__ void load_step(Pack<T, VEC> (&pack)[PACKS], const T* x, long long n,
                                          long long N) {
#pragma unroll
    for (int p = 0; p < PACKS; ++p, n += THREADS * VEC) {  // neighbours read neighbouring packs
        if (n < N) {
            pack[p] = load_pack<VEC>(x + n);
        } else {
#pragma unroll
            for (int k = 0; k < VEC; ++k) pack[p].v[k] = T(-CUDART_INF_F);
        }
    }
}

template <typename T, int VEC, int PACKS, int THREADS, int ROWS>
__global__ void __launch_bounds__(THREADS* ROWS)
    softmax_naive_kernel(const T* __restrict__ x, T* __restrict__ out, int M, long long N) {
    constexpr int STEP = THREADS * PACKS * VEC;
    __shared__ float sPartial[32];
    const long long row = (long long)blockIdx.x * ROWS + threadIdx.y;
    const long long end = row < M ? N : 0;  // beyond the last row, take part in the shuffles only
    x += row * N;
    out += row * N;

    Pack<T, VEC> pack[PACKS];
    // fp32: a sum in 16 bits would stop growing.
    float l = 0.f;
    for (long long n = threadIdx.x * VEC; n < end; n += STEP) {
        load_step<THREADS>(pack, x, n, N);
        // Nothing is subtracted: for elements above 88.7 the exponential is infinite.
#pragma unroll
        for (int p = 0; p < PACKS; ++p)
#pragma unroll
            for (int k = 0; k < VEC; ++k) l += __expf(float(pack[p].v[k]));
    }
    // All threads of the block come here: the reduction has a barrier.
    const float scale = 1.f / reduce_row<THREADS>(l, sPartial, 0.f, Sum());

    // The second read comes from the L2 while the rows under way fit there.
    for (long long n = threadIdx.x * VEC; n < end; n += STEP) {
        load_step<THREADS>(pack, x, n, N);
#pragma unroll
        for (int p = 0; p < PACKS; ++p) {
#pragma unroll
            for (int k = 0; k < VEC; ++k) pack[p].v[k] = T(__expf(float(pack[p].v[k])) * scale);
            const long long at = n + p * THREADS * VEC;
            if (at < N) store_pack(out + at, pack[p]);
        }
    }
}
