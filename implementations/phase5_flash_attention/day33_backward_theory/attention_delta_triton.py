"""Each program holds a tile of whole rows of o and of do."""

import torch
import triton
import triton.language as tl

from implementations.phase5_flash_attention.day33_backward_theory.attention_delta import check

TILE = 4096  # elements of o and of do that a program holds: of each 4 packs a thread
NUM_WARPS = 4


@triton.jit
def attention_delta_kernel(
    o_ptr, do_ptr, delta_ptr,
    rows,
    D: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    offs_m = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    # 64-bit: rows * D may exceed 2^31
    offs = offs_m.to(tl.int64)[:, None] * D + tl.arange(0, D)[None, :]
    mask_m = offs_m < rows

    o = tl.load(o_ptr + offs, mask=mask_m[:, None], other=0.0)  # (ROWS, D)
    do = tl.load(do_ptr + offs, mask=mask_m[:, None], other=0.0)

    # fp32: a sum in 16 bits would stop growing
    delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), axis=1)

    tl.store(delta_ptr + offs_m, delta, mask=mask_m)


def attention_delta(o, do):
    check(o, do)
    B, H, M, D = o.shape
    rows, ROWS = B * H * M, TILE // D  # of all heads; of a program
    delta = torch.empty((B, H, M), dtype=torch.float32, device=o.device)
    if rows > 0:
        grid = (triton.cdiv(rows, ROWS),)
        attention_delta_kernel[grid](o, do, delta, rows, D, ROWS, num_warps=NUM_WARPS)
    return delta
