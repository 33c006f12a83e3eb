"""What kernels of attention need alike: which keys a query sees, products of rows with rows, as
scores are, and the softmax of a row where it lies. The twin of attention.cuh.
"""

from functools import cache

import numpy as np
from numba import cuda, float32, int32, int64
from numba.cuda import libdevice

from implementations.instructions.access import load_pack, shared_address, store_pack
from implementations.instructions.mma import ldmatrix_x4, mma_m16n8k16
from implementations.instructions.reduce import Max, Sum, reduce_row
from implementations.instructions.tile_product import load_part, swizzle

INF = float32(float("inf"))
# No score but -inf is below it. Where it is the maximum, all scores are -inf and exp(x - m) is 0;
# with -inf as the maximum, -inf - -inf would be NaN.
LOWEST = float32(np.finfo(np.float32).min)


@cuda.jit(device=True)
def seen_keys(row, N, offset):
    """How many of N keys query `row` sees: the first ones, up to key row + offset."""
    return min(max(int32(row + offset + 1), int32(0)), N)


@cache  # a closure is Numba's template: the upper-case names are compile-time constants
def load_rows(ROWS, DEPTH, THREADS):
    """`load(shared, tile, matrix, start, first, rows)`: starts the copy of rows first, first + 1,
    ... of a matrix of `rows` rows and DEPTH columns, which stands from matrix[start] on as int16
    words, to the dynamic shared memory, where from word `tile` on ROWS of them are swizzled; those
    beyond the last become zeros. The caller commits and waits. THREADS: of the block."""
    CHUNKS = DEPTH // 8  # of a row
    load_chunks, swizzle_row = load_part(True, ROWS, DEPTH, THREADS // CHUNKS, 1), swizzle(DEPTH)

    @cuda.jit(device=True)
    def load(shared, tile, matrix, start, first, rows):
        row, col = cuda.threadIdx.x // CHUNKS, cuda.threadIdx.x % CHUNKS * 8
        to = int32(tile + row * DEPTH + swizzle_row(row, col))
        src = start + int64(first + row) * DEPTH + col
        load_chunks(0, shared, to, matrix, src, int32(rows - first - row), DEPTH, DEPTH)

    return load


@cache
def multiply_rows(dtype, BLOCK_M, DEPTH, WARP_M, WARP_N):
    """`multiply(rC, shared, sA, sB)`: rC = A @ B^T of tiles of BLOCK_M and BLOCK_N rows, DEPTH
    columns each, that `load_rows` has left in shared memory from words sA and sB on: of each warp
    its WARP_M x WARP_N part, as fragments of mma.m16n8k16. Lane l gives an ldmatrix the address of
    row l % 16, column 0 or 8, of A as of B: B's rows are the columns that mma wants, and need no
    transposing.

    rC: a local float32 array (WARP_M // 16, WARP_N // 8, 4). dtype: torch.float16 or
    torch.bfloat16."""
    FRAGMENTS_M, FRAGMENTS_N = WARP_M // 16, WARP_N // 8
    mma, swizzle_row = mma_m16n8k16(dtype), swizzle(DEPTH)

    @cuda.jit(device=True)
    def multiply(rC, shared, sA, sB):
        lane, warp = cuda.threadIdx.x % 32, cuda.threadIdx.x // 32
        frag_row, frag_col = lane % 16, lane // 16 * 8
        sA += (warp % (BLOCK_M // WARP_M) * WARP_M + frag_row) * DEPTH
        sB += (warp // (BLOCK_M // WARP_M) * WARP_N + frag_row) * DEPTH
        rA = cuda.local.array((FRAGMENTS_M, 4), int32)
        rB = cuda.local.array((FRAGMENTS_N, 2), int32)
        for i in range(FRAGMENTS_M):
            for j in range(FRAGMENTS_N):
                for e in range(4):
                    rC[i, j, e] = float32(0)
        for k in range(0, DEPTH, 16):
            col = swizzle_row(frag_row, k + frag_col)
            for i in range(FRAGMENTS_M):
                r = ldmatrix_x4(shared_address(shared, sA + i * 16 * DEPTH + col))
                rA[i, 0], rA[i, 1], rA[i, 2], rA[i, 3] = r
            for j in range(0, FRAGMENTS_N, 2):  # two fragments at once
                r = ldmatrix_x4(shared_address(shared, sB + j * 8 * DEPTH + col))
                rB[j, 0], rB[j + 1, 0], rB[j, 1], rB[j + 1, 1] = r
            for i in range(FRAGMENTS_M):
                a = (rA[i, 0], rA[i, 1], rA[i, 2], rA[i, 3])
                for j in range(FRAGMENTS_N):
                    b = (rB[j, 0], rB[j, 1])
                    c = mma(a, b, (rC[i, j, 0], rC[i, j, 1], rC[i, j, 2], rC[i, j, 3]))
                    rC[i, j, 0], rC[i, j, 1], rC[i, j, 2], rC[i, j, 3] = c

    return multiply


@cache
def load_scores(THREADS, PACKS):
    """`load(v, row, start, n, seen)`: reads a thread's PACKS packs of row[start + n:], in fp32;
    what is not among the first `seen` elements from row[start] on becomes -inf, which changes no
    maximum, and whose exponential adds nothing to a sum."""

    @cuda.jit(device=True)
    def load(v, row, start, n, seen):
        for p in range(PACKS):
            at = n + (p * THREADS + cuda.threadIdx.x) * 8  # neighbours read neighbouring packs
            if at < seen:
                load_pack(row, start + at, v, p * 8)
            for k in range(8):
                if at + k >= seen:
                    v[p * 8 + k] = -INF

    return load


@cache
def softmax_row(THREADS, PACKS):
    """`softmax(row, start, seen, end)`: replaces the scores row[start:start + end] by their softmax
    over the first `seen` of them, and by zeros beyond, in a block of THREADS. `end` is a multiple
    of 8, and row[start] stands at one of 16 bytes.

    The registers hold PACKS packs a thread. Of a longer row they hold the last part; the other
    parts are read for m and l, and then again. A thread reads and writes the same elements, so
    nobody else waits for them."""
    HELD = PACKS * 8
    PART = THREADS * HELD
    load = load_scores(THREADS, PACKS)
    reduce_max = reduce_row(THREADS, Max, LOWEST)
    reduce_sum = reduce_row(THREADS, Sum, float32(0))

    @cuda.jit(device=True)
    def store(v, scale, row, start, n, end):
        for k in range(HELD):
            v[k] *= scale
        for p in range(PACKS):
            at = n + (p * THREADS + cuda.threadIdx.x) * 8
            if at < end:
                store_pack(row, start + at, v, p * 8)

    @cuda.jit(device=True)
    def softmax(row, start, seen, end):
        # one for each reduction: a warp may write its sum while another still reads the maxima
        sPartialMax = cuda.shared.array(32, float32)
        sPartialSum = cuda.shared.array(32, float32)
        last = int32(max(end - 1, 0) // PART * PART)  # where the last part starts

        v = cuda.local.array(HELD, float32)
        m_thread, l = LOWEST, float32(0)  # of the parts before, in fp32
        for n in range(0, last, PART):
            load(v, row, start, n, seen)
            m = m_thread
            for k in range(HELD):
                m = libdevice.fmaxf(m, v[k])
            l *= libdevice.fast_expf(m_thread - m)
            for k in range(HELD):
                l += libdevice.fast_expf(v[k] - m)
            m_thread = m
        load(v, row, start, last, seen)
        m = m_thread
        for k in range(HELD):
            m = libdevice.fmaxf(m, v[k])  # drops a NaN, whose exponential makes l NaN
        m = reduce_max(m, sPartialMax)
        l *= libdevice.fast_expf(m_thread - m)
        for k in range(HELD):
            v[k] = libdevice.fast_expf(v[k] - m)
            l += v[k]
        l = reduce_sum(l, sPartialSum)
        scale = float32(1) / l if seen > 0 else float32(0)

        store(v, scale, row, start, last, end)
        for n in range(0, last, PART):
            load(v, row, start, n, seen)
            for k in range(HELD):
                v[k] = libdevice.fast_expf(v[k] - m)
            store(v, scale, row, start, n, end)

    return softmax
