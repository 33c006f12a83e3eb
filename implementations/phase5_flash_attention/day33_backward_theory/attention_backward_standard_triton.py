"""Six launches beside delta's: a program owns a tile of S, rows of P, then a tile of a gradient."""

import torch
import triton
import triton.language as tl

from implementations.phase4_advanced_kernels.day27_standard_attention.attention_standard_triton import (  # noqa: E501
    BLOCK_M,
    BLOCK_N,
    MAX_TILE,
    MIN_TILE,
    PER_WARP,
    attention_standard_scores_kernel,
    attention_standard_softmax_kernel,
    seen_keys,
)
from implementations.phase5_flash_attention.day33_backward_theory.attention_backward_standard import (  # noqa: E501
    check,
    row_stride,
)
from implementations.phase5_flash_attention.day33_backward_theory.attention_delta_triton import (
    attention_delta,
)

# Keys of a step of the loop that makes dq, queries of one that makes dv or dk: these are of one
# tile of P and dS, all of whose rows are written as far as the last one sees.
BLOCK_K = 64
NUM_WARPS, NUM_STAGES = 8, 3


@triton.jit
def attention_backward_standard_ds_kernel(
    do_ptr, v_ptr, p_ptr, delta_ptr, ds_ptr,
    M, N, offset, stride,
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
    mask_m = offs_m < M
    mask = mask_m[:, None] & (offs_n < stride)[None, :]
    offs = rows[:, None] * stride + offs_n[None, :]

    do_ptrs = do_ptr + rows[:, None] * D + offs_d[None, :]
    v_ptrs = v_ptr + keys[:, None] * D + offs_d[None, :]
    do = tl.load(do_ptrs, mask=mask_m[:, None], other=0.0)  # (BLOCK_M, D)
    v = tl.load(v_ptrs, mask=(offs_n < N)[:, None], other=0.0)  # (BLOCK_N, D)
    p = tl.load(p_ptr + offs, mask=mask, other=0.0)  # (BLOCK_M, BLOCK_N)
    delta = tl.load(delta_ptr + rows, mask=mask_m, other=0.0)  # (BLOCK_M,)

    dp = tl.dot(do, tl.trans(v))  # fp32
    ds = p.to(tl.float32) * (dp - delta[:, None])
    # where a key is not seen dp may be no number, and P what was left in memory
    ds = tl.where(offs_n[None, :] < seen_keys(offs_m, N, offset)[:, None], ds, 0.0)

    tl.store(ds_ptr + offs, ds.to(ds_ptr.dtype.element_ty), mask=mask)


@triton.jit
def attention_backward_standard_dq_kernel(
    ds_ptr, k_ptr, dq_ptr,
    M, N, offset, stride,
    sm_scale,
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
    ds_ptrs = ds_ptr + rows[:, None] * stride + offs_k[None, :]
    k_ptrs = k_ptr + keys[:, None] * D + offs_d[None, :]
    mask_m = (offs_m < M)[:, None]

    # fp32; dS beyond `seen` is 0, and k must be too: what lies there may be no number
    acc = tl.zeros((BLOCK_M, D), dtype=tl.float32)
    for n in range(0, seen, BLOCK_K):
        ds = tl.load(ds_ptrs, mask=mask_m & (offs_k < end - n)[None, :], other=0.0)
        k = tl.load(k_ptrs, mask=(offs_k < seen - n)[:, None], other=0.0)  # (BLOCK_K, D)
        acc = tl.dot(ds, k, acc)
        ds_ptrs += BLOCK_K
        k_ptrs += BLOCK_K * D

    dq_ptrs = dq_ptr + rows[:, None] * D + offs_d[None, :]
    # scaled in fp32: what is rounded then, once, is the gradient
    tl.store(dq_ptrs, (acc * sm_scale).to(dq_ptr.dtype.element_ty), mask=mask_m)


@triton.jit
def attention_backward_standard_dkdv_kernel(
    weights_ptr, x_ptr, dx_ptr,
    M, N, offset, stride,
    scale,
    D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dx = scale * weights^T @ x: of P and do it is dv, by a scale of 1, of dS and q dk."""
    # where attention is causal the first tiles, which most queries see, come first
    tiles_n = tl.cdiv(N, BLOCK_N)
    pid = tl.program_id(0)
    head, start_n = pid // tiles_n, pid % tiles_n * BLOCK_N
    # the step of the first query that sees key start_n: those before see none of the tile
    begin = tl.maximum(start_n - offset, 0) // BLOCK_K * BLOCK_K
    offs_n, offs_k = start_n + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    offs_d = tl.arange(0, D)
    rows = head.to(tl.int64) * M + begin + offs_k
    keys = head.to(tl.int64) * N + offs_n
    weights_ptrs = weights_ptr + rows[:, None] * stride + offs_n[None, :]
    x_ptrs = x_ptr + rows[:, None] * D + offs_d[None, :]

    acc = tl.zeros((BLOCK_N, D), dtype=tl.float32)
    for m in range(begin, M, BLOCK_K):
        # What no query of the step sees is not read: zero times what lies there need not be zero.
        # A mask that ends at a multiple of 16 leaves packs of 16 bytes whole.
        end = tl.cdiv(seen_keys(tl.minimum(m + BLOCK_K, M) - 1, N, offset), 16) * 16
        mask_m = (offs_k < M - m)[:, None]
        weights = tl.load(weights_ptrs, mask=mask_m & (offs_n < end)[None, :], other=0.0)
        x = tl.load(x_ptrs, mask=mask_m, other=0.0)  # (BLOCK_K, D)
        acc = tl.dot(tl.trans(weights), x, acc)
        weights_ptrs += BLOCK_K * stride.to(tl.int64)
        x_ptrs += BLOCK_K * D

    dx_ptrs = dx_ptr + keys[:, None] * D + offs_d[None, :]
    # scaled in fp32: what is rounded then, once, is the gradient
    tl.store(dx_ptrs, (acc * scale).to(dx_ptr.dtype.element_ty), mask=(offs_n < N)[:, None])


def attention_backward_standard(q, k, v, o, do, causal, sm_scale):
    sm_scale = check(q, k, v, o, do, causal, sm_scale)
    (B, H, M, D), N = q.shape, k.shape[2]
    dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
    if q.numel() == 0 or k.numel() == 0:
        return dq.zero_(), dk.zero_(), dv.zero_()
    stride = row_stride(N)
    p, ds = (torch.empty((B, H, M, stride), dtype=q.dtype, device=q.device) for _ in range(2))
    delta = attention_delta(o, do)
    offset = N - M if causal else N  # query i sees the keys j <= i + offset
    sizes = (M, N, offset, stride)
    tiles_m, tiles_n = triton.cdiv(M, BLOCK_M), triton.cdiv(stride, BLOCK_N)

    grid = (B * H * tiles_m * tiles_n,)
    attention_standard_scores_kernel[grid](
        q, k, p, *sizes, sm_scale, D, BLOCK_M, BLOCK_N, num_warps=NUM_WARPS, maxnreg=128
    )
    BLOCK = min(triton.next_power_of_2(stride // 2 + 1), MAX_TILE)  # the power of two up to stride
    ROWS, count = max(1, MIN_TILE // BLOCK), B * H * M
    attention_standard_softmax_kernel[(triton.cdiv(count, ROWS),)](
        p, count, *sizes, BLOCK_M, ROWS, BLOCK, num_warps=ROWS * BLOCK // PER_WARP
    )
    attention_backward_standard_ds_kernel[grid](
        do, v, p, delta, ds, *sizes, D, BLOCK_M, BLOCK_N, num_warps=NUM_WARPS
    )
    attention_backward_standard_dq_kernel[(B * H * tiles_m,)](
        ds, k, dq, *sizes, sm_scale, D, BLOCK_M, BLOCK_K, num_warps=NUM_WARPS, num_stages=NUM_STAGES
    )
    for weights, x, dx, scale in ((p, do, dv, 1.0), (ds, q, dk, sm_scale)):
        attention_backward_standard_dkdv_kernel[(B * H * triton.cdiv(N, BLOCK_N),)](
            weights, x, dx, *sizes, scale, D, BLOCK_N, BLOCK_K,
            num_warps=NUM_WARPS, num_stages=NUM_STAGES,
        )  # fmt: skip
    return dq, dk, dv
