// As many blocks as multiprocessors walk the tiles of all problems, to and fro: block p of P takes
// tile p, then 2P - 1 - p, 2P + p and so on, so that none always has the longer ones. A table in
// device memory says which problem a tile is of.
//
// T: the type of the operands, 16 bits wide. ALIGNED: whether rows of all matrices are whole chunks
// of 16 bytes. BLOCK_M, BLOCK_N: rows and columns of C that a tile is. BLOCK_K: the elements of K
// in a step. STAGES: tiles of A and of B in shared memory. THREADS: of a block.
#include "tile_product.cuh"

constexpr int WARP_M = 64, WARP_N = 64;

template <typename T>
struct Problem {  // a row of the table
    const T *A, *B;
    T* C;
    long long M, N, K, first;  // first: the number of its first tile
};

template <typename T, bool ALIGNED, int BLOCK_M, int BLOCK_N, int BLOCK_K, int STAGES, int THREADS>
__global__ void __launch_bounds__(THREADS)
    grouped_gemm_kernel(const Problem<T>* __restrict__ table, int problems, int tiles) {
    extern __shared__ __align__(128) unsigned char shared[];
    T* sAB = reinterpret_cast<T*>(shared);

    int step = 2 * (gridDim.x - blockIdx.x) - 1;
    for (long long tile = blockIdx.x; tile < tiles; tile += step, step = 2 * gridDim.x - step) {
        // The tile is of the last problem that begins at or before it.
        int problem = 0, end = problems;
        while (end - problem > 1) {
            const int middle = (problem + end) / 2;
            (table[middle].first <= tile ? problem : end) = middle;
        }
        const auto [A, B, C, M, N, K, first] = table[problem];

        const int rows = (M + BLOCK_M - 1) / BLOCK_M, at = tile - first;
        const int m0 = at % rows * BLOCK_M, n0 = at / rows * BLOCK_N;  // neighbours share B
        float rC[WARP_M / 16][WARP_N / 8][4];
        tile_product<ALIGNED, BLOCK_M, BLOCK_N, BLOCK_K, WARP_M, WARP_N, STAGES>(
            rC, sAB, A, B, M, N, K, m0, n0, 0, K);
        store_tile<ALIGNED, BLOCK_M, BLOCK_N, WARP_M, WARP_N>(rC, sAB, C, M, N, m0, n0);
    }
}
