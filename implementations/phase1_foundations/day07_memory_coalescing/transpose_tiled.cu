// Each block moves a TILE x TILE tile, and each thread VEC x VEC squares of it. A thread reads a
// square as packs along N and turns it in registers, so that packs along M go to shared memory.
// From there it takes the packs of another square, and its neighbours store neighbouring packs.
//
// T: the element type. VEC: elements of a pack of 16 bytes, 1 where rows are not aligned. TILE: the
// elements of a tile's side. ROWS: rows of squares that a block's threads take at a time.
#include "access.cuh"

template <typename T, int VEC, int TILE, int ROWS>
__global__ void __launch_bounds__(TILE / VEC * ROWS)
    transpose_tiled_kernel(const T* __restrict__ x, T* __restrict__ out, long long M, long long N) {
    constexpr int SIDE = TILE / VEC, SQUARES = SIDE / ROWS;  // of a tile's side, of a thread
    // Pack p of row n stands at p ^ n / VEC. Neighbouring threads write a column of packs and read
    // a row of them. Rows are a multiple of 128 bytes long, so that unswizzled the packs of a
    // column would all lie in the same banks.
    __shared__ Pack<T, VEC> sTile[TILE][SIDE];

    const unsigned pid = blockIdx.x;
    const unsigned tiles_m = (M + TILE - 1) / TILE, tiles_n = (N + TILE - 1) / TILE;
    // along the shorter side first: tiles that share lines are under way together
    const unsigned pid_m = M <= N ? pid % tiles_m : pid / tiles_n;
    const unsigned pid_n = M <= N ? pid / tiles_m : pid % tiles_n;
    const long long m0 = (long long)pid_m * TILE, n0 = (long long)pid_n * TILE;
    const int col = threadIdx.x;  // the thread's squares are in column col

    Pack<T, VEC> pack[SQUARES][VEC];
#pragma unroll
    for (int s = 0; s < SQUARES; ++s) {  // all loads are under way before the first is used
        const int row = s * ROWS + threadIdx.y;
        const long long m = m0 + row * VEC, n = n0 + col * VEC;
        // VEC divides M and N, or is 1: a square lies within the matrix or beyond, as a whole.
        if (m < M && n < N)
#pragma unroll
            for (int k = 0; k < VEC; ++k) pack[s][k] = load_pack<VEC>(x + (m + k) * N + n);
    }

#pragma unroll
    for (int s = 0; s < SQUARES; ++s) {
        const int row = s * ROWS + threadIdx.y;
#pragma unroll
        for (int j = 0; j < VEC; ++j) {
            Pack<T, VEC> column;
#pragma unroll
            for (int k = 0; k < VEC; ++k) column.v[k] = pack[s][k].v[j];
            sTile[col * VEC + j][row ^ col] = column;
        }
    }
    // From here on each thread reads what others have written.
    __syncthreads();  // the tile is complete

#pragma unroll
    for (int s = 0; s < SQUARES; ++s) {
        const int row = s * ROWS + threadIdx.y;
        const long long n = n0 + row * VEC, m = m0 + col * VEC;
        if (n < N && m < M)
#pragma unroll
            for (int j = 0; j < VEC; ++j)
                store_pack(out + (n + j) * M + m, sTile[row * VEC + j][col ^ row]);
    }
}
