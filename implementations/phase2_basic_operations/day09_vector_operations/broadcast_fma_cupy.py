"""Each thread takes the same pack of ROWS rows, for which it loads its pack of `row` once."""

from pathlib import Path

import torch

from implementations.common.cuda_cpp import CudaSource
from implementations.phase2_basic_operations.day09_vector_operations.broadcast_fma import check

THREADS = 256
ROWS = 4

SOURCE = CudaSource(Path(__file__).with_name("broadcast_fma.cu"))


def broadcast_fma(x, row, col):
    check(x, row, col)
    M, N = x.shape
    out = torch.empty_like(x)
    if x.numel() > 0:
        VEC = 16 // x.element_size()  # elements of a pack of 16 bytes
        if N % VEC:  # rows do not start at a multiple of 16 bytes
            VEC = 1
        packs = -(-N // VEC)
        width = min(32, 1 << (packs - 1).bit_length())  # a warp, or less where rows are short
        block = (width, THREADS // width)
        grid = (-(-packs // width), -(-M // (block[1] * ROWS)))
        template = dict(T=x.dtype, VEC=VEC, ROWS=ROWS)
        SOURCE.launch("broadcast_fma_kernel", grid, block, x, row, col, out, M, N, **template)
    return out
