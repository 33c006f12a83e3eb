"""Each block moves a TILE x TILE tile, each thread squares of it, by packs of 16 bytes."""

from pathlib import Path

import torch

from implementations.common.cuda_cpp import CudaSource
from implementations.phase1_foundations.day07_memory_coalescing.transpose_tiled import check

TILE_BYTES = 256  # bytes of a tile's row: whole lines of 128 are read and stored
ROWS = 8  # rows of squares that a block's threads take at a time
MAX_SIDE = 64  # squares along a tile's side: 512 threads

SOURCE = CudaSource(Path(__file__).with_name("transpose_tiled.cu"))


def transpose_tiled(x):
    check(x)
    M, N = x.shape
    out = torch.empty((N, M), dtype=x.dtype, device=x.device)
    if x.numel() > 0:
        VEC = 16 // x.element_size()  # elements of a pack of 16 bytes
        if M % VEC or N % VEC:  # rows do not start at a multiple of 16 bytes
            VEC = 1
        TILE = min(TILE_BYTES // x.element_size(), MAX_SIDE * VEC)
        grid = (-(-M // TILE) * -(-N // TILE),)
        block = (TILE // VEC, ROWS)
        template = dict(T=x.dtype, VEC=VEC, TILE=TILE, ROWS=ROWS)
        SOURCE.launch("transpose_tiled_kernel", grid, block, x, out, M, N, **template)
    return out
