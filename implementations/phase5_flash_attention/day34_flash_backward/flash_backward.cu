// A block owns BLOCK_N keys of a head, for dK and dV, and walks over the queries that see them.
// Each step makes the weights and their gradients once, for all three gradients: five products,
// where kernels that own keys and then queries need seven. What a step gives to dQ is added to an
// fp32 workspace, in the order of the key tiles, so that the sums are always the same: a block
// waits for its turn at a tile of queries. The last of those that add to it writes the rows of dQ.
//
// The price: the workspace is read and written once for each tile of keys, which takes 8 bytes of
// L2's traffic for each element of Q, and in each step two threads of a block wait for L2, one for
// the counter, one until what the block has added is there for all.
//
// T: the type of all tensors but lse and delta, 16 bits wide; dO, where it is an input, is `do`
// elsewhere. D: elements of a row. BLOCK_M, BLOCK_N: queries and keys of a tile. WARP_N: keys of a
// warp. THREADS: of a block. IN_TURN: as said above; if not, blocks add to sums of zeros as they
// arrive, the bits of dQ change from run to run, and a second kernel makes dQ of the sums.
//
// H: heads of k and v, each for `group` neighbouring ones of q. offset: query i of a head sees its
// keys j <= i + offset. sums, turns: for each tile of queries of each head of q BLOCK_M x D floats,
// in the order of the registers, which need no value if in turn, and the number of key tiles that
// have been added, from 0 on. stride_qb, stride_qh, stride_qm: elements of q from a batch, a head
// and a row to the next; the other tensors have such as well.
#include "attention.cuh"
#include "turnstile.cuh"

constexpr float LOG2_E = 1.44269504088896f;

// rC += A^T @ B of tiles in shared memory, with as many rows: of each warp its WARP_M x WARP_N
// part, WARPS_M of them across A's BLOCK_M columns. B has COLS columns. A's fragments are
// transposed on their way into the registers, as B's are.
template <int DEPTH, int BLOCK_M, int COLS, int WARP_M, int WARP_N, typename T>
__device__ __forceinline__ void add_transposed(float (&rC)[WARP_M / 16][WARP_N / 8][4], const T* sA,
                                               const T* sB) {
    constexpr int WARPS_M = BLOCK_M / WARP_M;
    const int lane = opaque(threadIdx.x % 32), warp = threadIdx.x / 32;
    const int row_a = lane % 8 + lane / 16 * 8, col_a = warp % WARPS_M * WARP_M + lane / 8 % 2 * 8;
    const int row_b = lane % 16, col_b = warp / WARPS_M * WARP_N + lane / 16 * 8;
    sA += row_a * BLOCK_M, sB += row_b * COLS;
#pragma unroll
    for (int k = 0; k < DEPTH; k += 16) {
        unsigned rA[WARP_M / 16][4];
#pragma unroll
        for (int i = 0; i < WARP_M / 16; ++i)
            ldmatrix_x4_trans(rA[i], sA + swizzle<BLOCK_M>(row_a, col_a + i * 16) + k * BLOCK_M);
#pragma unroll
        for (int j = 0; j < WARP_N / 8; j += 2) {
            unsigned r[4];  // two fragments
            ldmatrix_x4_trans(r, sB + swizzle<COLS>(row_b, col_b + j * 8) + k * COLS);
            const unsigned rB[2][2] = {{r[0], r[1]}, {r[2], r[3]}};
#pragma unroll
            for (int i = 0; i < WARP_M / 16; ++i) {
                mma_m16n8k16<T>(rC[i][j], rA[i], rB[0]);
                mma_m16n8k16<T>(rC[i][j + 1], rA[i], rB[1]);
            }
        }
    }
}

// Starts the copies of the first `rows` rows of a and of b, whose rows are `stride_a` and
// `stride_b` elements apart: tiles of ROWS rows, one behind the other. Of the thread's places,
// which a loop would keep in registers, nothing stays.
template <int ROWS, int D, int THREADS, typename T>
__device__ __forceinline__ void load_pair(T* tiles, const T* a, int stride_a, const T* b,
                                          int stride_b, int rows) {
    constexpr int CHUNKS = D / 8, STEP = THREADS / CHUNKS;  // chunks of a row; rows at once
    const int tid = opaque(threadIdx.x);
    const int row = tid / CHUNKS, col = tid % CHUNKS * 8;
    T* dst = tiles + row * D + swizzle<D>(row, col);
    a += (long long)row * stride_a + col;
    b += (long long)row * stride_b + col;
#pragma unroll
    for (int i = 0; i < ROWS; i += STEP) {
        const int bytes = row + i < rows ? 16 : 0;
        cp_async_16(dst + i * D, a + i * stride_a, bytes);
        cp_async_16(dst + (ROWS + i) * D, b + i * stride_b, bytes);
    }
}

// Of a tile of dQ a warp makes a part of WARP_M rows and FRAGMENTS * 8 columns. Its sums lie in
// packs of a thread, of which a warp moves 512 bytes that lie together.
constexpr int WARP_M = 32;

template <int FRAGMENTS>
__device__ __forceinline__ void load_sums(float (&rdQ)[WARP_M / 16][FRAGMENTS][4],
                                          const float* sum) {
#pragma unroll
    for (int p = 0; p < WARP_M / 16 * FRAGMENTS; ++p) {
        const Pack<float, 4> pack = load_pack<4>(sum + p * 128);
#pragma unroll
        for (int e = 0; e < 4; ++e) rdQ[p / FRAGMENTS][p % FRAGMENTS][e] = pack.v[e];
    }
}

// The part of warp `warp` of the tile of rows m0, m0 + 1, ... of a head's dQ, of which it has M.
template <int BLOCK_M, typename T, int FRAGMENTS>
__device__ __forceinline__ void store_queries(const float (&rdQ)[WARP_M / 16][FRAGMENTS][4], T* dq,
                                              int stride_dqm, int m0, int M, float sm_scale,
                                              int lane, int warp) {
    const int row = m0 + warp % (BLOCK_M / WARP_M) * WARP_M + lane / 4;
    const int col = warp / (BLOCK_M / WARP_M) * FRAGMENTS * 8 + lane % 4 * 2;
    dq += (long long)row * stride_dqm + col;
#pragma unroll
    for (int i = 0; i < WARP_M / 16; ++i)
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
            for (int j = 0; j < FRAGMENTS; ++j)
                if (row + i * 16 + half * 8 < M)
                    *reinterpret_cast<unsigned*>(dq + (i * 16 + half * 8) * stride_dqm + j * 8) =
                        pack_pair<T>(rdQ[i][j][2 * half] * sm_scale,
                                     rdQ[i][j][2 * half + 1] * sm_scale);
}

template <typename T, int D, int BLOCK_M, int BLOCK_N, int WARP_N, int THREADS, bool IN_TURN>
__global__ void __launch_bounds__(THREADS)
    flash_backward_kernel(const T* __restrict__ q, const T* __restrict__ k, const T* __restrict__ v,
                          const float* __restrict__ lse, const float* __restrict__ delta,
                          const T* __restrict__ dO, T* __restrict__ dq, T* __restrict__ dk,
                          T* __restrict__ dv, float* __restrict__ sums, int* __restrict__ turns,
                          int H, int group, int M, int N, int offset, long long stride_qb,
                          long long stride_qh, int stride_qm, long long stride_kb,
                          long long stride_kh, int stride_kn, long long stride_vb,
                          long long stride_vh, int stride_vn, long long stride_dob,
                          long long stride_doh, int stride_dom, long long stride_dqb,
                          long long stride_dqh, int stride_dqm, long long stride_dkb,
                          long long stride_dkh, int stride_dkn, long long stride_dvb,
                          long long stride_dvh, int stride_dvn, float sm_scale) {
    constexpr int STAGE = 2 * BLOCK_M * D;         // a tile of q, then one of dO
    constexpr int WARP_D = BLOCK_M * D / THREADS;  // columns of dQ of a warp
    constexpr int FRAGMENTS = WARP_D / 8, PACKS = WARP_M / 16 * FRAGMENTS;
    static_assert(THREADS >= BLOCK_M, "a thread copies what belongs to a query");
    extern __shared__ __align__(128) unsigned char bytes[];
    T *sK = reinterpret_cast<T*>(bytes), *sV = sK + BLOCK_N * D, *stages = sV + BLOCK_N * D;
    T* sdS = stages + 2 * STAGE;  // transposed: BLOCK_N rows
    float* statistics = reinterpret_cast<float*>(sdS + BLOCK_N * BLOCK_M);  // lse, delta of a stage
    const int tiles_m = (M + BLOCK_M - 1) / BLOCK_M, tiles_n = (N + BLOCK_N - 1) / BLOCK_N;
    // The first keys, which most queries see and which are added first, come first; blocks that run
    // at once belong to many heads, and few of them wait for each other.
    const int heads = gridDim.x / tiles_n, head = blockIdx.x % heads, turn = blockIdx.x / heads;
    const int n0 = turn * BLOCK_N, b = head / H, h = head % H;
    q += b * stride_qb + h * group * stride_qh;  // of the first of its heads
    dO += b * stride_dob + h * group * stride_doh;
    dq += b * stride_dqb + h * group * stride_dqh;
    k += b * stride_kb + h * stride_kh;
    v += b * stride_vb + h * stride_vh;

    // Of each head of q the tiles from that on in which the first query sees the first key.
    const int first_query = max(n0 - offset, 0), first = first_query / BLOCK_M * BLOCK_M;
    const T* from_q = q + (long long)first * stride_qm;  // of the tile that is loaded next
    const T* from_dO = dO + (long long)first * stride_dom;
    auto load = [&](int stage, int g, int m0) {
        T* tiles = stages + stage * STAGE;
        load_pair<BLOCK_M, D, THREADS>(tiles, from_q, stride_qm, from_dO, stride_dom, M - m0);
        float* sLse = statistics + stage * 2 * BLOCK_M;
        const int i = opaque(threadIdx.x);  // not kept from step to step
        if (i < BLOCK_M) {
            const bool taken = m0 + i < M;  // zeros, as beyond of q and dO, add to no sum
            const long long at = taken ? (long long)(head * group + g) * M + m0 + i : 0;
            cp_async_4(sLse + i, lse + at, taken);
            cp_async_4(sLse + BLOCK_M + i, delta + at, taken);
        }
    };

    const float scale = sm_scale * LOG2_E;
    float rdK[WARP_N / 16][D / 8][4] = {}, rdV[WARP_N / 16][D / 8][4] = {};
    int g = first_query < M ? 0 : group, m0 = first;  // of the tile: its head among q's, its rows
    int tile = -1;                                    // which of all it is
    k += (long long)n0 * stride_kn, v += (long long)n0 * stride_vn;
    load_pair<BLOCK_N, D, THREADS>(sK, k, stride_kn, v, stride_vn, N - n0);
    if (g < group) load(0, g, m0);
    cp_async_commit();
    for (int step = 0; g < group; ++step) {
        cp_async_wait<0>();
        __syncthreads();  // the tiles have arrived for all, and all have left the other stage
        if (IN_TURN && tile >= 0 && threadIdx.x == 0)
            pass_turn(turns + tile, turn + 1);  // all have added
        int g_next = g, m_next = m0 + BLOCK_M;
        from_q += (long long)BLOCK_M * stride_qm, from_dO += (long long)BLOCK_M * stride_dom;
        if (m_next >= M) {
            from_q += stride_qh - (long long)(m_next - first) * stride_qm;
            from_dO += stride_doh - (long long)(m_next - first) * stride_dom;
            m_next = first, ++g_next;
        }
        if (!IN_TURN) {  // made anew: to go with the tile takes more registers than there are
            from_q = q + g_next * stride_qh + (long long)m_next * stride_qm;
            from_dO = dO + g_next * stride_doh + (long long)m_next * stride_dom;
        }
        if (g_next < group) load((step + 1) % 2, g_next, m_next);
        cp_async_commit();
        // Of the thread's place, and what follows from it, nothing is kept from step to step.
        const int lane = opaque(threadIdx.x % 32), warp = opaque(threadIdx.x / 32);
        const T* sQ = stages + step % 2 * STAGE;
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
        if (n0 + BLOCK_N > seen_keys(m0, N, offset)) {  // not all queries see all keys
            // Keys are rows of a fragment: a thread holds rows lane / 4 and lane / 4 + 8 of it.
            const int first_key = n0 + warp * WARP_N + lane / 4;
#pragma unroll
            for (int i = 0; i < WARP_N / 16; ++i)
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    // The column from which on queries see the key; none sees one beyond the last.
                    const int key = first_key + i * 16 + half * 8;
                    const int seen = key < N ? key - offset - m0 - lane % 4 * 2 : BLOCK_M;
#pragma unroll
                    for (int j = 0; j < BLOCK_M / 8; ++j)
#pragma unroll
                        for (int e = 0; e < 2; ++e)
                            if (j * 8 + e < seen) rP[i][j][2 * half + e] = 0.f;
                }
        }
        // Its place does not stay in registers beside the scores.
        const T* sdO = stages + opaque(step) % 2 * STAGE + BLOCK_M * D;
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
        const int row0 = warp * WARP_N + lane / 4, col0 = lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < WARP_N / 16; ++i)
#pragma unroll
            for (int j = 0; j < BLOCK_M / 16; ++j)
#pragma unroll
                for (int e = 0; e < 4; ++e) {  // eight rows of four lanes lie in different banks
                    const int row = row0 + i * 16 + e % 2 * 8, col = j * 16 + e / 2 * 8 + col0;
                    *reinterpret_cast<unsigned*>(sdS + row * BLOCK_M + swizzle<BLOCK_M>(row, col)) =
                        operand[i][j][e];
                }

        tile = (head * group + g) * tiles_m + m0 / BLOCK_M;
        // Not the thread that passes turns, whose fence takes as long.
        if (IN_TURN && threadIdx.x == THREADS - 1) wait_turn(turns + tile, turn);
        __syncthreads();  // dS has been written, and it is the block's turn
        float* sum = sums + (long long)tile * (BLOCK_M * D) + (warp * PACKS * 32 + lane) * 4;
        float rdQ[WARP_M / 16][FRAGMENTS][4] = {};
        if (IN_TURN && turn > 0) load_sums(rdQ, sum);
        add_product<D>(rdK, operand, sQ);  // while the sums are on their way
        add_transposed<BLOCK_N, BLOCK_M, D, WARP_M, WARP_D>(rdQ, sdS, sK);
        if (!IN_TURN || n0 + BLOCK_N < seen_keys(min(m0 + BLOCK_M, M) - 1, N, offset)) {
#pragma unroll
            for (int p = 0; p < PACKS; ++p) {
                const auto& c = rdQ[p / FRAGMENTS][p % FRAGMENTS];
                const Pack<float, 4> pack = {{c[0], c[1], c[2], c[3]}};
                if (IN_TURN)
                    store_pack(sum + p * 128, pack);
                else
                    add_pack(sum + p * 128, pack);
            }
        } else {  // no query of the tile sees a later key
            T* of_head = dq + g * stride_dqh;
            store_queries<BLOCK_M>(rdQ, of_head, stride_dqm, m0, M, sm_scale, lane, warp);
        }
        g = g_next, m0 = m_next;
    }
    cp_async_wait<0>();  // of keys that no query sees too
    __syncthreads();  // all copies have arrived: the gradients leave through the place of k and v
    if (IN_TURN && tile >= 0 && threadIdx.x == 0) pass_turn(turns + tile, turn + 1);

#pragma unroll
    for (auto& row : rdK)
#pragma unroll
        for (auto& c : row)
#pragma unroll
            for (float& x : c) x *= sm_scale;
    const int same_head = opaque(blockIdx.x) % heads;  // not kept through the loop
    dk += same_head / H * stride_dkb + same_head % H * stride_dkh;
    dv += same_head / H * stride_dvb + same_head % H * stride_dvh;
    store_strided_rows<D, WARP_N>(rdK, sK, dk, stride_dkn, n0, N);
    store_strided_rows<D, WARP_N>(rdV, sV, dv, stride_dvn, n0, N);
}

// dQ of the sums, to which blocks have added as they arrived. A block owns a tile of queries.
template <typename T, int D, int BLOCK_M, int THREADS>
__global__ void __launch_bounds__(THREADS)
    round_sums_kernel(const float* __restrict__ sums, T* __restrict__ dq, int H, int M,
                      long long stride_dqb, long long stride_dqh, int stride_dqm, float sm_scale) {
    constexpr int FRAGMENTS = BLOCK_M * D / THREADS / 8, PACKS = WARP_M / 16 * FRAGMENTS;
    const int tiles_m = (M + BLOCK_M - 1) / BLOCK_M, tile = blockIdx.x, head = tile / tiles_m;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    dq += head / H * stride_dqb + head % H * stride_dqh;
    float rdQ[WARP_M / 16][FRAGMENTS][4];
    load_sums(rdQ, sums + (long long)tile * (BLOCK_M * D) + (warp * PACKS * 32 + lane) * 4);
    store_queries<BLOCK_M>(rdQ, dq, stride_dqm, tile % tiles_m * BLOCK_M, M, sm_scale, lane, warp);
}
