// A block owns BLOCK_M queries of a head, and walks over the keys that they see, BLOCK_N at a time;
// a warp owns WARP_M of the queries, and all that belongs to them: scores, weights, statistics and
// the rows of o are registers from the first to the last tile.
//
// T: the type of q, k, v and o, 16 bits wide. D: elements of a row of each. BLOCK_M, BLOCK_N:
// queries and keys of a tile. WARP_M: queries of a warp. THREADS: of a block.
//
// H: heads of q, of which `groups` neighbours share one of k and v. offset: query i of a head sees
// its keys j <= i + offset. stride_qb, stride_qh, stride_qm, ...: elements from a batch, a head and
// a row of q to the next; all are multiples of 8, so that rows start at multiples of 16 bytes.
#include "attention.cuh"

constexpr float LOG2_E = 1.44269504088896f;

template <typename T, int D, int BLOCK_M, int BLOCK_N, int WARP_M, int THREADS>
__global__ void __launch_bounds__(THREADS)
    flash_forward_kernel(const T* __restrict__ q, const T* __restrict__ k, const T* __restrict__ v,
                         T* __restrict__ o, float* __restrict__ lse, int H, int groups, int M,
                         int N, int offset, long long stride_qb, long long stride_qh, int stride_qm,
                         long long stride_kb, long long stride_kh, int stride_kn,
                         long long stride_vb, long long stride_vh, int stride_vn,
                         long long stride_ob, long long stride_oh, int stride_om, float sm_scale) {
    extern __shared__ __align__(128) unsigned char bytes[];
    T *sQ = reinterpret_cast<T*>(bytes), *sK = sQ + BLOCK_M * D, *sV = sK + BLOCK_N * D;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int tiles_m = (M + BLOCK_M - 1) / BLOCK_M, head = blockIdx.x / tiles_m;
    const int b = head / H, h = head % H;
    // The last tiles, which see the most keys, come first.
    const int m0 = (tiles_m - 1 - blockIdx.x % tiles_m) * BLOCK_M;
    q += b * stride_qb + h * stride_qh;
    k += b * stride_kb + h / groups * stride_kh;
    v += b * stride_vb + h / groups * stride_vh;

    // All queries of the tile see the keys of the first `whole` tiles, some those of `tiles`.
    const int whole = seen_keys(m0, N, offset) / BLOCK_N;
    const int tiles = (seen_keys(min(m0 + BLOCK_M, M) - 1, N, offset) + BLOCK_N - 1) / BLOCK_N;

    // Of a fragment, a thread holds two columns of the rows lane / 4 and lane / 4 + 8.
    const int first_row = m0 + warp * WARP_M + lane / 4;
    float rO[WARP_M / 16][D / 8][4] = {};
    float m_i[WARP_M / 16][2], l_i[WARP_M / 16][2];  // of scores as they are, not scaled
#pragma unroll
    for (int i = 0; i < WARP_M / 16; ++i)
#pragma unroll
        for (int half = 0; half < 2; ++half) m_i[i][half] = -CUDART_INF_F, l_i[i][half] = 0.f;
    const float scale = sm_scale * LOG2_E;  // exp(sm_scale x) is 2^(scale x)

    load_strided_rows<BLOCK_M, D, THREADS>(sQ, q, stride_qm, m0, M);
    load_strided_rows<BLOCK_N, D, THREADS>(sK, k, stride_kn, 0, N);
    cp_async_commit();
    for (int tile = 0; tile < tiles; ++tile) {
        const int n0 = tile * BLOCK_N;
        cp_async_wait<0>();
        __syncthreads();  // the keys have arrived for all, and all have left the values before
        load_strided_rows<BLOCK_N, D, THREADS>(sV, v, stride_vn, n0, N);
        cp_async_commit();

        float rS[WARP_M / 16][BLOCK_N / 8][4];
        multiply_rows<BLOCK_M, D, WARP_M, BLOCK_N>(rS, sQ, sK);

        cp_async_wait<0>();
        __syncthreads();  // the values have arrived for all, and all have left the keys
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
                            if (j * 8 + e >= left) rS[i][j][2 * half + e] = -CUDART_INF_F;
                }
        }
        // A row's maximum so far, and what the sums so far are worth beside it.
        float alpha[WARP_M / 16][2];
        bool moved = false;
#pragma unroll
        for (int i = 0; i < WARP_M / 16; ++i)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float m = m_i[i][half];
#pragma unroll
                for (int j = 0; j < BLOCK_N / 8; ++j)
                    m = fmaxf(m, fmaxf(rS[i][j][2 * half], rS[i][j][2 * half + 1]));
                m = reduce_quad(m, Max());
                // Of a row that has seen no key the maximum is -inf, and -inf - -inf were NaN.
                const float m_used = m == -CUDART_INF_F ? 0.f : m, m_scaled = m_used * scale;
                alpha[i][half] = exp2_approx((m_i[i][half] - m_used) * scale);
                moved |= alpha[i][half] < 1.f;
                m_i[i][half] = m;
                float l = l_i[i][half] * alpha[i][half];  // of this thread's columns alone
#pragma unroll
                for (int j = 0; j < BLOCK_N / 8; ++j)
#pragma unroll
                    for (int e = 2 * half; e < 2 * half + 2; ++e) {
                        rS[i][j][e] = exp2_approx(rS[i][j][e] * scale - m_scaled);
                        l += rS[i][j][e];
                    }
                l_i[i][half] = l;
            }
        if (__any_sync(0xFFFFFFFF, moved))  // by the first tiles; later maxima seldom do
#pragma unroll
            for (int i = 0; i < WARP_M / 16; ++i)
#pragma unroll
                for (int j = 0; j < D / 8; ++j)
#pragma unroll
                    for (int e = 0; e < 4; ++e) rO[i][j][e] *= alpha[i][e / 2];
        unsigned rP[WARP_M / 16][BLOCK_N / 16][4];
        as_operand<T>(rP, rS);
        // Not earlier, beside the scores: their registers are those of the addresses.
        if (tile + 1 < tiles)
            load_strided_rows<BLOCK_N, D, THREADS>(sK, k, stride_kn, n0 + BLOCK_N, N);
        cp_async_commit();
        add_product<D>(rO, rP, sV);
    }
    cp_async_wait<0>();  // of a tile of queries that sees no key too

    // Which head it is, anew: the loop leaves no registers in which such things could be kept.
    const int same_head = opaque(blockIdx.x) / tiles_m;
    lse += (long long)same_head * M;
    o += same_head / H * stride_ob + same_head % H * stride_oh;
#pragma unroll
    for (int i = 0; i < WARP_M / 16; ++i)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = first_row + i * 16 + half * 8;
            const float l = reduce_quad(l_i[i][half], Sum());
            // A query that sees no key gets zeros, and the logarithm of no sum, -inf.
            const float share = seen_keys(row, N, offset) > 0 ? 1.f / l : 0.f;
#pragma unroll
            for (int j = 0; j < D / 8; ++j)
#pragma unroll
                for (int e = 2 * half; e < 2 * half + 2; ++e) rO[i][j][e] *= share;
            if (row < M && lane % 4 == 0) lse[row] = m_i[i][half] * sm_scale + logf(l);
        }
    __syncthreads();  // all have read q: o leaves through its place
    store_strided_rows<D, WARP_M>(rO, sQ, o, stride_om, m0, M);
}
