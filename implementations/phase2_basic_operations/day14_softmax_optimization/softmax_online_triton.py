"""Each program holds ROWS rows on chip; a longer row is read twice, by one program or by many."""

import torch
import triton
import triton.language as tl

from implementations.common.device import properties
from implementations.phase2_basic_operations.day14_softmax_optimization.softmax_online import check

TILE = 4096  # elements a program holds, unless one row is longer
PER_THREAD = 16  # elements a thread holds, unless one row is longer than 32 warps hold so
MAX_BLOCK_N = 32768  # elements on chip; more would spill, and clusters crash the compiler
IN_L2 = 65536  # elements for each multiprocessor that the L2 holds at once
MIN_TILE = 2048  # elements of a tile that has a program of its own, at least
MAX_TILES = 256  # tiles of such a row, unless they are as long as they may be

# No element but -inf is below it. Where it is the maximum, all elements are -inf and exp(x - m) is
# 0; with -inf as the maximum, -inf - -inf would be NaN.
LOWEST = tl.constexpr(-3.402823466e38)


@triton.jit
def merge_tile(m, l, x):
    """Take a tile x into m, the maximum of a row's elements so far, and l, their sum of exp(x - m).
    Shapes: x (BLOCK_N,), m and l scalars."""
    higher = tl.maximum(m, tl.max(x, axis=0))
    return higher, l * tl.exp(m - higher) + tl.sum(tl.exp(x - higher), axis=0)


@triton.jit
def softmax_online_kernel(x_ptr, out_ptr, M, N, ROWS: tl.constexpr, BLOCK_N: tl.constexpr):
    pid = tl.program_id(0)
    offs_m = pid * ROWS + tl.arange(0, ROWS)
    offs_n = tl.arange(0, BLOCK_N)
    offs = offs_m.to(tl.int64)[:, None] * N + offs_n[None, :]
    mask = (offs_m < M)[:, None] & (offs_n < N)[None, :]

    x = tl.load(x_ptr + offs, mask=mask, other=-float("inf")).to(tl.float32)

    # -inf beyond N changes no maximum and adds nothing to the sum; a NaN makes the sum NaN
    p = tl.exp(x - tl.max(x, axis=1)[:, None])
    y = p * (1.0 / tl.sum(p, axis=1))[:, None]

    tl.store(out_ptr + offs, y, mask=mask)


# One launch: between two over all rows, the L2 would lose what the second is to read again.
@triton.jit
def softmax_online_long_kernel(x_ptr, out_ptr, N, BLOCK_N: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * N
    out_ptr += row * N
    offs_n = tl.arange(0, BLOCK_N)
    last = (N - 1).to(tl.int64) // BLOCK_N * BLOCK_N  # where the last tile starts
    mask = offs_n < N - last

    # The second read should find the tile in the L2: evict_last keeps what will be read again,
    # evict_first gives up what will not.
    m = LOWEST
    l = 0.0
    for n in range(0, last, BLOCK_N):
        x = tl.load(x_ptr + n + offs_n, eviction_policy="evict_last").to(tl.float32)
        m, l = merge_tile(m, l, x)
    x = tl.load(x_ptr + last + offs_n, mask=mask, other=-float("inf")).to(tl.float32)
    m, l = merge_tile(m, l, x)

    # The last tile is still on chip. Others follow backwards, as the L2 keeps what was read last.
    scale = 1.0 / l
    y = tl.exp(x - m) * scale
    tl.store(out_ptr + last + offs_n, y, mask=mask, eviction_policy="evict_first")
    for n in range(BLOCK_N, last + BLOCK_N, BLOCK_N):
        offs = last - n + offs_n
        x = tl.load(x_ptr + offs, eviction_policy="evict_first").to(tl.float32)
        y = tl.exp(x - m) * scale
        tl.store(out_ptr + offs, y, eviction_policy="evict_first")


# Two launches, in which each program has a tile: for rows that fit the L2 together, or that are too
# few to fill the GPU with a program each. The second begins when all of m and l are stored.
@triton.jit
def softmax_online_stats_kernel(x_ptr, m_ptr, l_ptr, N, TILES, BLOCK_N: tl.constexpr):
    pid = tl.program_id(0)
    row, tile = (pid // TILES).to(tl.int64), pid % TILES
    offs_n = tile.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)

    x = tl.load(x_ptr + row * N + offs_n, mask=offs_n < N, other=-float("inf")).to(tl.float32)

    m = tl.maximum(tl.max(x, axis=0), LOWEST)
    l = tl.sum(tl.exp(x - m), axis=0)

    tl.store(m_ptr + pid, m)
    tl.store(l_ptr + pid, l)


@triton.jit
def softmax_online_scale_kernel(
    x_ptr, out_ptr, m_ptr, l_ptr, N, TILES, BLOCK_N: tl.constexpr, BLOCK_T: tl.constexpr
):
    pid = tl.program_id(0)
    row, tile = (pid // TILES).to(tl.int64), pid % TILES
    offs_n = tile.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_t = tl.arange(0, BLOCK_T)

    x = tl.load(x_ptr + row * N + offs_n, mask=offs_n < N, other=0.0).to(tl.float32)
    m_t = tl.load(m_ptr + row * TILES + offs_t, mask=offs_t < TILES, other=LOWEST)
    l_t = tl.load(l_ptr + row * TILES + offs_t, mask=offs_t < TILES, other=0.0)

    # LOWEST and 0 are neutral: what is beyond TILES changes neither m nor l
    m = tl.max(m_t, axis=0)
    l = tl.sum(l_t * tl.exp(m_t - m), axis=0)
    y = tl.exp(x - m) * (1.0 / l)

    tl.store(out_ptr + row * N + offs_n, y, mask=offs_n < N)


def softmax_online(x):
    check(x)
    M, N = x.shape
    out = torch.empty_like(x)
    if x.numel() == 0:
        return out
    BLOCK_N = min(triton.next_power_of_2(N), MAX_BLOCK_N)
    if N <= MAX_BLOCK_N:
        ROWS = max(1, TILE // BLOCK_N)
        num_warps = min(max(ROWS * BLOCK_N // (32 * PER_THREAD), 4), 32)
        grid = (triton.cdiv(M, ROWS),)
        softmax_online_kernel[grid](x, out, M, N, ROWS, BLOCK_N, num_warps=num_warps)
    elif M >= properties(x.device).programs(1) and M * N > properties(x.device).programs(1) * IN_L2:
        softmax_online_long_kernel[(M,)](x, out, N, BLOCK_N, num_warps=32)
    else:
        BLOCK_N = min(max(triton.next_power_of_2(triton.cdiv(N, MAX_TILES)), MIN_TILE), MAX_BLOCK_N)
        TILES = triton.cdiv(N, BLOCK_N)
        BLOCK_T = triton.next_power_of_2(TILES)
        m, l = torch.empty((2, M * TILES), dtype=torch.float32, device=x.device)
        num_warps = min(max(BLOCK_N // (32 * PER_THREAD), 4), 32)
        grid = (M * TILES,)
        softmax_online_stats_kernel[grid](x, m, l, N, TILES, BLOCK_N, num_warps=num_warps)
        softmax_online_scale_kernel[grid](
            x, out, m, l, N, TILES, BLOCK_N, BLOCK_T, num_warps=num_warps
        )
    return out
