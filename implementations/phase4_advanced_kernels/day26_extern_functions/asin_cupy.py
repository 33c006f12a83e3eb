"""Each thread owns packs of 16 bytes; the function is one of CUDA's mathematical header."""

from pathlib import Path

import torch

from implementations.common.cuda_cpp import CudaSource
from implementations.phase4_advanced_kernels.day26_extern_functions.asin import check

BLOCK = 128
PACKS_OF = {4: 1, 2: 4}  # of a thread, by the bytes of an element

SOURCE = CudaSource(Path(__file__).with_name("asin.cu"))


def asin(x):
    check(x)
    N = x.numel()
    y = torch.empty_like(x)
    if N > 0:
        size = x.element_size()
        VEC, PACKS = 16 // size, PACKS_OF[size]  # elements of a pack, packs of a thread
        grid = (-(-N // (BLOCK * PACKS * VEC)),)
        SOURCE.launch("asin_kernel", grid, (BLOCK,), x, y, N, T=x.dtype, PACKS=PACKS)
    return y
