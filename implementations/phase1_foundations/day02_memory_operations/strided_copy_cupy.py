"""Each thread copies PER_THREAD elements, a block's width apart; all loads precede all stores."""

from pathlib import Path

import torch

from implementations.common.cuda_cpp import CudaSource
from implementations.phase1_foundations.day02_memory_operations.strided_copy import check

BLOCK = 256
PER_THREAD = 6  # loads that a thread has under way: single elements are small

SOURCE = CudaSource(Path(__file__).with_name("strided_copy.cu"))


def strided_copy(x, start, step, n):
    check(x, start, step, n)
    out = torch.empty(n, dtype=x.dtype, device=x.device)
    if n > 0:
        grid = (-(-n // (BLOCK * PER_THREAD)),)
        template = dict(T=x.dtype, PER_THREAD=PER_THREAD)
        SOURCE.launch("strided_copy_kernel", grid, (BLOCK,), x, out, start, step, n, **template)
    return out
