"""Each program owns a block of block_size elements and stores its own id into each."""

import torch
import triton
import triton.language as tl

from implementations import TORCH_DEVICE
from implementations.phase1_foundations.day04_program_ids.program_ids import check

PER_WARP = 128  # elements of a warp: a thread stores four neighbours, 16 bytes, at once


@triton.jit
def program_ids_kernel(out_ptr, n, BLOCK: tl.constexpr):
    pid = tl.program_id(0)
    offs = pid.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # the last block may reach 2^31
    mask = offs < n

    tl.store(out_ptr + offs, pid, mask=mask)


def program_ids(n, block_size):
    check(n, block_size)
    out = torch.empty(n, dtype=torch.int32, device=TORCH_DEVICE)
    if n > 0:
        grid = (triton.cdiv(n, block_size),)
        num_warps = max(block_size // PER_WARP, 1)
        program_ids_kernel[grid](out, n, BLOCK=block_size, num_warps=num_warps)
    return out
