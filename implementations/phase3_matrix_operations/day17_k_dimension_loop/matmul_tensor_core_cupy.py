"""One block a tile of C, one warp a 64 x 64 part of it; STAGES shared tiles filled by cp.async."""

from pathlib import Path

import torch

from implementations.common import device
from implementations.common.cuda_cpp import C_TYPE, CudaSource
from implementations.phase3_matrix_operations.day17_k_dimension_loop.matmul_tensor_core import check

BLOCK_M, BLOCK_N, BLOCK_K = 128, 256, 64
STAGE_BYTES = (BLOCK_M + BLOCK_N) * BLOCK_K * 2  # of shared memory
MAX_STAGES = 3

SOURCE = CudaSource(Path(__file__).with_name("matmul_tensor_core.cu"))


def matmul_tensor_core(a, b):
    check(a, b)
    (M, K), N = a.shape, b.shape[1]
    c = torch.empty((M, N), dtype=a.dtype, device=a.device)
    if c.numel() > 0:
        aligned = "true" if K % 8 == 0 and N % 8 == 0 else "false"
        stages = device.stages(MAX_STAGES, STAGE_BYTES)
        types = f"{C_TYPE[a.dtype]}, {aligned}, {BLOCK_M}, {BLOCK_N}, {stages}"
        grid = (-(-N // BLOCK_N), -(-M // BLOCK_M))
        threads = BLOCK_M * BLOCK_N // 128  # a warp for each 64 x 64
        name = f"matmul_tensor_core_kernel<{types}>"
        SOURCE.launch(name, grid, (threads,), a, b, c, M, N, K, shared_bytes=stages * STAGE_BYTES)
    return c
