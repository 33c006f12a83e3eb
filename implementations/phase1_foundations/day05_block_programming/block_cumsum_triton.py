"""Each program scans a block of elements by tl.cumsum, with a thread for each pack."""

import torch
import triton
import triton.language as tl

from implementations.phase1_foundations.day05_block_programming.block_cumsum import check


@triton.jit
def block_cumsum_kernel(x_ptr, out_ptr, N, BLOCK: tl.constexpr):
    pid = tl.program_id(0).to(tl.int64)  # N may exceed 2^31
    offs = pid * BLOCK + tl.arange(0, BLOCK)
    mask = offs < N

    # fp32: running sums in 16 bits would gather errors
    x = tl.load(x_ptr + offs, mask=mask, other=0.0).to(tl.float32)

    y = tl.cumsum(x, axis=0)

    tl.store(out_ptr + offs, y, mask=mask)


def block_cumsum(x, block_size=1024):
    check(x, block_size)
    N = x.numel()
    out = torch.empty_like(x)
    if N > 0:
        VEC = 16 // x.element_size()  # elements of a thread: one pack of 16 bytes
        grid = (triton.cdiv(N, block_size),)
        num_warps = max(block_size // (32 * VEC), 1)
        block_cumsum_kernel[grid](x, out, N, BLOCK=block_size, num_warps=num_warps)
    return out
