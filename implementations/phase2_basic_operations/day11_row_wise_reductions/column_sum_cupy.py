"""Each block sums a strip of columns, or a part of its rows, whose sums are summed again."""

from pathlib import Path

import torch

from implementations.common.cuda_cpp import CudaSource
from implementations.common.device import properties
from implementations.phase2_basic_operations.day11_row_wise_reductions.column_sum import check

BLOCK = 256  # threads of a block
PACKS = 4  # packs of 16 bytes that each thread has under way at once
WIDE, NARROW = 32, 2  # packs of a strip's row: 512 bytes, and 32, the least that memory moves
PART_ROWS = 1024  # rows of a part, at least
PROGRAMS_PER_SM = 15  # 132 multiprocessors: under 2 * PART_ROWS parts, so no third launch

SOURCE = CudaSource(Path(__file__).with_name("column_sum.cu"))


def column_sum(x):
    check(x)
    M, N = x.shape
    if x.numel() == 0:
        return torch.empty(N, dtype=torch.float32, device=x.device).zero_()  # sums of nothing
    VEC = 16 // x.element_size()  # elements of a pack of 16 bytes
    if N % VEC:  # rows do not start at a multiple of 16 bytes
        VEC = 1
    packs = N // VEC
    parts = max(
        1, min(M // PART_ROWS, properties(x.device).programs(PROGRAMS_PER_SM) // -(-packs // WIDE))
    )
    # where rows are not divided, strips are so narrow that each multiprocessor gets two
    width = WIDE if parts > 1 else max(NARROW, min(packs // properties(x.device).programs(2), WIDE))
    TX = 1 << (min(width, packs) - 1).bit_length()
    TY = BLOCK // TX
    STEP = TY * PACKS
    PART = (M // (parts * STEP) + 1) * STEP
    parts = -(-M // PART)

    sums = torch.empty(parts, N, dtype=torch.float32, device=x.device)
    grid = (-(-packs // TX), parts)
    template = dict(T=x.dtype, VEC=VEC, PACKS=PACKS, TX=TX, TY=TY)
    SOURCE.launch("column_sum_kernel", grid, (TX, TY), x, sums, M, N, PART, **template)
    return sums.view(N) if parts == 1 else column_sum(sums)
