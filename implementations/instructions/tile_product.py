"""The product of a tile on tensor cores, once for all kernels from Day 18 on: Day 17's main loop,
and the way by which C leaves.

A block owns a BLOCK_M x BLOCK_N tile of C, and each of its warps a WARP_M x WARP_N part, held in
registers as fragments of mma.m16n8k16. Both functions leave the shared memory free for whatever
comes next, as they end with a barrier: a block may call them for one tile after another. The twin
of tile_product.cuh.
"""

from functools import cache

import torch
from numba import cuda, float32, int16, int32, int64, uint32

from implementations.instructions.access import (
    global_address,
    load_shared_16,
    pack_bf16,
    pack_f16,
    shared_address,
    store_global_16,
)
from implementations.instructions.async_copy import cp_async_16, cp_async_commit, cp_async_wait
from implementations.instructions.mma import ldmatrix_x4, ldmatrix_x4_trans, mma_m16n8k16


@cache  # a closure is Numba's template: the upper-case names are compile-time constants
def swizzle(COLS):
    """`swizzle(r, c)`: where column c of row r of a tile COLS wide stands in shared memory.
    Unswizzled, the eight chunks of 16 bytes that an ldmatrix reads from eight rows would lie in the
    same banks. Rows shorter than the 128 bytes of all banks share these, so that some are swizzled
    alike."""
    CHUNKS = min(COLS // 8, 8)
    ALIKE = 8 // CHUNKS

    @cuda.jit(device=True)
    def swizzle(r, c):
        return c ^ r // ALIKE % CHUNKS * 8

    return swizzle


@cache
def load_part(ALIGNED, ROWS, COLS, STEP, PARTS):
    """The function that copies part `part` of PARTS of a ROWS x COLS tile from a row-major matrix
    of `cols` columns to shared memory. `src` and `dst` are this thread's first chunk of 16 bytes:
    neighbours copy neighbouring chunks, which is coalesced, and those of a thread are STEP rows
    apart. Beyond the rows and columns left the tile gets zeros, which add nothing to C."""
    COUNT = ROWS // STEP
    COUNT_PART = -(-COUNT // PARTS)
    assert COUNT * STEP == ROWS, "all threads must have as many chunks"
    assert STEP % 8 == 0, "a thread's chunks must be swizzled alike"

    @cuda.jit(device=True)
    def load_part(part, shared, dst, matrix, src, rows_left, cols_left, cols):
        for j in range(COUNT_PART):
            i = part * COUNT_PART + j
            row = int32(i * STEP)
            to, at = dst + row * COLS, src + int64(row) * cols
            if i < COUNT:
                if ALIGNED:  # rows are whole chunks
                    bytes = 16 if row < rows_left and 0 < cols_left else 0
                    cp_async_16(shared_address(shared, to), global_address(matrix, at), bytes)
                else:
                    for k in range(8):
                        mask = row < rows_left and k < cols_left
                        shared[to + k] = matrix[at + k] if mask else int16(0)

    return load_part


@cache
def load_fragments(BLOCK_N, BLOCK_K, WARP_M, WARP_N):
    """The function that loads what comes before row i of mma: fragments of 16 rows of A, and of B
    as many times 16 columns as make all of them."""
    COUNT_B = -(-WARP_N // WARP_M)

    @cuda.jit(device=True)
    def load_fragments(rA, rB, buffer, shared, offs_a, offs_b, part, i):
        r = ldmatrix_x4(shared_address(shared, offs_a[part] + i * 16 * BLOCK_K))
        rA[buffer, i, 0], rA[buffer, i, 1], rA[buffer, i, 2], rA[buffer, i, 3] = r
        for h in range(COUNT_B):
            j = i * COUNT_B + h
            if j < WARP_N // 16:
                r = ldmatrix_x4_trans(shared_address(shared, offs_b[j] + part * 16 * BLOCK_N))
                # two fragments: B's rows become the columns that mma wants
                n = 2 * j
                rB[buffer, n, 0], rB[buffer, n, 1], rB[buffer, n + 1, 0], rB[buffer, n + 1, 1] = r

    return load_fragments


@cache
def tile_product(dtype, ALIGNED, BLOCK_M, BLOCK_N, BLOCK_K, WARP_M, WARP_N, STAGES):
    """`product(rC, shared, A, B, M, N, K, m0, n0, k_begin, k_end)`:
    rC = A[m0:m0 + BLOCK_M, k_begin:k_end] @ B[k_begin:k_end, n0:n0 + BLOCK_N] of row-major A (M, K)
    and B (K, N), both as int16 words: of each warp its part. What lies beyond the edges counts as
    zero.

    rC: a local float32 array (WARP_M // 16, WARP_N // 8, 4). M, N, K: int32. shared: the dynamic
    shared memory as int16, STAGES * (BLOCK_M + BLOCK_N) * BLOCK_K elements.
    dtype: of the operands, torch.float16 or torch.bfloat16. ALIGNED: whether rows of A and B are
    whole chunks of 16 bytes. BLOCK_K: the elements of K in a step, of which k_begin must be a
    multiple if ALIGNED. STAGES: tiles of A and of B in `shared`. The block has a warp for each
    part.

    Tiles travel to shared memory STAGES - 1 steps ahead, in as many parts as a step has
    multiplications, one before each; fragments travel to registers one multiplication ahead, some
    before each row of mma."""
    THREADS = BLOCK_M // WARP_M * (BLOCK_N // WARP_N) * 32
    PARTS = BLOCK_K // 16  # multiplications of a step
    assert PARTS % 2 == 0 and STAGES > 1, "fragments and tiles are loaded ahead"
    A_TILE, B_TILE = BLOCK_M * BLOCK_K, BLOCK_K * BLOCK_N
    STAGE_SIZE = A_TILE + B_TILE  # a tile of A, then a tile of B
    FRAGMENTS_M, FRAGMENTS_N, COLUMNS_B = WARP_M // 16, WARP_N // 8, WARP_N // 16
    mma, swizzle_a, swizzle_b = mma_m16n8k16(dtype), swizzle(BLOCK_K), swizzle(BLOCK_N)
    load_a = load_part(ALIGNED, BLOCK_M, BLOCK_K, THREADS // (BLOCK_K // 8), PARTS)
    load_b = load_part(ALIGNED, BLOCK_K, BLOCK_N, THREADS // (BLOCK_N // 8), PARTS)
    load_next = load_fragments(BLOCK_N, BLOCK_K, WARP_M, WARP_N)
    cp_async_wait_stage, cp_async_wait_all = cp_async_wait(STAGES - 2), cp_async_wait(0)

    @cuda.jit(device=True)
    def product(rC, shared, A, B, M, N, K, m0, n0, k_begin, k_end):
        tid = cuda.threadIdx.x
        lane, warp = tid % 32, tid // 32
        warp_m = warp % (BLOCK_M // WARP_M) * WARP_M
        warp_n = warp // (BLOCK_M // WARP_M) * WARP_N
        depth = int32(k_end - k_begin)
        steps = (depth + BLOCK_K - 1) // BLOCK_K

        # this thread's first chunk of each tile
        row_a, col_a = tid // (BLOCK_K // 8), tid % (BLOCK_K // 8) * 8
        row_b, col_b = tid // (BLOCK_N // 8), tid % (BLOCK_N // 8) * 8
        src_a = int64(m0 + row_a) * K + k_begin + col_a
        src_b = int64(k_begin + row_b) * N + n0 + col_b
        dst_a = row_a * BLOCK_K + swizzle_a(row_a, col_a)
        dst_b = A_TILE + row_b * BLOCK_N + swizzle_b(row_b, col_b)
        m_left, n_left = int32(M - m0 - row_a), int32(N - n0 - col_b)

        for step in range(STAGES - 1):
            k_left = depth - int32(step * BLOCK_K)
            for part in range(PARTS):
                to = step * STAGE_SIZE
                load_a(part, shared, dst_a + to, A, src_a, m_left, k_left - col_a, K)
                load_b(part, shared, dst_b + to, B, src_b, k_left - row_b, n_left, N)
            cp_async_commit()
            src_a += BLOCK_K
            src_b += int64(BLOCK_K) * N
        # For an ldmatrix, lane l gives the address of row l % 16, column 0 or 8. The addresses are
        # computed once for each 16 columns of a tile, and then moved from stage to stage.
        frag_row, frag_col = lane % 16, lane // 16 * 8
        offs_a, offs_b = cuda.local.array(PARTS, int32), cuda.local.array(COLUMNS_B, int32)
        for part in range(PARTS):
            col = part * 16 + frag_col
            offs_a[part] = (warp_m + frag_row) * BLOCK_K + swizzle_a(frag_row, col)
        for j in range(COLUMNS_B):
            col = warp_n + j * 16 + frag_col
            offs_b[j] = A_TILE + frag_row * BLOCK_N + swizzle_b(frag_row, col)
        rA = cuda.local.array((2, FRAGMENTS_M, 4), int32)  # the fragments in use and the next
        rB = cuda.local.array((2, FRAGMENTS_N, 2), int32)
        # the wait is for this thread's copies, the barrier for those of all others
        cp_async_wait_stage()
        cuda.syncthreads()  # stage 0 has arrived for all
        for i in range(FRAGMENTS_M):
            load_next(rA, rB, 0, shared, offs_a, offs_b, 0, i)

        # fp32: products of 16 bits are exact, and a sum in 16 bits would stop growing
        for i in range(FRAGMENTS_M):
            for j in range(FRAGMENTS_N):
                for e in range(4):
                    rC[i, j, e] = float32(0)
        for step in range(steps):
            step_ahead = step + STAGES - 1  # whose tiles are being loaded: beyond the last, zeros
            # The stage that is filled is that of the step before: the barrier that ended it says
            # that all warps have left the stage.
            stage, k_left = uint32(step_ahead) % uint32(STAGES), depth - step_ahead * BLOCK_K
            k_left_a, k_left_b = int32(k_left - col_a), int32(k_left - row_b)
            to_a, to_b = int32(dst_a + stage * STAGE_SIZE), int32(dst_b + stage * STAGE_SIZE)
            for part in range(PARTS):
                buffer = part % 2
                load_a(part, shared, to_a, A, src_a, m_left, k_left_a, K)
                load_b(part, shared, to_b, B, src_b, k_left_b, n_left, N)
                # the last fragments of this stage are in registers: the next are of the next stage
                if part == PARTS - 1:
                    cp_async_commit()
                    src_a += BLOCK_K
                    src_b += int64(BLOCK_K) * N
                    cp_async_wait_stage()
                    cuda.syncthreads()  # the next stage has arrived for all, and all have left this
                    last = uint32(step) % uint32(STAGES) == STAGES - 1
                    stride = int32(-(STAGES - 1) * STAGE_SIZE if last else STAGE_SIZE)
                    for j in range(PARTS):
                        offs_a[j] += stride
                    for j in range(COLUMNS_B):
                        offs_b[j] += stride
                for i in range(FRAGMENTS_M):
                    load_next(rA, rB, buffer ^ 1, shared, offs_a, offs_b, (part + 1) % PARTS, i)
                    a = (rA[buffer, i, 0], rA[buffer, i, 1], rA[buffer, i, 2], rA[buffer, i, 3])
                    for j in range(FRAGMENTS_N):
                        # to and fro: a row begins with the fragment of B that the last ended with
                        n = j if i % 2 == 0 else FRAGMENTS_N - 1 - j
                        b = (rB[buffer, n, 0], rB[buffer, n, 1])
                        c = mma(a, b, (rC[i, n, 0], rC[i, n, 1], rC[i, n, 2], rC[i, n, 3]))
                        rC[i, n, 0], rC[i, n, 1], rC[i, n, 2], rC[i, n, 3] = c
        # copies of steps beyond the last write zeros to the tiles: they must end as well
        cp_async_wait_all()
        cuda.syncthreads()  # nobody needs the tiles any more

    return product


@cache
def store_tile(dtype, ALIGNED, BLOCK_M, BLOCK_N, WARP_M, WARP_N):
    """`store(rC, shared, C, M, N, m0, n0)`: C[m0:m0 + BLOCK_M, n0:n0 + BLOCK_N] = rC, rounded to
    dtype, of row-major C (M, N) as int16 words; what lies beyond the edges is not stored.

    C leaves through the dynamic shared memory, BLOCK_M * BLOCK_N elements of it, so that a warp
    stores whole rows of its part. Of a fragment, lane l holds columns l % 4 * 2 + {0, 1} of rows
    l // 4 and l // 4 + 8. ALIGNED: whether rows of C are whole chunks of 16 bytes."""
    FRAGMENTS_M, FRAGMENTS_N, CHUNKS = WARP_M // 16, WARP_N // 8, WARP_N // 8  # chunks of a row
    pack, swizzle_c = pack_f16 if dtype == torch.float16 else pack_bf16, swizzle(WARP_N)

    @cuda.jit(device=True)
    def store(rC, shared, C, M, N, m0, n0):
        lane, warp = cuda.threadIdx.x % 32, cuda.threadIdx.x // 32
        warp_m = warp % (BLOCK_M // WARP_M) * WARP_M
        warp_n = warp // (BLOCK_M // WARP_M) * WARP_N
        pairs = cuda.shared.array(0, int32)  # the same memory, two elements a word
        sC = warp * WARP_M * WARP_N
        for i in range(FRAGMENTS_M):
            for j in range(FRAGMENTS_N):
                for h in range(2):
                    row, col = i * 16 + h * 8 + lane // 4, j * 8 + lane % 4 * 2
                    at = uint32(sC + row * WARP_N + swizzle_c(row, col))
                    pairs[at // uint32(2)] = pack(rC[i, j, 2 * h], rC[i, j, 2 * h + 1])
        # each warp reads what its own lanes have written
        cuda.syncwarp()
        for row in range(lane // CHUNKS, WARP_M, 32 // CHUNKS):
            col = lane % CHUNKS * 8
            at = sC + row * WARP_N + swizzle_c(row, col)
            m, n = m0 + warp_m + row, n0 + warp_n + col
            to = int64(m) * N + n
            if ALIGNED:
                if m < M and n < N:
                    words = load_shared_16(shared_address(shared, at))
                    store_global_16(global_address(C, to), words)
            else:
                for k in range(8):
                    if m < M and n + k < N:
                        C[to + k] = shared[at + k]
        cuda.syncthreads()  # nobody needs the shared memory any more

    return store
