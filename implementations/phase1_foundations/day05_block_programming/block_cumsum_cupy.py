"""Each block of threads scans a block of elements, one pack a thread; warps scan by shuffles."""

from pathlib import Path

import torch

from implementations.common.cuda_cpp import CudaSource
from implementations.phase1_foundations.day05_block_programming.block_cumsum import check

SOURCE = CudaSource(Path(__file__).with_name("block_cumsum.cu"))


def block_cumsum(x, block_size=1024):
    check(x, block_size)
    N = x.numel()
    out = torch.empty_like(x)
    if N > 0:
        VEC = 16 // x.element_size()  # elements of a thread: one pack of 16 bytes
        if block_size < VEC:
            VEC = 1
        THREADS = block_size // VEC
        grid = (-(-N // block_size),)
        template = dict(T=x.dtype, VEC=VEC, THREADS=THREADS)
        SOURCE.launch("block_cumsum_kernel", grid, (THREADS,), x, out, N, **template)
    return out
