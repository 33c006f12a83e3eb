"""A program owns some keys of a head, for dk and dv, and then, in a second launch, some queries."""

import torch
import triton
import triton.language as tl

from implementations.phase4_advanced_kernels.day27_standard_attention.attention_standard_triton import (  # noqa: E501
    seen_keys,
)
from implementations.phase5_flash_attention.day33_backward_theory.attention_delta_triton import (
    attention_delta,
)
from implementations.phase5_flash_attention.day34_flash_backward.flash_backward import (
    check,
    of_any_strides,
)

OWNED = 64  # keys, or queries, that a program owns; several share a multiprocessor
WALKED = {64: 32, 128: 64}  # queries, or keys, of a step of its walk, by D
NUM_WARPS, NUM_STAGES = 4, {64: 3, 128: 2}
# What lies between the rows that a program walks over is a constant of its kernel, or the offsets
# of each row of a tile would take a register.

LOG2_E = tl.constexpr(1.44269504088896)


@triton.jit
def flash_backward_dk_dv_kernel(
    q_ptr, k_ptr, v_ptr, lse_ptr, delta_ptr, do_ptr, dk_ptr, dv_ptr,
    H, group, M, N, offset,
    stride_qb, stride_qh, stride_qm: tl.constexpr,
    stride_kb, stride_kh, stride_kn: tl.constexpr,
    stride_vb, stride_vh, stride_vn: tl.constexpr,
    stride_dob, stride_doh, stride_dom: tl.constexpr,
    stride_dkb, stride_dkh, stride_dkn,
    stride_dvb, stride_dvh, stride_dvn,
    sm_scale,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    tiles_n = tl.cdiv(N, BLOCK_N)
    pid = tl.program_id(0)
    # the first keys, which most queries see, first
    head, start_n = pid // tiles_n, pid % tiles_n * BLOCK_N
    b, h, first_key = (head // H).to(tl.int64), (head % H).to(tl.int64), start_n.to(tl.int64)
    offs_m, offs_n = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    offs_d, keys, mask = tl.arange(0, D), offs_n[:, None], (offs_n < N - start_n)[:, None]
    offs_q = offs_m[:, None] * stride_qm + offs_d[None, :]  # 32 bits: rows are not so far apart
    offs_do = offs_m[:, None] * stride_dom + offs_d[None, :]
    q_ptr += b * stride_qb + h * group * stride_qh
    k_ptr += b * stride_kb + h * stride_kh + first_key * stride_kn
    v_ptr += b * stride_vb + h * stride_vh + first_key * stride_vn
    do_ptr += b * stride_dob + h * group * stride_doh
    dk_ptr += b * stride_dkb + h * stride_dkh + first_key * stride_dkn
    dv_ptr += b * stride_dvb + h * stride_dvh + first_key * stride_dvn

    k = tl.load(k_ptr + keys * stride_kn + offs_d[None, :], mask=mask, other=0.0)  # (BLOCK_N, D)
    v = tl.load(v_ptr + keys * stride_vn + offs_d[None, :], mask=mask, other=0.0)
    dk, dv = tl.zeros((BLOCK_N, D), tl.float32), tl.zeros((BLOCK_N, D), tl.float32)
    scale = sm_scale * LOG2_E
    # of each head of q the tiles from that on in which the first query sees the first key
    first = tl.maximum(start_n - offset, 0) // BLOCK_M * BLOCK_M
    for g in range(group):
        for m in range(first, M, BLOCK_M):
            row0 = (head.to(tl.int64) * group + g) * M + m
            mask_m = offs_m < M - m  # zeros beyond, of q and do, add nothing to any sum
            g64, m64 = tl.cast(g, tl.int64), tl.cast(m, tl.int64)
            q_ptrs = q_ptr + g64 * stride_qh + m64 * stride_qm + offs_q
            do_ptrs = do_ptr + g64 * stride_doh + m64 * stride_dom + offs_do
            q = tl.load(q_ptrs, mask=mask_m[:, None], other=0.0)  # (BLOCK_M, D)
            lse = tl.load(lse_ptr + row0 + offs_m, mask=mask_m, other=0.0)
            p = tl.exp2(tl.dot(k, tl.trans(q)) * scale - (lse * LOG2_E)[None, :])  # transposed
            if start_n + BLOCK_N - 1 > m + offset:  # not all queries see all keys
                p = tl.where((start_n + offs_n)[:, None] <= (m + offset + offs_m)[None, :], p, 0.0)
            do = tl.load(do_ptrs, mask=mask_m[:, None], other=0.0)
            dv = tl.dot(p.to(do.dtype), do, dv)
            delta = tl.load(delta_ptr + row0 + offs_m, mask=mask_m, other=0.0)
            ds = p * (tl.dot(v, tl.trans(do)) - delta[None, :])
            dk = tl.dot(ds.to(q.dtype), q, dk)

    element = dk_ptr.dtype.element_ty
    dk_ptrs = dk_ptr + keys * stride_dkn + offs_d[None, :]
    dv_ptrs = dv_ptr + keys * stride_dvn + offs_d[None, :]
    tl.store(dk_ptrs, (dk * sm_scale).to(element), mask=mask)
    tl.store(dv_ptrs, dv.to(element), mask=mask)


@triton.jit
def flash_backward_dq_kernel(
    q_ptr, k_ptr, v_ptr, lse_ptr, delta_ptr, do_ptr, dq_ptr,
    H, group, M, N, offset,
    stride_qb, stride_qh, stride_qm: tl.constexpr,
    stride_kb, stride_kh, stride_kn: tl.constexpr,
    stride_vb, stride_vh, stride_vn: tl.constexpr,
    stride_dob, stride_doh, stride_dom: tl.constexpr,
    stride_dqb, stride_dqh, stride_dqm,
    sm_scale,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    tiles_m = tl.cdiv(M, BLOCK_M)
    pid = tl.program_id(0)
    # the last tiles, which see the most keys, come first
    head, start_m = pid // tiles_m, (tiles_m - 1 - pid % tiles_m) * BLOCK_M
    offs_m, offs_n = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    offs_d, rows, mask_m = tl.arange(0, D), offs_m[:, None], offs_m < M - start_m
    offs_k = offs_n[:, None] * stride_kn + offs_d[None, :]  # 32 bits: rows are not so far apart
    offs_v = offs_n[:, None] * stride_vn + offs_d[None, :]
    b, h = (head // (H * group)).to(tl.int64), (head % (H * group)).to(tl.int64)
    row0, first_row = head.to(tl.int64) * M + start_m, start_m.to(tl.int64)
    q_ptr += b * stride_qb + h * stride_qh + first_row * stride_qm
    k_ptr += b * stride_kb + h // group * stride_kh
    v_ptr += b * stride_vb + h // group * stride_vh
    do_ptr += b * stride_dob + h * stride_doh + first_row * stride_dom
    dq_ptr += b * stride_dqb + h * stride_dqh + first_row * stride_dqm

    q_ptrs, do_ptrs = q_ptr + rows * stride_qm, do_ptr + rows * stride_dom
    q = tl.load(q_ptrs + offs_d[None, :], mask=mask_m[:, None], other=0.0)  # (BLOCK_M, D)
    do = tl.load(do_ptrs + offs_d[None, :], mask=mask_m[:, None], other=0.0)
    lse2 = tl.load(lse_ptr + row0 + offs_m, mask=mask_m, other=0.0) * LOG2_E
    delta = tl.load(delta_ptr + row0 + offs_m, mask=mask_m, other=0.0)
    dq = tl.zeros((BLOCK_M, D), tl.float32)
    scale = sm_scale * LOG2_E
    # all queries of the tile see the keys before `whole`, some those before `end`
    seen = seen_keys(start_m + offs_m, N, offset)
    whole = seen_keys(start_m, N, offset) // BLOCK_N * BLOCK_N
    end = seen_keys(tl.minimum(start_m + BLOCK_M, M) - 1, N, offset)
    for n in range(0, end, BLOCK_N):
        mask_n = (offs_n < N - n)[:, None]
        k = tl.load(k_ptr + offs_k, mask=mask_n, other=0.0)  # (BLOCK_N, D)
        v = tl.load(v_ptr + offs_v, mask=mask_n, other=0.0)
        p = tl.exp2(tl.dot(q, tl.trans(k)) * scale - lse2[:, None])
        ds = p * (tl.dot(do, tl.trans(v)) - delta[:, None])
        if n >= whole:
            ds = tl.where(offs_n[None, :] < (seen - n)[:, None], ds, 0.0)
        dq = tl.dot(ds.to(k.dtype), k, dq)
        k_ptr += BLOCK_N * stride_kn
        v_ptr += BLOCK_N * stride_vn

    dq_ptrs = dq_ptr + rows * stride_dqm + offs_d[None, :]
    tl.store(dq_ptrs, (dq * sm_scale).to(dq_ptr.dtype.element_ty), mask=mask_m[:, None])


def flash_backward(q, k, v, o, lse, do, causal, sm_scale):
    sm_scale = check(q, k, v, o, lse, do, causal, sm_scale)
    (B, H, M, D), (_, H_kv, N, _) = q.shape, k.shape
    dq, dk, dv = map(torch.empty_like, (q, k, v))
    delta = of_any_strides(attention_delta, o, do)
    offset = N - M if causal else N  # query i sees the keys j <= i + offset
    inputs, sizes = (q, k, v, lse, delta, do), (H_kv, H // max(1, H_kv), M, N, offset)
    strides = [stride for x in (q, k, v, do) for stride in x.stride()[:3]]
    options = dict(num_warps=NUM_WARPS, num_stages=NUM_STAGES[D])
    if dk.numel() > 0:
        grid, tiles = (B * H_kv * triton.cdiv(N, OWNED),), dict(BLOCK_M=WALKED[D], BLOCK_N=OWNED)
        strides_dk_dv = *strides, *dk.stride()[:3], *dv.stride()[:3]
        flash_backward_dk_dv_kernel[grid](
            *inputs, dk, dv, *sizes, *strides_dk_dv, sm_scale, D, **tiles, **options
        )
    if dq.numel() > 0:
        grid, tiles = (B * H * triton.cdiv(M, OWNED),), dict(BLOCK_M=OWNED, BLOCK_N=WALKED[D])
        strides_dq = *strides, *dq.stride()[:3]
        flash_backward_dq_kernel[grid](
            *inputs, dq, *sizes, *strides_dq, sm_scale, D, **tiles, **options
        )
    return dq, dk, dv
