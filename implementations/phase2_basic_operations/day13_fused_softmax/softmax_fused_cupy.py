"""Each row is held in the registers of THREADS threads; rows of a warp or less share a block."""

from pathlib import Path

import torch

from implementations.common.cuda_cpp import CudaSource
from implementations.phase2_basic_operations.day13_fused_softmax.softmax_fused import check

BLOCK = 128  # threads of a block, unless one row takes more
PER_THREAD = 32  # elements a thread holds, at most

SOURCE = CudaSource(Path(__file__).with_name("softmax_fused.cu"))


def softmax_fused(x):
    check(x)
    M, N = x.shape
    out = torch.empty_like(x)
    if x.numel() > 0:
        VEC = 16 // x.element_size()  # elements of a pack of 16 bytes
        if N % VEC:  # rows do not start at a multiple of 16 bytes
            VEC = 1
        packs = -(-N // VEC)
        threads = max(min(packs, 32), -(-N // PER_THREAD))
        THREADS = 1 << (threads - 1).bit_length()
        PACKS = -(-packs // THREADS)
        ROWS = BLOCK // THREADS if THREADS <= 32 else 1  # one row's warps share memory
        template = dict(T=x.dtype, VEC=VEC, PACKS=PACKS, THREADS=THREADS, ROWS=ROWS)
        SOURCE.launch(
            "softmax_fused_kernel", (-(-M // ROWS),), (THREADS, ROWS), x, out, M, N, **template
        )
    return out
