"""A program owns some queries of a head, and walks twice over the keys that they see."""

import torch
import triton
import triton.language as tl

from implementations.phase4_advanced_kernels.day27_standard_attention.attention_standard_triton import (  # noqa: E501
    seen_keys,
)
from implementations.phase5_flash_attention.day29_flash_attention_theory.flash_v1_forward import (
    check,
)

BLOCK_M, BLOCK_N = 64, 64  # queries and keys of a tile; several programs share a multiprocessor
NUM_WARPS, NUM_STAGES = 4, 3

LOG2_E = tl.constexpr(1.44269504088896)


@triton.jit
def attention_two_pass_kernel(
    q_ptr, k_ptr, v_ptr, o_ptr,
    M, N, offset,
    sm_scale,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    tiles_m = tl.cdiv(M, BLOCK_M)
    pid = tl.program_id(0)
    head = (pid // tiles_m).to(tl.int64)
    # the last tiles, which see the most keys, come first
    start_m = (tiles_m - 1 - pid % tiles_m) * BLOCK_M
    offs_m, offs_d = start_m + tl.arange(0, BLOCK_M), tl.arange(0, D)
    offs_n = tl.arange(0, BLOCK_N)
    offs_q = tl.arange(0, BLOCK_M)[:, None] * D + offs_d[None, :]
    offs_k = offs_n[None, :] * D + offs_d[:, None]
    offs_v = offs_n[:, None] * D + offs_d[None, :]
    mask = (offs_m < M)[:, None]
    q_ptr += (head * M + start_m) * D
    o_ptr += (head * M + start_m) * D
    k_ptr += head * N * D
    v_ptr += head * N * D

    # all queries of the tile see the keys before `whole`, some those before `end`
    seen = seen_keys(offs_m, N, offset)
    whole = seen_keys(start_m, N, offset) // BLOCK_N * BLOCK_N
    end = seen_keys(tl.minimum(start_m + BLOCK_M, M) - 1, N, offset)
    q = tl.load(q_ptr + offs_q, mask=mask, other=0.0)
    scale = sm_scale * LOG2_E  # exp(sm_scale x) is 2^(scale x)

    # first pass: a row's maximum so far, and the sum so far beside it
    m_i = tl.full((BLOCK_M,), -float("inf"), tl.float32)  # of scores as they are, not scaled
    l_i = tl.zeros((BLOCK_M,), tl.float32)
    ptr = k_ptr
    for n in range(0, end, BLOCK_N):
        k = tl.load(ptr + offs_k, mask=(offs_n < N - n)[None, :], other=0.0)  # (D, BLOCK_N)
        qk = tl.dot(q, k)  # fp32, (BLOCK_M, BLOCK_N)
        if n >= whole:
            qk = tl.where(offs_n[None, :] < (seen - n)[:, None], qk, -float("inf"))
        m = tl.maximum(m_i, tl.max(qk, 1))
        # of a row that has seen no key the maximum is -inf, and -inf - -inf were NaN
        m_used = tl.where(m == -float("inf"), 0.0, m)
        p = tl.exp2(qk * scale - (m_used * scale)[:, None])
        l_i = l_i * tl.exp2((m_i - m_used) * scale) + tl.sum(p, 1)
        m_i = m
        ptr += BLOCK_N * D

    # a weight is exp(x - m) / l, of the m and l of all keys: 2^(scale x - shift); a query that sees
    # no key gets zeros, 2^(-inf - 0)
    shift = tl.where(seen > 0, m_i * scale + tl.log2(l_i), 0.0)

    # second pass: the same scores again, which become weights at once
    acc = tl.zeros((BLOCK_M, D), tl.float32)
    for n in range(0, end, BLOCK_N):
        k = tl.load(k_ptr + offs_k, mask=(offs_n < N - n)[None, :], other=0.0)
        qk = tl.dot(q, k)
        if n >= whole:
            qk = tl.where(offs_n[None, :] < (seen - n)[:, None], qk, -float("inf"))
        p = tl.exp2(qk * scale - shift[:, None])

        v = tl.load(v_ptr + offs_v, mask=(offs_n < N - n)[:, None], other=0.0)  # (BLOCK_N, D)
        acc = tl.dot(p.to(v.dtype), v, acc)
        k_ptr += BLOCK_N * D
        v_ptr += BLOCK_N * D

    tl.store(o_ptr + offs_q, acc.to(o_ptr.dtype.element_ty), mask=mask)


def attention_two_pass(q, k, v, causal, sm_scale):
    sm_scale = check(q, k, v, causal, sm_scale)
    (B, H, M, D), N = q.shape, k.shape[2]
    o = torch.empty_like(q)
    if o.numel() > 0:
        offset = N - M if causal else N  # query i sees the keys j <= i + offset
        attention_two_pass_kernel[(B * H * triton.cdiv(M, BLOCK_M),)](
            q, k, v, o, M, N, offset, sm_scale, D, BLOCK_M, BLOCK_N,
            num_warps=NUM_WARPS, num_stages=NUM_STAGES,
        )  # fmt: skip
    return o
