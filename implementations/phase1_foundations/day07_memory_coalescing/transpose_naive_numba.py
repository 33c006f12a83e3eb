"""Each block moves BLOCK elements of a row, one a thread, each into a row of its own."""

import torch
from numba import cuda

from implementations.common.numba_cuda import launch
from implementations.phase1_foundations.day07_memory_coalescing.transpose_naive import check

BLOCK = 256


@cuda.jit
def transpose_naive_kernel(x, out):
    N = x.shape[1]
    m = cuda.blockIdx.x
    n = cuda.blockIdx.y * BLOCK + cuda.threadIdx.x

    # loads are coalesced, stores are not: every element takes a sector of 32 bytes to itself
    if n < N:
        out[n, m] = x[m, n]  # neighbours store M elements apart


def transpose_naive(x):
    check(x)
    M, N = x.shape
    out = torch.empty((N, M), dtype=x.dtype, device=x.device)
    if x.numel() > 0:
        grid = (M, -(-N // BLOCK))
        launch(transpose_naive_kernel, grid, (BLOCK,), x, out)
    return out
