"""One block a tile of C, one warp a 64 x 64 part of it; STAGES shared tiles filled by cp.async."""

from functools import cache

import numpy as np
import torch
from numba import cuda, float32, int16, int32, int64

from implementations.common import numba_ptx as ptx
from implementations.common.numba_cuda import launch
from implementations.common.numba_ptx import global_address, shared_address
from implementations.phase3_matrix_operations.day17_k_dimension_loop.matmul_tensor_core import check

BLOCK_M, BLOCK_N, BLOCK_K = 256, 128, 64
STAGES = 4
WARP_M, WARP_N = 64, 64
FRAGMENTS_M, FRAGMENTS_N = WARP_M // 16, WARP_N // 8
THREADS = BLOCK_M * BLOCK_N // 128  # a warp for each 64 x 64
A_TILE, B_TILE = BLOCK_M * BLOCK_K, BLOCK_K * BLOCK_N
sB = STAGES * A_TILE  # in shared memory: sA [STAGES][BLOCK_M][BLOCK_K], sB [STAGES][BLOCK_K][BLOCK_N]


@cache  # a closure is Numba's template: the upper-case names are compile-time constants
def load_tile(ALIGNED, ROWS, COLS):
    """Copy a ROWS x COLS tile from the corner src[corner] of a row-major matrix of `cols` columns to
    shared memory, zeros beyond the `rows_left` and `cols_left` that exist. ALIGNED: rows are whole
    16-byte chunks. In the tile, chunk c of row r stands at c ^ (r % 8), so that the eight rows an
    ldmatrix reads lie in different banks; a thread's rows are a multiple of 8 apart, which leaves its
    chunk in place."""
    PER_ROW = COLS // 8
    STEP = THREADS // PER_ROW
    assert STEP % 8 == 0 and ROWS % STEP == 0

    @cuda.jit(device=True)
    def load(shared, tile, src, corner, rows_left, cols_left, cols):
        r, c = cuda.threadIdx.x // PER_ROW, cuda.threadIdx.x % PER_ROW * 8  # coalesced along a row
        for row in range(r, r + ROWS, STEP):
            dst = tile + row * COLS + (c ^ r % 8 * 8)
            at = corner + int32(row * cols + c)  # 32 bits suffice within a tile
            if ALIGNED:
                bytes = 16 if row < rows_left and c < cols_left else 0
                ptx.cp_async_16(shared_address(shared, dst), global_address(src, at), bytes)
            else:
                for k in range(8):
                    mask = row < rows_left and c + k < cols_left
                    shared[dst + k] = src[at + k] if mask else int16(0)

    return load


@cache
def matmul_tensor_core_kernel(dtype, ALIGNED):
    mma, pack = (
        (ptx.mma_f16, ptx.pack_f16) if dtype == torch.float16 else (ptx.mma_bf16, ptx.pack_bf16)
    )
    load_a, load_b = load_tile(ALIGNED, BLOCK_M, BLOCK_K), load_tile(ALIGNED, BLOCK_K, BLOCK_N)
    cp_async_wait = ptx.cp_async_wait(STAGES - 2)

    @cuda.jit(device=True)
    def load(shared, A, B, m0, n0, M, N, K, step, steps):
        stage, k0 = step % STAGES, step * BLOCK_K
        if step < steps:
            load_a(shared, stage * A_TILE, A, m0 * K + k0, M - m0, K - k0, K)
            load_b(shared, sB + stage * B_TILE, B, k0 * N + n0, K - k0, N - n0, N)
        ptx.cp_async_commit()  # also when empty: the wait counts groups

    @cuda.jit(device=True)
    def load_fragments(rA, rB, buffer, shared, warp_m, warp_n, step, k):
        # this lane's row and, swizzled, column in what it addresses for ldmatrix
        lane = cuda.threadIdx.x % 32
        lane_row, lane_col = lane % 16, lane // 16 * 8 ^ lane % 8 * 8
        tA = step % STAGES * A_TILE + (warp_m + lane_row) * BLOCK_K
        tB = sB + step % STAGES * B_TILE + (k + lane_row) * BLOCK_N + warp_n
        for i in range(FRAGMENTS_M):
            r = ptx.ldmatrix_x4(shared_address(shared, tA + i * 16 * BLOCK_K + (k ^ lane_col)))
            rA[buffer, i, 0], rA[buffer, i, 1], rA[buffer, i, 2], rA[buffer, i, 3] = r
        for j in range(0, FRAGMENTS_N, 2):
            r = ptx.ldmatrix_x4_trans(shared_address(shared, tB + (j * 8 ^ lane_col)))
            # two fragments: B's rows become the columns that mma wants
            rB[buffer, j, 0], rB[buffer, j, 1], rB[buffer, j + 1, 0], rB[buffer, j + 1, 1] = r

    @cuda.jit(launch_bounds=THREADS)
    def kernel(A, B, C, M, N, K):
        shared = cuda.shared.array(0, int16)

        tid = cuda.threadIdx.x
        lane, warp = tid % 32, tid // 32
        warp_m = warp % (BLOCK_M // WARP_M) * WARP_M
        warp_n = warp // (BLOCK_M // WARP_M) * WARP_N
        m0, n0 = cuda.blockIdx.y * BLOCK_M, cuda.blockIdx.x * BLOCK_N
        steps = (K + BLOCK_K - 1) // BLOCK_K

        for step in range(STAGES - 1):
            load(shared, A, B, m0, n0, M, N, K, step, steps)

        rA = cuda.local.array((2, FRAGMENTS_M, 4), int32)  # the fragments in use and the next
        rB = cuda.local.array((2, FRAGMENTS_N, 2), int32)
        rC = cuda.local.array((FRAGMENTS_M, FRAGMENTS_N, 4), float32)
        for i in range(FRAGMENTS_M):
            for j in range(FRAGMENTS_N):
                for e in range(4):
                    rC[i, j, e] = float32(0)
        cp_async_wait()
        cuda.syncthreads()  # stage 0 has arrived for all
        load_fragments(rA, rB, 0, shared, warp_m, warp_n, 0, 0)
        for step in range(steps):
            load(shared, A, B, m0, n0, M, N, K, step + STAGES - 1, steps)
            for k in range(0, BLOCK_K, 16):
                buffer = k // 16 % 2
                if k + 16 < BLOCK_K:
                    load_fragments(rA, rB, 1 - buffer, shared, warp_m, warp_n, step, k + 16)
                else:
                    cp_async_wait()
                    cuda.syncthreads()  # the next stage has arrived for all, and all have left this
                    load_fragments(rA, rB, 1 - buffer, shared, warp_m, warp_n, step + 1, 0)
                for i in range(FRAGMENTS_M):
                    for j in range(FRAGMENTS_N):
                        a = (rA[buffer, i, 0], rA[buffer, i, 1], rA[buffer, i, 2], rA[buffer, i, 3])
                        b = (rB[buffer, j, 0], rB[buffer, j, 1])
                        c = mma(a, b, (rC[i, j, 0], rC[i, j, 1], rC[i, j, 2], rC[i, j, 3]))
                        rC[i, j, 0], rC[i, j, 1], rC[i, j, 2], rC[i, j, 3] = c[0], c[1], c[2], c[3]

        # of a fragment, lane l holds columns l % 4 * 2 + {0, 1} of rows l // 4 and l // 4 + 8
        for i in range(FRAGMENTS_M):
            for j in range(FRAGMENTS_N):
                for h in range(2):
                    m = m0 + warp_m + i * 16 + h * 8 + lane // 4
                    n = n0 + warp_n + j * 8 + lane % 4 * 2
                    pair = pack(rC[i, j, 2 * h], rC[i, j, 2 * h + 1])
                    at = int64(m) * N + n
                    if ALIGNED:
                        if m < M and n < N:
                            C[at // 2] = pair
                    else:
                        if m < M and n < N:
                            C[at] = int16(pair & 0xFFFF)
                        if m < M and n + 1 < N:
                            C[at + 1] = int16(pair >> 16)

    return kernel


def matmul_tensor_core(a, b):
    check(a, b)
    (M, K), N = a.shape, b.shape[1]
    c = torch.empty((M, N), dtype=a.dtype, device=a.device)
    if c.numel() > 0:
        ALIGNED = K % 8 == 0 and N % 8 == 0
        kernel = matmul_tensor_core_kernel(a.dtype, ALIGNED)
        # the kernel moves bits: operands as 16-bit words, and C as pairs of them where it can
        A, B = a.view(torch.int16).view(-1), b.view(torch.int16).view(-1)
        C = c.view(torch.int32 if ALIGNED else torch.int16).view(-1)
        grid = (-(-N // BLOCK_N), -(-M // BLOCK_M))
        shared = STAGES * (BLOCK_M + BLOCK_N) * BLOCK_K * a.element_size()
        M, N, K = map(np.int32, (M, N, K))  # 64-bit loop counters would spill
        launch(kernel, grid, (THREADS,), A, B, C, M, N, K, shared_bytes=shared)
    return c
