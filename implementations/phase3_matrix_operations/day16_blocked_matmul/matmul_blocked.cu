// Each block owns a BLOCK_M x BLOCK_N tile of C, each of its warps a WARP_M x WARP_N part, and each
// thread WARP_M / 8 rows and WARP_N / 4 columns of that in registers. Tiles of A and B travel to
// shared memory STAGES - 1 steps of K ahead. From there to registers travel rows of B, one k ahead,
// and rows of A, four k of a row at once, each as soon as the row's last four are used up.
//
// ALIGNED: whether rows are whole chunks of 16 bytes. BLOCK_M, BLOCK_N: rows and columns of C that
// a block owns. BLOCK_K: elements of K in a step. WARP_M, WARP_N: rows and columns of a warp.
// STAGES: tiles of A and of B in shared memory. THREADS: of a block.
#include "access.cuh"
#include "async_copy.cuh"

// Copies a ROWS x COLS tile from a row-major matrix of `cols` columns to shared memory, where rows
// are PITCH elements apart. `src` and `dst` are this thread's first chunk of 16 bytes: neighbours
// copy neighbouring chunks, which is coalesced, and those of a thread are STEP rows apart. Beyond
// the rows and columns left the tile gets zeros, which add nothing to C.
template <bool ALIGNED, int ROWS, int PITCH, int STEP>
__device__ __forceinline__ void load_tile(float* dst, const float* src, int rows_left,
                                          int cols_left, int cols) {
    static_assert(ROWS % STEP == 0, "each thread must copy as many chunks");
#pragma unroll
    for (int row = 0; row < ROWS; row += STEP) {
        float* to = dst + row * PITCH;
        const float* from = src + (long long)row * cols;
        if constexpr (ALIGNED) {  // rows are whole chunks
            cp_async_16(to, from, row < rows_left && 0 < cols_left ? 16 : 0);
        } else {
            for (int k = 0; k < 4; ++k) to[k] = row < rows_left && k < cols_left ? from[k] : 0.f;
        }
    }
}

template <bool ALIGNED, int BLOCK_M, int BLOCK_N, int BLOCK_K, int WARP_M, int WARP_N, int STAGES,
          int THREADS>
__global__ void __launch_bounds__(THREADS)
    matmul_blocked_kernel(const float* __restrict__ A, const float* __restrict__ B,
                          float* __restrict__ C, int M, int N, int K) {
    static_assert(THREADS / 32 * WARP_M * WARP_N == BLOCK_M * BLOCK_N, "a warp for each part");
    // Eight rows of A lie in different banks: PITCH / 4 is odd, and a chunk takes four banks.
    constexpr int PITCH = BLOCK_K + 4;
    constexpr int A_TILE = BLOCK_M * PITCH, STAGE_SIZE = A_TILE + BLOCK_K * BLOCK_N;
    constexpr int ROWS = WARP_M / 8, PACKS = WARP_N / 16;  // of a thread; a pack is four columns
    extern __shared__ __align__(16) float sAB[];           // [STAGES][STAGE_SIZE]: of A, of B

    // All blocks along x, where a grid may have 2^31 - 1 of them; along y only 65535.
    const unsigned pid = blockIdx.x, blocks_n = (N + BLOCK_N - 1) / BLOCK_N;
    const int m0 = pid / blocks_n * BLOCK_M, n0 = pid % blocks_n * BLOCK_N;
    const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32;
    const int steps = (K + BLOCK_K - 1) / BLOCK_K;

    // This thread's first chunk of each tile.
    constexpr int STEP_A = THREADS / (BLOCK_K / 4), STEP_B = THREADS / (BLOCK_N / 4);
    const int row_a = tid / (BLOCK_K / 4), col_a = tid % (BLOCK_K / 4) * 4;
    const int row_b = tid / (BLOCK_N / 4), col_b = tid % (BLOCK_N / 4) * 4;
    const float* src_a = A + (long long)(m0 + row_a) * K + col_a;
    const float* src_b = B + (long long)row_b * N + n0 + col_b;
    float* dst_a = sAB + row_a * PITCH + col_a;
    float* dst_b = sAB + A_TILE + row_b * BLOCK_N + col_b;
    int step_ahead = 0;  // the step whose tiles are being loaded: beyond the last, they are zeros
    // In the loop over steps, the stage that is filled is that of the step before: the barrier that
    // ended it says that all warps have left the stage.
    auto load = [&] {
        const int stage = step_ahead % STAGES, k_left = K - step_ahead * BLOCK_K;
        load_tile<ALIGNED, BLOCK_M, PITCH, STEP_A>(dst_a + stage * STAGE_SIZE, src_a,
                                                   M - m0 - row_a, k_left - col_a, K);
        load_tile<ALIGNED, BLOCK_K, BLOCK_N, STEP_B>(dst_b + stage * STAGE_SIZE, src_b,
                                                     k_left - row_b, N - n0 - col_b, N);
        cp_async_commit();
        ++step_ahead;
        src_a += BLOCK_K;
        src_b += (long long)BLOCK_K * N;
    };

    // A warp's lanes are 8 x 4, in squares of two: lanes that differ in bit 0 take neighbouring
    // rows of A, in bit 1 neighbouring packs of B. So each half of a warp reads eight chunks of A,
    // or two of B, at once: where neighbours share their chunks in this way, a half takes one turn.
    const int row = warp % (BLOCK_M / WARP_M) * WARP_M + (lane & 1) + lane / 4 % 4 * 2;
    const int col = warp / (BLOCK_M / WARP_M) * WARP_N + (lane / 2 % 2 + lane / 16 * 2) * 4;
    const float* frag_a = sAB + row * PITCH;
    const float* frag_b = sAB + A_TILE + col;

    Pack<float> rA[ROWS], rB[2][PACKS];  // four k of A's rows; B's row k, and the next one
    auto load_a = [&](int k, int i) { rA[i] = load_pack<4>(frag_a + i * 8 * PITCH + k); };
    auto load_b = [&](int k) {
#pragma unroll
        for (int j = 0; j < PACKS; ++j) rB[k % 2][j] = load_pack<4>(frag_b + k * BLOCK_N + j * 16);
    };

    for (int step = 0; step < STAGES - 1; ++step) load();
    // The wait is for this thread's copies, the barrier for those of all others.
    cp_async_wait<STAGES - 2>();
    __syncthreads();  // stage 0 has arrived for all
#pragma unroll
    for (int i = 0; i < ROWS; ++i) load_a(0, i);
    load_b(0);

    float rC[ROWS][PACKS * 4] = {};
    for (int step = 0; step < steps; ++step) {
        load();
#pragma unroll
        for (int k = 0; k < BLOCK_K; ++k) {
            // The last row of this stage is in registers: the next one comes from the next stage.
            if (k == BLOCK_K - 1) {
                cp_async_wait<STAGES - 2>();
                __syncthreads();  // the next stage has arrived for all, and all have left this one
                const int stride =
                    step % STAGES < STAGES - 1 ? STAGE_SIZE : -(STAGES - 1) * STAGE_SIZE;
                frag_a += stride, frag_b += stride;
            }
            load_b((k + 1) % BLOCK_K);
#pragma unroll
            for (int i = 0; i < ROWS; ++i) {
#pragma unroll
                for (int n = 0; n < PACKS * 4; ++n) {
                    // To and fro: a row begins with the element of B that the last one ended with.
                    // An element of each pack in turn: so fewer registers are of one bank.
                    const int at = (i + k) % 2 == 0 ? n : PACKS * 4 - 1 - n;
                    const int j = at % PACKS, e = at / PACKS;
                    rC[i][j * 4 + e] += rA[i].v[k % 4] * rB[k % 2][j].v[e];
                }
                if (k % 4 == 3) load_a((k + 1) % BLOCK_K, i);
            }
        }
    }
    cp_async_wait<0>();  // steps beyond the last: nothing may be under way when the block ends

    // Element by element: to be stored as packs, four accumulators would have to lie in
    // neighbouring registers, as B's packs do, and each in the same bank as the element of B that
    // it is added to a multiple of. The two would be read one after the other in every
    // multiplication.
#pragma unroll
    for (int i = 0; i < ROWS; ++i)
#pragma unroll
        for (int n = 0; n < PACKS * 4; ++n) {
            const int m = m0 + row + i * 8, at = n0 + col + n / 4 * 16 + n % 4;
            if (m < M && at < N) C[(long long)m * N + at] = rC[i][n];
        }
}
