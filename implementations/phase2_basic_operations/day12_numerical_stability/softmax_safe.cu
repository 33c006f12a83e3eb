// In each of the three kernels a row belongs to THREADS threads, which read all of it: in a step,
// each takes PACKS packs of VEC elements. While THREADS fit a warp, a block has ROWS rows and
// shuffles reduce; else it has one row, and its warps meet in shared memory. A kernel begins when
// the one before has ended, so each sees whole statistics: no other barrier spans the grid.
//
// T: the element type. VEC: elements of a pack of 16 bytes, 1 where rows are not aligned. PACKS:
// packs of a thread in a step. THREADS: the threads of a row, a power of two. ROWS: the rows of a
// block, 1 where THREADS exceed a warp: `sPartial` has room for the warps of one row.
#include <math_constants.h>

#include "access.cuh"
#include "reduce.cuh"

// Loads a thread's packs of one step, the first from x[n] on. Beyond N they are -inf, which changes
// no maximum, and whose exponential adds nothing to a sum.
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

// m: the maximum of each row.
template <typename T, int VEC, int PACKS, int THREADS, int ROWS>
__global__ void __launch_bounds__(THREADS* ROWS)
    softmax_safe_max_kernel(const T* __restrict__ x, float* __restrict__ m, int M, long long N) {
    __shared__ float sPartial[32];
    const long long row = (long long)blockIdx.x * ROWS + threadIdx.y;
    const long long end = row < M ? N : 0;  // beyond the last row, take part in the shuffles only
    x += row * N;

    Pack<T, VEC> pack[PACKS];
    float m_i = -CUDART_INF_F;
    for (long long n = threadIdx.x * VEC; n < end; n += THREADS * PACKS * VEC) {
        load_step<THREADS>(pack, x, n, N);
        // fmaxf drops a NaN; the next kernel takes it into the sum, so that all the row is NaN.
#pragma unroll
        for (int p = 0; p < PACKS; ++p)
#pragma unroll
            for (int k = 0; k < VEC; ++k) m_i = fmaxf(m_i, float(pack[p].v[k]));
    }
    // All threads of the block come here: the reduction has a barrier.
    m_i = reduce_row<THREADS>(m_i, sPartial, -CUDART_INF_F, Max());

    if (row < M && threadIdx.x == 0) m[row] = m_i;
}

// l: the sum of exp(x - m) over each row.
template <typename T, int VEC, int PACKS, int THREADS, int ROWS>
__global__ void __launch_bounds__(THREADS* ROWS)
    softmax_safe_sum_kernel(const T* __restrict__ x, const float* __restrict__ m,
                            float* __restrict__ l, int M, long long N) {
    __shared__ float sPartial[32];
    const long long row = (long long)blockIdx.x * ROWS + threadIdx.y;
    const long long end = row < M ? N : 0;
    const float m_i = row < M ? m[row] : 0.f;
    x += row * N;

    Pack<T, VEC> pack[PACKS];
    // fp32: a sum in 16 bits would stop growing.
    float l_i = 0.f;
    for (long long n = threadIdx.x * VEC; n < end; n += THREADS * PACKS * VEC) {
        load_step<THREADS>(pack, x, n, N);
        // Each exponential is at most 1, as m_i is the largest element: the sum cannot overflow.
#pragma unroll
        for (int p = 0; p < PACKS; ++p)
#pragma unroll
            for (int k = 0; k < VEC; ++k) l_i += __expf(float(pack[p].v[k]) - m_i);
    }
    // All threads of the block come here: the reduction has a barrier.
    l_i = reduce_row<THREADS>(l_i, sPartial, 0.f, Sum());

    if (row < M && threadIdx.x == 0) l[row] = l_i;
}

// out: exp(x - m) / l.
template <typename T, int VEC, int PACKS, int THREADS, int ROWS>
__global__ void __launch_bounds__(THREADS* ROWS)
    softmax_safe_divide_kernel(const T* __restrict__ x, const float* __restrict__ m,
                               const float* __restrict__ l, T* __restrict__ out, int M,
                               long long N) {
    const long long row = (long long)blockIdx.x * ROWS + threadIdx.y;
    // No barrier follows that would wait for these threads.
    if (row >= M) return;
    const float m_i = m[row], scale = 1.f / l[row];
    x += row * N;
    out += row * N;

    Pack<T, VEC> pack[PACKS];
    for (long long n = threadIdx.x * VEC; n < N; n += THREADS * PACKS * VEC) {
        load_step<THREADS>(pack, x, n, N);
#pragma unroll
        for (int p = 0; p < PACKS; ++p) {
#pragma unroll
            for (int k = 0; k < VEC; ++k)
                pack[p].v[k] = T(__expf(float(pack[p].v[k]) - m_i) * scale);
            const long long at = n + p * THREADS * VEC;
            if (at < N) store_pack(out + at, pack[p]);
        }
    }
}
