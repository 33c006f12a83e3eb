"""One block of threads a block of elements, one pack a thread: warps scan by shuffles."""

from pathlib import Path

import numpy as np
import torch

from implementations.common.cuda_cpp import C_TYPE, CudaSource
from implementations.phase1_foundations.day05_block_programming.block_cumsum import check

SOURCE = CudaSource(Path(__file__).with_name("block_cumsum.cu"))


def block_cumsum(x, block_size=1024):
    check(x, block_size)
    N = x.numel()
    out = torch.empty_like(x)
    if N > 0:
        VEC = 16 // x.element_size()  # elements a thread: one pack of 16 bytes
        if block_size < VEC:
            VEC = 1
        THREADS = block_size // VEC
        grid = (-(-N // block_size),)
        name = f"block_cumsum_kernel<{C_TYPE[x.dtype]}, {VEC}, {THREADS}>"
        SOURCE.launch(name, grid, (THREADS,), x, out, np.int64(N))
    return out
