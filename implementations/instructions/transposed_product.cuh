// Products of a transposed matrix, as the gradients of keys and values are: a tile of A^T @ B, for
// weights A of which a block reads some columns, from the first query that sees one of them on.
// What differs from tile_product is how A arrives: its tiles have the rows that B's have, and their
// fragments are transposed on their way into the registers. The twin of transposed_product.py.
#pragma once
#include "attention.cuh"

// rC = A[:, m0:m0 + BLOCK_M]^T @ B of row-major A (K, N), in rows of `stride` elements, and B
// (K, BLOCK_N): of each warp its WARP_M x WARP_N part, as fragments of mma.m16n8k16. Row k of A
// counts as zero from column seen_keys(k, N, offset) on. There A holds zeros up to the last
// multiple of 8 that any row of its step reaches, and beyond may hold anything.
//
// T: the type of the operands, 16 bits wide. BLOCK_K: the elements of K in a step. STAGES: tiles of
// A and of B in `shared`, which has STAGES * (BLOCK_M + BLOCK_N) * BLOCK_K elements and starts at a
// multiple of 128 bytes. The block has a warp for each part, and ends with a barrier: the shared
// memory is free then.
//
// Tiles travel to shared memory STAGES - 1 steps ahead, in as many parts as a step has
// multiplications, one before each; fragments travel to registers one multiplication ahead, some
// before each row of mma.
template <int BLOCK_M, int BLOCK_N, int BLOCK_K, int WARP_M, int WARP_N, int STAGES, typename T>
__device__ __forceinline__ void transposed_product(float (&rC)[WARP_M / 16][WARP_N / 8][4],
                                                   T* shared, const T* A, const T* B, int K, int N,
                                                   int stride, int offset, int m0) {
    constexpr int THREADS = BLOCK_M / WARP_M * (BLOCK_N / WARP_N) * 32;
    constexpr int PARTS = BLOCK_K / 16;  // multiplications of a step
    static_assert(PARTS % 2 == 0 && STAGES > 1, "fragments and tiles are loaded ahead");
    constexpr int A_TILE = BLOCK_K * BLOCK_M, B_TILE = BLOCK_K * BLOCK_N;
    constexpr int STAGE_SIZE = A_TILE + B_TILE;  // a tile of A, then a tile of B

    const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32;
    const int warp_m = warp % (BLOCK_M / WARP_M) * WARP_M,
              warp_n = warp / (BLOCK_M / WARP_M) * WARP_N;
    // The step of the first row that sees column m0: those before see none of the tile.
    const int k_begin = max(m0 - offset, 0) / BLOCK_K * BLOCK_K;
    const int steps = (K - k_begin + BLOCK_K - 1) / BLOCK_K;

    // This thread's first chunk of each tile.
    constexpr int STEP_A = THREADS / (BLOCK_M / 8), STEP_B = THREADS / (BLOCK_N / 8);
    const int row_a = tid / (BLOCK_M / 8), col_a = tid % (BLOCK_M / 8) * 8;
    const int row_b = tid / (BLOCK_N / 8), col_b = tid % (BLOCK_N / 8) * 8;
    const T* src_a = A + (long long)(k_begin + row_a) * stride + m0 + col_a;
    const T* src_b = B + (long long)(k_begin + row_b) * BLOCK_N + col_b;
    T* dst_a = shared + row_a * BLOCK_M + swizzle<BLOCK_M>(row_a, col_a);
    T* dst_b = shared + A_TILE + row_b * BLOCK_N + swizzle<BLOCK_N>(row_b, col_b);
    int step_ahead = 0;  // the step whose tiles are being loaded: beyond the last, they are zeros
    // In the loop over steps, the stage that is filled is that of the step before: the barrier that
    // ended it says that all warps have left the stage.
    auto load = [&](int part) {
        const int stage = step_ahead % STAGES, k0 = k_begin + step_ahead * BLOCK_K;
        // Chunks of which no row of the step sees a column are not read: zero times what lies there
        // need not be zero.
        const int seen = seen_keys(min(k0 + BLOCK_K, K) - 1, N, offset);
        load_part<true, BLOCK_K, BLOCK_M, STEP_A, PARTS>(part, dst_a + stage * STAGE_SIZE, src_a,
                                                         K - k0 - row_a, seen - m0 - col_a, stride);
        load_part<true, BLOCK_K, BLOCK_N, STEP_B, PARTS>(part, dst_b + stage * STAGE_SIZE, src_b,
                                                         K - k0 - row_b, BLOCK_N, BLOCK_N);
        if (part == PARTS - 1) {
            cp_async_commit();
            ++step_ahead;
            src_a += (long long)BLOCK_K * stride;
            src_b += BLOCK_K * BLOCK_N;
        }
    };

    // For an ldmatrix, lane l gives the address of row l % 16, column 0 or 8, of A as of B. These
    // addresses are computed once for each 16 columns of a tile, and then moved from stage to
    // stage.
    const int frag_row = lane % 16, frag_col = lane / 16 * 8;
    int offs_a[WARP_M / 16], offs_b[WARP_N / 16];
#pragma unroll
    for (int i = 0; i < WARP_M / 16; ++i)
        offs_a[i] = frag_row * BLOCK_M + swizzle<BLOCK_M>(frag_row, warp_m + i * 16 + frag_col);
#pragma unroll
    for (int j = 0; j < WARP_N / 16; ++j)
        offs_b[j] =
            A_TILE + frag_row * BLOCK_N + swizzle<BLOCK_N>(frag_row, warp_n + j * 16 + frag_col);

    // The fragments in use and the next ones: before row i of mma come 16 columns of A, and of B as
    // many times 16 columns as make all of them.
    unsigned rA[2][WARP_M / 16][4], rB[2][WARP_N / 8][2];
    constexpr int COUNT_B = (WARP_N + WARP_M - 1) / WARP_M;
    auto load_fragments = [&](int buffer, int part, int i) {
        unsigned r[4];
        // The matrices come from rows 0 and 8 of columns 0, then of columns 8. Transposed, these
        // are columns 0 and 8 of rows 0, then of rows 8: mma wants the rows first.
        ldmatrix_x4_trans(r, shared + offs_a[i] + part * 16 * BLOCK_M);
        rA[buffer][i][0] = r[0], rA[buffer][i][1] = r[2];
        rA[buffer][i][2] = r[1], rA[buffer][i][3] = r[3];
#pragma unroll
        for (int j = i * COUNT_B; j < (i + 1) * COUNT_B && j < WARP_N / 16; ++j) {
            // Two fragments: B's rows become the columns that mma wants.
            ldmatrix_x4_trans(r, shared + offs_b[j] + part * 16 * BLOCK_N);
            rB[buffer][2 * j][0] = r[0], rB[buffer][2 * j][1] = r[1];
            rB[buffer][2 * j + 1][0] = r[2], rB[buffer][2 * j + 1][1] = r[3];
        }
    };

    for (int step = 0; step < STAGES - 1; ++step)
#pragma unroll
        for (int part = 0; part < PARTS; ++part) load(part);
    // The wait is for this thread's copies, the barrier for those of all others.
    cp_async_wait<STAGES - 2>();
    __syncthreads();  // stage 0 has arrived for all
#pragma unroll
    for (int i = 0; i < WARP_M / 16; ++i) load_fragments(0, 0, i);

    // fp32: products of 16 bits are exact, and a sum in 16 bits would stop growing.
#pragma unroll
    for (auto& row : rC)
#pragma unroll
        for (auto& c : row) c[0] = c[1] = c[2] = c[3] = 0.f;
    for (int step = 0; step < steps; ++step) {
#pragma unroll
        for (int part = 0; part < PARTS; ++part) {
            const int buffer = part % 2;
            load(part);
            // The last fragments of this stage are in registers: the next come from the next stage.
            if (part == PARTS - 1) {
                cp_async_wait<STAGES - 2>();
                __syncthreads();  // the next stage has arrived for all, and all have left this one
                const int move =
                    step % STAGES < STAGES - 1 ? STAGE_SIZE : -(STAGES - 1) * STAGE_SIZE;
#pragma unroll
                for (int& offs : offs_a) offs += move;
#pragma unroll
                for (int& offs : offs_b) offs += move;
            }
#pragma unroll
            for (int i = 0; i < WARP_M / 16; ++i) {
                load_fragments(buffer ^ 1, (part + 1) % PARTS, i);
#pragma unroll
                for (int j = 0; j < WARP_N / 8; ++j) {
                    // To and fro: a row begins with the fragment of B that the last one ended with.
                    const int n = i % 2 == 0 ? j : WARP_N / 8 - 1 - j;
                    mma_m16n8k16<T>(rC[i][n], rA[buffer][i], rB[buffer][n]);
                }
            }
        }
    }
    // Copies of steps beyond the last write zeros to the tiles: they must end as well.
    cp_async_wait<0>();
    __syncthreads();  // nobody needs the tiles any more
}
