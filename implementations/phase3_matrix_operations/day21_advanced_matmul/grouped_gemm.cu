// As many blocks as multiprocessors walk the tiles of all problems, to and fro: block p of P takes
// tile p, then 2P - 1 - p, 2P + p and so on, so that none always has the longer ones. A table in
// device memory says which problem a tile is of.
//
// The second kernel does the same by wgmma, on GPUs that have it: one warpgroup of a block does
// nothing but start copies, of whatever tile comes next, and two do nothing but multiply and store.
//
// T: the type of the operands, 16 bits wide. ALIGNED: whether rows of all matrices are whole chunks
// of 16 bytes. BLOCK_M, BLOCK_N: rows and columns of C that a tile is. BLOCK_K: the elements of K
// in a step. STAGES: tiles of A and of B in shared memory. THREADS: of a block.
#include "mbarrier.cuh"
#include "tile_product.cuh"
#include "wgmma.cuh"

template <typename T>
struct Problem {  // a row of the table
    const T *A, *B;
    T* C;
    long long M, N, K, first;  // first: the number of its first tile
};

template <typename T>
struct Tile {
    const T *A, *B;
    T* C;
    int M, N, K, m0, n0;
};

// The tile of a number: of the last problem that begins at or before it, which a warp finds by
// counting.
template <int BLOCK_M, int BLOCK_N, typename T>
__device__ __forceinline__ Tile<T> find(const Problem<T>* table, int problems, int tile) {
    const int lane = threadIdx.x % 32;
    int problem = -1;
    for (int i = lane; i - lane < problems; i += 32)
        problem += __popc(__ballot_sync(~0u, i < problems && table[i].first <= tile));
    const auto [A, B, C, M, N, K, first] = table[problem];
    const int rows = (M + BLOCK_M - 1) / BLOCK_M, at = tile - first;
    const int m0 = at % rows * BLOCK_M, n0 = at / rows * BLOCK_N;  // neighbours share B
    return {A, B, C, int(M), int(N), int(K), m0, n0};
}

template <typename T, bool ALIGNED, int BLOCK_M, int BLOCK_N, int BLOCK_K, int STAGES, int THREADS>
__global__ void __launch_bounds__(THREADS)
    grouped_gemm_kernel(const Problem<T>* __restrict__ table, int problems, int tiles) {
    constexpr int WARP_M = 64, WARP_N = 64;
    extern __shared__ __align__(128) unsigned char shared[];
    T* sAB = reinterpret_cast<T*>(shared);

    int step = 2 * (gridDim.x - blockIdx.x) - 1;
    for (long long tile = blockIdx.x; tile < tiles; tile += step, step = 2 * gridDim.x - step) {
        const auto [A, B, C, M, N, K, m0, n0] = find<BLOCK_M, BLOCK_N>(table, problems, tile);
        float rC[WARP_M / 16][WARP_N / 8][4];
        tile_product<ALIGNED, BLOCK_M, BLOCK_N, BLOCK_K, WARP_M, WARP_N, STAGES>(
            rC, sAB, A, B, M, N, K, m0, n0, 0, K);
        store_tile<ALIGNED, BLOCK_M, BLOCK_N, WARP_M, WARP_N>(rC, sAB, C, M, N, m0, n0);
    }
}

// The barriers `full` end a phase when a stage has been filled, `empty` when it has been read.
template <typename T, int BLOCK_M, int BLOCK_N, int BLOCK_K, int STAGES, int THREADS>
__global__ void __launch_bounds__(THREADS, 1)
    grouped_gemm_wgmma_kernel(const Problem<T>* __restrict__ table, int problems, int tiles) {
    static_assert(BLOCK_M == 2 * 64 && BLOCK_N == 256 && BLOCK_K == 64 && THREADS == 3 * 128,
                  "two warpgroups multiply by wgmma_m64n256k64, and one copies");
    constexpr int A_TILE = BLOCK_M * BLOCK_K, B_TILE = BLOCK_K * BLOCK_N;
    constexpr int STAGE_SIZE = A_TILE + B_TILE;  // a tile of A, then a tile of B
    extern __shared__ __align__(1024) unsigned char shared[];
    T* sAB = reinterpret_cast<T*>(shared);
    auto full = reinterpret_cast<unsigned long long*>(sAB + STAGES * STAGE_SIZE);
    auto empty = full + STAGES;
    if (threadIdx.x == 0)
        for (int stage = 0; stage < STAGES; ++stage) {
            mbarrier_init(full + stage, 128);  // the threads that copy
            mbarrier_init(empty + stage, 8);   // the warps that multiply
        }
    __syncthreads();

    const int tid = threadIdx.x % 128, lane = threadIdx.x % 32;
    // The same in all lanes, as the compiler then knows.
    const int warpgroup = __shfl_sync(~0u, threadIdx.x / 128, 0);
    int step = 2 * (gridDim.x - blockIdx.x) - 1, stage = 0, parity = 0;
    auto next_stage = [&] {
        if (++stage == STAGES) stage = 0, parity ^= 1;
    };
    if (warpgroup == 2) {
        give_registers<88>();
        // Eight threads copy 64 elements of a row; all rows of a thread are swizzled alike.
        const int row = tid / 8, col = tid % 8 * 8, dst = row * 64 + swizzle<64>(row, col);
        for (long long tile = blockIdx.x; tile < tiles; tile += step, step = 2 * gridDim.x - step) {
            const auto [A, B, C, M, N, K, m0, n0] = find<BLOCK_M, BLOCK_N>(table, problems, tile);
            const T* src_a = A + (long long)(m0 + row) * K + col;
            const T* src_b = B + (long long)row * N + n0 + col;
            for (int k = 0; k < max(K, 1); k += BLOCK_K) {  // for K = 0 a step of zeros
                mbarrier_wait(empty + stage, parity ^ 1);
                T* sA = sAB + stage * STAGE_SIZE + dst;
                T* sB = sA + A_TILE;
#pragma unroll
                for (int i = 0; i < BLOCK_M; i += 16)
                    cp_async_16(sA + i * 64, src_a + (long long)i * K + k,
                                m0 + row + i < M && k + col < K ? 16 : 0);
#pragma unroll
                for (int i = 0; i < BLOCK_K; i += 16)
#pragma unroll
                    for (int j = 0; j < BLOCK_N; j += 64)
                        cp_async_16(sB + j * BLOCK_K + i * 64, src_b + (long long)(k + i) * N + j,
                                    k + row + i < K && n0 + col + j < N ? 16 : 0);
                cp_async_arrive(full + stage);
                next_stage();
            }
        }
    } else {
        take_registers<208>();
        for (long long tile = blockIdx.x; tile < tiles; tile += step, step = 2 * gridDim.x - step) {
            const auto [A, B, C, M, N, K, m0, n0] = find<BLOCK_M, BLOCK_N>(table, problems, tile);
            float rC[BLOCK_N / 8][4];  // of the warpgroup's 64 rows
            for (int k = 0; k < max(K, 1); k += BLOCK_K) {
                mbarrier_wait(full + stage, parity);
                fence_async();
                const T* sA = sAB + stage * STAGE_SIZE;
                wgmma_m64n256k64(rC, sA + warpgroup * 64 * BLOCK_K, sA + A_TILE, k > 0);
                wgmma_wait(rC);
                if (lane == 0) mbarrier_arrive(empty + stage);
                next_stage();
            }
            store_accumulators(rC, C, M, N, m0 + warpgroup * 64, n0);
        }
    }
}
