"""The grid has a fixed size; each program copies every gridDim-th BLOCK of elements."""

import torch
import triton
import triton.language as tl

from implementations.common.device import properties
from implementations.phase1_foundations.day04_program_ids.grid_stride_copy import check

NUM_WARPS = 8
PACKS = 4  # packs of 16 bytes that each thread has under way at once
PROGRAMS_PER_SM = 256  # many times what is resident: fewer and longer programs were slower


@triton.jit
def grid_stride_copy_kernel(x_ptr, out_ptr, N, BLOCK: tl.constexpr):
    pid = tl.program_id(0).to(tl.int64)  # N may exceed 2^31
    step = tl.num_programs(0) * BLOCK
    for start in range(pid * BLOCK, N, step):
        offs = start + tl.arange(0, BLOCK)
        mask = offs < N

        x = tl.load(x_ptr + offs, mask=mask)

        tl.store(out_ptr + offs, x, mask=mask)


def grid_stride_copy(x):
    check(x)
    N = x.numel()
    out = torch.empty_like(x)
    if N > 0:
        BLOCK = NUM_WARPS * 32 * PACKS * 16 // x.element_size()
        grid = (min(triton.cdiv(N, BLOCK), properties(x.device).programs(PROGRAMS_PER_SM)),)
        grid_stride_copy_kernel[grid](x, out, N, BLOCK=BLOCK, num_warps=NUM_WARPS)
    return out
