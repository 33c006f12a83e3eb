"""As many blocks as multiprocessors walk the tiles of all problems, to and fro, by a table."""

from functools import cache

import numpy as np
import torch
from numba import cuda, float32, int16, int32, int64

from implementations.common.device import has_wgmma, properties
from implementations.common.device_table import device_table
from implementations.common.numba_cuda import launch
from implementations.instructions.access import global_address, shared_address
from implementations.instructions.async_copy import cp_async_16
from implementations.instructions.mbarrier import (
    cp_async_arrive,
    mbarrier_arrive,
    mbarrier_init,
    mbarrier_wait,
)
from implementations.instructions.pointer import array_at
from implementations.instructions.tile_product import store_tile, swizzle, tile_product
from implementations.instructions.wgmma import (
    fence_async,
    give_registers,
    store_accumulators,
    take_registers,
    wgmma_m64n256k64,
    wgmma_wait,
)
from implementations.phase3_matrix_operations.day21_advanced_matmul.grouped_gemm import check

BLOCK_M, BLOCK_N, BLOCK_K = 128, 256, 64
WARP_M, WARP_N = 64, 64
THREADS = BLOCK_M * BLOCK_N // 128  # a warp for each 64 x 64
STAGE_BYTES = (BLOCK_M + BLOCK_N) * BLOCK_K * 2  # bytes of shared memory that a stage takes
MAX_STAGES = 3
WGMMA_THREADS, WGMMA_STAGES = 384, 4
WGMMA_BYTES = WGMMA_STAGES * (STAGE_BYTES + 2 * 8)  # two barriers a stage
FRAGMENTS_M, FRAGMENTS_N = WARP_M // 16, WARP_N // 8


@cuda.jit(device=True)
def find(table, problems, tile):
    """A, B, C, M, N, K, m0, n0 of the tile of a number: of the last problem that begins at or
    before it, which a warp finds by counting."""
    lane = cuda.threadIdx.x % 32
    problem = int32(-1)
    for i in range(lane, lane + problems, 32):
        begun = i < problems and table[i, 6] <= tile
        problem += cuda.popc(cuda.ballot_sync(0xFFFFFFFF, begun))
    M, N, K = int32(table[problem, 3]), int32(table[problem, 4]), int32(table[problem, 5])
    A = array_at(table[problem, 0], table[problem, 3] * table[problem, 5])
    B = array_at(table[problem, 1], table[problem, 5] * table[problem, 4])
    C = array_at(table[problem, 2], table[problem, 3] * table[problem, 4])

    rows, at = (M + BLOCK_M - 1) // BLOCK_M, int32(tile - table[problem, 6])
    m0, n0 = int32(at % rows * BLOCK_M), int32(at // rows * BLOCK_N)  # neighbours share B
    return A, B, C, M, N, K, m0, n0


@cache  # a closure is Numba's template: the upper-case names are compile-time constants
def grouped_gemm_kernel(dtype, ALIGNED, STAGES):
    product = tile_product(dtype, ALIGNED, BLOCK_M, BLOCK_N, BLOCK_K, WARP_M, WARP_N, STAGES)
    store = store_tile(dtype, ALIGNED, BLOCK_M, BLOCK_N, WARP_M, WARP_N)

    @cuda.jit(launch_bounds=THREADS)
    def kernel(table, problems, tiles):
        sAB = cuda.shared.array(0, int16)
        pid, programs = cuda.blockIdx.x, cuda.gridDim.x
        tile, step = pid, 2 * (programs - pid) - 1  # to and fro: 0 1 2 | 5 4 3 | 6 7 8 ...
        while tile < tiles:
            A, B, C, M, N, K, m0, n0 = find(table, problems, tile)
            rC = cuda.local.array((FRAGMENTS_M, FRAGMENTS_N, 4), float32)
            product(rC, sAB, A, B, M, N, K, m0, n0, int32(0), K)
            store(rC, sAB, C, M, N, m0, n0)
            tile += step
            step = 2 * programs - step

    return kernel


@cache
def grouped_gemm_wgmma_kernel(dtype):
    """The same by wgmma: one warpgroup of a block does nothing but start copies, of whatever tile
    comes next, and two do nothing but multiply and store."""
    A_TILE, B_TILE, STAGES = BLOCK_M * BLOCK_K, BLOCK_K * BLOCK_N, WGMMA_STAGES
    STAGE_SIZE = A_TILE + B_TILE  # a tile of A, then a tile of B
    # barriers, of 8 bytes: full ends a phase when a stage has been filled, empty when it was read
    FULL, EMPTY = STAGES * STAGE_SIZE, STAGES * (STAGE_SIZE + 4)
    FRAGMENTS = BLOCK_N // 8
    swizzled, wgmma, store = swizzle(64), wgmma_m64n256k64(dtype), store_accumulators(dtype)
    give, take = give_registers(88), take_registers(208)

    @cuda.jit(launch_bounds=(WGMMA_THREADS, 1))
    def kernel(table, problems, tiles):
        sAB = cuda.shared.array(0, int16)
        if cuda.threadIdx.x == 0:
            for i in range(STAGES):
                mbarrier_init(shared_address(sAB, FULL + i * 4), int32(128))  # threads that copy
                mbarrier_init(shared_address(sAB, EMPTY + i * 4), int32(8))  # warps that multiply
        cuda.syncthreads()

        tid, lane = cuda.threadIdx.x % 128, cuda.threadIdx.x % 32
        # the same in all lanes, as the compiler then knows
        warpgroup = cuda.shfl_sync(0xFFFFFFFF, cuda.threadIdx.x // 128, 0)
        pid, programs = cuda.blockIdx.x, cuda.gridDim.x
        tile, step = pid, 2 * (programs - pid) - 1  # to and fro: 0 1 2 | 5 4 3 | 6 7 8 ...
        stage, parity = int32(0), int32(0)
        if warpgroup == 2:
            give()
            # eight threads copy 64 elements of a row; all rows of a thread are swizzled alike
            row, col = tid // 8, tid % 8 * 8
            dst = row * 64 + swizzled(row, col)
            while tile < tiles:
                A, B, C, M, N, K, m0, n0 = find(table, problems, tile)
                src_a, src_b = int64(m0 + row) * K + col, int64(row) * N + n0 + col
                for k in range(int32(0), max(K, int32(1)), int32(BLOCK_K)):  # K = 0: zeros
                    mbarrier_wait(shared_address(sAB, EMPTY + stage * 4), parity ^ 1)
                    sA = stage * STAGE_SIZE + dst
                    sB = sA + A_TILE
                    for i in range(0, BLOCK_M, 16):
                        src = global_address(A, src_a + int64(i) * K + k)
                        inside = m0 + row + i < M and k + col < K
                        cp_async_16(shared_address(sAB, sA + i * 64), src, 16 if inside else 0)
                    for i in range(0, BLOCK_K, 16):
                        for j in range(0, BLOCK_N, 64):
                            to = shared_address(sAB, sB + j * BLOCK_K + i * 64)
                            src = global_address(B, src_b + int64(k + i) * N + j)
                            inside = k + row + i < K and n0 + col + j < N
                            cp_async_16(to, src, 16 if inside else 0)
                    cp_async_arrive(shared_address(sAB, FULL + stage * 4))
                    stage += 1
                    if stage == STAGES:
                        stage, parity = int32(0), parity ^ 1
                tile += step
                step = 2 * programs - step
        else:
            take()
            rC = cuda.local.array((FRAGMENTS, 4), float32)  # of the warpgroup's 64 rows
            while tile < tiles:
                A, B, C, M, N, K, m0, n0 = find(table, problems, tile)
                for k in range(int32(0), max(K, int32(1)), int32(BLOCK_K)):
                    mbarrier_wait(shared_address(sAB, FULL + stage * 4), parity)
                    fence_async()
                    sA = stage * STAGE_SIZE
                    a = shared_address(sAB, sA + warpgroup * 64 * BLOCK_K)
                    wgmma(rC, a, shared_address(sAB, sA + A_TILE), k > 0)
                    wgmma_wait(rC)
                    if lane == 0:
                        mbarrier_arrive(shared_address(sAB, EMPTY + stage * 4))
                    stage += 1
                    if stage == STAGES:
                        stage, parity = int32(0), parity ^ 1
                store(rC, C, M, N, m0 + warpgroup * 64, n0)
                tile += step
                step = 2 * programs - step

    return kernel


def grouped_gemm(a_list, b_list):
    check(a_list, b_list)
    pairs = [*zip(a_list, b_list, strict=True)]
    c_list = [torch.empty((len(a), b.shape[1]), dtype=a.dtype, device=a.device) for a, b in pairs]
    # those of the longest K first: what is left for the end, and may be left uneven, is short
    by_length = sorted(zip(a_list, b_list, c_list, strict=True), key=lambda abc: -abc[0].shape[1])
    rows, tiles, ALIGNED = [], 0, True
    for a, b, c in by_length:
        (M, K), N = a.shape, b.shape[1]
        if c.numel() > 0:
            rows.append((a, b, c, M, N, K, tiles))
            tiles += -(-M // BLOCK_M) * -(-N // BLOCK_N)
            ALIGNED = ALIGNED and K % 8 == 0 and N % 8 == 0
    if tiles > 0:
        device = rows[0][0].device
        table = device_table(rows, device)
        dtype, grid = rows[0][0].dtype, (min(tiles, properties(device).programs(1)),)
        args = table, np.int32(len(rows)), np.int32(tiles)
        if ALIGNED and has_wgmma(device):
            kernel = grouped_gemm_wgmma_kernel(dtype)
            launch(kernel, grid, (WGMMA_THREADS,), *args, shared_bytes=WGMMA_BYTES)
        else:
            STAGES = properties(device).stages(MAX_STAGES, STAGE_BYTES)
            kernel = grouped_gemm_kernel(dtype, ALIGNED, STAGES)
            launch(kernel, grid, (THREADS,), *args, shared_bytes=STAGES * STAGE_BYTES)
    return c_list
