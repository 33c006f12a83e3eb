// Two kernels. In the first a block owns BLOCK_N keys of a head, for dK and dV, and walks over the
// queries that see them; in the second it owns BLOCK_M queries, for dQ, and walks over the keys
// that they see. So each gradient is summed by one block, in an order that is always the same; the
// price is that the weights and their gradients are made twice.
//
// T: the type of all tensors but lse and delta, 16 bits wide; dO, where it is an input, is `do`
// elsewhere. D: elements of a row. BLOCK_M, BLOCK_N: queries and keys of a tile. WARP_M, WARP_N:
// queries or keys of a warp. THREADS: of a block.
//
// H: heads of k and v, each for `group` neighbouring ones of q. offset: query i of a head sees its
// keys j <= i + offset.
#include "attention.cuh"

constexpr float LOG2_E = 1.44269504088896f;

template <typename T, int D, int BLOCK_M, int BLOCK_N, int WARP_N, int THREADS>
__global__ void __launch_bounds__(THREADS)
    flash_backward_dk_dv_kernel(const T* __restrict__ q, const T* __restrict__ k,
                                const T* __restrict__ v, const float* __restrict__ lse,
                                const float* __restrict__ delta, const T* __restrict__ dO,
                                T* __restrict__ dk, T* __restrict__ dv, int group, int M, int N,
                                int offset, float sm_scale) {
    constexpr int STAGE = 2 * BLOCK_M * D;  // a tile of q, then one of dO
    static_assert(THREADS >= BLOCK_M, "a thread copies what belongs to a query");
    extern __shared__ __align__(128) unsigned char bytes[];
    T *sK = reinterpret_cast<T*>(bytes), *sV = sK + BLOCK_N * D, *stages = sV + BLOCK_N * D;
    float* statistics =
        reinterpret_cast<float*>(stages + 2 * STAGE);  // of each stage lse and delta
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int tiles_n = (N + BLOCK_N - 1) / BLOCK_N, head = blockIdx.x / tiles_n;
    const int n0 = blockIdx.x % tiles_n * BLOCK_N;  // the first keys, which most queries see, first
    k += (long long)head * N * D;
    v += (long long)head * N * D;

    // Of each head of q the tiles from that on in which the first query sees the first key.
    const int first = max(n0 - offset, 0) / BLOCK_M * BLOCK_M;
    const int tiles = max((M - first + BLOCK_M - 1) / BLOCK_M, 0), steps = group * tiles;
    long long row0 = (long long)head * group * M;  // where the head of the tile begins
    auto load = [&](int stage, int m0) {
        T *sQ = stages + stage * STAGE, *sdO = sQ + BLOCK_M * D;
        load_rows<BLOCK_M, D, THREADS>(sQ, q + row0 * D, m0, M);
        load_rows<BLOCK_M, D, THREADS>(sdO, dO + row0 * D, m0, M);
        float* sLse = statistics + stage * 2 * BLOCK_M;
        const int i = threadIdx.x;
        if (i < BLOCK_M) {
            const bool taken = m0 + i < M;  // zeros, as beyond of q and dO, add to no sum
            const long long at = taken ? row0 + m0 + i : 0;
            cp_async_4(sLse + i, lse + at, taken);
            cp_async_4(sLse + BLOCK_M + i, delta + at, taken);
        }
    };

    const float scale = sm_scale * LOG2_E;
    float rdK[WARP_N / 16][D / 8][4] = {}, rdV[WARP_N / 16][D / 8][4] = {};
    load_rows<BLOCK_N, D, THREADS>(sK, k, n0, N);
    load_rows<BLOCK_N, D, THREADS>(sV, v, n0, N);
    if (steps > 0) load(0, first);
    cp_async_commit();
    for (int step = 0, m0 = first; step < steps; ++step) {
        cp_async_wait<0>();
        __syncthreads();  // the tiles have arrived for all, and all have left the other stage
        int m_next = m0 + BLOCK_M;
        if (m_next >= M) m_next = first, row0 += M;  // of the next head
        if (step + 1 < steps) load((step + 1) % 2, m_next);
        cp_async_commit();
        const T *sQ = stages + step % 2 * STAGE, *sdO = sQ + BLOCK_M * D;
        const float* sLse = statistics + step % 2 * 2 * BLOCK_M + lane % 4 * 2;
        const float* sDelta = sLse + BLOCK_M;

        float rP[WARP_N / 16][BLOCK_M / 8][4];
        multiply_rows<BLOCK_N, D, WARP_N, BLOCK_M>(rP, sK, sQ);  // scores, transposed
#pragma unroll
        for (int j = 0; j < BLOCK_M / 8; ++j) {
            const Pack<float, 2> of_queries = load_pack<2>(sLse + j * 8);
#pragma unroll
            for (int i = 0; i < WARP_N / 16; ++i)
#pragma unroll
                for (int e = 0; e < 4; ++e)
                    rP[i][j][e] = exp2_approx(rP[i][j][e] * scale - of_queries.v[e % 2] * LOG2_E);
        }
        if (n0 + BLOCK_N - 1 > m0 + offset) {  // not all queries see all keys
            // Keys are rows of a fragment: a thread holds rows lane / 4 and lane / 4 + 8 of it.
            const int first_key = n0 + warp * WARP_N + lane / 4;
#pragma unroll
            for (int i = 0; i < WARP_N / 16; ++i)
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    // The column from which on queries see the key.
                    const int seen = first_key + i * 16 + half * 8 - offset - m0 - lane % 4 * 2;
#pragma unroll
                    for (int j = 0; j < BLOCK_M / 8; ++j)
#pragma unroll
                        for (int e = 0; e < 2; ++e)
                            if (j * 8 + e < seen) rP[i][j][2 * half + e] = 0.f;
                }
        }
        unsigned operand[WARP_N / 16][BLOCK_M / 16][4];
        as_operand<T>(operand, rP);
        add_product<D>(rdV, operand, sdO);

        float rdS[WARP_N / 16][BLOCK_M / 8][4];
        multiply_rows<BLOCK_N, D, WARP_N, BLOCK_M>(rdS, sV, sdO);  // dP, transposed
#pragma unroll
        for (int j = 0; j < BLOCK_M / 8; ++j) {
            const Pack<float, 2> of_queries = load_pack<2>(sDelta + j * 8);
#pragma unroll
            for (int i = 0; i < WARP_N / 16; ++i)
#pragma unroll
                for (int e = 0; e < 4; ++e)
                    rdS[i][j][e] = rP[i][j][e] * (rdS[i][j][e] - of_queries.v[e % 2]);
        }
        as_operand<T>(operand, rdS);
        add_product<D>(rdK, operand, sQ);
        m0 = m_next;
    }
    cp_async_wait<0>();  // of keys that no query sees too
    __syncthreads();  // all copies have arrived: the gradients leave through the place of k and v

#pragma unroll
    for (auto& row : rdK)
#pragma unroll
        for (auto& c : row)
#pragma unroll
            for (float& x : c) x *= sm_scale;
    store_strided_rows<D, WARP_N>(rdK, sK, dk + (long long)head * N * D, D, n0, N);
    store_strided_rows<D, WARP_N>(rdV, sV, dv + (long long)head * N * D, D, n0, N);
}

template <typename T, int D, int BLOCK_M, int BLOCK_N, int WARP_M, int THREADS>
__global__ void __launch_bounds__(THREADS)
    flash_backward_dq_kernel(const T* __restrict__ q, const T* __restrict__ k,
                             const T* __restrict__ v, const float* __restrict__ lse,
                             const float* __restrict__ delta, const T* __restrict__ dO,
                             T* __restrict__ dq, int group, int M, int N, int offset,
                             float sm_scale) {
    constexpr int STAGE = 2 * BLOCK_N * D;  // a tile of k, then one of v
    extern __shared__ __align__(128) unsigned char bytes[];
    T *sQ = reinterpret_cast<T*>(bytes), *sdO = sQ + BLOCK_M * D, *stages = sdO + BLOCK_M * D;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int tiles_m = (M + BLOCK_M - 1) / BLOCK_M, head = blockIdx.x / tiles_m;
    // The last tiles, which see the most keys, come first.
    const int m0 = (tiles_m - 1 - blockIdx.x % tiles_m) * BLOCK_M;
    const long long row0 = (long long)head * M;
    k += (long long)(head / group) * N * D;
    v += (long long)(head / group) * N * D;

    // All queries of the tile see the keys of the first `whole` tiles, some those of `tiles`.
    const int whole = seen_keys(m0, N, offset) / BLOCK_N;
    const int tiles = (seen_keys(min(m0 + BLOCK_M, M) - 1, N, offset) + BLOCK_N - 1) / BLOCK_N;
    auto load = [&](int tile) {
        T* sK = stages + tile % 2 * STAGE;
        load_rows<BLOCK_N, D, THREADS>(sK, k, tile * BLOCK_N, N);
        load_rows<BLOCK_N, D, THREADS>(sK + BLOCK_N * D, v, tile * BLOCK_N, N);
    };

    // Queries are rows of all fragments: of these a thread holds rows lane / 4 and lane / 4 + 8.
    const int first_row = m0 + warp * WARP_M + lane / 4;
    const float scale = sm_scale * LOG2_E;
    float rdQ[WARP_M / 16][D / 8][4] = {}, of_lse[WARP_M / 16][2], of_delta[WARP_M / 16][2];
    load_rows<BLOCK_M, D, THREADS>(sQ, q + row0 * D, m0, M);
    load_rows<BLOCK_M, D, THREADS>(sdO, dO + row0 * D, m0, M);
    if (tiles > 0) load(0);
    cp_async_commit();
#pragma unroll
    for (int i = 0; i < WARP_M / 16; ++i)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = min(first_row + i * 16 + half * 8, M - 1);
            of_lse[i][half] = lse[row0 + row] * LOG2_E, of_delta[i][half] = delta[row0 + row];
        }
    for (int tile = 0; tile < tiles; ++tile) {
        const int n0 = tile * BLOCK_N;
        cp_async_wait<0>();
        __syncthreads();  // the tiles have arrived for all, and all have left the other stage
        if (tile + 1 < tiles) load(tile + 1);
        cp_async_commit();
        const T *sK = stages + tile % 2 * STAGE, *sV = sK + BLOCK_N * D;

        float rP[WARP_M / 16][BLOCK_N / 8][4], rdS[WARP_M / 16][BLOCK_N / 8][4];
        multiply_rows<BLOCK_M, D, WARP_M, BLOCK_N>(rP, sQ, sK);    // scores
        multiply_rows<BLOCK_M, D, WARP_M, BLOCK_N>(rdS, sdO, sV);  // dP
#pragma unroll
        for (int i = 0; i < WARP_M / 16; ++i)
#pragma unroll
            for (int j = 0; j < BLOCK_N / 8; ++j)
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    const float p = exp2_approx(rP[i][j][e] * scale - of_lse[i][e / 2]);
                    rdS[i][j][e] = p * (rdS[i][j][e] - of_delta[i][e / 2]);
                }
        if (tile >= whole) {
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
                            if (j * 8 + e >= left) rdS[i][j][2 * half + e] = 0.f;
                }
        }
        unsigned operand[WARP_M / 16][BLOCK_N / 16][4];
        as_operand<T>(operand, rdS);
        add_product<D>(rdQ, operand, sK);
    }
    cp_async_wait<0>();  // of queries that see no key too
    __syncthreads();     // all copies have arrived: the gradient leaves through the place of q

#pragma unroll
    for (auto& row : rdQ)
#pragma unroll
        for (auto& c : row)
#pragma unroll
            for (float& x : c) x *= sm_scale;
    store_strided_rows<D, WARP_M>(rdQ, sQ, dq + row0 * D, D, m0, M);
}
