"""Each thread takes the same pack of ROWS rows, on a grid of columns, rows and matrices."""

from pathlib import Path

import torch

from implementations.common.cuda_cpp import CudaSource
from implementations.phase1_foundations.day06_multidimensional_grids.affine_3d import check

BLOCK = (32, 8)  # threads along x and y
ROWS = 4

SOURCE = CudaSource(Path(__file__).with_name("affine_3d.cu"))


def affine_3d(x, row_scale, col_bias):
    check(x, row_scale, col_bias)
    B, M, N = x.shape
    out = torch.empty_like(x)
    if x.numel() > 0:
        VEC = 16 // x.element_size()  # elements of a pack of 16 bytes
        if N % VEC:  # rows do not start at a multiple of 16 bytes
            VEC = 1
        grid = (-(-N // (BLOCK[0] * VEC)), -(-M // (BLOCK[1] * ROWS)), B)
        template = dict(T=x.dtype, VEC=VEC, ROWS=ROWS)
        SOURCE.launch(
            "affine_3d_kernel", grid, BLOCK, x, row_scale, col_bias, out, M, N, **template
        )
    return out
