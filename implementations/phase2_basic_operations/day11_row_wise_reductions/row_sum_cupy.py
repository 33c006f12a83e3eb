"""A group of threads sums each row, or each part of a long one, whose sums are summed again."""

from pathlib import Path

import torch

from implementations.common.cuda_cpp import CudaSource
from implementations.phase2_basic_operations.day11_row_wise_reductions.row_sum import check

BLOCK = 256  # threads of a block
PACKS = 4  # packs of 16 bytes that each thread has under way at once
PART_PACKS = 4096  # packs of a row that a block reads at most: 64 KB

SOURCE = CudaSource(Path(__file__).with_name("row_sum.cu"))


def row_sum(x):
    check(x)
    M, N = x.shape
    if x.numel() == 0:
        return torch.empty(M, dtype=torch.float32, device=x.device).zero_()  # sums of nothing
    VEC = 16 // x.element_size()  # elements of a pack of 16 bytes
    if N % VEC:  # rows do not start at a multiple of 16 bytes
        VEC = 1
    packs = N // VEC
    threads = max(min(packs, 4), packs // PACKS)  # at least 4 neighbours, for 64 bytes
    THREADS = min(1 << (threads - 1).bit_length(), 32) if threads <= 128 else BLOCK
    ROWS = BLOCK // THREADS  # several while a row takes a warp or less, else one
    PART = PART_PACKS * VEC
    parts = -(-N // PART)

    sums = torch.empty(M, parts, dtype=torch.float32, device=x.device)
    grid = (-(-M // ROWS) * parts,)
    template = dict(T=x.dtype, VEC=VEC, PACKS=PACKS, THREADS=THREADS, ROWS=ROWS)
    SOURCE.launch("row_sum_kernel", grid, (THREADS, ROWS), x, sums, M, N, PART, parts, **template)
    return sums.view(M) if parts == 1 else row_sum(sums)
