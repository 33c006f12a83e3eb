"""A group of threads takes each row, or each part of a long one, whose pairs are then merged."""

from pathlib import Path

import torch

from implementations.common.cuda_cpp import CudaSource
from implementations.phase5_flash_attention.day31_online_softmax.softmax_stats import check

BLOCK = 256  # threads of a block
PACKS = 4  # packs of 16 bytes that each thread has under way at once
PART_PACKS = 4096  # packs of a row that a block reads at most: 64 KB
MERGE_BLOCK = 1024  # threads that merge the parts of a row that has many, else a warp
MANY_PARTS = 16  # at most these are merged by a warp

SOURCE = CudaSource(Path(__file__).with_name("softmax_stats.cu"))


def softmax_stats(x):
    check(x)
    M, N = x.shape
    m, l = (torch.empty(M, dtype=torch.float32, device=x.device) for _ in range(2))
    if x.numel() == 0:
        return m.fill_(-torch.inf), l.zero_()  # of nothing
    VEC = 16 // x.element_size()  # elements of a pack of 16 bytes
    if N % VEC:  # rows do not start at a multiple of 16 bytes
        VEC = 1
    packs = N // VEC
    threads = max(min(packs, 4), packs // PACKS)  # at least 4 neighbours, for 64 bytes
    THREADS = min(1 << (threads - 1).bit_length(), 32) if threads <= 128 else BLOCK
    ROWS = BLOCK // THREADS if THREADS <= 32 else 1
    PART = PART_PACKS * VEC
    parts = -(-N // PART)

    pairs = m, l
    if parts > 1:
        pairs = torch.empty((2, M, parts), dtype=torch.float32, device=x.device)
    grid = (-(-M // ROWS) * parts,)
    template = dict(T=x.dtype, VEC=VEC, PACKS=PACKS, THREADS=THREADS, ROWS=ROWS)
    args = x, *pairs, M, N, PART, parts
    SOURCE.launch("softmax_stats_kernel", grid, (THREADS, ROWS), *args, **template)
    if parts > 1:
        THREADS = 32 if parts <= MANY_PARTS else MERGE_BLOCK
        ROWS = BLOCK // THREADS if THREADS == 32 else 1
        grid, template = (-(-M // ROWS),), dict(THREADS=THREADS, ROWS=ROWS)
        args = *pairs, m, l, M, parts
        SOURCE.launch("softmax_stats_merge_kernel", grid, (THREADS, ROWS), *args, **template)
    return m, l
