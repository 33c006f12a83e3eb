// What kernels of attention need alike: which keys a query sees, products of rows with rows, as
// scores are, and the softmax of a row where it lies. The twin of attention.py.
#pragma once
#include <math_constants.h>

#include "reduce.cuh"
#include "tile_product.cuh"

// No score but -inf is below it. Where it is the maximum, all scores are -inf and exp(x - m) is 0;
// with -inf as the maximum, -inf - -inf would be NaN.
constexpr float LOWEST = -3.402823466e38f;

// How many of N keys query `row` sees: the first ones, up to key row + offset.
__device__ __forceinline__ int seen_keys(int row, int N, int offset) {
    return min(max(row + offset + 1, 0), N);
}

// Starts the copy of rows first, first + 1, ... of a matrix of `rows` rows and DEPTH columns to
// shared memory, where a tile of ROWS of them is swizzled; those beyond the last become zeros. The
// caller commits and waits. THREADS: of the block.
template <int ROWS, int DEPTH, int THREADS, typename T>
__device__ __forceinline__ void load_rows(T* tile, const T* matrix, int first, int rows) {
    constexpr int CHUNKS = DEPTH / 8, STEP = THREADS / CHUNKS;  // chunks of a row; rows at once
    const int row = threadIdx.x / CHUNKS, col = threadIdx.x % CHUNKS * 8;
    load_part<true, ROWS, DEPTH, STEP, 1>(0, tile + row * DEPTH + swizzle<DEPTH>(row, col),
                                          matrix + (long long)(first + row) * DEPTH + col,
                                          rows - first - row, DEPTH, DEPTH);
}

// rC = A @ B^T of tiles of BLOCK_M and BLOCK_N rows, DEPTH columns each, that `load_rows` has left
// in shared memory: of each warp its WARP_M x WARP_N part, as fragments of mma.m16n8k16. Lane l
// gives an ldmatrix the address of row l % 16, column 0 or 8, of A as of B: B's rows are the
// columns that mma wants, and need no transposing.
template <int BLOCK_M, int DEPTH, int WARP_M, int WARP_N, typename T>
__device__ __forceinline__ void multiply_rows(float (&rC)[WARP_M / 16][WARP_N / 8][4], const T* sA,
                                              const T* sB) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int frag_row = lane % 16, frag_col = lane / 16 * 8;
    sA += (warp % (BLOCK_M / WARP_M) * WARP_M + frag_row) * DEPTH;
    sB += (warp / (BLOCK_M / WARP_M) * WARP_N + frag_row) * DEPTH;
#pragma unroll
    for (auto& row : rC)
#pragma unroll
        for (auto& c : row) c[0] = c[1] = c[2] = c[3] = 0.f;
#pragma unroll
    for (int k = 0; k < DEPTH; k += 16) {
        const int col = swizzle<DEPTH>(frag_row, k + frag_col);
        unsigned rA[WARP_M / 16][4], rB[WARP_N / 8][2];
#pragma unroll
        for (int i = 0; i < WARP_M / 16; ++i) ldmatrix_x4(rA[i], sA + i * 16 * DEPTH + col);
#pragma unroll
        for (int j = 0; j < WARP_N / 16; ++j) {
            unsigned r[4];  // two fragments
            ldmatrix_x4(r, sB + j * 16 * DEPTH + col);
            rB[2 * j][0] = r[0], rB[2 * j][1] = r[2];
            rB[2 * j + 1][0] = r[1], rB[2 * j + 1][1] = r[3];
        }
#pragma unroll
        for (int i = 0; i < WARP_M / 16; ++i)
#pragma unroll
            for (int j = 0; j < WARP_N / 8; ++j) mma_m16n8k16<T>(rC[i][j], rA[i], rB[j]);
    }
}

// Reads a thread's PACKS packs of row[n:], in fp32; what is not among the first `seen` elements
// becomes -inf, which changes no maximum, and whose exponential adds nothing to a sum.
template <int THREADS, int PACKS, typename T>
__device__ __forceinline__ void load_scores(float (&v)[PACKS][8], const T* row, int n, int seen) {
    Pack<T, 8> pack[PACKS];
#pragma unroll
    for (int p = 0; p < PACKS; ++p) {  // all loads are under way before the first is used
        const int at = n + (p * THREADS + threadIdx.x) * 8;  // neighbours read neighbouring packs
        if (at < seen) pack[p] = load_pack<8>(row + at);
    }
#pragma unroll
    for (int p = 0; p < PACKS; ++p)
#pragma unroll
        for (int k = 0; k < 8; ++k) {
            const int at = n + (p * THREADS + threadIdx.x) * 8 + k;
            v[p][k] = at < seen ? float(pack[p].v[k]) : -CUDART_INF_F;
        }
}

// Replaces the scores row[0:end] by their softmax over the first `seen` of them, and by zeros
// beyond, in a block of THREADS. `end` is a multiple of 8, and `row` starts at one of 16 bytes.
//
// The registers hold PACKS packs a thread. Of a longer row they hold the last part; the other parts
// are read for m and l, and then again. A thread reads and writes the same elements, so nobody else
// waits for them.
template <int THREADS, int PACKS, typename T>
__device__ __forceinline__ void softmax_row(T* row, int seen, int end) {
    // One for each reduction: a warp may write its sum while another still reads the maxima.
    __shared__ float sPartialMax[32], sPartialSum[32];
    constexpr int PART = THREADS * PACKS * 8;
    const int last = max(end - 1, 0) / PART * PART;  // where the last part starts

    float v[PACKS][8];
    float m_thread = LOWEST, l = 0.f;  // of the parts before, in fp32
    for (int n = 0; n < last; n += PART) {
        load_scores<THREADS>(v, row, n, seen);
        float m = m_thread;
#pragma unroll
        for (auto& pack : v)
#pragma unroll
            for (float x : pack) m = fmaxf(m, x);
        l *= __expf(m_thread - m);
#pragma unroll
        for (auto& pack : v)
#pragma unroll
            for (float x : pack) l += __expf(x - m);
        m_thread = m;
    }
    load_scores<THREADS>(v, row, last, seen);
    float m = m_thread;
#pragma unroll
    for (auto& pack : v)
#pragma unroll
        for (float x : pack) m = fmaxf(m, x);  // drops a NaN, whose exponential makes l NaN
    m = reduce_row<THREADS>(m, sPartialMax, LOWEST, Max());
    l *= __expf(m_thread - m);
#pragma unroll
    for (auto& pack : v)
#pragma unroll
        for (float& x : pack) {
            x = __expf(x - m);
            l += x;
        }
    l = reduce_row<THREADS>(l, sPartialSum, 0.f, Sum());
    const float scale = seen > 0 ? 1.f / l : 0.f;

    auto store = [&](int n) {
#pragma unroll
        for (int p = 0; p < PACKS; ++p) {
            const int at = n + (p * THREADS + threadIdx.x) * 8;
            Pack<T, 8> pack;
#pragma unroll
            for (int k = 0; k < 8; ++k) pack.v[k] = T(v[p][k] * scale);
            if (at < end) store_pack(row + at, pack);
        }
    };
    store(last);
    for (int n = 0; n < last; n += PART) {
        load_scores<THREADS>(v, row, n, seen);
#pragma unroll
        for (auto& pack : v)
#pragma unroll
            for (float& x : pack) x = __expf(x - m);
        store(n);
    }
}
