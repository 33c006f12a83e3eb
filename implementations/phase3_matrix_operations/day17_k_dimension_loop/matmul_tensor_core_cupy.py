"""One block a tile of C, one warp a 64 x 64 part of it; STAGES shared tiles filled by cp.async."""

from pathlib import Path

import torch

from implementations.common.cuda_cpp import CudaSource
from implementations.common.device import properties
from implementations.phase3_matrix_operations.day17_k_dimension_loop.matmul_tensor_core import check

BLOCK_M, BLOCK_N, BLOCK_K = 128, 256, 64
THREADS = BLOCK_M * BLOCK_N // 128  # a warp for each 64 x 64
STAGE_BYTES = (BLOCK_M + BLOCK_N) * BLOCK_K * 2  # of shared memory
MAX_STAGES = 3

SOURCE = CudaSource(Path(__file__).with_name("matmul_tensor_core.cu"))


def matmul_tensor_core(a, b):
    check(a, b)
    (M, K), N = a.shape, b.shape[1]
    c = torch.empty((M, N), dtype=a.dtype, device=a.device)
    if c.numel() > 0:
        ALIGNED = K % 8 == 0 and N % 8 == 0
        STAGES = properties(a.device).stages(MAX_STAGES, STAGE_BYTES)
        grid = (-(-N // BLOCK_N), -(-M // BLOCK_M))
        template = dict(T=a.dtype, ALIGNED=ALIGNED, STAGES=STAGES, THREADS=THREADS)
        template |= dict(BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N, BLOCK_K=BLOCK_K)
        shared_bytes = STAGES * STAGE_BYTES
        args = (a, b, c, M, N, K)
        SOURCE.launch(
            "matmul_tensor_core_kernel",
            grid,
            (THREADS,),
            *args,
            shared_bytes=shared_bytes,
            **template,
        )
    return c
