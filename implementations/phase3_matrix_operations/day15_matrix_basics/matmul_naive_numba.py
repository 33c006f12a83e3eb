"""Each thread owns one element of C: it walks along a row of A and down a column of B."""

import torch
from numba import cuda, float32, uint32, uint64

from implementations.common.numba_cuda import launch
from implementations.phase3_matrix_operations.day15_matrix_basics.matmul_naive import (
    BLOCK_M,
    BLOCK_N,
    check,
)


@cuda.jit(launch_bounds=BLOCK_M * BLOCK_N)
def matmul_naive_kernel(A, B, C):
    # unsigned: a signed index would be tested for its sign; and alike, else they meet as floats
    M, N, K = uint64(A.shape[0]), uint64(B.shape[1]), uint64(A.shape[1])
    # all blocks along x, where a grid may have 2^31 - 1 of them; along y only 65535
    pid, blocks_n = uint32(cuda.blockIdx.x), uint32((N + uint64(BLOCK_N - 1)) // uint64(BLOCK_N))
    m = uint64(pid // blocks_n) * uint64(BLOCK_M) + uint64(cuda.threadIdx.y)
    n = uint64(pid % blocks_n) * uint64(BLOCK_N) + uint64(cuda.threadIdx.x)

    # A warp shares a row of A: its loads there are one address. If B's columns are neighbours, its
    # loads of B are one line, as are its stores.
    if m < M and n < N:
        acc, k = float32(0), uint64(0)
        while k < K:
            acc += A[m, k] * B[k, n]  # an array knows its strides
            k += uint64(1)
        C[m, n] = acc


def matmul_naive(a, b):
    check(a, b)
    M, N = a.shape[0], b.shape[1]
    c = torch.empty((M, N), dtype=a.dtype, device=a.device)
    if c.numel() > 0:
        grid = (-(-M // BLOCK_M) * -(-N // BLOCK_N),)
        launch(matmul_naive_kernel, grid, (BLOCK_N, BLOCK_M), a, b, c)
    return c
