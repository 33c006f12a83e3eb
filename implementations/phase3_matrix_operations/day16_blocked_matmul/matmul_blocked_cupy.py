"""Each block owns a tile of C, each thread a part in registers; cp.async fills STAGES tiles."""

from pathlib import Path

import torch

from implementations.common.cuda_cpp import CudaSource
from implementations.common.device import properties
from implementations.phase3_matrix_operations.day16_blocked_matmul.matmul_blocked import check

BLOCK_M, BLOCK_N, BLOCK_K = 128, 128, 8
WARP_M, WARP_N = 64, 64
MAX_STAGES = 4
THREADS = BLOCK_M * BLOCK_N // (WARP_M * WARP_N) * 32
# bytes of shared memory that a stage takes; a row of A is followed by a chunk that is not used
STAGE_BYTES = (BLOCK_M * (BLOCK_K + 4) + BLOCK_K * BLOCK_N) * 4

SOURCE = CudaSource(Path(__file__).with_name("matmul_blocked.cu"))


def matmul_blocked(a, b):
    check(a, b)
    (M, K), N = a.shape, b.shape[1]
    c = torch.empty((M, N), dtype=a.dtype, device=a.device)
    if c.numel() > 0:
        # then all rows of a and b start at a multiple of 16 bytes
        ALIGNED = K % 4 == 0 and N % 4 == 0
        STAGES = properties(a.device).stages(MAX_STAGES, STAGE_BYTES)
        grid = (-(-M // BLOCK_M) * -(-N // BLOCK_N),)
        template = dict(ALIGNED=ALIGNED, BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N, BLOCK_K=BLOCK_K)
        template |= dict(WARP_M=WARP_M, WARP_N=WARP_N, STAGES=STAGES, THREADS=THREADS)
        kernel, shared_bytes = "matmul_blocked_kernel", STAGES * STAGE_BYTES
        SOURCE.launch(
            kernel, grid, (THREADS,), a, b, c, M, N, K, shared_bytes=shared_bytes, **template
        )
    return c
