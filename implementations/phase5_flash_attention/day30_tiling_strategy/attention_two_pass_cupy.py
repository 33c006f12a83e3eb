"""A block owns some queries of a head, and walks twice over the keys that they see."""

from pathlib import Path

import torch

from implementations.common.cuda_cpp import CudaSource
from implementations.phase5_flash_attention.day29_flash_attention_theory.flash_v1_forward import (
    check,
)

BLOCK_M = 128  # queries of a tile
BLOCK_N = {64: 64, 128: 32}  # keys of a tile, by D: with more of them registers spill
WARP_M = 32  # queries of a warp: a fragment of k and v serves two of q
THREADS = BLOCK_M // WARP_M * 32

SOURCE = CudaSource(Path(__file__).with_name("attention_two_pass.cu"))


def attention_two_pass(q, k, v, causal, sm_scale):
    sm_scale = check(q, k, v, causal, sm_scale)
    (B, H, M, D), N = q.shape, k.shape[2]
    o = torch.empty_like(q)
    if o.numel() > 0:
        grid, shared_bytes = (B * H * -(-M // BLOCK_M),), 2 * (BLOCK_M + 2 * BLOCK_N[D]) * D
        offset = N - M if causal else N  # query i sees the keys j <= i + offset
        SOURCE.launch(
            "attention_two_pass_kernel", grid, (THREADS,), q, k, v, o, M, N, offset, sm_scale,
            shared_bytes=shared_bytes, T=q.dtype, D=D,
            BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N[D], WARP_M=WARP_M, THREADS=THREADS,
        )  # fmt: skip
    return o
