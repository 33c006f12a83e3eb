"""In each of three launches a program reads ROWS rows, in steps of BLOCK_N columns."""

import torch
import triton
import triton.language as tl

from implementations.phase2_basic_operations.day12_numerical_stability.softmax_safe import check

NUM_WARPS = 4  # warps of a program, unless one row takes more
MAX_WARPS = 16  # warps that share a row, at most
PER_WARP = 32 * 16  # elements of a warp's step: a thread has 32 to 64 bytes under way at once


@triton.jit
def softmax_safe_max_kernel(
    x_ptr, m_ptr, M, N: tl.int64, ROWS: tl.constexpr, BLOCK_N: tl.constexpr
):
    pid = tl.program_id(0).to(tl.int64)
    offs_m = pid * ROWS + tl.arange(0, ROWS)
    offs_n = tl.arange(0, BLOCK_N)

    m = tl.full((ROWS, BLOCK_N), -float("inf"), tl.float32)  # reduced once, below
    for start in range(0, N, BLOCK_N):
        offs = offs_m[:, None] * N + (start + offs_n)[None, :]
        mask = (offs_m < M)[:, None] & (start + offs_n < N)[None, :]
        x = tl.load(x_ptr + offs, mask=mask, other=-float("inf")).to(tl.float32)
        # tl.maximum drops a NaN; the next kernel takes it into the sum, so all the row is NaN
        m = tl.maximum(m, x)

    tl.store(m_ptr + offs_m, tl.max(m, axis=1), mask=offs_m < M)


@triton.jit
def softmax_safe_sum_kernel(
    x_ptr, m_ptr, l_ptr, M, N: tl.int64, ROWS: tl.constexpr, BLOCK_N: tl.constexpr
):
    pid = tl.program_id(0).to(tl.int64)
    offs_m = pid * ROWS + tl.arange(0, ROWS)
    offs_n = tl.arange(0, BLOCK_N)
    m = tl.load(m_ptr + offs_m, mask=offs_m < M)[:, None]

    l = tl.zeros((ROWS, BLOCK_N), tl.float32)
    for start in range(0, N, BLOCK_N):
        offs = offs_m[:, None] * N + (start + offs_n)[None, :]
        mask = (offs_m < M)[:, None] & (start + offs_n < N)[None, :]
        x = tl.load(x_ptr + offs, mask=mask, other=-float("inf")).to(tl.float32)
        # each exponential is at most 1, as m is the largest element: the sum cannot overflow
        l += tl.exp(x - m)

    tl.store(l_ptr + offs_m, tl.sum(l, axis=1), mask=offs_m < M)


@triton.jit
def softmax_safe_divide_kernel(
    x_ptr, m_ptr, l_ptr, out_ptr, M, N: tl.int64, ROWS: tl.constexpr, BLOCK_N: tl.constexpr
):
    pid = tl.program_id(0).to(tl.int64)
    offs_m = pid * ROWS + tl.arange(0, ROWS)
    offs_n = tl.arange(0, BLOCK_N)
    m = tl.load(m_ptr + offs_m, mask=offs_m < M)[:, None]
    scale = (1.0 / tl.load(l_ptr + offs_m, mask=offs_m < M))[:, None]

    for start in range(0, N, BLOCK_N):
        offs = offs_m[:, None] * N + (start + offs_n)[None, :]
        mask = (offs_m < M)[:, None] & (start + offs_n < N)[None, :]
        x = tl.load(x_ptr + offs, mask=mask).to(tl.float32)
        tl.store(out_ptr + offs, tl.exp(x - m) * scale, mask=mask)


def softmax_safe(x):
    check(x)
    M, N = x.shape
    out = torch.empty_like(x)
    if x.numel() > 0:
        m = torch.empty(M, dtype=torch.float32, device=x.device)
        l = torch.empty_like(m)
        BLOCK_N = min(triton.next_power_of_2(N), MAX_WARPS * PER_WARP)
        ROWS = max(1, NUM_WARPS * PER_WARP // BLOCK_N)
        num_warps = ROWS * BLOCK_N // PER_WARP
        grid, sizes = (triton.cdiv(M, ROWS),), (M, N, ROWS, BLOCK_N)
        # a kernel begins when the one before has ended: no other barrier spans the grid
        softmax_safe_max_kernel[grid](x, m, *sizes, num_warps=num_warps)
        softmax_safe_sum_kernel[grid](x, m, l, *sizes, num_warps=num_warps)
        softmax_safe_divide_kernel[grid](x, m, l, out, *sizes, num_warps=num_warps)
    return out
