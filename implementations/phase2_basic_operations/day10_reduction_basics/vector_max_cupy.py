"""A fixed number of blocks leave the largest of their elements, and one block more takes these."""

from pathlib import Path

import torch

from implementations.common.cuda_cpp import CudaSource
from implementations.common.device import properties
from implementations.phase2_basic_operations.day10_reduction_basics.vector_max import check

THREADS = 256
PACKS = 4  # packs of 16 bytes that each thread has under way at once
PROGRAMS_PER_SM = 64  # several times what is resident: a free multiprocessor starts another

SOURCE = CudaSource(Path(__file__).with_name("vector_max.cu"))


def vector_max(x):
    check(x)
    N = x.numel()
    out = torch.empty((), dtype=x.dtype, device=x.device)
    BLOCK = THREADS * PACKS * 16 // x.element_size()
    blocks = min(-(-N // BLOCK), properties(x.device).programs(PROGRAMS_PER_SM))
    partial = torch.empty(blocks, dtype=torch.float32, device=x.device)  # exact for all dtypes
    for src, dst in ((x, partial), (partial, out)):
        template = dict(T=src.dtype, Out=dst.dtype, THREADS=THREADS, PACKS=PACKS)
        grid = (dst.numel(),)
        SOURCE.launch("vector_max_kernel", grid, (THREADS,), src, dst, src.numel(), **template)
    return out
