// Each block owns a BLOCK_M x BLOCK_N tile of C, as on Day 17. The tiles are taken in groups of
// GROUP_M rows of tiles, column by column within a group: the blocks that run at the same time need
// fewer rows of A and columns of B than along a whole row of tiles, and find them in the L2.
//
// T: the type of the operands, 16 bits wide. ALIGNED: whether rows are whole chunks of 16 bytes.
// BLOCK_M, BLOCK_N: rows and columns of C that a block owns. BLOCK_K: elements of K in a step.
// WARP_M, WARP_N: rows and columns of C that a warp owns. STAGES: tiles of A and of B in shared
// memory. GROUP_M: rows of tiles in a group. THREADS: of a block.
#include "tile_product.cuh"

template <typename T, bool ALIGNED, int BLOCK_M, int BLOCK_N, int BLOCK_K, int WARP_M, int WARP_N,
          int STAGES, int GROUP_M, int THREADS>
__global__ void __launch_bounds__(THREADS)
    matmul_grouped_order_kernel(const T* __restrict__ A, const T* __restrict__ B, T* __restrict__ C,
                                int M, int N, int K) {
    extern __shared__ __align__(128) unsigned char bytes[];
    T* shared = reinterpret_cast<T*>(bytes);

    const int tiles_m = (M + BLOCK_M - 1) / BLOCK_M, tiles_n = (N + BLOCK_N - 1) / BLOCK_N;
    const int tile = blockIdx.x, group_size = GROUP_M * tiles_n;
    const int first_m = tile / group_size * GROUP_M, in_group = tile % group_size;
    const int rows = min(tiles_m - first_m, GROUP_M);  // the last group may have fewer
    const int m0 = (first_m + in_group % rows) * BLOCK_M, n0 = in_group / rows * BLOCK_N;

    float rC[WARP_M / 16][WARP_N / 8][4];
    tile_product<ALIGNED, BLOCK_M, BLOCK_N, BLOCK_K, WARP_M, WARP_N, STAGES>(rC, shared, A, B, M, N,
                                                                             K, m0, n0, 0, K);
    store_tile<ALIGNED, BLOCK_M, BLOCK_N, WARP_M, WARP_N>(rC, shared, C, M, N, m0, n0);
}
