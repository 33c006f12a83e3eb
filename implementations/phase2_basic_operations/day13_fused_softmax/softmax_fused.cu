// A row belongs to THREADS threads, which hold it in registers: each PACKS packs of VEC elements.
// Up to 32 threads a row, a block holds ROWS rows and shuffles reduce; beyond, a block holds one.
#include <math_constants.h>

#include "access.cuh"
#include "reduce.cuh"

template <typename T, int VEC, int PACKS, int THREADS, int ROWS>
__global__ void __launch_bounds__(THREADS* ROWS)
    softmax_fused_kernel(const T* __restrict__ x, T* __restrict__ out, int M, int N) {
    __shared__ float partial_max[32], partial_sum[32];
    const int row = blockIdx.x * ROWS + threadIdx.y;
    const bool in_rows = row < M;  // threads beyond the last row still take part in the shuffles
    x += (long long)row * N;
    out += (long long)row * N;

    Pack<T, VEC> pack[PACKS];
#pragma unroll
    for (int p = 0; p < PACKS; ++p) {  // all loads are under way before the first is used
        const int n = (p * THREADS + threadIdx.x) * VEC;  // neighbours read neighbouring packs
        if (in_rows && n < N) {
            pack[p] = load_pack<VEC>(x + n);
        } else {
#pragma unroll
            for (int k = 0; k < VEC; ++k) pack[p].v[k] = T(-CUDART_INF_F);
        }
    }

    float v[PACKS][VEC];
    float m = -CUDART_INF_F;
#pragma unroll
    for (int p = 0; p < PACKS; ++p)
#pragma unroll
        for (int k = 0; k < VEC; ++k) {
            v[p][k] = float(pack[p].v[k]);
            m = fmaxf(m, v[p][k]);
        }
    m = reduce_row<THREADS>(m, partial_max, -CUDART_INF_F, Max());

    float l = 0.f;
#pragma unroll
    for (int p = 0; p < PACKS; ++p)
#pragma unroll
        for (int k = 0; k < VEC; ++k) {
            v[p][k] = __expf(v[p][k] - m);
            l += v[p][k];
        }
    l = reduce_row<THREADS>(l, partial_sum, 0.f, Sum());

    const float scale = 1.f / l;
#pragma unroll
    for (int p = 0; p < PACKS; ++p) {
        const int n = (p * THREADS + threadIdx.x) * VEC;
#pragma unroll
        for (int k = 0; k < VEC; ++k) pack[p].v[k] = T(v[p][k] * scale);
        if (in_rows && n < N) store_pack(out + n, pack[p]);
    }
}
