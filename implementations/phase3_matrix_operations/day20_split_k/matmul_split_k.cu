// K is divided among blocks. Each owns a BLOCK_M x BLOCK_N tile of C and a slice of K, and makes a
// partial product in fp32. These are summed in an order that depends on nothing but the size, in
// one of two ways: each block stores its own, and a second kernel sums them; or the blocks of a
// tile add theirs to one sum, in turn, and the last of them stores C. Where K is not divided, a
// block stores C itself.
//
// T: the type of the operands, 16 bits wide. ALIGNED: whether rows are whole chunks of 16 bytes.
// SPLIT: whether K is divided. IN_TURN: whether the blocks then add in turn. BLOCK_M, BLOCK_N: rows
// and columns of C that a block owns. BLOCK_K: elements of K in a step. WARP_M, WARP_N: rows and
// columns of C that a warp owns. STAGES: tiles of A and of B in shared memory. THREADS: of a block.
// TX, TY: threads of a block that sums, over neighbouring packs and over the slices.
#include "tile_product.cuh"
#include "turnstile.cuh"

// partials: of each slice and tile BLOCK_M * BLOCK_N floats in the order of registers: fragment by
// fragment, and of each a pack of 16 bytes from every thread. So a warp stores 512 bytes at once.
// If IN_TURN, of each tile only as many, and in turns how many slices have been added, from 0 on.
template <typename T, bool ALIGNED, bool SPLIT, bool IN_TURN, int BLOCK_M, int BLOCK_N, int BLOCK_K,
          int WARP_M, int WARP_N, int STAGES, int THREADS>
__global__ void __launch_bounds__(THREADS, 1)
    matmul_split_k_kernel(const T* __restrict__ A, const T* __restrict__ B, T* __restrict__ C,
                          float* __restrict__ partials, int* __restrict__ turns, int M, int N,
                          int K, int SLICE) {
    extern __shared__ __align__(128) unsigned char bytes[];
    T* shared = reinterpret_cast<T*>(bytes);

    const int tiles_n = (N + BLOCK_N - 1) / BLOCK_N, tile = blockIdx.x, split = blockIdx.y;
    const int m0 = tile / tiles_n * BLOCK_M, n0 = tile % tiles_n * BLOCK_N;
    const int k_begin = split * SLICE, k_end = k_begin + min(K - k_begin, SLICE);

    float rC[WARP_M / 16][WARP_N / 8][4];
    tile_product<ALIGNED, BLOCK_M, BLOCK_N, BLOCK_K, WARP_M, WARP_N, STAGES>(
        rC, shared, A, B, M, N, K, m0, n0, k_begin, k_end);
    const long long place = IN_TURN ? tile : (long long)split * gridDim.x + tile;
    const long long first = place * (BLOCK_M * BLOCK_N / 4) + threadIdx.x;
    if constexpr (IN_TURN) {
        if (threadIdx.x == 0) wait_turn(turns + tile, split);
        __syncthreads();  // it is the block's turn
        if (split > 0) {
#pragma unroll
            for (int i = 0; i < WARP_M / 16; ++i)
#pragma unroll
                for (int j = 0; j < WARP_N / 8; ++j) {
                    const int fragment = i * (WARP_N / 8) + j;
                    const auto sum = load_pack<4>(partials + (first + fragment * THREADS) * 4);
#pragma unroll
                    for (int e = 0; e < 4; ++e) rC[i][j][e] += sum.v[e];
                }
        }
    }
    if (!SPLIT || IN_TURN && split == gridDim.y - 1) {
        store_tile<ALIGNED, BLOCK_M, BLOCK_N, WARP_M, WARP_N>(rC, shared, C, M, N, m0, n0);
        return;
    }
#pragma unroll
    for (int i = 0; i < WARP_M / 16; ++i)
#pragma unroll
        for (int j = 0; j < WARP_N / 8; ++j) {
            const Pack<float, 4> pack = {rC[i][j][0], rC[i][j][1], rC[i][j][2], rC[i][j][3]};
            const int fragment = i * (WARP_N / 8) + j;
            store_pack(partials + (first + fragment * THREADS) * 4, pack);
        }
    if constexpr (IN_TURN) {
        __syncthreads();  // all have added
        if (threadIdx.x == 0) pass_turn(turns + tile, split + 1);
    }
}

// Each block sums TX packs over all slices: a thread every TY-th of a pack, then one thread the TY
// sums. packs: of a slice.
template <typename T, int BLOCK_M, int BLOCK_N, int WARP_M, int WARP_N, int THREADS, int TX, int TY>
__global__ void __launch_bounds__(TX* TY)
    sum_splits_kernel(const float* __restrict__ partials, T* __restrict__ C, int M, int N,
                      int splits, int packs) {
    __shared__ Pack<float, 4> sSums[TY][TX];
    const int tx = threadIdx.x, ty = threadIdx.y, pack = blockIdx.x * TX + tx;

    Pack<float, 4> sum = {};
#pragma unroll 4
    for (int split = ty; split < splits; split += TY) {  // neighbours load neighbouring packs
        const auto partial = load_pack<4>(partials + ((long long)split * packs + pack) * 4);
#pragma unroll
        for (int e = 0; e < 4; ++e) sum.v[e] += partial.v[e];
    }
    sSums[ty][tx] = sum;
    __syncthreads();  // the sums of all threads are there
    if (ty > 0) return;
    for (int t = 1; t < TY; ++t)
#pragma unroll
        for (int e = 0; e < 4; ++e) sum.v[e] += sSums[t][tx].v[e];

    // Where the pack comes from: element e is of row lane / 4 + e / 2 * 8 of its fragment, and of
    // column lane % 4 * 2 + e % 2.
    const int lane = pack % 32, warp = pack % THREADS / 32, fragment = pack / THREADS;
    const int i = fragment / (WARP_N / 8) % (WARP_M / 16), j = fragment % (WARP_N / 8);
    const int tile = pack / (BLOCK_M * BLOCK_N / 4), tiles_n = (N + BLOCK_N - 1) / BLOCK_N;
    const int row = tile / tiles_n * BLOCK_M + warp % (BLOCK_M / WARP_M) * WARP_M + i * 16,
              col = tile % tiles_n * BLOCK_N + warp / (BLOCK_M / WARP_M) * WARP_N + j * 8;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
        const int m = row + lane / 4 + e / 2 * 8, n = col + lane % 4 * 2 + e % 2;
        if (m < M && n < N) C[(long long)m * N + n] = T(sum.v[e]);
    }
}
