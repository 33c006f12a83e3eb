// Each block owns a BLOCK_M x BLOCK_N tile of C, and each of its warps a 64 x 64 part, held in
// registers as 4 x 8 fragments of mma.m16n8k16. Tiles of A and B travel to shared memory STAGES - 1
// steps of K ahead, a quarter of a tile before each of the four multiplications of a step;
// fragments travel to registers one multiplication ahead, a quarter before each row of mma.
//
// T: the type of the operands, 16 bits wide. ALIGNED: whether rows are whole chunks of 16 bytes.
// BLOCK_M, BLOCK_N: rows and columns of C that a block owns. STEP_K: BLOCK_K, the elements of K in
// a step, as the host has it. STAGES: tiles of A and of B in shared memory. THREADS: of a block.
#include "access.cuh"
#include "async_copy.cuh"
#include "mma.cuh"

constexpr int BLOCK_K = 64, WARP_M = 64, WARP_N = 64;
constexpr int PARTS = BLOCK_K / 16;  // a step multiplies so often, and loads a part each time

// Column c of row r of a tile stands in shared memory at column swizzle(r, c). Rows are a multiple
// of 128 bytes long, so that unswizzled the eight chunks of 16 bytes that an ldmatrix reads from
// eight rows would lie in the same banks.
__device__ __forceinline__ int swizzle(int r, int c) {
    return c ^ r % 8 * 8;
}

// Copies part `part` of PARTS of a ROWS x COLS tile from a row-major matrix of `cols` columns to
// shared memory. `src` and `dst` are this thread's first chunk of 16 bytes: neighbours copy
// neighbouring chunks, which is coalesced, and those of a thread are STEP rows apart. Beyond the
// rows and columns left the tile gets zeros, which add nothing to C.
template <bool ALIGNED, int ROWS, int COLS, int STEP, typename T>
__device__ __forceinline__ void load_part(int part, T* dst, const T* src, int rows_left,
                                          int cols_left, int cols) {
    constexpr int COUNT = ROWS / STEP / PARTS;
    static_assert(COUNT * STEP * PARTS == ROWS, "the tile must fall into equal parts");
    static_assert(STEP % 8 == 0, "a thread's chunks must be swizzled alike");
#pragma unroll
    for (int row = part * COUNT * STEP; row < (part + 1) * COUNT * STEP; row += STEP) {
        T* to = dst + row * COLS;
        const T* from = src + row * cols;
        if constexpr (ALIGNED) {  // rows are whole chunks
            cp_async_16(to, from, row < rows_left && 0 < cols_left ? 16 : 0);
        } else {
            for (int k = 0; k < 8; ++k) to[k] = row < rows_left && k < cols_left ? from[k] : T(0.f);
        }
    }
}

template <typename T, bool ALIGNED, int BLOCK_M, int BLOCK_N, int STEP_K, int STAGES, int THREADS>
__global__ void __launch_bounds__(THREADS)
    matmul_tensor_core_kernel(const T* __restrict__ A, const T* __restrict__ B, T* __restrict__ C,
                              int M, int N, int K) {
    static_assert(THREADS / 32 * WARP_M * WARP_N == BLOCK_M * BLOCK_N, "a warp for each 64 x 64");
    static_assert(STEP_K == BLOCK_K, "the host must have the same");
    extern __shared__ __align__(128) unsigned char shared[];
    constexpr int A_TILE = BLOCK_M * BLOCK_K, B_TILE = BLOCK_K * BLOCK_N;
    constexpr int STAGE_SIZE = A_TILE + B_TILE;  // a tile of A, then a tile of B
    T* sAB = reinterpret_cast<T*>(shared);       // [STAGES][STAGE_SIZE]

    const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32;
    const int warp_m = warp % (BLOCK_M / WARP_M) * WARP_M,
              warp_n = warp / (BLOCK_M / WARP_M) * WARP_N;
    const int m0 = blockIdx.y * BLOCK_M, n0 = blockIdx.x * BLOCK_N;
    const int steps = (K + BLOCK_K - 1) / BLOCK_K;

    // This thread's first chunk of each tile.
    constexpr int STEP_A = THREADS / (BLOCK_K / 8), STEP_B = THREADS / (BLOCK_N / 8);
    const int row_a = tid / (BLOCK_K / 8), col_a = tid % (BLOCK_K / 8) * 8;
    const int row_b = tid / (BLOCK_N / 8), col_b = tid % (BLOCK_N / 8) * 8;
    const T* src_a = A + (long long)(m0 + row_a) * K + col_a;
    const T* src_b = B + (long long)row_b * N + n0 + col_b;
    T* dst_a = sAB + row_a * BLOCK_K + swizzle(row_a, col_a);
    T* dst_b = sAB + A_TILE + row_b * BLOCK_N + swizzle(row_b, col_b);
    int step_ahead = 0;  // the step whose tiles are being loaded: beyond the last, they are zeros
    // In the loop over steps, the stage that is filled is that of the step before: the barrier that
    // ended it says that all warps have left the stage.
    auto load = [&](int part) {
        const int stage = step_ahead % STAGES, k_left = K - step_ahead * BLOCK_K;
        load_part<ALIGNED, BLOCK_M, BLOCK_K, STEP_A>(part, dst_a + stage * STAGE_SIZE, src_a,
                                                     M - m0 - row_a, k_left - col_a, K);
        load_part<ALIGNED, BLOCK_K, BLOCK_N, STEP_B>(part, dst_b + stage * STAGE_SIZE, src_b,
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
        offs_a[part] = (warp_m + frag_row) * BLOCK_K + swizzle(frag_row, part * 16 + frag_col);
#pragma unroll
    for (int j = 0; j < WARP_N / 16; ++j)
        offs_b[j] = A_TILE + frag_row * BLOCK_N + warp_n + swizzle(frag_row, j * 16 + frag_col);

    // The fragments in use and the next ones, which are loaded by 16 rows of A and 16 columns of B.
    unsigned rA[2][WARP_M / 16][4], rB[2][WARP_N / 8][2];
    static_assert(WARP_M == WARP_N, "as many rows of A as columns of B");
    auto load_fragments = [&](int buffer, int part, int i) {
        ldmatrix_x4(rA[buffer][i], sAB + offs_a[part] + i * 16 * BLOCK_K);
        unsigned r[4];  // two fragments: B's rows become the columns that mma wants
        ldmatrix_x4_trans(r, sAB + offs_b[i] + part * 16 * BLOCK_N);
        rB[buffer][2 * i][0] = r[0], rB[buffer][2 * i][1] = r[1];
        rB[buffer][2 * i + 1][0] = r[2], rB[buffer][2 * i + 1][1] = r[3];
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
    float rC[WARP_M / 16][WARP_N / 8][4] = {};
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

    // C leaves through shared memory, so that a warp stores whole rows of its part, 128 bytes each.
    // Of a fragment, lane l holds columns l % 4 * 2 + {0, 1} of rows l / 4 and l / 4 + 8. Copies of
    // steps beyond the last write zeros to the tiles: they must end before C comes there.
    cp_async_wait<0>();
    __syncthreads();  // nobody needs the tiles any more
    T* sC = reinterpret_cast<T*>(shared) + warp * WARP_M * WARP_N;
#pragma unroll
    for (int i = 0; i < WARP_M / 16; ++i)
#pragma unroll
        for (int j = 0; j < WARP_N / 8; ++j)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int row = i * 16 + h * 8 + lane / 4, col = j * 8 + lane % 4 * 2;
                const Pack<T, 2> pair = {T(rC[i][j][2 * h]), T(rC[i][j][2 * h + 1])};
                store_pack(sC + row * WARP_N + swizzle(row, col), pair);
            }
    // Each warp reads what its own lanes have written, so no barrier of the block is needed.
    __syncwarp();
#pragma unroll
    for (int row = lane / 8; row < WARP_M; row += 4) {
        const int col = lane % 8 * 8, m = m0 + warp_m + row, n = n0 + warp_n + col;
        const T* from = sC + row * WARP_N + swizzle(row, col);
        T* to = C + (long long)m * N + n;
        if constexpr (ALIGNED) {
            if (m < M && n < N) store_pack(to, load_pack<8>(from));
        } else {
            for (int k = 0; k < 8; ++k)
                if (m < M && n + k < N) to[k] = from[k];
        }
    }
}
