"""A program takes ROWS rows, or a part of a long one, whose pairs are then merged."""

import torch
import triton
import triton.language as tl

from implementations.phase5_flash_attention.day31_online_softmax.softmax_stats import check

NUM_WARPS = 8
LANES = NUM_WARPS * 32
PACKS = 4  # packs of 16 bytes that each thread has under way at once
PART_PACKS = 4096  # packs of a row that a program reads at most: 64 KB
LOG2E = tl.constexpr(1.4426950408889634)

# Between these m stays, as inf - inf would be NaN: of elements that are all -inf, LOWEST is
# subtracted, and l is 0; of one that is inf, LARGEST is, and l is inf.
LARGEST = tl.constexpr(3.402823466e38)
LOWEST = tl.constexpr(-3.402823466e38)


@triton.jit
def finite(m):
    return tl.minimum(tl.maximum(m, LOWEST), LARGEST)


@triton.jit
def fast_exp(x):
    return tl.exp2(x * LOG2E)  # below the smallest normal number 0, in fewer steps than tl.exp


@triton.jit
def take(m_i, l_i, x):
    """Take a tile x into the pairs of its lanes, which are scaled once for all packs. Shapes: x
    (PACKS, LANES, VEC), m_i and l_i (LANES,)."""
    x = x.to(tl.float32)
    m = finite(tl.maximum(m_i, tl.max(tl.max(x, axis=2), axis=0)))
    p = fast_exp(x - m[None, :, None])
    return m, l_i * fast_exp(m_i - m) + tl.sum(tl.sum(p, axis=2), axis=0)


@triton.jit
def store_pair(m_ptrs, l_ptrs, m, l, mask=None):
    # an l of 0, inf or NaN says what the maximum was
    inf = float("inf")
    tl.store(m_ptrs, tl.where(l == 0.0, -inf, tl.where(l < inf, m, l)), mask=mask)
    tl.store(l_ptrs, l, mask=mask)


# Rows that one tile holds have no pairs to merge: their maximum is known before the first sum.
@triton.jit
def softmax_stats_kernel(x_ptr, m_ptr, l_ptr, M, N, ROWS: tl.constexpr, BLOCK_N: tl.constexpr):
    offs_m = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # M * N may exceed 2^31
    offs_n = tl.arange(0, BLOCK_N)
    in_rows = offs_m < M
    mask = in_rows[:, None] & (offs_n < N)[None, :]

    x = tl.load(x_ptr + offs_m[:, None] * N + offs_n[None, :], mask=mask, other=-float("inf"))
    x = x.to(tl.float32)

    m = finite(tl.max(x, axis=1))  # drops a NaN, whose exponential makes l NaN
    l = tl.sum(fast_exp(x - m[:, None]), axis=1)

    store_pair(m_ptr + offs_m, l_ptr + offs_m, m, l, in_rows)


@triton.jit
def softmax_stats_part_kernel(
    x_ptr, m_ptr, l_ptr,
    N, parts,
    PART: tl.constexpr, PACKS: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    TILE: tl.constexpr = PACKS * LANES * VEC
    pid = tl.program_id(0)
    row, part = (pid // parts).to(tl.int64), (pid % parts).to(tl.int64)
    # (PACKS, LANES, VEC): neighbouring lanes, each a thread, read neighbouring packs
    offs_p, offs_k = tl.arange(0, PACKS)[:, None, None], tl.arange(0, VEC)[None, None, :]
    offs = (offs_p * LANES + tl.arange(0, LANES)[None, :, None]) * VEC + offs_k

    start = part * PART
    count = tl.minimum(N - start, PART).to(tl.int32)
    whole = count // TILE * TILE
    x_ptrs = x_ptr + row * N + start + offs

    # (LANES,): a pair a lane
    m_i = tl.full((LANES,), LOWEST, tl.float32)
    l_i = tl.zeros((LANES,), tl.float32)
    for n in range(0, whole, TILE):
        m_i, l_i = take(m_i, l_i, tl.load(x_ptrs + n))
    if whole < count:
        x = tl.load(x_ptrs + whole, mask=offs < count - whole, other=-float("inf"))
        m_i, l_i = take(m_i, l_i, x)

    m = tl.max(m_i, axis=0)
    l = tl.sum(l_i * fast_exp(m_i - m), axis=0)
    store_pair(m_ptr + pid, l_ptr + pid, m, l)


@triton.jit
def softmax_stats_merge_kernel(m_parts_ptr, l_parts_ptr, m_ptr, l_ptr, parts, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    offs = tl.arange(0, BLOCK)
    mask = offs < parts
    m_i = tl.load(m_parts_ptr + row.to(tl.int64) * parts + offs, mask=mask, other=-float("inf"))
    l_i = tl.load(l_parts_ptr + row.to(tl.int64) * parts + offs, mask=mask, other=0.0)

    m = finite(tl.max(m_i, axis=0))
    l = tl.sum(l_i * fast_exp(m_i - m), axis=0)

    store_pair(m_ptr + row, l_ptr + row, m, l)


def softmax_stats(x):
    check(x)
    M, N = x.shape
    m, l = (torch.empty(M, dtype=torch.float32, device=x.device) for _ in range(2))
    if x.numel() == 0:
        return m.fill_(-torch.inf), l.zero_()  # of nothing
    VEC = 16 // x.element_size()  # elements of a pack of 16 bytes
    TILE = PACKS * LANES * VEC
    if N <= TILE:
        BLOCK_N = triton.next_power_of_2(N)
        ROWS = TILE // BLOCK_N
        grid = (triton.cdiv(M, ROWS),)
        softmax_stats_kernel[grid](x, m, l, M, N, ROWS, BLOCK_N, num_warps=NUM_WARPS)
        return m, l
    PART = PART_PACKS * VEC
    parts = triton.cdiv(N, PART)
    pairs = m, l
    if parts > 1:
        pairs = torch.empty((2, M, parts), dtype=torch.float32, device=x.device)
    sizes = PART, PACKS, LANES, VEC
    softmax_stats_part_kernel[(M * parts,)](x, *pairs, N, parts, *sizes, num_warps=NUM_WARPS)
    if parts > 1:
        BLOCK = triton.next_power_of_2(parts)
        num_warps = min(max(BLOCK // 512, 1), 32)
        softmax_stats_merge_kernel[(M,)](*pairs, m, l, parts, BLOCK, num_warps=num_warps)
    return m, l
