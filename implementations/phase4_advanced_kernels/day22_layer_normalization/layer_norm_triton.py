"""Each program holds ROWS rows on chip; it reads a longer one twice, in tiles."""

import torch
import triton
import triton.language as tl

from implementations.phase4_advanced_kernels.day22_layer_normalization.layer_norm import check

TILE = 4096  # elements a program holds, unless one row is longer
PER_THREAD = 64  # bytes of x that a thread holds, unless one row is longer than 32 warps hold so
MAX_BLOCK_N = 16384  # elements on chip; more would spill


@triton.jit
def add_deviations(s1, s2, x, shift, in_tile):
    """Add the deviations from `shift` of what is `in_tile` to s1, a sum a row, their squares to s2.
    Shapes: x (ROWS, BLOCK_N), fp32, in_tile (1, BLOCK_N), the others (ROWS, 1)."""
    d = tl.where(in_tile, x - shift, 0.0)
    return s1 + tl.sum(d, 1, keep_dims=True), s2 + tl.sum(d * d, 1, keep_dims=True)


@triton.jit
def statistics(shift, s1, s2, N, eps):
    """What the shift leaves of the mean, mean and rstd. Divisions are rounded correctly: of a row
    whose elements are equal, both terms of the variance are then the same number."""
    left = tl.div_rn(s1, N)
    rstd = tl.div_rn(1.0, tl.sqrt_rn(tl.div_rn(s2, N) - left * left + eps))
    # an infinity in a later tile is not in the shift, and makes rstd NaN
    return left, tl.where(rstd >= 0, shift + left, rstd), rstd


@triton.jit
def layer_norm_kernel(
    x_ptr, w_ptr, b_ptr, y_ptr, mean_ptr, rstd_ptr,
    M, N,
    eps,
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    offs_m = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    offs_n = tl.arange(0, BLOCK_N)[None, :]
    offs = offs_m * N + offs_n
    in_rows, in_columns = offs_m < M, offs_n < N
    mask = in_rows & in_columns

    x = tl.load(x_ptr + offs, mask=mask, other=0.0).to(tl.float32)

    # the mean as it is rounded; x * x would keep no digit of the variance of rows far from zero
    shift = tl.sum(x, 1, keep_dims=True) / N
    s1, s2 = add_deviations(0.0, 0.0, x, shift, in_columns)
    left, mean, rstd = statistics(shift, s1, s2, N + 0.0, eps)
    w = tl.load(w_ptr + offs_n, mask=in_columns).to(tl.float32)
    b = tl.load(b_ptr + offs_n, mask=in_columns).to(tl.float32)
    y = ((x - shift) * rstd - left * rstd) * w + b

    tl.store(y_ptr + offs, y, mask=mask)
    tl.store(mean_ptr + offs_m, mean, mask=in_rows)
    tl.store(rstd_ptr + offs_m, rstd, mask=in_rows)


# One launch: between two over all rows, the L2 would lose what the second is to read again.
@triton.jit
def layer_norm_long_kernel(
    x_ptr, w_ptr, b_ptr, y_ptr, mean_ptr, rstd_ptr,
    N,
    eps,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * N
    y_ptr += row * N
    offs_n = tl.arange(0, BLOCK_N)[None, :]
    in_tile = offs_n < BLOCK_N
    last = (N - 1).to(tl.int64) // BLOCK_N * BLOCK_N  # where the last tile starts
    in_last = offs_n < N - last

    # The first tile gives the shift, all tiles the sums. The second read should find the tile in
    # the L2: evict_last keeps what will be read again, evict_first gives up what will not.
    x = tl.load(x_ptr + offs_n, eviction_policy="evict_last").to(tl.float32)
    shift = tl.sum(x, 1, keep_dims=True) / BLOCK_N
    s1, s2 = add_deviations(0.0, 0.0, x, shift, in_tile)
    for n in range(BLOCK_N, last, BLOCK_N):
        x = tl.load(x_ptr + n + offs_n, eviction_policy="evict_last").to(tl.float32)
        s1, s2 = add_deviations(s1, s2, x, shift, in_tile)
    x = tl.load(x_ptr + last + offs_n, mask=in_last, other=0.0).to(tl.float32)
    s1, s2 = add_deviations(s1, s2, x, shift, in_last)

    left, mean, rstd = statistics(shift, s1, s2, N + 0.0, eps)
    offs_1 = row + tl.arange(0, 1)[:, None]
    tl.store(mean_ptr + offs_1, mean)
    tl.store(rstd_ptr + offs_1, rstd)

    # The last tile is still on chip. Others follow backwards, as the L2 keeps what was read last.
    w = tl.load(w_ptr + last + offs_n, mask=in_last).to(tl.float32)
    b = tl.load(b_ptr + last + offs_n, mask=in_last).to(tl.float32)
    y = ((x - shift) * rstd - left * rstd) * w + b
    tl.store(y_ptr + last + offs_n, y, mask=in_last, eviction_policy="evict_first")
    for n in range(BLOCK_N, last + BLOCK_N, BLOCK_N):
        offs = last - n + offs_n
        x = tl.load(x_ptr + offs, eviction_policy="evict_first").to(tl.float32)
        w = tl.load(w_ptr + offs).to(tl.float32)
        b = tl.load(b_ptr + offs).to(tl.float32)
        y = ((x - shift) * rstd - left * rstd) * w + b
        tl.store(y_ptr + offs, y, eviction_policy="evict_first")


def layer_norm(x, w, b, eps):
    eps = check(x, w, b, eps)
    M, N = x.shape
    y = torch.empty_like(x)
    mean = torch.empty(M, dtype=torch.float32, device=x.device)
    rstd = torch.empty_like(mean)
    if x.numel() == 0:
        return y, mean, rstd
    args = x, w, b, y, mean, rstd
    if N <= MAX_BLOCK_N:
        BLOCK_N = triton.next_power_of_2(N)
        ROWS = max(1, TILE // BLOCK_N)
        per_warp = 32 * PER_THREAD // x.element_size()
        num_warps = min(max(ROWS * BLOCK_N // per_warp, 4), 32)
        grid = (triton.cdiv(M, ROWS),)
        layer_norm_kernel[grid](*args, M, N, eps, ROWS, BLOCK_N, num_warps=num_warps)
    else:
        layer_norm_long_kernel[(M,)](*args, N, eps, MAX_BLOCK_N, num_warps=32)
    return y, mean, rstd
