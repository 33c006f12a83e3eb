"""Each thread owns a pack of 16 bytes and its part of the mask, and makes its random words."""

from pathlib import Path

import torch

from implementations.common.cuda_cpp import CudaSource
from implementations.phase4_advanced_kernels.day24_dropout.dropout import check

BLOCK = 256

SOURCE = CudaSource(Path(__file__).with_name("dropout.cu"))


def dropout(x, p, seed):
    threshold, scale, seed = check(x, p, seed)
    N = x.numel()
    y = torch.empty_like(x)
    keep = torch.empty_like(x, dtype=torch.bool)
    if N > 0:
        VEC = 16 // x.element_size()  # elements of a pack of 16 bytes
        grid = (-(-N // (BLOCK * VEC)),)
        args = x, y, keep, N, threshold, scale, seed
        SOURCE.launch("dropout_kernel", grid, (BLOCK,), *args, T=x.dtype)
    return y, keep
