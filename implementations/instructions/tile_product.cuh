// The product of a tile on tensor cores, once for all kernels from Day 18 on: Day 17's main loop,
// and the way by which C leaves. A block owns a BLOCK_M x BLOCK_N tile of C, and each of its warps
// a WARP_M x WARP_N part, held in registers as fragments of mma.m16n8k16. Both functions leave the
// shared memory free for whatever comes next, as they end with a barrier: a block may call them for
// one tile after another. The twin of tile_product.py.
#pragma once
#include "access.cuh"
#include "async_copy.cuh"
#include "mma.cuh"

// Column c of row r of a tile COLS wide stands in shared memory at column swizzle(r, c).
// Unswizzled, the eight chunks of 16 bytes that an ldmatrix reads from eight rows would lie in the
// same banks. Rows shorter than the 128 bytes of all banks share these, so that some are swizzled
// alike.
template <int COLS>
__device__ __forceinline__ int swizzle(int r, int c) {
    constexpr int CHUNKS = COLS < 64 ? COLS / 8 : 8;
    return c ^ r / (8 / CHUNKS) % CHUNKS * 8;
}

// Copies part `part` of PARTS of a ROWS x COLS tile from a row-major matrix of `cols` columns to
// shared memory. `src` and `dst` are this thread's first chunk of 16 bytes: neighbours copy
// neighbouring chunks, which is coalesced, and those of a thread are STEP rows apart. Beyond the
// rows and columns left the tile gets zeros, which add nothing to C.
template <bool ALIGNED, int ROWS, int COLS, int STEP, int PARTS, typename T>
__device__ __forceinline__ void load_part(int part, T* dst, const T* src, int rows_left,
                                          int cols_left, int cols) {
    constexpr int COUNT = ROWS / STEP, COUNT_PART = (COUNT + PARTS - 1) / PARTS;
    static_assert(COUNT * STEP == ROWS, "all threads must have as many chunks");
    static_assert(STEP % 8 == 0, "a thread's chunks must be swizzled alike");
#pragma unroll
    for (int i = part * COUNT_PART; i < (part + 1) * COUNT_PART && i < COUNT; ++i) {
        const int row = i * STEP;
        T* to = dst + row * COLS;
        const T* from = src + (long long)row * cols;
        if constexpr (ALIGNED) {  // rows are whole chunks
            cp_async_16(to, from, row < rows_left && 0 < cols_left ? 16 : 0);
        } else {
            for (int k = 0; k < 8; ++k) to[k] = row < rows_left && k < cols_left ? from[k] : T(0.f);
        }
    }
}

// rC = A[m0:m0 + BLOCK_M, k_begin:k_end] @ B[k_begin:k_end, n0:n0 + BLOCK_N] of row-major A (M, K)
// and B (K, N): of each warp its part. What lies beyond the edges counts as zero.
//
// T: the type of the operands, 16 bits wide. ALIGNED: whether rows of A and B are whole chunks of
// 16 bytes. BLOCK_K: the elements of K in a step, of which k_begin must be a multiple if ALIGNED.
// STAGES: tiles of A and of B in `shared`, which has STAGES * (BLOCK_M + BLOCK_N) * BLOCK_K
// elements and starts at a multiple of 128 bytes. The block has a warp for each part.
//
// Tiles travel to shared memory STAGES - 1 steps ahead, in as many parts as a step has
// multiplications, one before each; fragments travel to registers one multiplication ahead, some
// before each row of mma.
template <bool ALIGNED, int BLOCK_M, int BLOCK_N, int BLOCK_K, int WARP_M, int WARP_N, int STAGES,
          typename T>
__device__ __forceinline__ void tile_product(float (&rC)[WARP_M / 16][WARP_N / 8][4], T* shared,
                                             const T* A, const T* B, int M, int N, int K, int m0,
                                             int n0, int k_begin, int k_end) {
    constexpr int THREADS = BLOCK_M / WARP_M * (BLOCK_N / WARP_N) * 32;
    constexpr int PARTS = BLOCK_K / 16;  // multiplications of a step
    static_assert(PARTS % 2 == 0 && STAGES > 1, "fragments and tiles are loaded ahead");
    constexpr int A_TILE = BLOCK_M * BLOCK_K, B_TILE = BLOCK_K * BLOCK_N;
    constexpr int STAGE_SIZE = A_TILE + B_TILE;  // a tile of A, then a tile of B

    const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32;
    const int warp_m = warp % (BLOCK_M / WARP_M) * WARP_M,
              warp_n = warp / (BLOCK_M / WARP_M) * WARP_N;
    const int depth = k_end - k_begin, steps = (depth + BLOCK_K - 1) / BLOCK_K;

    // This thread's first chunk of each tile.
    constexpr int STEP_A = THREADS / (BLOCK_K / 8), STEP_B = THREADS / (BLOCK_N / 8);
    const int row_a = tid / (BLOCK_K / 8), col_a = tid % (BLOCK_K / 8) * 8;
    const int row_b = tid / (BLOCK_N / 8), col_b = tid % (BLOCK_N / 8) * 8;
    const T* src_a = A + (long long)(m0 + row_a) * K + k_begin + col_a;
    const T* src_b = B + (long long)(k_begin + row_b) * N + n0 + col_b;
    T* dst_a = shared + row_a * BLOCK_K + swizzle<BLOCK_K>(row_a, col_a);
    T* dst_b = shared + A_TILE + row_b * BLOCK_N + swizzle<BLOCK_N>(row_b, col_b);
    int step_ahead = 0;  // the step whose tiles are being loaded: beyond the last, they are zeros
    // In the loop over steps, the stage that is filled is that of the step before: the barrier that
    // ended it says that all warps have left the stage.
    auto load = [&](int part) {
        const int stage = step_ahead % STAGES, k_left = depth - step_ahead * BLOCK_K;
        load_part<ALIGNED, BLOCK_M, BLOCK_K, STEP_A, PARTS>(part, dst_a + stage * STAGE_SIZE, src_a,
                                                            M - m0 - row_a, k_left - col_a, K);
        load_part<ALIGNED, BLOCK_K, BLOCK_N, STEP_B, PARTS>(part, dst_b + stage * STAGE_SIZE, src_b,
                                                            k_left - row_b, N - n0 - col_b, N);
        if (part == PARTS - 1) {
            cp_async_commit();
            ++step_ahead;
            src_a += BLOCK_K;
            src_b += (long long)BLOCK_K * N;
        }
    };

    // For an ldmatrix, lane l gives the address of row l % 16, column 0 or 8. These addresses are
    // computed once for each 16 columns of a tile, and then moved from stage to stage.
    const int frag_row = lane % 16, frag_col = lane / 16 * 8;
    int offs_a[PARTS], offs_b[WARP_N / 16];
#pragma unroll
    for (int part = 0; part < PARTS; ++part)
        offs_a[part] =
            (warp_m + frag_row) * BLOCK_K + swizzle<BLOCK_K>(frag_row, part * 16 + frag_col);
#pragma unroll
    for (int j = 0; j < WARP_N / 16; ++j)
        offs_b[j] =
            A_TILE + frag_row * BLOCK_N + swizzle<BLOCK_N>(frag_row, warp_n + j * 16 + frag_col);

    // The fragments in use and the next ones: before row i of mma come 16 rows of A, and of B as
    // many times 16 columns as make all of them.
    unsigned rA[2][WARP_M / 16][4], rB[2][WARP_N / 8][2];
    constexpr int COUNT_B = (WARP_N + WARP_M - 1) / WARP_M;
    auto load_fragments = [&](int buffer, int part, int i) {
        ldmatrix_x4(rA[buffer][i], shared + offs_a[part] + i * 16 * BLOCK_K);
#pragma unroll
        for (int j = i * COUNT_B; j < (i + 1) * COUNT_B && j < WARP_N / 16; ++j) {
            unsigned r[4];  // two fragments: B's rows become the columns that mma wants
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
                const int stride =
                    step % STAGES < STAGES - 1 ? STAGE_SIZE : -(STAGES - 1) * STAGE_SIZE;
#pragma unroll
                for (int& offs : offs_a) offs += stride;
#pragma unroll
                for (int& offs : offs_b) offs += stride;
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

// C[m0:m0 + BLOCK_M, n0:n0 + BLOCK_N] = rC, rounded, of row-major C (M, N); what lies beyond the
// edges is not stored. ALIGNED: whether rows of C are whole chunks of 16 bytes.
//
// C leaves through `shared`, BLOCK_M * BLOCK_N elements of it, so that a warp stores whole rows of
// its part. Of a fragment, lane l holds columns l % 4 * 2 + {0, 1} of rows l / 4 and l / 4 + 8.
template <bool ALIGNED, int BLOCK_M, int BLOCK_N, int WARP_M, int WARP_N, typename T>
__device__ __forceinline__ void store_tile(const float (&rC)[WARP_M / 16][WARP_N / 8][4], T* shared,
                                           T* C, int M, int N, int m0, int n0) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int warp_m = warp % (BLOCK_M / WARP_M) * WARP_M,
              warp_n = warp / (BLOCK_M / WARP_M) * WARP_N;
    T* sC = shared + warp * WARP_M * WARP_N;
#pragma unroll
    for (int i = 0; i < WARP_M / 16; ++i)
#pragma unroll
        for (int j = 0; j < WARP_N / 8; ++j)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int row = i * 16 + h * 8 + lane / 4, col = j * 8 + lane % 4 * 2;
                const Pack<T, 2> pair = {T(rC[i][j][2 * h]), T(rC[i][j][2 * h + 1])};
                store_pack(sC + row * WARP_N + swizzle<WARP_N>(row, col), pair);
            }
    // Each warp reads what its own lanes have written.
    __syncwarp();
    constexpr int CHUNKS = WARP_N / 8;  // of a row
#pragma unroll
    for (int row = lane / CHUNKS; row < WARP_M; row += 32 / CHUNKS) {
        const int col = lane % CHUNKS * 8, m = m0 + warp_m + row, n = n0 + warp_n + col;
        const T* from = sC + row * WARP_N + swizzle<WARP_N>(row, col);
        T* to = C + (long long)m * N + n;
        if constexpr (ALIGNED) {
            if (m < M && n < N) store_pack(to, load_pack<8>(from));
        } else {
            for (int k = 0; k < 8; ++k)
                if (m < M && n + k < N) to[k] = from[k];
        }
    }
    __syncthreads();  // nobody needs the shared memory any more
}
