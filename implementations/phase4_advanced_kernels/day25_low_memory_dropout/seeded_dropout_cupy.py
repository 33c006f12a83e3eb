"""Each thread owns packs of 16 bytes and makes its random words anew."""

from pathlib import Path

import torch

from implementations.common.cuda_cpp import CudaSource
from implementations.phase4_advanced_kernels.day25_low_memory_dropout.seeded_dropout import check

BLOCK = 256
PACKS_OF = {4: 1, 2: 2}  # of a thread, by the bytes of an element

SOURCE = CudaSource(Path(__file__).with_name("seeded_dropout.cu"))


def seeded_dropout(x, p, seed):
    threshold, scale, seed = check(x, p, seed)
    N = x.numel()
    y = torch.empty_like(x)
    if p == 1:  # no word is as large as the threshold
        return y.zero_()
    if N > 0:
        size = x.element_size()
        VEC, PACKS = 16 // size, PACKS_OF[size]  # elements of a pack, packs of a thread
        grid = (-(-N // (BLOCK * PACKS * VEC)),)
        args = x, y, N, threshold, scale, seed
        SOURCE.launch("seeded_dropout_kernel", grid, (BLOCK,), *args, T=x.dtype, PACKS=PACKS)
    return y
