"""Each block owns a tile of C, each warp 64 x 64 of it; cp.async fills STAGES shared tiles."""

from pathlib import Path

import torch

from implementations.common.cuda_cpp import CudaSource
from implementations.common.device import properties
from implementations.phase3_matrix_operations.day17_k_dimension_loop.matmul_tensor_core import check

BLOCK_M, BLOCK_N, BLOCK_K = 128, 256, 64
THREADS = BLOCK_M * BLOCK_N // 128  # a warp for each 64 x 64
STAGE_BYTES = (BLOCK_M + BLOCK_N) * BLOCK_K * 2  # bytes of shared memory that a stage takes
MAX_STAGES = 3

SOURCE = CudaSource(Path(__file__).with_name("matmul_tensor_core.cu"))


def matmul_tensor_core(a, b):
    check(a, b)
    (M, K), N = a.shape, b.shape[1]
    c = torch.empty((M, N), dtype=a.dtype, device=a.device)
    if c.numel() > 0:
        # then all rows of a and b start at a multiple of 16 bytes
        ALIGNED = K % 8 == 0 and N % 8 == 0
        STAGES = properties(a.device).stages(MAX_STAGES, STAGE_BYTES)
        grid = (-(-N // BLOCK_N), -(-M // BLOCK_M))
        template = dict(T=a.dtype, ALIGNED=ALIGNED, STAGES=STAGES, THREADS=THREADS)
        template |= dict(BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N, STEP_K=BLOCK_K)
        kernel, shared_bytes = "matmul_tensor_core_kernel", STAGES * STAGE_BYTES
        SOURCE.launch(
            kernel, grid, (THREADS,), a, b, c, M, N, K, shared_bytes=shared_bytes, **template
        )
    return c
