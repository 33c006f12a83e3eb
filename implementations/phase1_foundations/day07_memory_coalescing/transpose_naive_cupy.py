"""Each block moves BLOCK elements of a row, one a thread, each into a row of its own."""

from pathlib import Path

import torch

from implementations.common.cuda_cpp import CudaSource
from implementations.phase1_foundations.day07_memory_coalescing.transpose_naive import check

BLOCK = 256

SOURCE = CudaSource(Path(__file__).with_name("transpose_naive.cu"))


def transpose_naive(x):
    check(x)
    M, N = x.shape
    out = torch.empty((N, M), dtype=x.dtype, device=x.device)
    if x.numel() > 0:
        grid = (M, -(-N // BLOCK))
        template = dict(T=x.dtype)
        SOURCE.launch("transpose_naive_kernel", grid, (BLOCK,), x, out, M, N, **template)
    return out
