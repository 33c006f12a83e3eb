"""As many blocks as multiprocessors walk the tiles of all problems, to and fro, by a table."""

from functools import cache

import numpy as np
import torch
from numba import cuda, float32, int16, int32

from implementations.common.device import properties
from implementations.common.device_table import device_table
from implementations.common.numba_cuda import launch
from implementations.instructions.pointer import array_at
from implementations.instructions.tile_product import store_tile, tile_product
from implementations.phase3_matrix_operations.day21_advanced_matmul.grouped_gemm import check

BLOCK_M, BLOCK_N, BLOCK_K = 128, 256, 64
WARP_M, WARP_N = 64, 64
THREADS = BLOCK_M * BLOCK_N // 128  # a warp for each 64 x 64
STAGE_BYTES = (BLOCK_M + BLOCK_N) * BLOCK_K * 2  # bytes of shared memory that a stage takes
MAX_STAGES = 3
FRAGMENTS_M, FRAGMENTS_N = WARP_M // 16, WARP_N // 8


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
            # the tile is of the last problem that begins at or before it
            problem, end = int32(0), problems
            while end - problem > 1:
                middle = (problem + end) // int32(2)
                if table[middle, 6] <= tile:
                    problem = middle
                else:
                    end = middle
            M, N, K = int32(table[problem, 3]), int32(table[problem, 4]), int32(table[problem, 5])
            A = array_at(table[problem, 0], table[problem, 3] * table[problem, 5])
            B = array_at(table[problem, 1], table[problem, 5] * table[problem, 4])
            C = array_at(table[problem, 2], table[problem, 3] * table[problem, 4])

            rows, at = (M + BLOCK_M - 1) // BLOCK_M, int32(tile - table[problem, 6])
            m0, n0 = int32(at % rows * BLOCK_M), int32(at // rows * BLOCK_N)  # neighbours share B
            rC = cuda.local.array((FRAGMENTS_M, FRAGMENTS_N, 4), float32)
            product(rC, sAB, A, B, M, N, K, m0, n0, int32(0), K)
            store(rC, sAB, C, M, N, m0, n0)
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
        grid = (min(tiles, properties(device).programs(1)),)
        STAGES = properties(device).stages(MAX_STAGES, STAGE_BYTES)
        kernel = grouped_gemm_kernel(rows[0][0].dtype, ALIGNED, STAGES)
        problems, tiles = np.int32(len(rows)), np.int32(tiles)
        launch(kernel, grid, (THREADS,), table, problems, tiles, shared_bytes=STAGES * STAGE_BYTES)
    return c_list
