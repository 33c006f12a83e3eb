"""In each of three launches THREADS threads read a row; rows of a warp or less share a block."""

from pathlib import Path

import torch

from implementations.common.cuda_cpp import CudaSource
from implementations.phase2_basic_operations.day12_numerical_stability.softmax_safe import check

BLOCK = 128  # threads of a block, unless one row takes more
MAX_THREADS = 512  # threads that share a row, at most
PACKS = 4  # packs of 16 bytes that a thread has under way at once

SOURCE = CudaSource(Path(__file__).with_name("softmax_safe.cu"))


def softmax_safe(x):
    check(x)
    M, N = x.shape
    out = torch.empty_like(x)
    if x.numel() > 0:
        m = torch.empty(M, dtype=torch.float32, device=x.device)
        l = torch.empty_like(m)
        VEC = 16 // x.element_size()  # elements of a pack of 16 bytes
        if N % VEC:  # rows do not start at a multiple of 16 bytes
            VEC = 1
        packs = N // VEC
        threads = min(max(min(packs, 32), packs // PACKS), MAX_THREADS)
        THREADS = 1 << (threads - 1).bit_length()
        ROWS = BLOCK // THREADS if THREADS <= 32 else 1  # `sPartial` holds one row's warps
        grid, block = (-(-M // ROWS),), (THREADS, ROWS)
        template = dict(T=x.dtype, VEC=VEC, PACKS=PACKS, THREADS=THREADS, ROWS=ROWS)
        # a kernel begins when the one before has ended: no other barrier spans the grid
        SOURCE.launch("softmax_safe_max_kernel", grid, block, x, m, M, N, **template)
        SOURCE.launch("softmax_safe_sum_kernel", grid, block, x, m, l, M, N, **template)
        SOURCE.launch("softmax_safe_divide_kernel", grid, block, x, m, l, out, M, N, **template)
    return out
