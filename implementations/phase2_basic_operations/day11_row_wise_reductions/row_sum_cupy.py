"""A row a group of threads, up to a block; a longer row several blocks, whose sums make a row."""

from pathlib import Path

import torch

from implementations.common.cuda_cpp import CudaSource
from implementations.phase2_basic_operations.day11_row_wise_reductions.row_sum import check

BLOCK = 256  # threads
PACKS = 4  # of 16 bytes, that each thread has under way at once
PART_PACKS = 4096  # of a row, that a block reads at most: 64 KB

SOURCE = CudaSource(Path(__file__).with_name("row_sum.cu"))


def row_sum(x):
    check(x)
    M, N = x.shape
    if x.numel() == 0:
        return torch.empty(M, dtype=torch.float32, device=x.device).zero_()  # sums of nothing
    VEC = 16 // x.element_size()
    if N % VEC:  # rows do not start at a multiple of 16 bytes
        VEC = 1
    packs = N // VEC
    threads = max(min(packs, 4), packs // PACKS)  # 4 neighbours at least, for 64 bytes
    THREADS = min(1 << (threads - 1).bit_length(), 32) if threads <= 128 else BLOCK
    ROWS = BLOCK // THREADS  # up to a warp a row there are several, else one
    PART = PART_PACKS * VEC
    parts = -(-N // PART)

    sums = torch.empty(M, parts, dtype=torch.float32, device=x.device)
    grid = (-(-M // ROWS) * parts,)
    template = dict(T=x.dtype, VEC=VEC, PACKS=PACKS, THREADS=THREADS, ROWS=ROWS)
    SOURCE.launch("row_sum_kernel", grid, (THREADS, ROWS), x, sums, M, N, PART, parts, **template)
    return sums.view(M) if parts == 1 else row_sum(sums)
