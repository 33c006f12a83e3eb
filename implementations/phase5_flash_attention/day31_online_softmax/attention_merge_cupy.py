"""Some lanes take each row, a pack of 16 bytes each, and go over its parts, several at a time."""

from pathlib import Path

import torch

from implementations.common.cuda_cpp import CudaSource
from implementations.phase5_flash_attention.day31_online_softmax.attention_merge import check

BLOCK = 128  # threads of a block
PARTS = 4  # parts of which each thread has a pack under way at once

SOURCE = CudaSource(Path(__file__).with_name("attention_merge.cu"))


def attention_merge(o_parts, lse_parts):
    check(o_parts, lse_parts)
    S, B, H, M, D = o_parts.shape
    rows = B * H * M
    o = torch.empty((B, H, M, D), dtype=o_parts.dtype, device=o_parts.device)
    lse = torch.empty((B, H, M), dtype=torch.float32, device=o_parts.device)
    if rows > 0:
        ROWS = BLOCK * 16 // (D * o.element_size())
        grid, template = (-(-rows // ROWS),), dict(T=o.dtype, D=D, PARTS=PARTS, BLOCK=BLOCK)
        args = o_parts, lse_parts, o, lse, S, rows
        SOURCE.launch("attention_merge_kernel", grid, (BLOCK,), *args, **template)
    return o, lse
