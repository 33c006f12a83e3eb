// Each row belongs to THREADS threads. While these are a warp or less, a block has ROWS rows; else
// a block has one row, or one part of a row longer than PART. A thread keeps m_i, the maximum of
// its elements so far, and l_i, their sum of exp(x - m_i). The pairs of a row's threads are merged
// at its end, and those of its parts by a second launch.
//
// T: the element type. VEC: elements of a pack of 16 bytes, 1 where rows are not aligned. PACKS:
// packs that a thread has under way at once. THREADS: the threads of a row. ROWS: rows of a block.
#include <math_constants.h>

#include "access.cuh"
#include "attention.cuh"
#include "reduce.cuh"

// Between LOWEST, of attention.cuh, and LARGEST m_i stays, as inf - inf would be NaN: of elements
// that are all -inf, LOWEST is subtracted, and l_i is 0; of one that is inf LARGEST, and l_i is
// inf.
constexpr float LARGEST = 3.402823466e38f;

// exp(x), below the smallest normal number 0, in fewer steps than __expf.
__device__ __forceinline__ float fast_exp(float x) {
    constexpr float LOG2E = 1.4426950408889634f;
    return exp2_approx(x * LOG2E);
}

// Takes a thread's next packs into its pair, which is scaled once for all of them.
template <typename T, int VEC, int PACKS>
__device__ __forceinline__ void take(float& m_i, float& l_i, const Pack<T, VEC> (&pack)[PACKS]) {
    float m = m_i;
#pragma unroll
    for (int p = 0; p < PACKS; ++p)
#pragma unroll
        for (int k = 0; k < VEC; ++k)
            m = fmaxf(m, float(pack[p].v[k]));  // drops a NaN, whose exponential makes l_i NaN
    m = fminf(m, LARGEST);
    l_i *= fast_exp(m_i - m);
#pragma unroll
    for (int p = 0; p < PACKS; ++p)
#pragma unroll
        for (int k = 0; k < VEC; ++k) l_i += fast_exp(float(pack[p].v[k]) - m);
    m_i = m;
}

// The pairs of a row's threads become one, which the first of them stores where it `is_row`.
template <int THREADS>
__device__ __forceinline__ void store_merged(float m_i, float l_i, float* m, float* l,
                                             bool is_row) {
    // One for each reduction: a warp may write its sum while another still reads the maxima.
    __shared__ float sMax[32], sSum[32];
    const float m_row = reduce_row<THREADS>(m_i, sMax, LOWEST, Max());
    const float l_row = reduce_row<THREADS>(l_i * fast_exp(m_i - m_row), sSum, 0.f, Sum());
    if (threadIdx.x == 0 && is_row) {
        // An l of 0, inf or NaN says what the maximum was.
        *m = l_row == 0.f ? -CUDART_INF_F : l_row < CUDART_INF_F ? m_row : l_row;
        *l = l_row;
    }
}

// Told that 4 resident blocks are enough, the compiler has registers for all packs.
template <typename T, int VEC, int PACKS, int THREADS, int ROWS>
__global__ void __launch_bounds__(THREADS* ROWS, 4)
    softmax_stats_kernel(const T* __restrict__ x, float* __restrict__ m, float* __restrict__ l,
                         long long M, long long N, int PART, int parts) {
    constexpr int STEP = THREADS * VEC;
    const int part = blockIdx.x % parts;
    const long long row = (long long)(blockIdx.x / parts) * ROWS + threadIdx.y;
    const long long start = (long long)part * PART;
    // Threads beyond the last row have nothing to take, but still take part in the shuffles.
    const int count = row < M ? min(N - start, (long long)PART) : 0;
    x += row * N + start;  // 64-bit: M * N may exceed 2^31

    float m_i = LOWEST, l_i = 0.f;
    int n = threadIdx.x * VEC;  // neighbours read neighbouring packs
    for (; n + (PACKS - 1) * STEP < count; n += PACKS * STEP) {
        Pack<T, VEC> pack[PACKS];
#pragma unroll
        for (int p = 0; p < PACKS; ++p)  // all loads are under way before the first is used
            pack[p] = load_pack<VEC>(x + n + p * STEP);
        take(m_i, l_i, pack);
    }
#pragma unroll
    for (int p = 0; p < PACKS - 1; ++p)  // what is left, fewer than PACKS packs
        if (n + p * STEP < count) {
            const Pack<T, VEC> pack[1] = {load_pack<VEC>(x + n + p * STEP)};
            take(m_i, l_i, pack);
        }

    const long long at = row * parts + part;
    store_merged<THREADS>(m_i, l_i, m + at, l + at, row < M);
}

template <int THREADS, int ROWS>
__global__ void __launch_bounds__(THREADS* ROWS)
    softmax_stats_merge_kernel(const float* __restrict__ m_parts, const float* __restrict__ l_parts,
                               float* __restrict__ m, float* __restrict__ l, int M, int parts) {
    const int row = blockIdx.x * ROWS + threadIdx.y;
    const int count = row < M ? parts : 0;
    m_parts += (long long)row * parts;
    l_parts += (long long)row * parts;

    float m_i = LOWEST, l_i = 0.f;
#pragma unroll 4
    for (int i = threadIdx.x; i < count; i += THREADS) {
        const float m_of_part = m_parts[i], l_of_part = l_parts[i];
        const float m_new = fminf(fmaxf(m_i, m_of_part), LARGEST);
        l_i = l_i * fast_exp(m_i - m_new) + l_of_part * fast_exp(m_of_part - m_new);
        m_i = m_new;
    }
    store_merged<THREADS>(m_i, l_i, m + row, l + row, row < M);
}
