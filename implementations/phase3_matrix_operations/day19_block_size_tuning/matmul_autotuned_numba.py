"""Day 18's kernel, with the constants that were fastest on this GPU for a product of this size."""

import numpy as np
import torch

from implementations.common.numba_cuda import launch
from implementations.phase3_matrix_operations.day18_cache_optimization.matmul_grouped_order_numba import (  # noqa: E501
    matmul_grouped_order_kernel,
)
from implementations.phase3_matrix_operations.day19_block_size_tuning.matmul_autotuned import (
    TUNING,
    check,
)


def matmul_autotuned(a, b):
    check(a, b)
    (M, K), N = a.shape, b.shape[1]
    c = torch.empty((M, N), dtype=a.dtype, device=a.device)
    if c.numel() > 0:
        tiles = TUNING.choice("numba", a.device, M=M, N=N, K=K)
        ALIGNED = K % 8 == 0 and N % 8 == 0
        tile = tiles.BLOCK_M, tiles.BLOCK_N, tiles.BLOCK_K, *tiles.warp, tiles.num_stages
        THREADS = 32 * tiles.num_warps
        kernel = matmul_grouped_order_kernel(a.dtype, ALIGNED, *tile, tiles.GROUP_M, THREADS)
        A, B, C = (x.view(torch.int16).view(-1) for x in (a, b, c))  # the kernel moves bits
        grid = (-(-M // tiles.BLOCK_M) * -(-N // tiles.BLOCK_N),)
        M, N, K = map(np.int32, (M, N, K))  # 64-bit loop counters would spill
        shared_bytes = tiles.num_stages * tiles.stage_bytes
        launch(kernel, grid, (THREADS,), A, B, C, M, N, K, shared_bytes=shared_bytes)
    return c
