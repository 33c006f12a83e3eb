"""Each block owns a tile of C, each warp 64 x 64 of it; cp.async fills STAGES shared tiles."""

from functools import cache

import numpy as np
import torch
from numba import cuda, float32, int16, int32, int64, uint32

from implementations.common.device import properties
from implementations.common.numba_cuda import launch
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
from implementations.phase3_matrix_operations.day17_k_dimension_loop.matmul_tensor_core import check

BLOCK_M, BLOCK_N, BLOCK_K = 128, 256, 64
STAGE_BYTES = (BLOCK_M + BLOCK_N) * BLOCK_K * 2  # bytes of shared memory that a stage takes
MAX_STAGES = 3
WARP_M, WARP_N = 64, 64

PARTS = BLOCK_K // 16  # a step multiplies so often, and loads a part of its tiles each time
FRAGMENTS_M, FRAGMENTS_N = WARP_M // 16, WARP_N // 8
assert WARP_M == WARP_N, "as many rows of A as columns of B"
THREADS = BLOCK_M * BLOCK_N // 128  # a warp for each 64 x 64
A_TILE, B_TILE = BLOCK_M * BLOCK_K, BLOCK_K * BLOCK_N
STAGE_SIZE = A_TILE + B_TILE  # in shared memory: a tile of A, then a tile of B


@cuda.jit(device=True)
def swizzle(r, c):
    """Where column c of row r of a tile stands in shared memory. Rows are a multiple of 128 bytes
    long, so that unswizzled the eight chunks of 16 bytes that an ldmatrix reads from eight rows
    would lie in the same banks."""
    return c ^ r % 8 * 8


@cache  # a closure is Numba's template: the upper-case names are compile-time constants
def make_load_part(ALIGNED, ROWS, COLS):
    """The function that copies part `part` of a ROWS x COLS tile from a row-major matrix of `cols`
    columns to shared memory. `src` and `dst` are this thread's first chunk of 16 bytes: neighbours
    copy neighbouring chunks, which is coalesced, and those of a thread are STEP rows apart. Beyond
    the rows and columns left the tile gets zeros, which add nothing to C."""
    STEP = THREADS // (COLS // 8)
    COUNT = ROWS // STEP // PARTS
    assert COUNT * STEP * PARTS == ROWS, "the tile must fall into equal parts"
    assert STEP % 8 == 0, "a thread's chunks must be swizzled alike"

    @cuda.jit(device=True)
    def load_part(part, shared, dst, matrix, src, rows_left, cols_left, cols):
        for j in range(COUNT):
            row = int32((part * COUNT + j) * STEP)
            to, at = dst + row * COLS, src + row * cols
            if ALIGNED:  # rows are whole chunks
                bytes = 16 if row < rows_left and 0 < cols_left else 0
                cp_async_16(shared_address(shared, to), global_address(matrix, at), bytes)
            else:
                for k in range(8):
                    mask = row < rows_left and k < cols_left
                    shared[to + k] = matrix[at + k] if mask else int16(0)

    return load_part


@cuda.jit(device=True)
def load_fragments(rA, rB, buffer, sAB, offs_a, offs_b, part, i):
    """Load fragments of 16 rows of A and 16 columns of B."""
    r = ldmatrix_x4(shared_address(sAB, offs_a[part] + i * 16 * BLOCK_K))
    rA[buffer, i, 0], rA[buffer, i, 1], rA[buffer, i, 2], rA[buffer, i, 3] = r
    r = ldmatrix_x4_trans(shared_address(sAB, offs_b[i] + part * 16 * BLOCK_N))
    # two fragments: B's rows become the columns that mma wants
    j = 2 * i
    rB[buffer, j, 0], rB[buffer, j, 1], rB[buffer, j + 1, 0], rB[buffer, j + 1, 1] = r


@cache
def matmul_tensor_core_kernel(dtype, ALIGNED, STAGES):
    mma, pack = mma_m16n8k16(dtype), pack_f16 if dtype == torch.float16 else pack_bf16
    load_a = make_load_part(ALIGNED, BLOCK_M, BLOCK_K)
    load_b = make_load_part(ALIGNED, BLOCK_K, BLOCK_N)
    cp_async_wait_stage, cp_async_wait_all = cp_async_wait(STAGES - 2), cp_async_wait(0)

    @cuda.jit(launch_bounds=THREADS)
    def kernel(A, B, C, M, N, K):
        sAB = cuda.shared.array(0, int16)  # [STAGES][STAGE_SIZE], in the end C

        tid = cuda.threadIdx.x
        lane, warp = tid % 32, tid // 32
        warp_m = warp % (BLOCK_M // WARP_M) * WARP_M
        warp_n = warp // (BLOCK_M // WARP_M) * WARP_N
        m0, n0 = cuda.blockIdx.y * BLOCK_M, cuda.blockIdx.x * BLOCK_N
        steps = (K + BLOCK_K - 1) // BLOCK_K

        # this thread's first chunk of each tile
        row_a, col_a = tid // (BLOCK_K // 8), tid % (BLOCK_K // 8) * 8
        row_b, col_b = tid // (BLOCK_N // 8), tid % (BLOCK_N // 8) * 8
        src_a = int64(m0 + row_a) * K + col_a
        src_b = int64(row_b) * N + n0 + col_b
        dst_a = row_a * BLOCK_K + swizzle(row_a, col_a)
        dst_b = A_TILE + row_b * BLOCK_N + swizzle(row_b, col_b)
        m_left, n_left = int32(M - m0 - row_a), int32(N - n0 - col_b)

        for step in range(STAGES - 1):
            k_left = K - int32(step * BLOCK_K)
            for part in range(PARTS):
                load_a(part, sAB, dst_a + step * STAGE_SIZE, A, src_a, m_left, k_left - col_a, K)
                load_b(part, sAB, dst_b + step * STAGE_SIZE, B, src_b, k_left - row_b, n_left, N)
            cp_async_commit()
            src_a += BLOCK_K
            src_b += int64(BLOCK_K) * N
        # For an ldmatrix, lane l gives the address of row l % 16, column 0 or 8. The addresses are
        # computed once for each 16 columns of a tile, and then moved from stage to stage.
        frag_row, frag_col = lane % 16, lane // 16 * 8
        offs_a, offs_b = cuda.local.array(PARTS, int32), cuda.local.array(FRAGMENTS_M, int32)
        for part in range(PARTS):
            offs_a[part] = (warp_m + frag_row) * BLOCK_K + swizzle(frag_row, part * 16 + frag_col)
        for j in range(FRAGMENTS_M):
            offs_b[j] = A_TILE + frag_row * BLOCK_N + warp_n + swizzle(frag_row, j * 16 + frag_col)
        rA = cuda.local.array((2, FRAGMENTS_M, 4), int32)  # the fragments in use and the next
        rB = cuda.local.array((2, FRAGMENTS_N, 2), int32)
        # the wait is for this thread's copies, the barrier for those of all others
        cp_async_wait_stage()
        cuda.syncthreads()  # stage 0 has arrived for all
        for i in range(FRAGMENTS_M):
            load_fragments(rA, rB, 0, sAB, offs_a, offs_b, 0, i)

        # fp32: products of 16 bits are exact, and a sum in 16 bits would stop growing
        rC = cuda.local.array((FRAGMENTS_M, FRAGMENTS_N, 4), float32)
        for i in range(FRAGMENTS_M):
            for j in range(FRAGMENTS_N):
                for e in range(4):
                    rC[i, j, e] = float32(0)
        for step in range(steps):
            step_ahead = step + STAGES - 1  # whose tiles are being loaded: beyond the last, zeros
            # The stage that is filled is that of the step before: the barrier that ended it says
            # that all warps have left the stage.
            stage, k_left = uint32(step_ahead) % uint32(STAGES), K - step_ahead * BLOCK_K
            k_left_a, k_left_b = int32(k_left - col_a), int32(k_left - row_b)
            to_a, to_b = int32(dst_a + stage * STAGE_SIZE), int32(dst_b + stage * STAGE_SIZE)
            for part in range(PARTS):
                buffer = part % 2
                load_a(part, sAB, to_a, A, src_a, m_left, k_left_a, K)
                load_b(part, sAB, to_b, B, src_b, k_left_b, n_left, N)
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
                    for j in range(FRAGMENTS_M):
                        offs_b[j] += stride
                for i in range(FRAGMENTS_M):
                    load_fragments(rA, rB, buffer ^ 1, sAB, offs_a, offs_b, (part + 1) % PARTS, i)
                    a = (rA[buffer, i, 0], rA[buffer, i, 1], rA[buffer, i, 2], rA[buffer, i, 3])
                    for j in range(FRAGMENTS_N):
                        # to and fro: a row begins with the fragment of B that the last ended with
                        n = j if i % 2 == 0 else FRAGMENTS_N - 1 - j
                        b = (rB[buffer, n, 0], rB[buffer, n, 1])
                        c = mma(a, b, (rC[i, n, 0], rC[i, n, 1], rC[i, n, 2], rC[i, n, 3]))
                        rC[i, n, 0], rC[i, n, 1], rC[i, n, 2], rC[i, n, 3] = c

        # C leaves through shared memory, so that a warp stores whole rows of its part, 128 bytes.
        # Of a fragment, lane l holds columns l % 4 * 2 + {0, 1} of rows l // 4 and l // 4 + 8.
        # Copies of steps beyond the last write zeros to the tiles: they must end before C comes.
        cp_async_wait_all()
        cuda.syncthreads()  # nobody needs the tiles any more
        pairs = cuda.shared.array(0, int32)  # the same memory, two elements a word
        sC = warp * WARP_M * WARP_N
        for i in range(FRAGMENTS_M):
            for j in range(FRAGMENTS_N):
                for h in range(2):
                    row, col = i * 16 + h * 8 + lane // 4, j * 8 + lane % 4 * 2
                    at = uint32(sC + row * WARP_N + swizzle(row, col))
                    pairs[at // uint32(2)] = pack(rC[i, j, 2 * h], rC[i, j, 2 * h + 1])
        # each warp reads what its own lanes have written, so no barrier of the block is needed
        cuda.syncwarp()
        for row in range(lane // 8, WARP_M, 4):
            col = lane % 8 * 8
            at = sC + row * WARP_N + swizzle(row, col)
            m, n = m0 + warp_m + row, n0 + warp_n + col
            to = int64(m) * N + n
            if ALIGNED:
                if m < M and n < N:
                    words = load_shared_16(shared_address(sAB, at))
                    store_global_16(global_address(C, to), words)
            else:
                for k in range(8):
                    if m < M and n + k < N:
                        C[to + k] = sAB[at + k]

    return kernel


def matmul_tensor_core(a, b):
    check(a, b)
    (M, K), N = a.shape, b.shape[1]
    c = torch.empty((M, N), dtype=a.dtype, device=a.device)
    if c.numel() > 0:
        ALIGNED = K % 8 == 0 and N % 8 == 0
        STAGES = properties(a.device).stages(MAX_STAGES, STAGE_BYTES)
        kernel = matmul_tensor_core_kernel(a.dtype, ALIGNED, STAGES)
        A, B, C = (x.view(torch.int16).view(-1) for x in (a, b, c))  # the kernel moves bits
        grid = (-(-N // BLOCK_N), -(-M // BLOCK_M))
        M, N, K = map(np.int32, (M, N, K))  # 64-bit loop counters would spill
        launch(kernel, grid, (THREADS,), A, B, C, M, N, K, shared_bytes=STAGES * STAGE_BYTES)
    return c
