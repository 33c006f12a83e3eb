// Each row is held in the registers of THREADS threads, PACKS packs of VEC elements in each. While
// THREADS fit a warp, a block has ROWS rows and shuffles reduce; else it has one row, and its warps
// meet in shared memory.
//
// T: the element type. VEC: elements of a pack of 16 bytes, 1 where rows are not aligned. PACKS:
// packs that a thread holds. THREADS: the threads of a row, a power of two. ROWS: the rows of a
// block, 1 where THREADS exceed a warp: shared memory has room for the warps of one row.
#include <math_constants.h>

#include "access.cuh"
#include "reduce.cuh"

template <typename T, int VEC, int PACKS, int THREADS, int ROWS>
__global__ void __launch_bounds__(THREADS* ROWS)
    softmax_fused_kernel(const T* __restrict__ x, T* __restrict__ out, int M, int N) {
    // One for each reduction: a warp may write its sum while another still reads the maxima.
    __shared__ float sPartialMax[32], sPartialSum[32];
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
            // It changes no maximum, and its exponential adds nothing to a sum.
#pragma unroll
            for (int k = 0; k < VEC; ++k) pack[p].v[k] = T(-CUDART_INF_F);
        }
    }

    float v[PACKS][VEC];  // fp32: between the read and the write nothing is rounded to T
    float m = -CUDART_INF_F;
#pragma unroll
    for (int p = 0; p < PACKS; ++p)
#pragma unroll
        for (int k = 0; k < VEC; ++k) {
            v[p][k] = float(pack[p].v[k]);
            // fmaxf drops a NaN, whose exponential then makes the sum NaN.
            m = fmaxf(m, v[p][k]);
        }
    m = reduce_row<THREADS>(m, sPartialMax, -CUDART_INF_F, Max());

    float l = 0.f;
#pragma unroll
    for (int p = 0; p < PACKS; ++p)
#pragma unroll
        for (int k = 0; k < VEC; ++k) {
            v[p][k] = __expf(v[p][k] - m);
            l += v[p][k];
        }
    l = reduce_row<THREADS>(l, sPartialSum, 0.f, Sum());

    // One division a row. Rows beyond the last have NaN here, and store nothing.
    const float scale = 1.f / l;
#pragma unroll
    for (int p = 0; p < PACKS; ++p) {
        const int n = (p * THREADS + threadIdx.x) * VEC;
#pragma unroll
        for (int k = 0; k < VEC; ++k) pack[p].v[k] = T(v[p][k] * scale);
        if (in_rows && n < N) store_pack(out + n, pack[p]);
    }
}
