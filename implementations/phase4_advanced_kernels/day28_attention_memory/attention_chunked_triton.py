"""For each chunk of queries three launches, of which the first two are those of Day 27."""

from itertools import product

import torch
import triton
import triton.language as tl

from implementations.common.device import properties
from implementations.phase4_advanced_kernels.day27_standard_attention.attention_standard_triton import (  # noqa: E501
    MAX_TILE,
    MIN_TILE,
    NUM_WARPS,
    PER_WARP,
    attention_standard_scores_kernel,
    attention_standard_softmax_kernel,
    seen_keys,
)
from implementations.phase4_advanced_kernels.day28_attention_memory.attention_chunked import (
    BLOCK_M,
    BLOCK_N,
    check,
    chunk,
    row_stride,
)

# Queries and, of D, the part of a tile of o: a chunk has few rows, and small tiles make more of it.
OUT_M, PARTS = 64, 2
OUT_K = 64  # keys of a step of the loop that makes o
OUT_WARPS, NUM_STAGES = 4, 4


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
        # query i of the chunk sees the keys j <= i + offset
        offset = N - M + first if causal else N
        sizes = (M_c, N, offset, stride)
        attention_standard_scores_kernel[(count * triton.cdiv(M_c, BLOCK_M) * tiles_n,)](
            Q_c, K_c, s, *sizes, sm_scale, D, BLOCK_M, BLOCK_N, num_warps=NUM_WARPS, maxnreg=128
        )
        attention_standard_softmax_kernel[(triton.cdiv(count * M_c, ROWS),)](
            s, count * M_c, *sizes, BLOCK_M, ROWS, BLOCK, num_warps=ROWS * BLOCK // PER_WARP
        )
        attention_chunked_output_kernel[(count * triton.cdiv(M_c, OUT_M) * PARTS,)](
            s, V_c, O_c, *sizes, D, OUT_M, D // PARTS, OUT_K,
            num_warps=OUT_WARPS, num_stages=NUM_STAGES,
        )  # fmt: skip
    return o
