"""A block owns a head, and walks over the keys, and for each tile of them over the queries."""

from pathlib import Path

import torch

from implementations.common.cuda_cpp import CudaSource
from implementations.phase5_flash_attention.day29_flash_attention_theory.flash_v1_forward import (
    BLOCK_M,
    BLOCK_N,
    check,
    padded,
)

WARP_M = 16  # queries of a warp
THREADS = BLOCK_M // WARP_M * 32

SOURCE = CudaSource(Path(__file__).with_name("flash_v1_forward.cu"))


def flash_v1_forward(q, k, v, causal, sm_scale):
    sm_scale = check(q, k, v, causal, sm_scale)
    (B, H, M, D), N = q.shape, k.shape[2]
    o = torch.empty_like(q)
    lse = torch.empty((B, H, M), dtype=torch.float32, device=q.device)
    if o.numel() > 0:
        rows = padded(M)
        acc = torch.empty((B, H, rows, D), dtype=torch.float32, device=q.device)
        m, l = (torch.empty((B, H, rows), dtype=torch.float32, device=q.device) for _ in range(2))
        offset = N - M if causal else N  # query i sees the keys j <= i + offset
        SOURCE.launch(
            "flash_v1_forward_kernel", (B * H,), (THREADS,),
            q, k, v, o, lse, acc, m, l, M, N, offset, rows, sm_scale,
            shared_bytes=2 * (BLOCK_M + 2 * BLOCK_N) * D, T=q.dtype, D=D,
            BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N, WARP_M=WARP_M, THREADS=THREADS,
        )  # fmt: skip
    return o, lse
