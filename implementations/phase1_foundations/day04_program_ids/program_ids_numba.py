"""Each block of threads owns block_size elements, each thread one of them."""

import torch
from numba import cuda, int64

from implementations import TORCH_DEVICE
from implementations.common.numba_cuda import launch
from implementations.phase1_foundations.day04_program_ids.program_ids import check


@cuda.jit
def program_ids_kernel(out, n):
    pid = cuda.blockIdx.x
    i = int64(pid) * cuda.blockDim.x + cuda.threadIdx.x  # the last block may reach 2^31

    if i < n:
        out[i] = pid


def program_ids(n, block_size):
    check(n, block_size)
    out = torch.empty(n, dtype=torch.int32, device=TORCH_DEVICE)
    if n > 0:
        grid = (-(-n // block_size),)
        launch(program_ids_kernel, grid, (block_size,), out, n)
    return out
