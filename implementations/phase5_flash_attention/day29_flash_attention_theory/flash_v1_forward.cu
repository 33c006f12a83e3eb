// A block owns a head. It walks over the keys, BLOCK_N at a time, which stay in shared memory while
// it walks over the queries that see any of them, BLOCK_M at a time. What is known of a tile of
// queries lies in memory until its next visit: o as a sum, acc, and m and l, all in fp32.
//
// T: the type of q, k, v and o, 16 bits wide. D: elements of a row of each. BLOCK_M, BLOCK_N:
// queries and keys of a tile. WARP_M: queries of a warp. THREADS: of a block.
//
// acc, m_ws, l_ws: the workspace, `stride` rows of each for a head, as many as whole tiles have.
// offset: query i of a head sees its keys j <= i + offset.
#include "attention.cuh"

constexpr float LOG2_E = 1.44269504088896f;

// rO = the part of acc that this thread has written. It lies there as the threads hold it: what one
// of them reads, it has written itself, so nobody waits, and neighbours have neighbouring packs.
template <int THREADS, int ROWS, int COLS>
__device__ __forceinline__ void load_acc(float (&rO)[ROWS][COLS][4], const float* acc) {
#pragma unroll
    for (int i = 0; i < ROWS; ++i)
#pragma unroll
        for (int j = 0; j < COLS; ++j) {
            const auto pack = load_pack<4>(acc + ((i * COLS + j) * THREADS + threadIdx.x) * 4);
#pragma unroll
            for (int e = 0; e < 4; ++e) rO[i][j][e] = pack.v[e];
        }
}

template <int THREADS, int ROWS, int COLS>
__device__ __forceinline__ void store_acc(const float (&rO)[ROWS][COLS][4], float* acc) {
#pragma unroll
    for (int i = 0; i < ROWS; ++i)
#pragma unroll
        for (int j = 0; j < COLS; ++j) {
            Pack<float, 4> pack;
#pragma unroll
            for (int e = 0; e < 4; ++e) pack.v[e] = rO[i][j][e];
            store_pack(acc + ((i * COLS + j) * THREADS + threadIdx.x) * 4, pack);
        }
}

template <typename T, int D, int BLOCK_M, int BLOCK_N, int WARP_M, int THREADS>
__global__ void __launch_bounds__(THREADS, 1)
    flash_v1_forward_kernel(const T* __restrict__ q, const T* __restrict__ k,
                            const T* __restrict__ v, T* __restrict__ o, float* __restrict__ lse,
                            float* __restrict__ acc, float* __restrict__ m_ws,
                            float* __restrict__ l_ws, int M, int N, int offset, int stride,
                            float sm_scale) {
    extern __shared__ __align__(128) unsigned char bytes[];
    T *sQ = reinterpret_cast<T*>(bytes), *sK = sQ + BLOCK_M * D, *sV = sK + BLOCK_N * D;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const long long head = blockIdx.x;
    q += head * M * D;
    k += head * N * D;
    v += head * N * D;
    lse += head * M;
    acc += head * stride * D;
    m_ws += head * stride;
    l_ws += head * stride;
    const float scale = sm_scale * LOG2_E;  // exp(sm_scale x) is 2^(scale x)

    // Of a fragment, a thread holds two columns of the rows lane / 4 and lane / 4 + 8.
    const int first_row = warp * WARP_M + lane / 4;
    const int seen_by_last = seen_keys(M - 1, N, offset);
    for (int n0 = 0; n0 < seen_by_last; n0 += BLOCK_N) {
        __syncthreads();  // all have left the keys and values before, and have written m and l
        load_strided_rows<BLOCK_N, D, THREADS>(sK, k, D, n0, N);
        load_strided_rows<BLOCK_N, D, THREADS>(sV, v, D, n0, N);
        // The first query that sees any of these keys is n0 - offset.
        for (int m0 = max(n0 - offset, 0) / BLOCK_M * BLOCK_M; m0 < M; m0 += BLOCK_M) {
            load_strided_rows<BLOCK_M, D, THREADS>(sQ, q, D, m0, M);
            cp_async_commit();
            cp_async_wait<0>();
            __syncthreads();  // the queries have arrived for all, and so have the keys and values

            float rS[WARP_M / 16][BLOCK_N / 8][4];
            multiply_rows<BLOCK_M, D, WARP_M, BLOCK_N>(rS, sQ, sK);
            __syncthreads();  // all have left the queries

            if (n0 + BLOCK_N > seen_keys(m0, N, offset)) {
#pragma unroll
                for (int i = 0; i < WARP_M / 16; ++i)
#pragma unroll
                    for (int half = 0; half < 2; ++half) {
                        const int row = m0 + first_row + i * 16 + half * 8;
                        const int left = seen_keys(row, N, offset) - n0 - lane % 4 * 2;
#pragma unroll
                        for (int j = 0; j < BLOCK_N / 8; ++j)
#pragma unroll
                            for (int e = 0; e < 2; ++e)
                                if (j * 8 + e >= left) rS[i][j][2 * half + e] = -CUDART_INF_F;
                    }
            }
            // A row's maximum so far, and what the sums so far are worth beside it.
            float alpha[WARP_M / 16][2];
#pragma unroll
            for (int i = 0; i < WARP_M / 16; ++i)
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const int row = m0 + first_row + i * 16 + half * 8;
                    const float m_i = n0 > 0 ? m_ws[row] : -CUDART_INF_F;
                    float m = m_i;  // of scores as they are, not scaled
#pragma unroll
                    for (int j = 0; j < BLOCK_N / 8; ++j)
                        m = fmaxf(m, fmaxf(rS[i][j][2 * half], rS[i][j][2 * half + 1]));
                    m = reduce_quad(m, Max());
                    // Of a row that has seen no key the maximum is -inf, and -inf - -inf were NaN.
                    const float m_used = m == -CUDART_INF_F ? 0.f : m, m_scaled = m_used * scale;
                    alpha[i][half] = exp2_approx((m_i - m_used) * scale);
                    float l = 0.f;
#pragma unroll
                    for (int j = 0; j < BLOCK_N / 8; ++j)
#pragma unroll
                        for (int e = 2 * half; e < 2 * half + 2; ++e) {
                            rS[i][j][e] = exp2_approx(rS[i][j][e] * scale - m_scaled);
                            l += rS[i][j][e];
                        }
                    l = reduce_quad(l, Sum());
                    if (lane % 4 == 0) {  // the other lanes of the row have read m
                        m_ws[row] = m;
                        l_ws[row] = n0 > 0 ? l_ws[row] * alpha[i][half] + l : l;
                    }
                }
            unsigned rP[WARP_M / 16][BLOCK_N / 16][4];
            as_operand<T>(rP, rS);

            float rO[WARP_M / 16][D / 8][4] = {};
            if (n0 > 0) load_acc<THREADS>(rO, acc + (long long)m0 * D);
#pragma unroll
            for (int i = 0; i < WARP_M / 16; ++i)
#pragma unroll
                for (int j = 0; j < D / 8; ++j)
#pragma unroll
                    for (int e = 0; e < 4; ++e) rO[i][j][e] *= alpha[i][e / 2];
            add_product<D>(rO, rP, sV);
            store_acc<THREADS>(rO, acc + (long long)m0 * D);
        }
    }

    // Written as one product of three, NVRTC 13 stores o in pieces of four bytes.
    const long long head_size = (long long)M * D;
    o += opaque(blockIdx.x) * head_size;
    for (int m0 = 0; m0 < M; m0 += BLOCK_M) {
        __syncthreads();  // o leaves through the place of q, and the last m and l are written
        // A query that sees no key gets zeros, and the logarithm of no sum, -inf.
        const bool any = seen_keys(min(m0 + BLOCK_M, M) - 1, N, offset) > 0;
        float rO[WARP_M / 16][D / 8][4] = {};
        if (any) load_acc<THREADS>(rO, acc + (long long)m0 * D);
#pragma unroll
        for (int i = 0; i < WARP_M / 16; ++i)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int row = m0 + first_row + i * 16 + half * 8;
                const float m = any ? m_ws[row] : -CUDART_INF_F, l = any ? l_ws[row] : 0.f;
                const float share = seen_keys(row, N, offset) > 0 ? 1.f / l : 0.f;
#pragma unroll
                for (int j = 0; j < D / 8; ++j)
#pragma unroll
                    for (int e = 2 * half; e < 2 * half + 2; ++e) rO[i][j][e] *= share;
                if (row < M && lane % 4 == 0) lse[row] = m * sm_scale + logf(l);
            }
        store_strided_rows<D, WARP_M>(rO, sQ, o, D, m0, M);
    }
}
