"""Each program owns BLOCK consecutive elements: one mask says what x has, one where out ends."""

import torch
import triton
import triton.language as tl

from implementations.phase1_foundations.day03_masking.shift import check

BLOCK = 1024


@triton.jit
def shift_kernel(x_ptr, out_ptr, N, offset, fill_value, BLOCK: tl.constexpr):
    pid = tl.program_id(0).to(tl.int64)  # N may exceed 2^31
    offs = pid * BLOCK + tl.arange(0, BLOCK)
    src = offs - offset
    in_x = (src >= 0) & (src < N)

    # what x does not have is never read
    x = tl.load(x_ptr + src, mask=in_x, other=fill_value)

    tl.store(out_ptr + offs, x, mask=offs < N)


def shift(x, offset, fill_value):
    offset, fill_value = check(x, offset, fill_value)
    N = x.numel()
    out = torch.empty_like(x)
    if N > 0:
        grid = (triton.cdiv(N, BLOCK),)
        shift_kernel[grid](x, out, N, offset, fill_value, BLOCK=BLOCK)
    return out
