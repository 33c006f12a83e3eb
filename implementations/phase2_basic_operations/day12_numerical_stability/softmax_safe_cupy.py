"""Three launches, in each one row THREADS threads; several rows a block while a warp has more."""

from pathlib import Path

import torch

from implementations.common.cuda_cpp import CudaSource
from implementations.phase2_basic_operations.day12_numerical_stability.softmax_safe import check

BLOCK = 128  # threads a block, unless one row takes more
MAX_THREADS = 512  # that share a row
PACKS = 4  # of 16 bytes, that a thread has under way at once

SOURCE = CudaSource(Path(__file__).with_name("softmax_safe.cu"))


def softmax_safe(x):
    check(x)
    M, N = x.shape
    out = torch.empty_like(x)
    if x.numel() > 0:
        m = torch.empty(M, dtype=torch.float32, device=x.device)
        l = torch.empty_like(m)
        VEC = 16 // x.element_size()
        if N % VEC:  # rows do not start at a multiple of 16 bytes
            VEC = 1
        packs = N // VEC
        threads = min(max(min(packs, 32), packs // PACKS), MAX_THREADS)
        THREADS = 1 << (threads - 1).bit_length()
        ROWS = BLOCK // THREADS if THREADS <= 32 else 1  # warps of one row share `partial`
        grid, block = (-(-M // ROWS),), (THREADS, ROWS)
        template = dict(T=x.dtype, VEC=VEC, PACKS=PACKS, THREADS=THREADS, ROWS=ROWS)
        SOURCE.launch("softmax_safe_max_kernel", grid, block, x, m, M, N, **template)
        SOURCE.launch("softmax_safe_sum_kernel", grid, block, x, m, l, M, N, **template)
        SOURCE.launch("softmax_safe_divide_kernel", grid, block, x, m, l, out, M, N, **template)
    return out
