// What the fixed order of Day 20's sums costs: here the blocks of a tile add their products to one
// sum by atomics, in the order in which they arrive, so that its bits change from run to run. The
// block that comes last rounds the sum into C.
//
// T: the type of the operands, 16 bits wide. ALIGNED: whether rows are whole chunks of 16 bytes.
// BLOCK_M, BLOCK_N: rows and columns of C that a block owns. BLOCK_K: elements of K in a step.
// WARP_M, WARP_N: rows and columns of C that a warp owns. STAGES: tiles of A and of B in shared
// memory. THREADS: of a block.
#include "tile_product.cuh"

// sums, arrived: of each tile BLOCK_M * BLOCK_N floats in the order of registers, in which the
// threads of a warp add to neighbours, and how many slices have been added; both from 0 on.
template <typename T, bool ALIGNED, int BLOCK_M, int BLOCK_N, int BLOCK_K, int WARP_M, int WARP_N,
          int STAGES, int THREADS>
__global__ void __launch_bounds__(THREADS, 1)
    matmul_split_k_arrival_kernel(const T* __restrict__ A, const T* __restrict__ B,
                                  T* __restrict__ C, float* __restrict__ sums,
                                  int* __restrict__ arrived, int M, int N, int K, int SLICE) {
    extern __shared__ __align__(128) unsigned char bytes[];
    T* shared = reinterpret_cast<T*>(bytes);
    __shared__ bool last;

    const int tiles_n = (N + BLOCK_N - 1) / BLOCK_N, tile = blockIdx.x, split = blockIdx.y;
    const int m0 = tile / tiles_n * BLOCK_M, n0 = tile % tiles_n * BLOCK_N;
    const int k_begin = split * SLICE, k_end = k_begin + min(K - k_begin, SLICE);

    float rC[WARP_M / 16][WARP_N / 8][4];
    tile_product<ALIGNED, BLOCK_M, BLOCK_N, BLOCK_K, WARP_M, WARP_N, STAGES>(
        rC, shared, A, B, M, N, K, m0, n0, k_begin, k_end);
    float* sum = sums + (long long)tile * (BLOCK_M * BLOCK_N) + threadIdx.x;
#pragma unroll
    for (int i = 0; i < WARP_M / 16; ++i)
#pragma unroll
        for (int j = 0; j < WARP_N / 8; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e)
                atomicAdd(sum + ((i * (WARP_N / 8) + j) * 4 + e) * THREADS, rC[i][j][e]);
    __threadfence();  // what a thread has added is there before its block has arrived
    __syncthreads();
    if (threadIdx.x == 0) last = atomicAdd(arrived + tile, 1) == gridDim.y - 1;
    __syncthreads();
    if (!last) return;
    __threadfence();  // nor is the sum read before
#pragma unroll
    for (int i = 0; i < WARP_M / 16; ++i)
#pragma unroll
        for (int j = 0; j < WARP_N / 8; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e)
                rC[i][j][e] = sum[((i * (WARP_N / 8) + j) * 4 + e) * THREADS];
    store_tile<ALIGNED, BLOCK_M, BLOCK_N, WARP_M, WARP_N>(rC, shared, C, M, N, m0, n0);
}
