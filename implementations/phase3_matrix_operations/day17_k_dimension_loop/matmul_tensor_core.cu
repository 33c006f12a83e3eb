// A block owns a BLOCK_M x BLOCK_N tile of C, each of its warps a 64 x 64 part, held in registers
// as 4 x 8 fragments of mma.m16n8k16. Tiles of A and B travel to shared memory STAGES - 1 steps of
// K ahead.
#include "ptx.cuh"

constexpr int BLOCK_K = 64, WARP_M = 64, WARP_N = 64;

// Copy a ROWS x COLS tile from the corner `src` of a row-major matrix of `cols` columns to shared
// memory, zeros beyond the `rows_left` and `cols_left` that exist. ALIGNED: rows are whole 16-byte
// chunks. In the tile, chunk c of row r stands at c ^ (r % 8), so that the eight rows an ldmatrix
// reads lie in different banks; a thread's rows are a multiple of 8 apart, which leaves its chunk
// in place.
template <bool ALIGNED, int ROWS, int COLS, int THREADS, typename T>
__device__ __forceinline__ void load_tile(T* tile, const T* src, int rows_left, int cols_left,
                                          int cols) {
    constexpr int STEP = THREADS / (COLS / 8);
    static_assert(STEP % 8 == 0 && ROWS % STEP == 0, "a thread must keep its chunk of the swizzle");
    const int r = threadIdx.x / (COLS / 8),
              c = threadIdx.x % (COLS / 8) * 8;  // coalesced along a row
#pragma unroll
    for (int row = r; row < r + ROWS; row += STEP) {
        T* dst = tile + row * COLS + (c ^ r % 8 * 8);
        if constexpr (ALIGNED) {
            cp_async_16(dst, src + row * cols + c, row < rows_left && c < cols_left ? 16 : 0);
        } else {
            for (int k = 0; k < 8; ++k)
                dst[k] = row < rows_left && c + k < cols_left ? src[row * cols + c + k] : T(0.f);
        }
    }
}

template <typename T, bool ALIGNED, int BLOCK_M, int BLOCK_N, int STAGES>
__global__ void __launch_bounds__(BLOCK_M* BLOCK_N / 128)
    matmul_tensor_core_kernel(const T* __restrict__ A, const T* __restrict__ B, T* __restrict__ C,
                              int M, int N, int K) {
    constexpr int THREADS = BLOCK_M * BLOCK_N / 128;  // a warp for each 64 x 64
    extern __shared__ __align__(128) unsigned char shared[];
    T* sA = reinterpret_cast<T*>(shared);     // [STAGES][BLOCK_M][BLOCK_K]
    T* sB = sA + STAGES * BLOCK_M * BLOCK_K;  // [STAGES][BLOCK_K][BLOCK_N]

    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int warp_m = warp % (BLOCK_M / WARP_M) * WARP_M,
              warp_n = warp / (BLOCK_M / WARP_M) * WARP_N;
    const int m0 = blockIdx.y * BLOCK_M, n0 = blockIdx.x * BLOCK_N;
    const int steps = (K + BLOCK_K - 1) / BLOCK_K;

    auto load = [&](int step) {
        const int stage = step % STAGES, k0 = step * BLOCK_K;
        if (step < steps) {
            load_tile<ALIGNED, BLOCK_M, BLOCK_K, THREADS>(
                sA + stage * BLOCK_M * BLOCK_K, A + (long long)m0 * K + k0, M - m0, K - k0, K);
            load_tile<ALIGNED, BLOCK_K, BLOCK_N, THREADS>(
                sB + stage * BLOCK_K * BLOCK_N, B + (long long)k0 * N + n0, K - k0, N - n0, N);
        }
        cp_async_commit();  // also when empty: the wait below counts groups
    };
    for (int step = 0; step < STAGES - 1; ++step) load(step);

    // this lane's row and, swizzled, column in what it addresses for ldmatrix
    const int lane_row = lane % 16, lane_col = lane / 16 * 8 ^ lane % 8 * 8;
    unsigned rA[2][WARP_M / 16][4], rB[2][WARP_N / 8][2];  // the fragments in use and the next
    auto load_fragments = [&](int buffer, int step, int k) {
        const T* tA = sA + step % STAGES * BLOCK_M * BLOCK_K + (warp_m + lane_row) * BLOCK_K;
        const T* tB = sB + step % STAGES * BLOCK_K * BLOCK_N + (k + lane_row) * BLOCK_N + warp_n;
#pragma unroll
        for (int i = 0; i < WARP_M / 16; ++i)
            ldmatrix_x4(rA[buffer][i], tA + i * 16 * BLOCK_K + (k ^ lane_col));
#pragma unroll
        for (int j = 0; j < WARP_N / 8; j += 2) {
            unsigned r[4];  // two fragments: B's rows become the columns that mma wants
            ldmatrix_x4_trans(r, tB + (j * 8 ^ lane_col));
            rB[buffer][j][0] = r[0], rB[buffer][j][1] = r[1];
            rB[buffer][j + 1][0] = r[2], rB[buffer][j + 1][1] = r[3];
        }
    };

    float rC[WARP_M / 16][WARP_N / 8][4] = {};
    cp_async_wait<STAGES - 2>();
    __syncthreads();  // stage 0 has arrived for all
    load_fragments(0, 0, 0);
    for (int step = 0; step < steps; ++step) {
        load(step + STAGES - 1);
#pragma unroll
        for (int k = 0; k < BLOCK_K; k += 16) {
            const int buffer = k / 16 % 2;
            if (k + 16 < BLOCK_K) {
                load_fragments(buffer ^ 1, step, k + 16);
            } else {
                cp_async_wait<STAGES - 2>();
                __syncthreads();  // the next stage has arrived for all, and all have left this one
                load_fragments(buffer ^ 1, step + 1, 0);
            }
#pragma unroll
            for (int i = 0; i < WARP_M / 16; ++i)
#pragma unroll
                for (int j = 0; j < WARP_N / 8; ++j)
                    mma_m16n8k16<T>(rC[i][j], rA[buffer][i], rB[buffer][j]);
        }
    }

    // of a fragment, lane l holds columns l % 4 * 2 + {0, 1} of rows l / 4 and l / 4 + 8
#pragma unroll
    for (int i = 0; i < WARP_M / 16; ++i)
#pragma unroll
        for (int j = 0; j < WARP_N / 8; ++j)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int m = m0 + warp_m + i * 16 + h * 8 + lane / 4;
                const int n = n0 + warp_n + j * 8 + lane % 4 * 2;
                T* c = C + (long long)m * N + n;
                struct alignas(2 * sizeof(T)) Pair {
                    T v[2];
                } pair = {T(rC[i][j][2 * h]), T(rC[i][j][2 * h + 1])};
                if (ALIGNED) {
                    if (m < M && n < N) *reinterpret_cast<Pair*>(c) = pair;
                } else {
                    if (m < M && n < N) c[0] = pair.v[0];
                    if (m < M && n + 1 < N) c[1] = pair.v[1];
                }
            }
}
