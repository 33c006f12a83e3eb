"""One thread a pack of 16 bytes of the output; the test of each element stands before its load."""

from pathlib import Path

import numpy as np
import torch

from implementations.common.cuda_cpp import C_TYPE, CudaSource
from implementations.phase1_foundations.day03_masking.shift import check

BLOCK = 256

SOURCE = CudaSource(Path(__file__).with_name("shift.cu"))


def shift(x, offset, fill_value):
    offset, fill_value = check(x, offset, fill_value)
    N = x.numel()
    out = torch.empty_like(x)
    if N > 0:
        VEC = 16 // x.element_size()
        grid = (-(-N // (BLOCK * VEC)),)
        name = f"shift_kernel<{C_TYPE[x.dtype]}>"
        SOURCE.launch(name, grid, (BLOCK,), x, out, np.int64(N), np.int64(offset), fill_value)
    return out
