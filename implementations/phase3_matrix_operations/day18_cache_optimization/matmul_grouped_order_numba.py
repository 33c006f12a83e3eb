"""Each block owns a tile of C as on Day 17; blocks take the tiles in groups of GROUP_M rows."""

from functools import cache

import numpy as np
import torch
from numba import cuda, float32, int16, int32

from implementations.common.device import properties
from implementations.common.numba_cuda import launch
from implementations.instructions.tile_product import store_tile, tile_product
from implementations.phase3_matrix_operations.day18_cache_optimization.matmul_grouped_order import (
    check,
)

BLOCK_M, BLOCK_N, BLOCK_K = 128, 256, 64
WARP_M, WARP_N = 64, 64
GROUP_M = 16
THREADS = BLOCK_M * BLOCK_N // (WARP_M * WARP_N) * 32
STAGE_BYTES = (BLOCK_M + BLOCK_N) * BLOCK_K * 2  # bytes of shared memory that a stage takes
MAX_STAGES = 3


@cache
def matmul_grouped_order_kernel(
    dtype, ALIGNED, BLOCK_M, BLOCK_N, BLOCK_K, WARP_M, WARP_N, STAGES, GROUP_M, THREADS
):
    product = tile_product(dtype, ALIGNED, BLOCK_M, BLOCK_N, BLOCK_K, WARP_M, WARP_N, STAGES)
    store = store_tile(dtype, ALIGNED, BLOCK_M, BLOCK_N, WARP_M, WARP_N)
    FRAGMENTS = (WARP_M // 16, WARP_N // 8, 4)

    @cuda.jit(launch_bounds=THREADS)
    def kernel(A, B, C, M, N, K):
        shared = cuda.shared.array(0, int16)

        tiles_m, tiles_n = (M + BLOCK_M - 1) // BLOCK_M, (N + BLOCK_N - 1) // BLOCK_N
        tile, group_size = cuda.blockIdx.x, GROUP_M * tiles_n
        first_m, in_group = tile // group_size * GROUP_M, tile % group_size
        rows = min(tiles_m - first_m, GROUP_M)  # the last group may have fewer
        m0 = int32((first_m + in_group % rows) * BLOCK_M)
        n0 = int32(in_group // rows * BLOCK_N)

        rC = cuda.local.array(FRAGMENTS, float32)
        product(rC, shared, A, B, M, N, K, m0, n0, 0, K)
        store(rC, shared, C, M, N, m0, n0)

    return kernel


def matmul_grouped_order(a, b):
    check(a, b)
    (M, K), N = a.shape, b.shape[1]
    c = torch.empty((M, N), dtype=a.dtype, device=a.device)
    if c.numel() > 0:
        ALIGNED = K % 8 == 0 and N % 8 == 0
        STAGES = properties(a.device).stages(MAX_STAGES, STAGE_BYTES)
        tile = BLOCK_M, BLOCK_N, BLOCK_K, WARP_M, WARP_N, STAGES, GROUP_M, THREADS
        kernel = matmul_grouped_order_kernel(a.dtype, ALIGNED, *tile)
        A, B, C = (x.view(torch.int16).view(-1) for x in (a, b, c))  # the kernel moves bits
        grid = (-(-M // BLOCK_M) * -(-N // BLOCK_N),)
        M, N, K = map(np.int32, (M, N, K))  # 64-bit loop counters would spill
        launch(kernel, grid, (THREADS,), A, B, C, M, N, K, shared_bytes=STAGES * STAGE_BYTES)
    return c
