"""A program owns some queries of a head, and walks over the keys that they see."""

import torch
import triton
import triton.language as tl

from implementations.phase4_advanced_kernels.day27_standard_attention.attention_standard_triton import (  # noqa: E501
    seen_keys,
)
from implementations.phase5_flash_attention.day32_flash_forward.flash_forward import check

BLOCK_M, BLOCK_N = 64, 64  # queries and keys of a tile; several programs share a multiprocessor
NUM_WARPS, NUM_STAGES = 4, 3

LOG2_E = tl.constexpr(1.44269504088896)


@triton.jit
def flash_forward_kernel(
    q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr,
    H, group, M, N, offset,
    stride_qb, stride_qh, stride_qm,
    stride_kb, stride_kh, stride_kn,
    stride_vb, stride_vh, stride_vn,
    stride_ob, stride_oh, stride_om,
    sm_scale,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    tiles_m = tl.cdiv(M, BLOCK_M)
    pid = tl.program_id(0)
    head = pid // tiles_m
    b, h = (head // H).to(tl.int64), (head % H).to(tl.int64)
    # the last tiles, which see the most keys, come first
    start_m = (tiles_m - 1 - pid % tiles_m) * BLOCK_M
    offs_m, offs_d = start_m + tl.arange(0, BLOCK_M), tl.arange(0, D)
    offs_n = tl.arange(0, BLOCK_N)
    offs_k = offs_n[None, :] * stride_kn + offs_d[:, None]  # 32 bits: rows are not so far apart
    offs_v = offs_n[:, None] * stride_vn + offs_d[None, :]
    rows, mask = tl.arange(0, BLOCK_M)[:, None], (offs_m < M)[:, None]
    q_ptr += b * stride_qb + h * stride_qh + start_m.to(tl.int64) * stride_qm
    k_ptr += b * stride_kb + h // group * stride_kh
    v_ptr += b * stride_vb + h // group * stride_vh

    # all queries of the tile see the keys before `whole`, some those before `end`
    seen = seen_keys(offs_m, N, offset)
    whole = seen_keys(start_m, N, offset) // BLOCK_N * BLOCK_N
    end = seen_keys(tl.minimum(start_m + BLOCK_M, M) - 1, N, offset)

    q = tl.load(q_ptr + rows * stride_qm + offs_d[None, :], mask=mask, other=0.0)
    acc = tl.zeros((BLOCK_M, D), tl.float32)
    m_i = tl.full((BLOCK_M,), -float("inf"), tl.float32)  # of scores as they are, not scaled
    l_i = tl.zeros((BLOCK_M,), tl.float32)
    scale = sm_scale * LOG2_E  # exp(sm_scale x) is 2^(scale x)
    for n in range(0, end, BLOCK_N):
        k = tl.load(k_ptr + offs_k, mask=(offs_n < N - n)[None, :], other=0.0)  # (D, BLOCK_N)
        qk = tl.dot(q, k)  # fp32, (BLOCK_M, BLOCK_N)
        if n >= whole:
            qk = tl.where(offs_n[None, :] < (seen - n)[:, None], qk, -float("inf"))

        # a row's maximum so far, and what the sums so far are worth beside it
        m = tl.maximum(m_i, tl.max(qk, 1))
        # of a row that has seen no key the maximum is -inf, and -inf - -inf were NaN
        m_used = tl.where(m == -float("inf"), 0.0, m)
        alpha = tl.exp2((m_i - m_used) * scale)
        p = tl.exp2(qk * scale - (m_used * scale)[:, None])
        l_i = l_i * alpha + tl.sum(p, 1)
        m_i = m

        v = tl.load(v_ptr + offs_v, mask=(offs_n < N - n)[:, None], other=0.0)  # (BLOCK_N, D)
        acc = tl.dot(p.to(v.dtype), v, acc * alpha[:, None])
        k_ptr += BLOCK_N * stride_kn
        v_ptr += BLOCK_N * stride_vn

    # a query that sees no key gets zeros, and the logarithm of no sum, -inf
    o = acc * tl.where(seen > 0, 1.0 / l_i, 0.0)[:, None]
    o_ptr += b * stride_ob + h * stride_oh + start_m.to(tl.int64) * stride_om
    tl.store(o_ptr + rows * stride_om + offs_d[None, :], o.to(o_ptr.dtype.element_ty), mask=mask)
    lse_ptrs = lse_ptr + head.to(tl.int64) * M + offs_m
    tl.store(lse_ptrs, m_i * sm_scale + tl.log(l_i), mask=offs_m < M)


def flash_forward(q, k, v, causal, sm_scale):
    sm_scale = check(q, k, v, causal, sm_scale)
    (B, H, M, D), (_, H_kv, N, _) = q.shape, k.shape
    o = torch.empty_like(q)
    lse = torch.empty((B, H, M), dtype=torch.float32, device=q.device)
    if o.numel() > 0:
        offset = N - M if causal else N  # query i sees the keys j <= i + offset
        flash_forward_kernel[(B * H * triton.cdiv(M, BLOCK_M),)](
            q, k, v, o, lse, H, H // max(1, H_kv), M, N, offset,
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *o.stride()[:3],
            sm_scale, D, BLOCK_M, BLOCK_N, num_warps=NUM_WARPS, num_stages=NUM_STAGES,
        )  # fmt: skip
    return o, lse
