"""A fixed number of programs leave the largest of their elements, and one more takes these."""

import torch
import triton
import triton.language as tl

from implementations.common.device import properties
from implementations.phase2_basic_operations.day10_reduction_basics.vector_max import check

NUM_WARPS = 8
BLOCK_BYTES = NUM_WARPS * 32 * 4 * 16  # each thread has four packs of 16 bytes under way at once
PROGRAMS_PER_SM = 64  # several times what is resident: a free multiprocessor starts another


@triton.jit
def maximum(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)  # tl.max would drop a NaN


@triton.jit
def vector_max_kernel(x_ptr, out_ptr, N, BLOCK: tl.constexpr):
    pid = tl.program_id(0).to(tl.int64)  # N may exceed 2^31
    step = tl.num_programs(0) * BLOCK

    # the neutral element: 0 would exceed negative elements
    largest = tl.full((BLOCK,), -float("inf"), tl.float32)
    start = pid * BLOCK
    while start + BLOCK <= N:
        x = tl.load(x_ptr + start + tl.arange(0, BLOCK)).to(tl.float32)
        largest = maximum(largest, x)
        start += step

    # the last, partial BLOCK falls to the program whose turn it is
    offs = start + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offs, mask=offs < N, other=-float("inf")).to(tl.float32)
    largest = maximum(largest, x)

    tl.store(out_ptr + pid, tl.reduce(largest, 0, maximum))


def vector_max(x):
    check(x)
    out = torch.empty((), dtype=x.dtype, device=x.device)
    blocks = min(triton.cdiv(x.nbytes, BLOCK_BYTES), properties(x.device).programs(PROGRAMS_PER_SM))
    partial = torch.empty(blocks, dtype=torch.float32, device=x.device)  # exact for all dtypes
    for src, dst in ((x, partial), (partial, out)):
        BLOCK = BLOCK_BYTES // src.element_size()
        grid = (dst.numel(),)
        vector_max_kernel[grid](src, dst, src.numel(), BLOCK=BLOCK, num_warps=NUM_WARPS)
    return out
