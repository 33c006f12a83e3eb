"""Each program holds ROWS rows on chip; of a longer one it reads s again, in tiles."""

import torch
import triton
import triton.language as tl

from implementations.phase4_advanced_kernels.day22_layer_normalization.layer_norm_triton import (
    add_deviations,
    statistics,
)
from implementations.phase4_advanced_kernels.day23_fused_layer_norm.add_layer_norm import check

TILE = 4096  # elements a program holds, unless one row is longer
PER_THREAD = 16  # elements a thread holds, unless one row is longer than 32 warps hold so
MAX_BLOCK_N = 16384  # elements on chip; more would spill


@triton.jit
def add_rows(x_ptrs, residual_ptrs, s_ptrs, mask):
    """Store s, the sum of x and the residual, and give it as it is rounded; 0 where masked."""
    x = tl.load(x_ptrs, mask=mask, other=0.0).to(tl.float32)
    residual = tl.load(residual_ptrs, mask=mask, other=0.0).to(tl.float32)
    s = (x + residual).to(s_ptrs.dtype.element_ty)
    tl.store(s_ptrs, s, mask=mask)
    return s.to(tl.float32)


@triton.jit
def add_layer_norm_kernel(
    x_ptr, residual_ptr, w_ptr, b_ptr, y_ptr, s_ptr, mean_ptr, rstd_ptr,
    M, N,
    eps,
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    offs_m = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    offs_n = tl.arange(0, BLOCK_N)[None, :]
    offs = offs_m * N + offs_n
    in_rows, in_columns = offs_m < M, offs_n < N
    mask = in_rows & in_columns

    s = add_rows(x_ptr + offs, residual_ptr + offs, s_ptr + offs, mask)

    # the mean as it is rounded; s * s would keep no digit of the variance of rows far from zero
    shift = tl.sum(s, 1, keep_dims=True) / N
    s1, s2 = add_deviations(0.0, 0.0, s, shift, in_columns)
    left, mean, rstd = statistics(shift, s1, s2, N + 0.0, eps)
    w = tl.load(w_ptr + offs_n, mask=in_columns).to(tl.float32)
    b = tl.load(b_ptr + offs_n, mask=in_columns).to(tl.float32)
    y = ((s - shift) * rstd - left * rstd) * w + b

    tl.store(y_ptr + offs, y, mask=mask)
    tl.store(mean_ptr + offs_m, mean, mask=in_rows)
    tl.store(rstd_ptr + offs_m, rstd, mask=in_rows)


# One launch: between two over all rows, the L2 would lose what the second is to read again.
@triton.jit
def add_layer_norm_long_kernel(
    x_ptr, residual_ptr, w_ptr, b_ptr, y_ptr, s_ptr, mean_ptr, rstd_ptr,
    N,
    eps,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * N
    residual_ptr += row * N
    y_ptr += row * N
    s_ptr += row * N
    offs_n = tl.arange(0, BLOCK_N)[None, :]
    in_tile = offs_n < BLOCK_N
    last = (N - 1).to(tl.int64) // BLOCK_N * BLOCK_N  # where the last tile starts
    in_last = offs_n < N - last

    # The first tile gives the shift, all tiles the sums.
    s = add_rows(x_ptr + offs_n, residual_ptr + offs_n, s_ptr + offs_n, in_tile)
    shift = tl.sum(s, 1, keep_dims=True) / BLOCK_N
    s1, s2 = add_deviations(0.0, 0.0, s, shift, in_tile)
    for n in range(BLOCK_N, last, BLOCK_N):
        offs = n + offs_n
        s = add_rows(x_ptr + offs, residual_ptr + offs, s_ptr + offs, in_tile)
        s1, s2 = add_deviations(s1, s2, s, shift, in_tile)
    offs = last + offs_n
    s = add_rows(x_ptr + offs, residual_ptr + offs, s_ptr + offs, in_last)
    s1, s2 = add_deviations(s1, s2, s, shift, in_last)

    left, mean, rstd = statistics(shift, s1, s2, N + 0.0, eps)
    offs_1 = row + tl.arange(0, 1)[:, None]
    tl.store(mean_ptr + offs_1, mean)
    tl.store(rstd_ptr + offs_1, rstd)

    # The last tile is still on chip. Of the others s is read again, backwards, as the L2 keeps what
    # was written last; what another thread has stored is there after a barrier.
    tl.debug_barrier()
    w = tl.load(w_ptr + offs, mask=in_last).to(tl.float32)
    b = tl.load(b_ptr + offs, mask=in_last).to(tl.float32)
    y = ((s - shift) * rstd - left * rstd) * w + b
    tl.store(y_ptr + offs, y, mask=in_last, eviction_policy="evict_first")
    for n in range(BLOCK_N, last + BLOCK_N, BLOCK_N):
        offs = last - n + offs_n
        s = tl.load(s_ptr + offs, eviction_policy="evict_first").to(tl.float32)
        w = tl.load(w_ptr + offs).to(tl.float32)
        b = tl.load(b_ptr + offs).to(tl.float32)
        y = ((s - shift) * rstd - left * rstd) * w + b
        tl.store(y_ptr + offs, y, eviction_policy="evict_first")


def add_layer_norm(x, residual, w, b, eps):
    eps = check(x, residual, w, b, eps)
    M, N = x.shape
    y, s = torch.empty_like(x), torch.empty_like(x)
    mean = torch.empty(M, dtype=torch.float32, device=x.device)
    rstd = torch.empty_like(mean)
    if x.numel() == 0:
        return y, s, mean, rstd
    args = x, residual, w, b, y, s, mean, rstd
    if N <= MAX_BLOCK_N:
        BLOCK_N = triton.next_power_of_2(N)
        ROWS = max(1, TILE // BLOCK_N)
        num_warps = min(max(ROWS * BLOCK_N // (32 * PER_THREAD), 4), 32)
        grid = (triton.cdiv(M, ROWS),)
        add_layer_norm_kernel[grid](*args, M, N, eps, ROWS, BLOCK_N, num_warps=num_warps)
    else:
        add_layer_norm_long_kernel[(M,)](*args, N, eps, MAX_BLOCK_N, num_warps=32)
    return y, s, mean, rstd
