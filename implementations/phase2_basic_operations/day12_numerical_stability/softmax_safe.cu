// In each of the three kernels a row belongs to THREADS threads: a step is PACKS packs of VEC
// elements a thread. Up to 32 threads a row, a block holds ROWS rows and shuffles reduce; beyond, a
// block holds one.
#include <math_constants.h>

#include "access.cuh"
#include "reduce.cuh"

// A thread's packs of the step from x[n] on; -inf beyond N, the least, whose exponential is 0.
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
    softmax_safe_max_kernel(const T* __restrict__ x, float* __restrict__ m, int M, long long N) {
    __shared__ float partial[32];
    const long long row = (long long)blockIdx.x * ROWS + threadIdx.y;
    const long long end = row < M ? N : 0;  // beyond the last row, take part in the shuffles only
    x += row * N;

    Pack<T, VEC> pack[PACKS];
    float m_i = -CUDART_INF_F;
    for (long long n = threadIdx.x * VEC; n < end; n += THREADS * PACKS * VEC) {
        load_step<THREADS>(pack, x, n, N);
#pragma unroll
        for (int p = 0; p < PACKS; ++p)
#pragma unroll
            for (int k = 0; k < VEC; ++k) m_i = fmaxf(m_i, float(pack[p].v[k]));
    }
    m_i = reduce_row<THREADS>(m_i, partial, -CUDART_INF_F, Max());

    if (row < M && threadIdx.x == 0) m[row] = m_i;
}

template <typename T, int VEC, int PACKS, int THREADS, int ROWS>
__global__ void __launch_bounds__(THREADS* ROWS)
    softmax_safe_sum_kernel(const T* __restrict__ x, const float* __restrict__ m,
                            float* __restrict__ l, int M, long long N) {
    __shared__ float partial[32];
    const long long row = (long long)blockIdx.x * ROWS + threadIdx.y;
    const long long end = row < M ? N : 0;
    const float m_i = row < M ? m[row] : 0.f;
    x += row * N;

    Pack<T, VEC> pack[PACKS];
    float l_i = 0.f;
    for (long long n = threadIdx.x * VEC; n < end; n += THREADS * PACKS * VEC) {
        load_step<THREADS>(pack, x, n, N);
#pragma unroll
        for (int p = 0; p < PACKS; ++p)
#pragma unroll
            for (int k = 0; k < VEC; ++k) l_i += __expf(float(pack[p].v[k]) - m_i);
    }
    l_i = reduce_row<THREADS>(l_i, partial, 0.f, Sum());

    if (row < M && threadIdx.x == 0) l[row] = l_i;
}

template <typename T, int VEC, int PACKS, int THREADS, int ROWS>
__global__ void __launch_bounds__(THREADS* ROWS)
    softmax_safe_divide_kernel(const T* __restrict__ x, const float* __restrict__ m,
                               const float* __restrict__ l, T* __restrict__ out, int M,
                               long long N) {
    const long long row = (long long)blockIdx.x * ROWS + threadIdx.y;
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
