"""For each chunk of queries three launches: tiles of S, rows of S, tiles of o, as on Day 27."""

from itertools import product

import torch
import triton
import triton.language as tl

from implementations.common.device import properties
from implementations.phase4_advanced_kernels.day28_attention_memory.attention_chunked import (
    BLOCK_M,
    BLOCK_N,
    check,
    chunk,
    row_stride,
)

NUM_WARPS = 8  # of a program that owns a tile of S
# Queries and, of D, the part of a tile of o: a chunk has few rows, and small tiles make more of it.
OUT_M, PARTS = 64, 2
OUT_K = 64  # keys of a step of the loop that makes o
OUT_WARPS, NUM_STAGES = 4, 4
MIN_TILE, MAX_TILE = 2048, 8192  # elements of S that a program turns into P at once
PER_WARP = 32 * 16  # of these, elements that a warp holds

# No score but -inf is below it. Where it is the maximum, all scores are -inf and exp(x - m) is 0;
# with -inf as the maximum, -inf - -inf would be NaN.
LOWEST = tl.constexpr(-3.402823466e38)


@triton.jit
def seen_keys(row, N, offset):
    """How many keys query `row` sees: the first ones."""
    return tl.minimum(tl.maximum(row + offset + 1, 0), N)


@triton.jit
def attention_chunked_scores_kernel(
    q_ptr, k_ptr, s_ptr,
    M, N, offset, stride,
    sm_scale,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    tiles_m, tiles_n = tl.cdiv(M, BLOCK_M), tl.cdiv(stride, BLOCK_N)
    pid = tl.program_id(0)
    head, start_m = pid // tiles_n // tiles_m, pid // tiles_n % tiles_m * BLOCK_M
    start_n = pid % tiles_n * BLOCK_N
    if start_n >= seen_keys(tl.minimum(start_m + BLOCK_M, M) - 1, N, offset):
        return  # none of the queries sees any of the keys
    offs_m, offs_n = start_m + tl.arange(0, BLOCK_M), start_n + tl.arange(0, BLOCK_N)
    offs_d = tl.arange(0, D)
    rows = head.to(tl.int64) * M + offs_m
    keys = head.to(tl.int64) * N + offs_n

    q_ptrs = q_ptr + rows[:, None] * D + offs_d[None, :]
    k_ptrs = k_ptr + keys[:, None] * D + offs_d[None, :]
    q = tl.load(q_ptrs, mask=(offs_m < M)[:, None], other=0.0)  # (BLOCK_M, D)
    k = tl.load(k_ptrs, mask=(offs_n < N)[:, None], other=0.0)  # (BLOCK_N, D)

    qk = tl.dot(q, tl.trans(k)) * sm_scale  # fp32

    s_ptrs = s_ptr + rows[:, None] * stride + offs_n[None, :]
    mask = (offs_m < M)[:, None] & (offs_n < stride)[None, :]
    tl.store(s_ptrs, qk.to(s_ptr.dtype.element_ty), mask=mask)


@triton.jit
def attention_chunked_softmax_kernel(
    s_ptr,
    count, M, N, offset, stride,
    BLOCK_M: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)  # of all heads
    offs, mask_m = tl.arange(0, BLOCK)[None, :], (rows < count)[:, None]
    s_ptrs = s_ptr + rows.to(tl.int64)[:, None] * stride + offs
    seen = seen_keys(rows % M, N, offset)[:, None]
    # The next launch reads as many keys of a row as the last row of its tile sees; rounded up, as
    # a mask that ends at a multiple of 16 leaves packs of 16 bytes whole.
    last_row = tl.minimum((rows % M // BLOCK_M + 1) * BLOCK_M, M) - 1
    end = tl.cdiv(tl.max(seen_keys(last_row, N, offset)), 16) * 16
    last = tl.maximum(end - 1, 0) // BLOCK * BLOCK  # where the last part of the rows starts

    # in fp32; -inf, of keys that are not seen, changes no maximum and adds nothing to a sum
    m = tl.full((ROWS, 1), LOWEST, tl.float32)
    l = tl.zeros((ROWS, 1), tl.float32)
    for n in range(0, last, BLOCK):
        x = tl.load(s_ptrs + n, mask=mask_m & (n + offs < end), other=0.0).to(tl.float32)
        x = tl.where(n + offs < seen, x, -float("inf"))
        higher = tl.maximum(m, tl.max(x, axis=1, keep_dims=True))
        l = l * tl.exp(m - higher) + tl.sum(tl.exp(x - higher), axis=1, keep_dims=True)
        m = higher
    x = tl.load(s_ptrs + last, mask=mask_m & (last + offs < end), other=0.0).to(tl.float32)
    x = tl.where(last + offs < seen, x, -float("inf"))
    # tl.max drops a NaN, whose exponential then makes the sum NaN
    higher = tl.maximum(m, tl.max(x, axis=1, keep_dims=True))
    p = tl.exp(x - higher)
    l = l * tl.exp(m - higher) + tl.sum(p, axis=1, keep_dims=True)

    # zeros for a query that sees no key, and for keys that others of its tile see
    scale = tl.where(seen > 0, 1.0 / l, 0.0)
    tl.store(s_ptrs + last, p * scale, mask=mask_m & (last + offs < end))
    for n in range(0, last, BLOCK):  # the parts that were not held are read again
        x = tl.load(s_ptrs + n, mask=mask_m & (n + offs < end), other=0.0).to(tl.float32)
        x = tl.where(n + offs < seen, x, -float("inf"))
        p = tl.exp(x - higher) * scale
        tl.store(s_ptrs + n, p, mask=mask_m & (n + offs < end))


@triton.jit
def attention_chunked_output_kernel(
    p_ptr, v_ptr, o_ptr,
    M, N, offset, stride,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    tiles_m, tiles_n = tl.cdiv(M, BLOCK_M), D // BLOCK_N
    pid = tl.program_id(0)
    # the last tiles, which see the most keys, come first
    head, pid_m = pid // tiles_n // tiles_m, tiles_m - 1 - pid // tiles_n % tiles_m
    start_m, start_n = pid_m * BLOCK_M, pid % tiles_n * BLOCK_N
    seen = seen_keys(tl.minimum(start_m + BLOCK_M, M) - 1, N, offset)
    end = tl.cdiv(seen, 16) * 16  # a mask that ends there leaves packs of 16 bytes whole
    offs_m, offs_k = start_m + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_K)
    offs_n = start_n + tl.arange(0, BLOCK_N)
    rows = head.to(tl.int64) * M + offs_m
    keys = head.to(tl.int64) * N + offs_k
    p_ptrs = p_ptr + rows[:, None] * stride + offs_k[None, :]
    v_ptrs = v_ptr + keys[:, None] * D + offs_n[None, :]
    mask_m = (offs_m < M)[:, None]

    # fp32; weights beyond `seen` are 0, and v must be too: what lies there may be no number
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for n in range(0, seen, BLOCK_K):
        p = tl.load(p_ptrs, mask=mask_m & (offs_k < end - n)[None, :], other=0.0)
        v = tl.load(v_ptrs, mask=(offs_k < seen - n)[:, None], other=0.0)  # (BLOCK_K, BLOCK_N)
        acc = tl.dot(p, v, acc)
        p_ptrs += BLOCK_K
        v_ptrs += BLOCK_K * D

    o_ptrs = o_ptr + rows[:, None] * D + offs_n[None, :]
    tl.store(o_ptrs, acc.to(o_ptr.dtype.element_ty), mask=mask_m)


def attention_chunked(q, k, v, causal, sm_scale):
    sm_scale = check(q, k, v, causal, sm_scale)
    (B, H, M, D), N = q.shape, k.shape[2]
    o = torch.empty_like(q)
    if o.numel() == 0:
        return o
    stride = row_stride(N)
    heads, rows = chunk(properties(q.device), B * H, M, N)
    s = torch.empty((heads, rows, stride), dtype=q.dtype, device=q.device)  # of one after another
    BLOCK = min(triton.next_power_of_2(stride // 2 + 1), MAX_TILE)  # the power of two up to stride
    ROWS = max(1, MIN_TILE // BLOCK)
    Q, K, V, O = (x.flatten(0, 1) for x in (q, k, v, o))
    for head, first in product(range(0, B * H, heads), range(0, M, rows)):
        K_c, V_c = K[head : head + heads], V[head : head + heads]
        Q_c, O_c = (x[head : head + heads, first : first + rows] for x in (Q, O))
        (count, M_c), tiles_n = Q_c.shape[:2], triton.cdiv(stride, BLOCK_N)
        offset = (
            N - M + first if causal else N
        )  # query i of the chunk sees the keys j <= i + offset
        sizes = (M_c, N, offset, stride)
        attention_chunked_scores_kernel[(count * triton.cdiv(M_c, BLOCK_M) * tiles_n,)](
            Q_c, K_c, s, *sizes, sm_scale, D, BLOCK_M, BLOCK_N, num_warps=NUM_WARPS
        )
        attention_chunked_softmax_kernel[(triton.cdiv(count * M_c, ROWS),)](
            s, count * M_c, *sizes, OUT_M, ROWS, BLOCK, num_warps=ROWS * BLOCK // PER_WARP
        )
        attention_chunked_output_kernel[(count * triton.cdiv(M_c, OUT_M) * PARTS,)](
            s, V_c, O_c, *sizes, D, OUT_M, D // PARTS, OUT_K,
            num_warps=OUT_WARPS, num_stages=NUM_STAGES,
        )  # fmt: skip
    return o
