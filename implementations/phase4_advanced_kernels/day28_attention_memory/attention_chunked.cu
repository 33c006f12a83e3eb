// Day 27's third kernel, for a chunk of the queries: a block owns a tile of o, BLOCK_M queries and
// BLOCK_N of D, since a chunk has few queries: blocks share their rows.
//
// T: the type of P, v and o, 16 bits wide. D: elements of a row of v and o. BLOCK_M, BLOCK_N: rows
// and columns of a tile. BLOCK_K: keys in a step of the loop. WARP_M, WARP_N: rows and columns that
// a warp owns. STAGES: tiles of P and of v in shared memory. THREADS: of a block.
//
// M: queries of the chunk, of each of its heads. offset: its query i sees the keys j <= i + offset.
// stride: elements from a row of P to the next, a multiple of 16, so that all rows start at
// multiples of 16 bytes.
#include "attention.cuh"

template <typename T, int D, int BLOCK_M, int BLOCK_N, int BLOCK_K, int WARP_M, int WARP_N,
          int STAGES, int THREADS>
__global__ void __launch_bounds__(THREADS)
    attention_chunked_output_kernel(const T* __restrict__ p, const T* __restrict__ v,
                                    T* __restrict__ o, int M, int N, int offset, int stride) {
    extern __shared__ __align__(128) unsigned char bytes[];
    T* shared = reinterpret_cast<T*>(bytes);
    constexpr int TILES_N = D / BLOCK_N;
    const int tiles_m = (M + BLOCK_M - 1) / BLOCK_M;
    const int tile = blockIdx.x, head = tile / TILES_N / tiles_m, n0 = tile % TILES_N * BLOCK_N;
    // The last tiles, which see the most keys, come first.
    const int m0 = (tiles_m - 1 - tile / TILES_N % tiles_m) * BLOCK_M;
    const int seen = seen_keys(min(m0 + BLOCK_M, M) - 1, N, offset);
    p += (long long)head * M * stride;
    v += (long long)head * N * D;
    // Written as one product of three, NVRTC 13 stores o in pieces of two bytes.
    const long long head_size = (long long)M * D;
    o += head * head_size;

    float rO[WARP_M / 16][WARP_N / 8][4];
    tile_product<true, BLOCK_M, BLOCK_N, BLOCK_K, WARP_M, WARP_N, STAGES>(rO, shared, p, v, M, D,
                                                                          stride, m0, n0, 0, seen);
    store_tile<true, BLOCK_M, BLOCK_N, WARP_M, WARP_N>(rO, shared, o, M, D, m0, n0);
}
