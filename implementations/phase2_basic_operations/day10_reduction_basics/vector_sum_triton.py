"""A fixed number of programs leave one partial sum each, and one program more sums these."""

import torch
import triton
import triton.language as tl

from implementations.common.device import properties
from implementations.phase2_basic_operations.day10_reduction_basics.vector_sum import check

NUM_WARPS = 8
BLOCK_BYTES = NUM_WARPS * 32 * 4 * 16  # each thread has four packs of 16 bytes under way at once
PROGRAMS_PER_SM = 64  # several times what is resident: a free multiprocessor starts another


@triton.jit
def vector_sum_kernel(x_ptr, out_ptr, N, BLOCK: tl.constexpr):
    pid = tl.program_id(0).to(tl.int64)  # N may exceed 2^31
    step = tl.num_programs(0) * BLOCK

    # fp32: a sum in 16 bits would stop growing, or overflow
    total = tl.zeros((BLOCK,), tl.float32)
    start = pid * BLOCK
    while start + BLOCK <= N:
        x = tl.load(x_ptr + start + tl.arange(0, BLOCK)).to(tl.float32)
        total += x
        start += step

    # the last, partial BLOCK falls to the program whose turn it is
    offs = start + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offs, mask=offs < N, other=0.0).to(tl.float32)
    total += x

    tl.store(out_ptr + pid, tl.sum(total, axis=0))


def vector_sum(x):
    check(x)
    N = x.numel()
    out = torch.empty((), dtype=torch.float32, device=x.device)
    if N == 0:
        return out.zero_()
    blocks = min(triton.cdiv(x.nbytes, BLOCK_BYTES), properties(x.device).programs(PROGRAMS_PER_SM))
    partial = torch.empty(blocks, dtype=torch.float32, device=x.device)
    for src, dst in ((x, partial), (partial, out)):
        BLOCK = BLOCK_BYTES // src.element_size()
        grid = (dst.numel(),)
        vector_sum_kernel[grid](src, dst, src.numel(), BLOCK=BLOCK, num_warps=NUM_WARPS)
    return out
