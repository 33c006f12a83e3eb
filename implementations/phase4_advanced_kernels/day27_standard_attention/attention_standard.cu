// Three kernels. Of the first a block owns a BLOCK_M x BLOCK_N tile of S, the scores; of the second
// a row of S, which it turns into a row of P, the weights, where it lies; of the third a tile of o,
// BLOCK_M queries and all of D. Each begins when the one before has ended.
//
// T: the type of q, k, v, o, S and P, 16 bits wide. D: elements of a row of q, k, v and o. BLOCK_M,
// BLOCK_N: queries and keys of a tile. BLOCK_K: keys in a step of the loop that makes o. WARP_M,
// WARP_N: rows and columns that a warp owns. STAGES: tiles of P and of v in shared memory. PACKS:
// packs of 16 bytes of a row that a thread holds. THREADS: of a block.
//
// offset: query i of a head sees its keys j <= i + offset. stride: elements from a row of S to the
// next, a multiple of 16, so that all rows start at multiples of 16 bytes.
#include "attention.cuh"

template <typename T, int D, int BLOCK_M, int BLOCK_N, int WARP_M, int WARP_N, int THREADS>
__global__ void __launch_bounds__(THREADS)
    attention_standard_scores_kernel(const T* __restrict__ q, const T* __restrict__ k,
                                     T* __restrict__ s, int M, int N, int offset, int stride,
                                     float sm_scale) {
    extern __shared__ __align__(128) unsigned char bytes[];
    T *sQ = reinterpret_cast<T*>(bytes), *sK = sQ + BLOCK_M * D;
    const int tiles_m = (M + BLOCK_M - 1) / BLOCK_M, tiles_n = (stride + BLOCK_N - 1) / BLOCK_N;
    const int tile = blockIdx.x, head = tile / tiles_n / tiles_m;
    const int m0 = tile / tiles_n % tiles_m * BLOCK_M, n0 = tile % tiles_n * BLOCK_N;
    // None of the queries sees any of the keys: nobody will read the tile.
    if (n0 >= seen_keys(min(m0 + BLOCK_M, M) - 1, N, offset)) return;

    // All of D at once: the blocks of a multiprocessor load while others multiply.
    load_rows<BLOCK_M, D, THREADS>(sQ, q + (long long)head * M * D, m0, M);
    load_rows<BLOCK_N, D, THREADS>(sK, k + (long long)head * N * D, n0, N);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();  // the rows of all threads have arrived

    float rS[WARP_M / 16][WARP_N / 8][4];
    multiply_rows<BLOCK_M, D, WARP_M, WARP_N>(rS, sQ, sK);
#pragma unroll
    for (auto& row : rS)
#pragma unroll
        for (auto& c : row)
#pragma unroll
            for (float& x : c) x *= sm_scale;  // in fp32, and then rounded once

    __syncthreads();  // all have read q and k: S leaves through their place
    store_tile<true, BLOCK_M, BLOCK_N, WARP_M, WARP_N>(rS, sQ, s + (long long)head * M * stride, M,
                                                       stride, m0, n0);
}

template <typename T, int BLOCK_M, int PACKS, int THREADS>
__global__ void __launch_bounds__(THREADS)
    attention_standard_softmax_kernel(T* __restrict__ s, int M, int N, int offset, int stride) {
    const int row = blockIdx.x % M;
    // Of each row the next kernel reads as many packs as the last row of its tile sees keys of.
    const int last_row = min((row / BLOCK_M + 1) * BLOCK_M, M) - 1;
    const int end = (seen_keys(last_row, N, offset) + 7) / 8 * 8;
    softmax_row<THREADS, PACKS>(s + (long long)blockIdx.x * stride, seen_keys(row, N, offset), end);
}

template <typename T, int D, int BLOCK_M, int BLOCK_K, int WARP_M, int WARP_N, int STAGES,
          int THREADS>
__global__ void __launch_bounds__(THREADS, 1)
    attention_standard_output_kernel(const T* __restrict__ p, const T* __restrict__ v,
                                     T* __restrict__ o, int M, int N, int offset, int stride) {
    extern __shared__ __align__(128) unsigned char bytes[];
    T* shared = reinterpret_cast<T*>(bytes);
    const int tiles_m = (M + BLOCK_M - 1) / BLOCK_M, head = blockIdx.x / tiles_m;
    // The last tiles, which see the most keys, come first.
    const int m0 = (tiles_m - 1 - blockIdx.x % tiles_m) * BLOCK_M;
    const int seen = seen_keys(min(m0 + BLOCK_M, M) - 1, N, offset);
    p += (long long)head * M * stride;
    v += (long long)head * N * D;
    // Written as one product of three, NVRTC 13 stores o in pieces of two bytes.
    const long long head_size = (long long)M * D;
    o += head * head_size;

    float rO[WARP_M / 16][WARP_N / 8][4];
    tile_product<true, BLOCK_M, D, BLOCK_K, WARP_M, WARP_N, STAGES>(rO, shared, p, v, M, D, stride,
                                                                    m0, 0, 0, seen);
    store_tile<true, BLOCK_M, D, WARP_M, WARP_N>(rO, shared, o, M, D, m0, 0);
}
