// A row belongs to THREADS threads, which go over it twice and keep nothing of it: a step is PACKS
// packs of VEC elements a thread. Up to 32 threads a row, a block holds ROWS rows and shuffles
// reduce; beyond, a block holds one.
#include <math_constants.h>

#include "access.cuh"
#include "reduce.cuh"

// A thread's packs of the step from x[n] on; -inf beyond N, as its exponential is 0.
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
    __shared__ float partial[32];
    const long long row = (long long)blockIdx.x * ROWS + threadIdx.y;
    const long long end = row < M ? N : 0;  // beyond the last row, take part in the shuffles only
    x += row * N;
    out += row * N;

    Pack<T, VEC> pack[PACKS];
    float l = 0.f;
    for (long long n = threadIdx.x * VEC; n < end; n += STEP) {
        load_step<THREADS>(pack, x, n, N);
#pragma unroll
        for (int p = 0; p < PACKS; ++p)
#pragma unroll
            for (int k = 0; k < VEC; ++k) l += __expf(float(pack[p].v[k]));
    }
    const float scale = 1.f / reduce_row<THREADS>(l, partial, 0.f, Sum());

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
