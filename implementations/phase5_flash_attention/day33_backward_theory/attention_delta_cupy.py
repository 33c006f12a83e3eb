"""Each row belongs to some neighbouring lanes, each of which holds packs of PACKS rows."""

from pathlib import Path

import torch

from implementations.common.cuda_cpp import CudaSource
from implementations.phase5_flash_attention.day33_backward_theory.attention_delta import check

THREADS = 256
PACKS = 4  # packs of 16 bytes, of o and of do, that a thread has under way at once

SOURCE = CudaSource(Path(__file__).with_name("attention_delta.cu"))


def attention_delta(o, do):
    check(o, do)
    B, H, M, D = o.shape
    rows, ROWS = B * H * M, PACKS * THREADS // (D // 8)  # of all heads; of a block
    delta = torch.empty((B, H, M), dtype=torch.float32, device=o.device)
    if rows > 0:
        template = dict(T=o.dtype, D=D, PACKS=PACKS, THREADS=THREADS)
        args = (o, do, delta, rows)
        SOURCE.launch("attention_delta_kernel", (-(-rows // ROWS),), (THREADS,), *args, **template)
    return delta
