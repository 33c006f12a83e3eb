// What kernels of attention need alike: which keys a query sees, products of rows with rows, as
// scores are, and of what a warp holds with rows; and the softmax of a row where it lies. The twin
// of attention.py.
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

// 2^x by the special-function unit; results below the smallest normal number are 0.
__device__ __forceinline__ float exp2_approx(float x) {
#ifdef STUDY_CPU
    return exp2f(x);
#else
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

// x, of which the compiler shall know nothing: it then adds constants to addresses within an
// instruction, where it would combine their bits in a register for each.
__device__ __forceinline__ int opaque(int x) {
#ifndef STUDY_CPU
    asm volatile("" : "+r"(x));
#endif
    return x;
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

// The same, of a matrix whose rows are `stride` elements apart.
template <int ROWS, int DEPTH, int THREADS, typename T>
__device__ __forceinline__ void load_strided_rows(T* tile, const T* matrix, long long stride,
                                                  int first, int rows) {
    constexpr int CHUNKS = DEPTH / 8, STEP = THREADS / CHUNKS;  // chunks of a row; rows at once
    const int row = threadIdx.x / CHUNKS, col = threadIdx.x % CHUNKS * 8;
    const T* src = matrix + (first + row) * stride + col;
    T* dst = tile + row * DEPTH + swizzle<DEPTH>(row, col);
#pragma unroll
    for (int i = 0; i < ROWS; i += STEP)
        cp_async_16(dst + i * DEPTH, src + i * stride, first + row + i < rows ? 16 : 0);
}

// rC = A @ B^T of tiles of BLOCK_M and BLOCK_N rows, DEPTH columns each, that `load_rows` has left
// in shared memory: of each warp its WARP_M x WARP_N part, as fragments of mma.m16n8k16. Lane l
// gives an ldmatrix the address of row l % 16, column l / 16 * 8, of A, and of row l % 8 + l / 16 *
// 8, column l / 8 % 2 * 8, of B: B's rows are the columns that mma wants, and need no transposing.
template <int BLOCK_M, int DEPTH, int WARP_M, int WARP_N, typename T>
__device__ __forceinline__ void multiply_rows(float (&rC)[WARP_M / 16][WARP_N / 8][4], const T* sA,
                                              const T* sB) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int row_a = lane % 16, col_a = lane / 16 * 8;
    const int row_b = lane % 8 + lane / 16 * 8, col_b = lane / 8 % 2 * 8;
    sA += opaque((warp % (BLOCK_M / WARP_M) * WARP_M + row_a) * DEPTH);
    sB += opaque((warp / (BLOCK_M / WARP_M) * WARP_N + row_b) * DEPTH);
#pragma unroll
    for (auto& row : rC)
#pragma unroll
        for (auto& c : row) c[0] = c[1] = c[2] = c[3] = 0.f;
#pragma unroll
    for (int k = 0; k < DEPTH; k += 16) {
        const T* from_a = sA + swizzle<DEPTH>(row_a, k + col_a);
        const T* from_b = sB + swizzle<DEPTH>(row_b, k + col_b);
        unsigned rA[WARP_M / 16][4];
#pragma unroll
        for (int i = 0; i < WARP_M / 16; ++i) ldmatrix_x4(rA[i], from_a + i * 16 * DEPTH);
#pragma unroll
        for (int j = 0; j < WARP_N / 8; j += 2) {
            unsigned r[4];  // two fragments
            ldmatrix_x4(r, from_b + j * 8 * DEPTH);
            const unsigned rB[2][2] = {{r[0], r[1]}, {r[2], r[3]}};
#pragma unroll
            for (int i = 0; i < WARP_M / 16; ++i) {
                mma_m16n8k16<T>(rC[i][j], rA[i], rB[0]);
                mma_m16n8k16<T>(rC[i][j + 1], rA[i], rB[1]);
            }
        }
    }
}

// rA = rC, rounded to T: the result of one product as the left operand of another. Two fragments of
// C, 8 columns wide, are one of A, and no element changes its lane. ROWS, COLS: fragments of C.
template <typename T, int ROWS, int COLS>
__device__ __forceinline__ void as_operand(unsigned (&rA)[ROWS][COLS / 2][4],
                                           const float (&rC)[ROWS][COLS][4]) {
#pragma unroll
    for (int i = 0; i < ROWS; ++i)
#pragma unroll
        for (int j = 0; j < COLS; ++j) {
            rA[i][j / 2][j % 2 * 2] = pack_pair<T>(rC[i][j][0], rC[i][j][1]);
            rA[i][j / 2][j % 2 * 2 + 1] = pack_pair<T>(rC[i][j][2], rC[i][j][3]);
        }
}

// rC += A @ B, of the rows of A that a warp holds and the rows of B, COLS columns each, that
// `load_rows` has left in shared memory: as many as A has columns. B's rows become the columns that
// mma wants as they are transposed on their way into the registers.
template <int COLS, typename T, int ROWS, int DEPTH>
__device__ __forceinline__ void add_product(float (&rC)[ROWS][COLS / 8][4],
                                            const unsigned (&rA)[ROWS][DEPTH][4], const T* sB) {
    const int lane = threadIdx.x % 32, frag_row = lane % 16, frag_col = lane / 16 * 8;
    sB += opaque(frag_row * COLS);
#pragma unroll
    for (int k = 0; k < DEPTH; ++k)
#pragma unroll
        for (int j = 0; j < COLS / 8; j += 2) {
            unsigned r[4];  // two fragments
            const T* row = sB + swizzle<COLS>(frag_row, j * 8 + frag_col);
            ldmatrix_x4_trans(r, row + k * 16 * COLS);
            const unsigned rB[2][2] = {{r[0], r[1]}, {r[2], r[3]}};
#pragma unroll
            for (int i = 0; i < ROWS; ++i) {
                mma_m16n8k16<T>(rC[i][j], rA[i][k], rB[0]);
                mma_m16n8k16<T>(rC[i][j + 1], rA[i][k], rB[1]);
            }
        }
}

// The reduction of `value` over the four lanes that share a row of a fragment of C.
template <typename Op>
__device__ __forceinline__ float reduce_quad(float value, Op op) {
    value = op(value, __shfl_xor_sync(0xFFFFFFFF, value, 1));
    return op(value, __shfl_xor_sync(0xFFFFFFFF, value, 2));
}

// Rows first, first + 1, ... of a matrix of `rows` rows, COLS columns each and `stride` elements
// apart, become rC, rounded: of each warp its WARP_M rows. They leave through the warp's part of
// `shared`, so that a warp stores whole rows.
template <int COLS, int WARP_M, typename T>
__device__ __forceinline__ void store_strided_rows(const float (&rC)[WARP_M / 16][COLS / 8][4],
                                                   T* shared, T* matrix, long long stride,
                                                   int first, int rows) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    T* sC = shared + warp * WARP_M * COLS;
#pragma unroll
    for (int i = 0; i < WARP_M / 16; ++i)
#pragma unroll
        for (int j = 0; j < COLS / 8; ++j)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int row = i * 16 + half * 8 + lane / 4, col = j * 8 + lane % 4 * 2;
                *reinterpret_cast<unsigned*>(sC + row * COLS + swizzle<COLS>(row, col)) =
                    pack_pair<T>(rC[i][j][2 * half], rC[i][j][2 * half + 1]);
            }
    __syncwarp();                     // each warp reads what its own lanes have written
    constexpr int CHUNKS = COLS / 8;  // of a row
    first += warp * WARP_M;
#pragma unroll
    for (int row = lane / CHUNKS; row < WARP_M; row += 32 / CHUNKS) {
        const int col = lane % CHUNKS * 8;
        const T* from = sC + row * COLS + swizzle<COLS>(row, col);
        T* to = matrix + (first + row) * stride + col;
        if (first + row < rows) store_global_16(to, from);
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
