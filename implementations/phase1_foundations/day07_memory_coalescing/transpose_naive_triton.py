"""Each program moves BLOCK elements of a row, one a thread, each into a row of its own."""

import torch
import triton
import triton.language as tl

from implementations.phase1_foundations.day07_memory_coalescing.transpose_naive import check

# One element a thread leaves Triton no choice who stores what. In a two-dimensional block it would
# first exchange the elements through shared memory, and the stores would be coalesced.
BLOCK = 256
NUM_WARPS = BLOCK // 32


@triton.jit
def transpose_naive_kernel(x_ptr, out_ptr, M, N, BLOCK: tl.constexpr):
    m = tl.program_id(0).to(tl.int64)
    offs_n = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offs_n < N

    x = tl.load(x_ptr + m * N + offs_n, mask=mask)

    tl.store(out_ptr + offs_n * M + m, x, mask=mask)  # neighbours store M elements apart


def transpose_naive(x):
    check(x)
    M, N = x.shape
    out = torch.empty((N, M), dtype=x.dtype, device=x.device)
    if x.numel() > 0:
        grid = (M, triton.cdiv(N, BLOCK))
        transpose_naive_kernel[grid](x, out, M, N, BLOCK, num_warps=NUM_WARPS)
    return out
