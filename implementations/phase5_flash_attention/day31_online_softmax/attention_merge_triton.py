"""A program takes ROWS rows, and goes over their parts, several at a time."""

import torch
import triton
import triton.language as tl

from implementations.phase5_flash_attention.day31_online_softmax.attention_merge import check

NUM_WARPS = 4
PARTS = 4  # parts of which each thread has a pack of 16 bytes under way at once

# Between these m_i stays, as inf - inf would be NaN: of parts that saw no key, whose lse_s is -inf,
# LOWEST is subtracted, and l_i is 0; of an lse_s of inf LARGEST is, and l_i is inf.
LARGEST = tl.constexpr(3.402823466e38)
LOWEST = tl.constexpr(-3.402823466e38)


@triton.jit
def attention_merge_kernel(
    o_parts_ptr, lse_parts_ptr, o_ptr, lse_ptr,
    S, rows,
    D: tl.constexpr, PARTS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row0 = tl.program_id(0).to(tl.int64) * ROWS  # 64-bit: so is S * rows * D
    offs_m, offs_d = row0 + tl.arange(0, ROWS), tl.arange(0, D)
    in_rows = offs_m < rows
    # a tile has two dimensions while it is loaded, so that a thread has all parts of its rows
    offs_t = tl.arange(0, PARTS * ROWS)
    offs_p, offs_r = offs_t // ROWS, row0 + offs_t % ROWS

    m_i = tl.full((ROWS,), LOWEST, tl.float32)
    l_i = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, D), tl.float32)
    for s in range(0, S, PARTS):
        at = (s + offs_p).to(tl.int64) * rows + offs_r
        mask = (s + offs_p < S) & (offs_r < rows)
        # beyond the last part as of one that saw no key
        lse_s = tl.load(lse_parts_ptr + at, mask=mask, other=-float("inf"))
        o_s = tl.load(o_parts_ptr + at[:, None] * D + offs_d, mask=mask[:, None], other=0.0)
        lse_s, o_s = lse_s.reshape(PARTS, ROWS), o_s.reshape(PARTS, ROWS, D)

        m = tl.maximum(m_i, tl.max(lse_s, axis=0))  # drops a NaN, which makes l_i and acc NaN
        m = tl.minimum(m, LARGEST)
        alpha = tl.exp(m_i - m)  # what came before is scaled once for all PARTS
        w = tl.exp(lse_s - m[None, :])
        # where no key was seen o_s may hold anything: 0 * NaN would be NaN
        o_s = tl.where(lse_s[:, :, None] == -float("inf"), 0.0, o_s.to(tl.float32))
        l_i = l_i * alpha + tl.sum(w, axis=0)
        acc = acc * alpha[:, None] + tl.sum(w[:, :, None] * o_s, axis=0)
        m_i = m

    scale = tl.where(l_i == 0.0, 0.0, 1.0 / l_i)
    o_ptrs = o_ptr + offs_m[:, None] * D + offs_d[None, :]
    tl.store(o_ptrs, acc * scale[:, None], mask=in_rows[:, None])
    tl.store(lse_ptr + offs_m, m_i + tl.log(l_i), mask=in_rows)


def attention_merge(o_parts, lse_parts):
    check(o_parts, lse_parts)
    S, B, H, M, D = o_parts.shape
    rows = B * H * M
    o = torch.empty((B, H, M, D), dtype=o_parts.dtype, device=o_parts.device)
    lse = torch.empty((B, H, M), dtype=torch.float32, device=o_parts.device)
    if rows > 0:
        ROWS = NUM_WARPS * 32 * 16 // (D * o.element_size())
        grid = (triton.cdiv(rows, ROWS),)
        args = o_parts, lse_parts, o, lse, S, rows, D, PARTS, ROWS
        attention_merge_kernel[grid](*args, num_warps=NUM_WARPS)
    return o, lse
