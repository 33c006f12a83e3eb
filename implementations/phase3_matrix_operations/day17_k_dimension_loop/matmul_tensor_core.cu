// A block owns a BLOCK_M x BLOCK_N tile of C, each of its warps a 64 x 64 part, held in registers as 4 x 8
// fragments of mma.m16n8k16. Tiles of A and B travel to shared memory STAGES - 1 steps of K ahead.
#include "ptx.cuh"

constexpr int BLOCK_K = 64, WARP_M = 64, WARP_N = 64;

// A shared tile is made of 16-byte chunks of 8 elements; chunk c of row r stands at c ^ (r % 8), so that
// the eight rows an ldmatrix reads lie in different banks.
template <int COLS>
__device__ __forceinline__ int swizzled(int row, int col) {
    return row * COLS + (col ^ (row % 8) * 8);
}

// Rows [row0, row0 + ROWS) and columns [col0, col0 + COLS) of a (rows, cols) matrix into a shared tile,
// zeros beyond its edge. ALIGNED: cols is a multiple of 8, so that every chunk is whole and at 16 bytes.
template <bool ALIGNED, int ROWS, int COLS, int THREADS, typename T>
__device__ __forceinline__ void load_tile(T* tile, const T* __restrict__ src, int row0, int col0,
                                          int rows, int cols) {
#pragma unroll
    for (int i = 0; i < ROWS * COLS / 8 / THREADS; ++i) {
        const int chunk = i * THREADS + threadIdx.x;
        const int r = chunk / (COLS / 8), c = chunk % (COLS / 8) * 8;  // neighbours along a row
        const int row = row0 + r, col = col0 + c;
        T* dst = tile + swizzled<COLS>(r, c);
        if constexpr (ALIGNED) {
            const bool mask = row < rows && col < cols;
            cp_async_16(dst, mask ? src + (long long)row * cols + col : src, mask ? 16 : 0);
        } else {
            for (int k = 0; k < 8; ++k) {
                const bool mask = row < rows && col + k < cols;
                dst[k] = mask ? src[(long long)row * cols + col + k] : T(0.f);
            }
        }
    }
}

template <typename T, bool ALIGNED, int BLOCK_M, int BLOCK_N, int STAGES>
__global__ void __launch_bounds__(BLOCK_M* BLOCK_N / 128)
    matmul_tensor_core_kernel(const T* __restrict__ A, const T* __restrict__ B, T* __restrict__ C,
                              int M, int N, int K) {
    constexpr int THREADS = BLOCK_M * BLOCK_N / 128;  // a warp for each 64 x 64
    extern __shared__ __align__(128) unsigned char shared[];
    T* sA = reinterpret_cast<T*>(shared);       // [STAGES][BLOCK_M][BLOCK_K]
    T* sB = sA + STAGES * BLOCK_M * BLOCK_K;    // [STAGES][BLOCK_K][BLOCK_N]

    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int warp_m = warp % (BLOCK_M / WARP_M) * WARP_M, warp_n = warp / (BLOCK_M / WARP_M) * WARP_N;
    const int m0 = blockIdx.y * BLOCK_M, n0 = blockIdx.x * BLOCK_N;
    const int steps = (K + BLOCK_K - 1) / BLOCK_K;

    auto load = [&](int step) {
        const int stage = step % STAGES;
        if (step < steps) {
            load_tile<ALIGNED, BLOCK_M, BLOCK_K, THREADS>(sA + stage * BLOCK_M * BLOCK_K, A, m0,
                                                          step * BLOCK_K, M, K);
            load_tile<ALIGNED, BLOCK_K, BLOCK_N, THREADS>(sB + stage * BLOCK_K * BLOCK_N, B,
                                                          step * BLOCK_K, n0, K, N);
        }
        cp_async_commit();  // also when empty: the wait below counts groups
    };
    for (int step = 0; step < STAGES - 1; ++step) load(step);

    float rC[WARP_M / 16][WARP_N / 8][4] = {};
    for (int step = 0; step < steps; ++step) {
        cp_async_wait<STAGES - 2>();
        __syncthreads();  // this stage has arrived for all, and all have left the stage loaded next
        load(step + STAGES - 1);

        const T* tA = sA + step % STAGES * BLOCK_M * BLOCK_K;
        const T* tB = sB + step % STAGES * BLOCK_K * BLOCK_N;
#pragma unroll
        for (int k = 0; k < BLOCK_K; k += 16) {
            unsigned rA[WARP_M / 16][4], rB[WARP_N / 8][2];
#pragma unroll
            for (int i = 0; i < WARP_M / 16; ++i)
                ldmatrix_x4(rA[i], tA + swizzled<BLOCK_K>(warp_m + i * 16 + lane % 16,
                                                          k + lane / 16 * 8));
#pragma unroll
            for (int j = 0; j < WARP_N / 8; j += 2) {
                unsigned r[4];  // two fragments: B's rows become the columns that mma wants
                ldmatrix_x4_trans(r, tB + swizzled<BLOCK_N>(k + lane % 16,
                                                            warp_n + j * 8 + lane / 16 * 8));
                rB[j][0] = r[0], rB[j][1] = r[1], rB[j + 1][0] = r[2], rB[j + 1][1] = r[3];
            }
#pragma unroll
            for (int i = 0; i < WARP_M / 16; ++i)
#pragma unroll
                for (int j = 0; j < WARP_N / 8; ++j) mma_m16n8k16<T>(rC[i][j], rA[i], rB[j]);
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
