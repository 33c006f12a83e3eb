"""A block owns some keys of a head, for dk and dv, and then, in a second launch, some queries."""

from pathlib import Path

import torch

from implementations.common.cuda_cpp import CudaSource
from implementations.phase5_flash_attention.day33_backward_theory.attention_delta_cupy import (
    attention_delta,
)
from implementations.phase5_flash_attention.day34_flash_backward.flash_backward import check

# Keys, or queries, that a block owns, those of a step of its walk, and those of a warp, by D.
TILES = {64: (128, 32, 32), 128: (64, 64, 16)}

SOURCE = CudaSource(Path(__file__).with_name("flash_backward.cu"))


def flash_backward(q, k, v, o, lse, do, causal, sm_scale):
    sm_scale = check(q, k, v, o, lse, do, causal, sm_scale)
    (B, H, M, D), (_, H_kv, N, _) = q.shape, k.shape
    dq, dk, dv = map(torch.empty_like, (q, k, v))
    delta = attention_delta(o, do)
    offset = N - M if causal else N  # query i sees the keys j <= i + offset

    OWNED, WALKED, WARP = TILES[D]
    THREADS = OWNED // WARP * 32
    # two tiles of what is owned; of what is walked two stages of two tiles, and of lse and delta
    shared_bytes = 4 * D * (OWNED + 2 * WALKED) + 16 * WALKED
    template = dict(T=q.dtype, D=D, THREADS=THREADS, shared_bytes=shared_bytes)
    inputs, sizes = (q, k, v, lse, delta, do), (H // max(1, H_kv), M, N, offset, sm_scale)
    if dk.numel() > 0:
        grid, tiles = (B * H_kv * -(-N // OWNED),), dict(BLOCK_N=OWNED, BLOCK_M=WALKED, WARP_N=WARP)
        name = "flash_backward_dk_dv_kernel"
        SOURCE.launch(name, grid, (THREADS,), *inputs, dk, dv, *sizes, **tiles, **template)
    if dq.numel() > 0:
        grid, tiles = (B * H * -(-M // OWNED),), dict(BLOCK_M=OWNED, BLOCK_N=WALKED, WARP_M=WARP)
        name = "flash_backward_dq_kernel"
        SOURCE.launch(name, grid, (THREADS,), *inputs, dq, *sizes, **tiles, **template)
    return dq, dk, dv
