"""Each block owns a tile of C, each thread a part in registers; cp.async fills STAGES tiles."""

from functools import cache

import numpy as np
import torch
from numba import cuda, float32, int32, int64, uint32

from implementations.common.device import properties
from implementations.common.numba_cuda import launch
from implementations.instructions.access import (
    global_address,
    load_pack,
    shared_address,
)
from implementations.instructions.async_copy import cp_async_16, cp_async_commit, cp_async_wait
from implementations.phase3_matrix_operations.day16_blocked_matmul.matmul_blocked import check

BLOCK_M, BLOCK_N, BLOCK_K = 128, 128, 8
WARP_M, WARP_N = 64, 64
MAX_STAGES = 4
THREADS = BLOCK_M * BLOCK_N // (WARP_M * WARP_N) * 32

# Eight rows of A lie in different banks: PITCH / 4 is odd, and a chunk takes four banks.
PITCH = BLOCK_K + 4
A_TILE, B_TILE = BLOCK_M * PITCH, BLOCK_K * BLOCK_N
STAGE_SIZE = A_TILE + B_TILE  # in shared memory: a tile of A, then a tile of B
STAGE_BYTES = STAGE_SIZE * 4
ROWS, COLS = WARP_M // 8, WARP_N // 4  # of a thread
PACKS = COLS // 4
A_HELD, B_HELD, C_HELD = ROWS * 4, 2 * COLS, ROWS * COLS  # registers of a thread


@cache  # a closure is Numba's template: the upper-case names are compile-time constants
def make_load_tile(ALIGNED, ROWS, COLS, PITCH):
    """The function that copies a ROWS x COLS tile from a row-major matrix of `cols` columns to
    shared memory, where rows are PITCH elements apart. `src` and `dst` are this thread's first
    chunk of 16 bytes: neighbours copy neighbouring chunks, which is coalesced, and those of a
    thread are STEP rows apart. Beyond the rows and columns left the tile gets zeros, which add
    nothing to C."""
    STEP = THREADS // (COLS // 4)
    CHUNKS = ROWS // STEP
    assert CHUNKS * STEP == ROWS, "each thread must copy as many chunks"

    @cuda.jit(device=True)
    def load_tile(shared, dst, matrix, src, rows_left, cols_left, cols):
        for j in range(CHUNKS):
            row = int32(j * STEP)
            to, at = dst + row * PITCH, src + int64(row) * cols
            if ALIGNED:  # rows are whole chunks
                bytes = 16 if row < rows_left and 0 < cols_left else 0
                cp_async_16(shared_address(shared, to), global_address(matrix, at), bytes)
            else:
                for k in range(4):
                    mask = row < rows_left and k < cols_left
                    shared[to + k] = matrix[at + k] if mask else float32(0)

    return load_tile


@cuda.jit(device=True)
def load_a(rA, sAB, frag_a, k, i):
    """Load four k of a row of A."""
    load_pack(sAB, frag_a + i * 8 * PITCH + k, rA, i * 4)


@cuda.jit(device=True)
def load_b(rB, sAB, frag_b, k):
    """Load row k of B."""
    for j in range(PACKS):
        load_pack(sAB, frag_b + k * BLOCK_N + j * 16, rB, k % 2 * COLS + j * 4)


@cuda.jit(device=True)
def nothing(rA, rB, rC, sAB, frag_a, frag_b):
    pass


@cache
def make_multiply(k, end):
    """The function that multiplies, from k on to before `end` of a step. A function for each k: the
    compiler unrolls no loop that is as long, and what it indexes would lie in memory."""
    multiply_rest = make_multiply(k + 1, end) if k + 1 < end else nothing

    @cuda.jit(device=True, forceinline=True)
    def multiply(rA, rB, rC, sAB, frag_a, frag_b):
        load_b(rB, sAB, frag_b, (k + 1) % BLOCK_K)
        for i in range(ROWS):
            for j in range(COLS):
                # to and fro: a row begins with the element of B that the last one ended with
                n = j if (i + k) % 2 == 0 else COLS - 1 - j
                rC[i * COLS + n] += rA[i * 4 + k % 4] * rB[k % 2 * COLS + n]
            if k % 4 == 3:
                load_a(rA, sAB, frag_a, (k + 1) % BLOCK_K, i)
        multiply_rest(rA, rB, rC, sAB, frag_a, frag_b)

    return multiply


@cache
def matmul_blocked_kernel(ALIGNED, STAGES):
    load_tile_a = make_load_tile(ALIGNED, BLOCK_M, BLOCK_K, PITCH)
    load_tile_b = make_load_tile(ALIGNED, BLOCK_K, BLOCK_N, BLOCK_N)
    multiply, multiply_last = make_multiply(0, BLOCK_K - 1), make_multiply(BLOCK_K - 1, BLOCK_K)
    cp_async_wait_stage, cp_async_wait_all = cp_async_wait(STAGES - 2), cp_async_wait(0)

    @cuda.jit(launch_bounds=THREADS)
    def kernel(A, B, C, M, N, K):
        sAB = cuda.shared.array(0, float32)  # [STAGES][STAGE_SIZE]

        # all blocks along x, where a grid may have 2^31 - 1 of them; along y only 65535
        pid, blocks_n = uint32(cuda.blockIdx.x), uint32((N + BLOCK_N - 1) // BLOCK_N)
        m0, n0 = int32(pid // blocks_n * BLOCK_M), int32(pid % blocks_n * BLOCK_N)
        tid = cuda.threadIdx.x
        lane, warp = tid % 32, tid // 32
        steps = int32((K + BLOCK_K - 1) // BLOCK_K)

        # this thread's first chunk of each tile
        row_a, col_a = tid // (BLOCK_K // 4), tid % (BLOCK_K // 4) * 4
        row_b, col_b = tid // (BLOCK_N // 4), tid % (BLOCK_N // 4) * 4
        src_a = int64(m0 + row_a) * K + col_a
        src_b = int64(row_b) * N + n0 + col_b
        dst_a, dst_b = row_a * PITCH + col_a, A_TILE + row_b * BLOCK_N + col_b
        m_left, n_left = int32(M - m0 - row_a), int32(N - n0 - col_b)

        for step in range(STAGES - 1):
            k_left = int32(K - step * BLOCK_K)
            to_a, to_b = dst_a + step * STAGE_SIZE, dst_b + step * STAGE_SIZE
            load_tile_a(sAB, to_a, A, src_a, m_left, k_left - col_a, K)
            load_tile_b(sAB, to_b, B, src_b, k_left - row_b, n_left, N)
            cp_async_commit()
            src_a += BLOCK_K
            src_b += int64(BLOCK_K) * N

        # A warp's lanes are 8 x 4, in squares of two: lanes that differ in bit 0 take neighbouring
        # rows of A, in bit 1 neighbouring packs of B. So each half of a warp reads eight chunks of
        # A, or two of B, at once: where neighbours share their chunks so, a half takes one turn.
        row = warp % (BLOCK_M // WARP_M) * WARP_M + lane % 2 + lane // 4 % 4 * 2
        col = warp // (BLOCK_M // WARP_M) * WARP_N + (lane // 2 % 2 + lane // 16 * 2) * 4
        frag_a, frag_b = int32(row * PITCH), int32(A_TILE + col)

        rA = cuda.local.array(A_HELD, float32)  # four k of A's rows
        rB = cuda.local.array(B_HELD, float32)  # B's row k, and the next one
        # the wait is for this thread's copies, the barrier for those of all others
        cp_async_wait_stage()
        cuda.syncthreads()  # stage 0 has arrived for all
        for i in range(ROWS):
            load_a(rA, sAB, frag_a, 0, i)
        load_b(rB, sAB, frag_b, 0)

        rC = cuda.local.array(C_HELD, float32)
        for i in range(C_HELD):
            rC[i] = float32(0)
        for step in range(steps):
            step_ahead = step + STAGES - 1  # whose tiles are being loaded: beyond the last, zeros
            # The stage that is filled is that of the step before: the barrier that ended it says
            # that all warps have left the stage.
            stage, k_left = uint32(step_ahead) % uint32(STAGES), K - step_ahead * BLOCK_K
            k_left_a, k_left_b = int32(k_left - col_a), int32(k_left - row_b)
            to_a, to_b = int32(dst_a + stage * STAGE_SIZE), int32(dst_b + stage * STAGE_SIZE)
            load_tile_a(sAB, to_a, A, src_a, m_left, k_left_a, K)
            load_tile_b(sAB, to_b, B, src_b, k_left_b, n_left, N)
            cp_async_commit()
            src_a += BLOCK_K
            src_b += int64(BLOCK_K) * N
            multiply(rA, rB, rC, sAB, frag_a, frag_b)
            # the last row of this stage is in registers: the next one is of the next stage
            cp_async_wait_stage()
            cuda.syncthreads()  # the next stage has arrived for all, and all have left this one
            last = uint32(step) % uint32(STAGES) == STAGES - 1
            stride = int32(-(STAGES - 1) * STAGE_SIZE if last else STAGE_SIZE)
            frag_a += stride
            frag_b += stride
            multiply_last(rA, rB, rC, sAB, frag_a, frag_b)
        cp_async_wait_all()  # steps beyond the last: nothing may be under way when the block ends

        # Element by element: to be stored as packs, four accumulators would have to lie in
        # neighbouring registers, as B's packs do, and each in the same bank as the element of B
        # that it is added to a multiple of: the two would be read one after the other each time.
        for i in range(ROWS):
            for j in range(COLS):
                m, n = m0 + row + i * 8, n0 + col + j // 4 * 16 + j % 4
                if m < M and n < N:
                    C[int64(m) * N + n] = rC[i * COLS + j]

    return kernel


def matmul_blocked(a, b):
    check(a, b)
    (M, K), N = a.shape, b.shape[1]
    c = torch.empty((M, N), dtype=a.dtype, device=a.device)
    if c.numel() > 0:
        ALIGNED = K % 4 == 0 and N % 4 == 0
        STAGES = properties(a.device).stages(MAX_STAGES, STAGE_BYTES)
        kernel = matmul_blocked_kernel(ALIGNED, STAGES)
        A, B, C = (x.view(-1) for x in (a, b, c))
        grid = (-(-M // BLOCK_M) * -(-N // BLOCK_N),)
        M, N, K = map(np.int32, (M, N, K))  # 64-bit loop counters would spill
        launch(kernel, grid, (THREADS,), A, B, C, M, N, K, shared_bytes=STAGES * STAGE_BYTES)
    return c
