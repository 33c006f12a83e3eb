"""Each program sums ROWS rows, or a part of a long one, whose sums are summed again."""

import torch
import triton
import triton.language as tl

from implementations.phase2_basic_operations.day11_row_wise_reductions.row_sum import check

TILE = 4096  # elements that a program adds at a time
PART = 4 * TILE  # elements of a row that a program reads at most


@triton.jit
def row_sum_kernel(
    x_ptr, out_ptr, M, N, parts, PART: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr
):
    pid = tl.program_id(0)
    part = (pid % parts).to(tl.int64)
    offs_m = (pid // parts).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # M * N may exceed 2^31
    offs_n = tl.arange(0, BLOCK_N)
    in_rows = offs_m < M
    x_ptrs = x_ptr + offs_m[:, None] * N + offs_n[None, :]

    acc = tl.zeros((ROWS, BLOCK_N), tl.float32)
    start = part * PART
    end = tl.minimum(start + PART, N)
    for n in tl.range(start, end, BLOCK_N, num_stages=3):  # two tiles are under way meanwhile
        mask = in_rows[:, None] & (n + offs_n < N)[None, :]
        acc += tl.load(x_ptrs + n, mask=mask, other=0.0)  # in float32, as acc is

    tl.store(out_ptr + offs_m * parts + part, tl.sum(acc, axis=1), mask=in_rows)


def row_sum(x):
    check(x)
    M, N = x.shape
    if x.numel() == 0:
        return torch.empty(M, dtype=torch.float32, device=x.device).zero_()  # sums of nothing
    BLOCK_N = min(triton.next_power_of_2(N), TILE)
    ROWS = TILE // BLOCK_N
    parts = triton.cdiv(N, PART)

    sums = torch.empty(M, parts, dtype=torch.float32, device=x.device)
    grid = (triton.cdiv(M, ROWS) * parts,)
    row_sum_kernel[grid](x, sums, M, N, parts, PART, ROWS, BLOCK_N, num_warps=8)
    return sums.view(M) if parts == 1 else row_sum(sums)
