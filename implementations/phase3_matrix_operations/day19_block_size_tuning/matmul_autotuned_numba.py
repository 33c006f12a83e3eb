"""Day 18's kernel, with the constants that were fastest on this GPU for a product of this size."""

from functools import cache

import numpy as np
import torch
from numba import cuda, float32, int16, int32

from implementations.common.numba_cuda import launch
from implementations.instructions.tile_product import store_tile, tile_product
from implementations.phase3_matrix_operations.day19_block_size_tuning.matmul_autotuned import (
    TUNING,
    check,
)


@cache
def matmul_autotuned_kernel(dtype, ALIGNED, tiles):
    BLOCK_M, BLOCK_N, GROUP_M = tiles.BLOCK_M, tiles.BLOCK_N, tiles.GROUP_M
    WARP_M, WARP_N = tiles.warp
    THREADS = 32 * tiles.num_warps
    FRAGMENTS = (WARP_M // 16, WARP_N // 8, 4)
    part = (BLOCK_M, BLOCK_N, tiles.BLOCK_K, WARP_M, WARP_N, tiles.num_stages)
    product = tile_product(dtype, ALIGNED, *part)
    store = store_tile(dtype, ALIGNED, BLOCK_M, BLOCK_N, WARP_M, WARP_N)

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


def matmul_autotuned(a, b):
    check(a, b)
    (M, K), N = a.shape, b.shape[1]
    c = torch.empty((M, N), dtype=a.dtype, device=a.device)
    if c.numel() > 0:
        tiles = TUNING.choice("numba", a.device, M=M, N=N, K=K)
        ALIGNED = K % 8 == 0 and N % 8 == 0
        kernel = matmul_autotuned_kernel(a.dtype, ALIGNED, tiles)
        A, B, C = (x.view(torch.int16).view(-1) for x in (a, b, c))  # the kernel moves bits
        grid = (-(-M // tiles.BLOCK_M) * -(-N // tiles.BLOCK_N),)
        block, shared_bytes = (32 * tiles.num_warps,), tiles.num_stages * tiles.stage_bytes
        M, N, K = map(np.int32, (M, N, K))  # 64-bit loop counters would spill
        launch(kernel, grid, block, A, B, C, M, N, K, shared_bytes=shared_bytes)
    return c
