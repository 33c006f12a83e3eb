"""A program owns a head, and walks over the keys, and for each tile of them over the queries."""

import torch
import triton
import triton.language as tl

from implementations.phase4_advanced_kernels.day27_standard_attention.attention_standard_triton import (  # noqa: E501
    seen_keys,
)
from implementations.phase5_flash_attention.day29_flash_attention_theory.flash_v1_forward import (
    BLOCK_N,
    check,
    padded,
)

BLOCK_M = 64  # queries of a tile: with more of them registers spill
NUM_WARPS = 8

LOG2_E = tl.constexpr(1.44269504088896)


@triton.jit
def flash_v1_forward_kernel(
    q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr, acc_ptr, m_ptr, l_ptr,
    M, N, offset, stride,
    sm_scale,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0).to(tl.int64)
    offs_m, offs_n, offs_d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, D)
    offs_q = offs_m[:, None] * D + offs_d[None, :]  # of o and acc too
    offs_k = offs_n[None, :] * D + offs_d[:, None]
    offs_v = offs_n[:, None] * D + offs_d[None, :]
    k_ptr += head * N * D
    v_ptr += head * N * D
    scale = sm_scale * LOG2_E  # exp(sm_scale x) is 2^(scale x)

    for start_n in range(0, seen_keys(M - 1, N, offset), BLOCK_N):
        k = tl.load(k_ptr + offs_k, mask=(offs_n < N - start_n)[None, :], other=0.0)  # (D, BLOCK_N)
        v = tl.load(v_ptr + offs_v, mask=(offs_n < N - start_n)[:, None], other=0.0)  # (BLOCK_N, D)
        # the first query that sees any of these keys is start_n - offset
        first = tl.maximum(start_n - offset, 0) // BLOCK_M * BLOCK_M
        for start_m in range(first, M, BLOCK_M):
            # rows of q; and of acc, m and l, which have whole tiles, and need no mask for M
            row, at = head * M + start_m, head * stride + start_m
            q = tl.load(q_ptr + row * D + offs_q, mask=(offs_m < M - start_m)[:, None], other=0.0)
            qk = tl.dot(q, k)  # fp32, (BLOCK_M, BLOCK_N)
            if start_n + BLOCK_N > seen_keys(start_m, N, offset):
                seen = seen_keys(start_m + offs_m, N, offset)
                qk = tl.where(offs_n[None, :] < (seen - start_n)[:, None], qk, -float("inf"))

            # a row's maximum so far, and what the sums so far are worth beside it
            before = start_n > 0  # whether there are any: nothing is written yet
            m_i = tl.load(m_ptr + at + offs_m, mask=before, other=-float("inf"))
            l_i = tl.load(l_ptr + at + offs_m, mask=before, other=0.0)
            m = tl.maximum(m_i, tl.max(qk, 1))  # of scores as they are, not scaled
            # of a row that has seen no key the maximum is -inf, and -inf - -inf were NaN
            m_used = tl.where(m == -float("inf"), 0.0, m)
            alpha = tl.exp2((m_i - m_used) * scale)
            p = tl.exp2(qk * scale - (m_used * scale)[:, None])
            l = l_i * alpha + tl.sum(p, 1)
            tl.debug_barrier()  # several threads load m and l of a row, and one of them stores
            tl.store(m_ptr + at + offs_m, m)
            tl.store(l_ptr + at + offs_m, l)

            acc = tl.load(acc_ptr + at * D + offs_q, mask=before, other=0.0)
            acc = tl.dot(p.to(v.dtype), v, acc * alpha[:, None])
            tl.store(acc_ptr + at * D + offs_q, acc)
        tl.debug_barrier()  # what one thread has stored another may load, with the next keys
        k_ptr += BLOCK_N * D
        v_ptr += BLOCK_N * D

    for start_m in range(0, M, BLOCK_M):
        row, at = head * M + start_m, head * stride + start_m
        seen, mask = seen_keys(start_m + offs_m, N, offset), offs_m < M - start_m
        # a query that sees no key gets zeros, and the logarithm of no sum, -inf
        any_key = (seen > 0) & mask
        m_i = tl.load(m_ptr + at + offs_m, mask=any_key, other=-float("inf"))
        l_i = tl.load(l_ptr + at + offs_m, mask=any_key, other=0.0)
        acc = tl.load(acc_ptr + at * D + offs_q, mask=any_key[:, None], other=0.0)
        o = acc * tl.where(any_key, 1.0 / l_i, 0.0)[:, None]
        tl.store(o_ptr + row * D + offs_q, o.to(o_ptr.dtype.element_ty), mask=mask[:, None])
        tl.store(lse_ptr + row + offs_m, m_i * sm_scale + tl.log(l_i), mask=mask)


def flash_v1_forward(q, k, v, causal, sm_scale):
    sm_scale = check(q, k, v, causal, sm_scale)
    (B, H, M, D), N = q.shape, k.shape[2]
    o = torch.empty_like(q)
    lse = torch.empty((B, H, M), dtype=torch.float32, device=q.device)
    if o.numel() > 0:
        rows = padded(M)
        acc = torch.empty((B, H, rows, D), dtype=torch.float32, device=q.device)
        m, l = (torch.empty((B, H, rows), dtype=torch.float32, device=q.device) for _ in range(2))
        offset = N - M if causal else N  # query i sees the keys j <= i + offset
        flash_v1_forward_kernel[(B * H,)](
            q, k, v, o, lse, acc, m, l, M, N, offset, rows, sm_scale, D, BLOCK_M, BLOCK_N,
            num_warps=NUM_WARPS, num_stages=1,
        )  # fmt: skip
    return o, lse
