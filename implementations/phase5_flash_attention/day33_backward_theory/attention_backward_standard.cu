// After S and P by Day 27's kernels, and delta, three kernels. Of the first a block owns a
// BLOCK_M x BLOCK_N tile of dS, which it calculates from do, v and P; of the second a tile of dq,
// BLOCK_M queries and all of D; of the third one of dv or dk, BLOCK_N keys and all of D. No element
// is added to by two blocks, so that none needs an atomic. As `do` is a keyword here, it is dO.
//
// T: the type of all tensors but delta, 16 bits wide. D: elements of a row of q, k, v, o and their
// gradients. BLOCK_M, BLOCK_N: queries and keys of a tile. BLOCK_K: keys in a step of the loop that
// makes dq, queries in one of that which makes dv or dk. WARP_M, WARP_N: rows and columns that a
// warp owns. STAGES: tiles of both operands in shared memory. THREADS: of a block.
//
// BLOCK_K divides BLOCK_M: of P and dS the rows of a step are of one tile, all of whose rows are
// written as far as the last one sees.
//
// offset: query i of a head sees its keys j <= i + offset. stride: elements from a row of P or dS
// to the next, a multiple of 16, so that all rows start at multiples of 16 bytes.
#include "attention.cuh"
#include "transposed_product.cuh"

// In fp32: what is rounded then, once, is the gradient.
template <int ROWS, int COLS>
__device__ __forceinline__ void scale_tile(float (&rC)[ROWS][COLS][4], float scale) {
#pragma unroll
    for (auto& row : rC)
#pragma unroll
        for (auto& c : row)
#pragma unroll
            for (float& x : c) x *= scale;
}

template <typename T, int D, int BLOCK_M, int BLOCK_N, int WARP_M, int WARP_N, int THREADS>
__global__ void __launch_bounds__(THREADS, 2)
    attention_backward_standard_ds_kernel(const T* __restrict__ dO, const T* __restrict__ v,
                                          const T* __restrict__ p, const float* __restrict__ delta,
                                          T* __restrict__ ds, int M, int N, int offset,
                                          int stride) {
    extern __shared__ __align__(128) unsigned char bytes[];
    T *sO = reinterpret_cast<T*>(bytes), *sV = sO + BLOCK_M * D, *sP = sV + BLOCK_N * D;
    __shared__ float sDelta[BLOCK_M];
    const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32;
    const int tiles_m = (M + BLOCK_M - 1) / BLOCK_M, tiles_n = (stride + BLOCK_N - 1) / BLOCK_N;
    const int tile = blockIdx.x, head = tile / tiles_n / tiles_m;
    const int m0 = tile / tiles_n % tiles_m * BLOCK_M, n0 = tile % tiles_n * BLOCK_N;
    // None of the queries sees any of the keys: nobody will read the tile.
    if (n0 >= seen_keys(min(m0 + BLOCK_M, M) - 1, N, offset)) return;
    p += (long long)head * M * stride;
    delta += (long long)head * M;

    // All at once: the blocks of a multiprocessor load while others multiply.
    load_rows<BLOCK_M, D, THREADS>(sO, dO + (long long)head * M * D, m0, M);
    load_rows<BLOCK_N, D, THREADS>(sV, v + (long long)head * N * D, n0, N);
    constexpr int CHUNKS = BLOCK_N / 8, STEP = THREADS / CHUNKS;  // chunks of a row; rows at once
    const int row = tid / CHUNKS, col = tid % CHUNKS * 8;
    load_part<true, BLOCK_M, BLOCK_N, STEP, 1>(0, sP + row * BLOCK_N + swizzle<BLOCK_N>(row, col),
                                               p + (long long)(m0 + row) * stride + n0 + col,
                                               M - m0 - row, stride - n0 - col, stride);
    cp_async_commit();
    if (tid < BLOCK_M) sDelta[tid] = m0 + tid < M ? delta[m0 + tid] : 0.f;
    cp_async_wait<0>();
    __syncthreads();  // the rows of all threads have arrived

    float rS[WARP_M / 16][WARP_N / 8][4];
    multiply_rows<BLOCK_M, D, WARP_M, WARP_N>(rS, sO, sV);  // dp

    // Of a fragment, lane l holds columns l % 4 * 2 + {0, 1} of rows l / 4 and l / 4 + 8.
    const int first_m = warp % (BLOCK_M / WARP_M) * WARP_M + lane / 4;
    const int first_n = warp / (BLOCK_M / WARP_M) * WARP_N + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < WARP_M / 16; ++i)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int m = first_m + i * 16 + h * 8;
            const float delta_m = sDelta[m];
            const int seen = seen_keys(m0 + m, N, offset) - n0;  // keys of the tile
#pragma unroll
            for (int j = 0; j < WARP_N / 8; ++j) {
                const int n = first_n + j * 8;
                const auto pair = load_pack<2>(sP + m * BLOCK_N + swizzle<BLOCK_N>(m, n));
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    // Where a key is not seen dp may be no number, and P what was left in memory.
                    float& x = rS[i][j][2 * h + e];
                    x = n + e < seen ? float(pair.v[e]) * (x - delta_m) : 0.f;
                }
            }
        }

    __syncthreads();  // all have read do, v and P: dS leaves through their place
    store_tile<true, BLOCK_M, BLOCK_N, WARP_M, WARP_N>(rS, sO, ds + (long long)head * M * stride, M,
                                                       stride, m0, n0);
}

template <typename T, int D, int BLOCK_M, int BLOCK_K, int WARP_M, int WARP_N, int STAGES,
          int THREADS>
__global__ void __launch_bounds__(THREADS, 1)
    attention_backward_standard_dq_kernel(const T* __restrict__ ds, const T* __restrict__ k,
                                          T* __restrict__ dq, int M, int N, int offset, int stride,
                                          float sm_scale) {
    extern __shared__ __align__(128) unsigned char bytes[];
    T* shared = reinterpret_cast<T*>(bytes);
    const int tiles_m = (M + BLOCK_M - 1) / BLOCK_M, head = blockIdx.x / tiles_m;
    // The last tiles, which see the most keys, come first.
    const int m0 = (tiles_m - 1 - blockIdx.x % tiles_m) * BLOCK_M;
    const int seen = seen_keys(min(m0 + BLOCK_M, M) - 1, N, offset);
    ds += (long long)head * M * stride;
    k += (long long)head * N * D;
    // Written as one product of three, NVRTC 13 stores dq in pieces of two bytes.
    const long long head_size = (long long)M * D;
    dq += head * head_size;

    float rC[WARP_M / 16][WARP_N / 8][4];
    tile_product<true, BLOCK_M, D, BLOCK_K, WARP_M, WARP_N, STAGES>(rC, shared, ds, k, M, D, stride,
                                                                    m0, 0, 0, seen);
    scale_tile(rC, sm_scale);
    store_tile<true, BLOCK_M, D, WARP_M, WARP_N>(rC, shared, dq, M, D, m0, 0);
}

// dx = scale * weights^T @ x: of P and do it is dv, by a scale of 1, of dS and q dk.
template <typename T, int D, int BLOCK_N, int BLOCK_K, int WARP_M, int WARP_N, int STAGES,
          int THREADS>
__global__ void __launch_bounds__(THREADS, 1)
    attention_backward_standard_dkdv_kernel(const T* __restrict__ weights, const T* __restrict__ x,
                                            T* __restrict__ dx, int M, int N, int offset,
                                            int stride, float scale) {
    extern __shared__ __align__(128) unsigned char bytes[];
    T* shared = reinterpret_cast<T*>(bytes);
    // Where attention is causal the first tiles, which most queries see, come first.
    const int tiles_n = (N + BLOCK_N - 1) / BLOCK_N, head = blockIdx.x / tiles_n;
    const int n0 = blockIdx.x % tiles_n * BLOCK_N;
    weights += (long long)head * M * stride;
    x += (long long)head * M * D;
    const long long head_size = (long long)N * D;
    dx += head * head_size;

    float rC[WARP_M / 16][WARP_N / 8][4];
    transposed_product<BLOCK_N, D, BLOCK_K, WARP_M, WARP_N, STAGES>(rC, shared, weights, x, M, N,
                                                                    stride, offset, n0);
    scale_tile(rC, scale);
    store_tile<true, BLOCK_N, D, WARP_M, WARP_N>(rC, shared, dx, N, D, n0, 0);
}
