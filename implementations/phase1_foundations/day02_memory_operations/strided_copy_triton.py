"""Each program copies BLOCK consecutive elements of the output; a mask cuts the last block."""

import torch
import triton
import triton.language as tl

from implementations.phase1_foundations.day02_memory_operations.strided_copy import check

BLOCK = 1024
NUM_WARPS = 8


@triton.jit
def strided_copy_kernel(x_ptr, out_ptr, start, step, n, BLOCK: tl.constexpr):
    pid = tl.program_id(0).to(tl.int64)  # x may have more than 2^31 elements
    offs = pid * BLOCK + tl.arange(0, BLOCK)
    mask = offs < n

    # neighbours read elements `step` apart, which is coalesced at step 1 only
    x = tl.load(x_ptr + start + offs * step, mask=mask)

    tl.store(out_ptr + offs, x, mask=mask)


def strided_copy(x, start, step, n):
    check(x, start, step, n)
    out = torch.empty(n, dtype=x.dtype, device=x.device)
    if n > 0:
        # Triton compiles an argument of 1 in: at step 1 it sees neighbours and loads whole packs
        grid = (triton.cdiv(n, BLOCK),)
        strided_copy_kernel[grid](x, out, start, step, n, BLOCK=BLOCK, num_warps=NUM_WARPS)
    return out
