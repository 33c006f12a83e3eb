"""Each program sums a strip of columns, or a part of its rows, whose sums are summed again."""

import torch
import triton
import triton.language as tl

from implementations.common.device import properties
from implementations.phase2_basic_operations.day11_row_wise_reductions.column_sum import check

TILE = 4096  # elements that a program adds at a time
WIDE, NARROW = 32, 2  # packs of a strip's row: 512 bytes, and 32, the least that memory moves
PART_ROWS = 1024  # rows of a part, at least
PROGRAMS_PER_SM = 15  # 132 multiprocessors: under 2 * PART_ROWS parts, so no third launch


@triton.jit
def column_sum_kernel(x_ptr, out_ptr, M, N, PART, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    strip, part = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    offs_m = tl.arange(0, BLOCK_M).to(tl.int64)  # M * N may exceed 2^31
    offs_n = strip * BLOCK_N + tl.arange(0, BLOCK_N)
    in_columns = offs_n < N
    x_ptrs = x_ptr + offs_m[:, None] * N + offs_n[None, :]

    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    start = part * PART
    end = tl.minimum(start + PART, M)
    for m in tl.range(start, end, BLOCK_M, num_stages=3):  # two tiles are under way meanwhile
        mask = (m + offs_m < M)[:, None] & in_columns[None, :]
        acc += tl.load(x_ptrs + m * N, mask=mask, other=0.0)  # in float32, as acc is

    tl.store(out_ptr + part * N + offs_n, tl.sum(acc, axis=0), mask=in_columns)


def column_sum(x):
    check(x)
    M, N = x.shape
    if x.numel() == 0:
        return torch.empty(N, dtype=torch.float32, device=x.device).zero_()  # sums of nothing
    VEC = 16 // x.element_size()
    packs = triton.cdiv(N, VEC)
    parts = max(
        1,
        min(
            M // PART_ROWS,
            properties(x.device).programs(PROGRAMS_PER_SM) // triton.cdiv(packs, WIDE),
        ),
    )
    # where rows are not divided, strips are so narrow that each multiprocessor gets two
    width = WIDE if parts > 1 else max(NARROW, min(packs // properties(x.device).programs(2), WIDE))
    BLOCK_N = triton.next_power_of_2(min(width, packs)) * VEC
    BLOCK_M = TILE // BLOCK_N
    PART = (M // (parts * BLOCK_M) + 1) * BLOCK_M
    parts = triton.cdiv(M, PART)

    sums = torch.empty(parts, N, dtype=torch.float32, device=x.device)
    grid = (triton.cdiv(N, BLOCK_N), parts)
    column_sum_kernel[grid](x, sums, M, N, PART, BLOCK_M, BLOCK_N, num_warps=8)
    return sums.view(N) if parts == 1 else column_sum(sums)
