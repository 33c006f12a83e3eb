"""Each thread owns one element of C: it walks along a row of A and down a column of B."""

from pathlib import Path

import torch

from implementations.common.cuda_cpp import CudaSource
from implementations.phase3_matrix_operations.day15_matrix_basics.matmul_naive import (
    BLOCK_M,
    BLOCK_N,
    check,
)

SOURCE = CudaSource(Path(__file__).with_name("matmul_naive.cu"))


def matmul_naive(a, b):
    check(a, b)
    (M, K), N = a.shape, b.shape[1]
    c = torch.empty((M, N), dtype=a.dtype, device=a.device)
    if c.numel() > 0:
        grid = (-(-M // BLOCK_M) * -(-N // BLOCK_N),)
        block = (BLOCK_N, BLOCK_M)
        template = dict(BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N)
        strides = (*a.stride(), *b.stride())
        SOURCE.launch("matmul_naive_kernel", grid, block, a, b, c, M, N, K, *strides, **template)
    return c
