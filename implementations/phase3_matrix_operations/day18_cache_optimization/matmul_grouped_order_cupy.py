"""Each block owns a tile of C as on Day 17; blocks take the tiles in groups of GROUP_M rows."""

from pathlib import Path

import torch

from implementations.common.cuda_cpp import CudaSource
from implementations.common.device import properties
from implementations.phase3_matrix_operations.day18_cache_optimization.matmul_grouped_order import (
    check,
)

BLOCK_M, BLOCK_N, BLOCK_K = 128, 256, 64
WARP_M, WARP_N = 64, 64
GROUP_M = 16
THREADS = BLOCK_M * BLOCK_N // (WARP_M * WARP_N) * 32
STAGE_BYTES = (BLOCK_M + BLOCK_N) * BLOCK_K * 2  # bytes of shared memory that a stage takes
MAX_STAGES = 3

SOURCE = CudaSource(Path(__file__).with_name("matmul_grouped_order.cu"))
TILES = dict(BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N, BLOCK_K=BLOCK_K, WARP_M=WARP_M, WARP_N=WARP_N)


def matmul_grouped_order(a, b):
    check(a, b)
    (M, K), N = a.shape, b.shape[1]
    c = torch.empty((M, N), dtype=a.dtype, device=a.device)
    if c.numel() > 0:
        # then all rows of a and b start at a multiple of 16 bytes
        ALIGNED = K % 8 == 0 and N % 8 == 0
        STAGES = properties(a.device).stages(MAX_STAGES, STAGE_BYTES)
        grid = (-(-M // BLOCK_M) * -(-N // BLOCK_N),)
        template = dict(T=a.dtype, ALIGNED=ALIGNED, **TILES)
        template |= dict(STAGES=STAGES, GROUP_M=GROUP_M, THREADS=THREADS)
        kernel, shared_bytes = "matmul_grouped_order_kernel", STAGES * STAGE_BYTES
        SOURCE.launch(
            kernel, grid, (THREADS,), a, b, c, M, N, K, shared_bytes=shared_bytes, **template
        )
    return c
