"""What kernels of attention need alike: which keys a query sees, products of rows with rows, as
scores are, and of what a warp holds with rows; and the softmax of a row where it lies. The twin of
attention.cuh.
"""

from functools import cache

import numpy as np
import torch
from numba import cuda, float32, int32, int64, uint32
from numba.cuda import libdevice

from implementations.instructions.access import (
    global_address,
    load_pack,
    load_shared_16,
    pack_bf16,
    pack_f16,
    shared_address,
    store_global_16,
    store_pack,
)
from implementations.instructions.async_copy import cp_async_16
from implementations.instructions.mma import ldmatrix_x4, ldmatrix_x4_trans, mma_m16n8k16
from implementations.instructions.ptx import f32, i32, ptx
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


@ptx("ex2.approx.ftz.f32 $0, $1;", f32(f32))
def exp2_approx(x):
    """2^x by the special-function unit; results below the smallest normal number are 0."""
    return np.exp2(np.float32(x))


@ptx("mov.b32 $0, $1;", i32(i32), memory=True)
def opaque(x):
    """x, of which the compiler shall know nothing: it then adds constants to addresses within an
    instruction, where it would combine their bits in a register for each."""
    return x


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
def load_strided_rows(ROWS, DEPTH, THREADS):
    """`load(shared, tile, matrix, start, stride, first, rows)`: the same, of a matrix whose rows
    are `stride` elements apart."""
    CHUNKS = DEPTH // 8  # of a row
    STEP, swizzle_row = THREADS // CHUNKS, swizzle(DEPTH)  # rows at once

    @cuda.jit(device=True)
    def load(shared, tile, matrix, start, stride, first, rows):
        row, col = cuda.threadIdx.x // CHUNKS, cuda.threadIdx.x % CHUNKS * 8
        to = int32(tile + row * DEPTH + swizzle_row(row, col))
        src = start + int64(first + row) * stride + col
        left = int32(rows - first - row)
        for i in range(0, ROWS, STEP):
            bytes = 16 if i < left else 0
            dst, at = shared_address(shared, to + i * DEPTH), src + i * stride
            cp_async_16(dst, global_address(matrix, at), bytes)

    return load


@cache
def multiply_rows(dtype, BLOCK_M, DEPTH, WARP_M, WARP_N):
    """`multiply(rC, shared, sA, sB)`: rC = A @ B^T of tiles of BLOCK_M and BLOCK_N rows, DEPTH
    columns each, that `load_rows` has left in shared memory from words sA and sB on: of each warp
    its WARP_M x WARP_N part, as fragments of mma.m16n8k16. Lane l gives an ldmatrix the address of
    row l % 16, column l // 16 * 8, of A, and of row l % 8 + l // 16 * 8, column l // 8 % 2 * 8, of
    B: B's rows are the columns that mma wants, and need no transposing.

    rC: a local float32 array (WARP_M // 16, WARP_N // 8, 4). dtype: torch.float16 or
    torch.bfloat16."""
    FRAGMENTS_M, FRAGMENTS_N = WARP_M // 16, WARP_N // 8
    mma, swizzle_row = mma_m16n8k16(dtype), swizzle(DEPTH)

    @cuda.jit(device=True)
    def multiply(rC, shared, sA, sB):
        lane, warp = cuda.threadIdx.x % 32, cuda.threadIdx.x // 32
        row_a, col_a = lane % 16, lane // 16 * 8
        row_b, col_b = lane % 8 + lane // 16 * 8, lane // 8 % 2 * 8
        sA += opaque(int32((warp % (BLOCK_M // WARP_M) * WARP_M + row_a) * DEPTH))
        sB += opaque(int32((warp // (BLOCK_M // WARP_M) * WARP_N + row_b) * DEPTH))
        rA = cuda.local.array((FRAGMENTS_M, 4), int32)
        for i in range(FRAGMENTS_M):
            for j in range(FRAGMENTS_N):
                for e in range(4):
                    rC[i, j, e] = float32(0)
        for k in range(0, DEPTH, 16):
            from_a = sA + swizzle_row(row_a, k + col_a)
            from_b = sB + swizzle_row(row_b, k + col_b)
            for i in range(FRAGMENTS_M):
                r = ldmatrix_x4(shared_address(shared, from_a + i * 16 * DEPTH))
                rA[i, 0], rA[i, 1], rA[i, 2], rA[i, 3] = r
            for j in range(0, FRAGMENTS_N, 2):
                r = ldmatrix_x4(shared_address(shared, from_b + j * 8 * DEPTH))  # two fragments
                for i in range(FRAGMENTS_M):
                    a = (rA[i, 0], rA[i, 1], rA[i, 2], rA[i, 3])
                    c = mma(a, (r[0], r[1]), (rC[i, j, 0], rC[i, j, 1], rC[i, j, 2], rC[i, j, 3]))
                    rC[i, j, 0], rC[i, j, 1], rC[i, j, 2], rC[i, j, 3] = c
                    n = j + 1
                    c = mma(a, (r[2], r[3]), (rC[i, n, 0], rC[i, n, 1], rC[i, n, 2], rC[i, n, 3]))
                    rC[i, n, 0], rC[i, n, 1], rC[i, n, 2], rC[i, n, 3] = c

    return multiply


@cache
def as_operand(dtype, ROWS, COLS):
    """`convert(rA, rC)`: rA = rC, rounded to dtype: the result of one product as the left operand
    of another. Two fragments of C, 8 columns wide, are one of A, and no element changes its lane.

    rC: a local float32 array (ROWS, COLS, 4). rA: a local int32 array (ROWS, COLS // 2, 4)."""
    pack = pack_f16 if dtype == torch.float16 else pack_bf16

    @cuda.jit(device=True)
    def convert(rA, rC):
        for i in range(ROWS):
            for j in range(COLS):
                for half in range(2):
                    word = pack(rC[i, j, 2 * half], rC[i, j, 2 * half + 1])
                    rA[i, j // 2, j % 2 * 2 + half] = word

    return convert


@cache
def add_product(dtype, ROWS, DEPTH, COLS):
    """`add(rC, rA, shared, sB)`: rC += A @ B, of the rows of A that a warp holds and the DEPTH rows
    of B, COLS columns each, that `load_rows` has left in shared memory from word sB on. B's rows
    become the columns that mma wants as they are transposed on their way into the registers.

    rC: a local float32 array (ROWS, COLS // 8, 4). rA: a local int32 array (ROWS, DEPTH // 16, 4).
    """
    mma, swizzle_row = mma_m16n8k16(dtype), swizzle(COLS)

    @cuda.jit(device=True)
    def add(rC, rA, shared, sB):
        lane = cuda.threadIdx.x % 32
        frag_row, frag_col = lane % 16, lane // 16 * 8
        sB += opaque(int32(frag_row * COLS))
        for k in range(DEPTH // 16):
            for j in range(0, COLS // 8, 2):
                row = sB + swizzle_row(frag_row, j * 8 + frag_col)
                r = ldmatrix_x4_trans(shared_address(shared, row + k * 16 * COLS))  # two fragments
                for i in range(ROWS):
                    a = (rA[i, k, 0], rA[i, k, 1], rA[i, k, 2], rA[i, k, 3])
                    c = mma(a, (r[0], r[1]), (rC[i, j, 0], rC[i, j, 1], rC[i, j, 2], rC[i, j, 3]))
                    rC[i, j, 0], rC[i, j, 1], rC[i, j, 2], rC[i, j, 3] = c
                    n = j + 1
                    c = mma(a, (r[2], r[3]), (rC[i, n, 0], rC[i, n, 1], rC[i, n, 2], rC[i, n, 3]))
                    rC[i, n, 0], rC[i, n, 1], rC[i, n, 2], rC[i, n, 3] = c

    return add


@cache
def reduce_quad(op):
    """`reduce(value)`: the reduction of `value` over the four lanes that share a row of a fragment
    of C."""

    @cuda.jit(device=True)
    def reduce(value):
        value = op(value, cuda.shfl_xor_sync(0xFFFFFFFF, value, 1))
        return op(value, cuda.shfl_xor_sync(0xFFFFFFFF, value, 2))

    return reduce


@cache
def store_strided_rows(dtype, COLS, WARP_M):
    """`store(rC, shared, sC, matrix, start, stride, first, rows)`: rows first, first + 1, ... of a
    matrix of `rows` rows, COLS columns each and `stride` elements apart, which stands from
    matrix[start] on as int16 words, become rC, rounded to dtype: of each warp its WARP_M rows. They
    leave through the warp's part of the shared memory from word sC on, so that a warp stores whole
    rows."""
    CHUNKS = COLS // 8  # of a row
    pack, swizzle_row = pack_f16 if dtype == torch.float16 else pack_bf16, swizzle(COLS)

    @cuda.jit(device=True)
    def store(rC, shared, sC, matrix, start, stride, first, rows):
        lane, warp = cuda.threadIdx.x % 32, cuda.threadIdx.x // 32
        pairs = cuda.shared.array(0, int32)  # the same memory, two elements a word
        sC += warp * WARP_M * COLS
        for i in range(WARP_M // 16):
            for j in range(COLS // 8):
                for half in range(2):
                    row, col = i * 16 + half * 8 + lane // 4, j * 8 + lane % 4 * 2
                    at = uint32(sC + row * COLS + swizzle_row(row, col))
                    pairs[at // uint32(2)] = pack(rC[i, j, 2 * half], rC[i, j, 2 * half + 1])
        cuda.syncwarp()  # each warp reads what its own lanes have written
        first += warp * WARP_M
        for i in range(0, WARP_M, 32 // CHUNKS):
            row, col = i + lane // CHUNKS, lane % CHUNKS * 8
            words = load_shared_16(shared_address(shared, sC + row * COLS + swizzle_row(row, col)))
            if first + row < rows:
                at = start + int64(first + row) * stride + col
                store_global_16(global_address(matrix, at), words)

    return store


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
