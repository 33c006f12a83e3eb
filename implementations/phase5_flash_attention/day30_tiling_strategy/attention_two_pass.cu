// A block owns BLOCK_M queries of a head, and walks over the keys that they see, BLOCK_N at a time,
// twice: first for the maximum and the sum of each query's scores, then for its weights and o. A
// warp owns WARP_M of the queries, and all that belongs to them is in its registers.
//
// T: the type of q, k, v and o, 16 bits wide. D: elements of a row of each. BLOCK_M, BLOCK_N:
// queries and keys of a tile. WARP_M: queries of a warp. THREADS: of a block.
//
// offset: query i of a head sees its keys j <= i + offset.
#include "attention.cuh"

constexpr float LOG2_E = 1.44269504088896f;

// rS = the scores, not scaled, of the block's queries and the keys from n0 on, and -inf where a
// query does not see a key. Of a fragment, a thread holds two columns of the rows first_row and
// first_row + 8. masked: whether there may be such pairs.
template <int D, int BLOCK_M, int BLOCK_N, int WARP_M, typename T>
__device__ __forceinline__ void seen_scores(float (&rS)[WARP_M / 16][BLOCK_N / 8][4], const T* sQ,
                                            const T* sK, bool masked, int first_row, int n0, int N,
                                            int offset) {
    multiply_rows<BLOCK_M, D, WARP_M, BLOCK_N>(rS, sQ, sK);
    if (!masked) return;
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < WARP_M / 16; ++i)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = first_row + i * 16 + half * 8;
            const int left = seen_keys(row, N, offset) - n0 - lane % 4 * 2;
#pragma unroll
            for (int j = 0; j < BLOCK_N / 8; ++j)
#pragma unroll
                for (int e = 0; e < 2; ++e)
                    if (j * 8 + e >= left) rS[i][j][2 * half + e] = -CUDART_INF_F;
        }
}

template <typename T, int D, int BLOCK_M, int BLOCK_N, int WARP_M, int THREADS>
__global__ void __launch_bounds__(THREADS)
    attention_two_pass_kernel(const T* __restrict__ q, const T* __restrict__ k,
                              const T* __restrict__ v, T* __restrict__ o, int M, int N, int offset,
                              float sm_scale) {
    extern __shared__ __align__(128) unsigned char bytes[];
    T *sQ = reinterpret_cast<T*>(bytes), *sK = sQ + BLOCK_M * D, *sV = sK + BLOCK_N * D;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int tiles_m = (M + BLOCK_M - 1) / BLOCK_M, head = blockIdx.x / tiles_m;
    // The last tiles, which see the most keys, come first.
    const int m0 = (tiles_m - 1 - blockIdx.x % tiles_m) * BLOCK_M;
    q += (long long)head * M * D;
    k += (long long)head * N * D;
    v += (long long)head * N * D;

    // All queries of the tile see the keys of the first `whole` tiles, some those of `tiles`.
    const int whole = seen_keys(m0, N, offset) / BLOCK_N;
    const int tiles = (seen_keys(min(m0 + BLOCK_M, M) - 1, N, offset) + BLOCK_N - 1) / BLOCK_N;
    const int first_row = m0 + warp * WARP_M + lane / 4;
    const float scale = sm_scale * LOG2_E;  // exp(sm_scale x) is 2^(scale x)

    // First pass: no values are loaded, and the keys come in turn to their place and to that of the
    // values.
    float m_i[WARP_M / 16][2], l_i[WARP_M / 16][2];  // of scores as they are, not scaled
#pragma unroll
    for (int i = 0; i < WARP_M / 16; ++i)
#pragma unroll
        for (int half = 0; half < 2; ++half) m_i[i][half] = -CUDART_INF_F, l_i[i][half] = 0.f;
    load_strided_rows<BLOCK_M, D, THREADS>(sQ, q, D, m0, M);
    load_strided_rows<BLOCK_N, D, THREADS>(sK, k, D, 0, N);
    cp_async_commit();
    for (int tile = 0; tile < tiles; ++tile) {
        const int n0 = tile * BLOCK_N;
        cp_async_wait<0>();
        __syncthreads();  // the keys have arrived for all, and all have left those before
        if (tile + 1 < tiles)
            load_strided_rows<BLOCK_N, D, THREADS>(sK + (tile + 1) % 2 * BLOCK_N * D, k, D,
                                                   n0 + BLOCK_N, N);
        cp_async_commit();

        float rS[WARP_M / 16][BLOCK_N / 8][4];
        seen_scores<D, BLOCK_M, BLOCK_N, WARP_M>(rS, sQ, sK + tile % 2 * BLOCK_N * D, tile >= whole,
                                                 first_row, n0, N, offset);
        // A row's maximum so far, and the sum so far beside it.
#pragma unroll
        for (int i = 0; i < WARP_M / 16; ++i)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float m = m_i[i][half];  // of this thread's columns alone, as l is
#pragma unroll
                for (int j = 0; j < BLOCK_N / 8; ++j)
                    m = fmaxf(m, fmaxf(rS[i][j][2 * half], rS[i][j][2 * half + 1]));
                // Where no key was seen the maximum is -inf, and -inf - -inf were NaN.
                const float m_used = m == -CUDART_INF_F ? 0.f : m, m_scaled = m_used * scale;
                float l = l_i[i][half] * exp2_approx((m_i[i][half] - m_used) * scale);
#pragma unroll
                for (int j = 0; j < BLOCK_N / 8; ++j)
#pragma unroll
                    for (int e = 2 * half; e < 2 * half + 2; ++e)
                        l += exp2_approx(rS[i][j][e] * scale - m_scaled);
                m_i[i][half] = m, l_i[i][half] = l;
            }
    }

    // A weight is exp(x - m) / l, of the m and l of all keys: 2^(scale x - shift).
    float shift[WARP_M / 16][2];
#pragma unroll
    for (int i = 0; i < WARP_M / 16; ++i)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float m = reduce_quad(m_i[i][half], Max());
            const float m_used = m == -CUDART_INF_F ? 0.f : m, m_scaled = m_used * scale;
            const float alpha = exp2_approx((m_i[i][half] - m_used) * scale);
            const float l = reduce_quad(l_i[i][half] * alpha, Sum());
            // A query that sees no key gets zeros: 2^(-inf - 0).
            const bool sees = seen_keys(first_row + i * 16 + half * 8, N, offset) > 0;
            shift[i][half] = sees ? m_scaled + log2f(l) : 0.f;
        }

    // Second pass: the same scores again, which become weights at once.
    float rO[WARP_M / 16][D / 8][4] = {};
    cp_async_wait<0>();  // the first keys, of a tile of queries that sees none
    __syncthreads();     // all have left the last keys
    load_strided_rows<BLOCK_N, D, THREADS>(sK, k, D, 0, N);
    cp_async_commit();
    for (int tile = 0; tile < tiles; ++tile) {
        const int n0 = tile * BLOCK_N;
        cp_async_wait<0>();
        __syncthreads();  // the keys have arrived for all, and all have left the values before
        load_strided_rows<BLOCK_N, D, THREADS>(sV, v, D, n0, N);
        cp_async_commit();

        float rS[WARP_M / 16][BLOCK_N / 8][4];
        seen_scores<D, BLOCK_M, BLOCK_N, WARP_M>(rS, sQ, sK, tile >= whole, first_row, n0, N,
                                                 offset);

        cp_async_wait<0>();
        __syncthreads();  // the values have arrived for all, and all have left the keys
        if (tile + 1 < tiles) load_strided_rows<BLOCK_N, D, THREADS>(sK, k, D, n0 + BLOCK_N, N);
        cp_async_commit();

#pragma unroll
        for (int i = 0; i < WARP_M / 16; ++i)
#pragma unroll
            for (int j = 0; j < BLOCK_N / 8; ++j)
#pragma unroll
                for (int e = 0; e < 4; ++e)
                    rS[i][j][e] = exp2_approx(rS[i][j][e] * scale - shift[i][e / 2]);
        unsigned rP[WARP_M / 16][BLOCK_N / 16][4];
        as_operand<T>(rP, rS);
        add_product<D>(rO, rP, sV);
    }
    cp_async_wait<0>();  // of a tile of queries that sees no key too

    __syncthreads();  // all have read q: o leaves through its place
    // Written as one product of three, NVRTC 13 stores o in pieces of four bytes.
    const long long head_size = (long long)M * D;
    store_strided_rows<D, WARP_M>(rO, sQ, o + head * head_size, D, m0, M);
}
