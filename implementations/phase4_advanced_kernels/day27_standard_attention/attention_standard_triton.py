"""Three launches: a program owns a tile of S, then some rows of S, then a tile of o."""

import torch
import triton
import triton.language as tl

from implementations.phase4_advanced_kernels.day27_standard_attention.attention_standard import (
    check,
    row_stride,
)

BLOCK_M, BLOCK_N = 128, 128  # queries and keys of a tile of S; as many queries of one of o
BLOCK_K = 64  # keys of a step of the loop that makes o
NUM_WARPS, NUM_STAGES = 8, 3
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
def attention_standard_scores_kernel(
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
def attention_standard_softmax_kernel(
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
def attention_standard_output_kernel(
    p_ptr, v_ptr, o_ptr,
    M, N, offset, stride,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    tiles_m = tl.cdiv(M, BLOCK_M)
    pid = tl.program_id(0)
    # the last tiles, which see the most keys, come first
    head, start_m = pid // tiles_m, (tiles_m - 1 - pid % tiles_m) * BLOCK_M
    seen = seen_keys(tl.minimum(start_m + BLOCK_M, M) - 1, N, offset)
    end = tl.cdiv(seen, 16) * 16  # a mask that ends there leaves packs of 16 bytes whole
    offs_m, offs_k = start_m + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_K)
    offs_d = tl.arange(0, D)
    rows = head.to(tl.int64) * M + offs_m
    keys = head.to(tl.int64) * N + offs_k
    p_ptrs = p_ptr + rows[:, None] * stride + offs_k[None, :]
    v_ptrs = v_ptr + keys[:, None] * D + offs_d[None, :]
    mask_m = (offs_m < M)[:, None]

    # fp32; weights beyond `seen` are 0, and v must be too: what lies there may be no number
    acc = tl.zeros((BLOCK_M, D), dtype=tl.float32)
    for n in range(0, seen, BLOCK_K):
        p = tl.load(p_ptrs, mask=mask_m & (offs_k < end - n)[None, :], other=0.0)
        v = tl.load(v_ptrs, mask=(offs_k < seen - n)[:, None], other=0.0)  # (BLOCK_K, D)
        acc = tl.dot(p, v, acc)
        p_ptrs += BLOCK_K
        v_ptrs += BLOCK_K * D

    o_ptrs = o_ptr + rows[:, None] * D + offs_d[None, :]
    tl.store(o_ptrs, acc.to(o_ptr.dtype.element_ty), mask=mask_m)


def attention_standard(q, k, v, causal, sm_scale):
    sm_scale = check(q, k, v, causal, sm_scale)
    (B, H, M, D), N = q.shape, k.shape[2]
    o = torch.empty_like(q)
    if o.numel() > 0:
        stride = row_stride(N)
        s = torch.empty((B, H, M, stride), dtype=q.dtype, device=q.device)
        offset = N - M if causal else N  # query i sees the keys j <= i + offset
        sizes = (M, N, offset, stride)
        tiles_m, tiles_n = triton.cdiv(M, BLOCK_M), triton.cdiv(stride, BLOCK_N)
        attention_standard_scores_kernel[(B * H * tiles_m * tiles_n,)](
            q, k, s, *sizes, sm_scale, D, BLOCK_M, BLOCK_N, num_warps=NUM_WARPS, maxnreg=128
        )
        BLOCK = min(
            triton.next_power_of_2(stride // 2 + 1), MAX_TILE
        )  # the power of two up to stride
        ROWS, count = max(1, MIN_TILE // BLOCK), B * H * M
        attention_standard_softmax_kernel[(triton.cdiv(count, ROWS),)](
            s, count, *sizes, BLOCK_M, ROWS, BLOCK, num_warps=ROWS * BLOCK // PER_WARP
        )
        attention_standard_output_kernel[(B * H * tiles_m,)](
            s, v, o, *sizes, D, BLOCK_M, BLOCK_K, num_warps=NUM_WARPS, num_stages=NUM_STAGES
        )
    return o
