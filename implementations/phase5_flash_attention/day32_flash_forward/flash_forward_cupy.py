"""A block owns some queries of a head, and walks over the keys that they see."""

from pathlib import Path

import torch

from implementations.common.cuda_cpp import CudaSource
from implementations.phase5_flash_attention.day32_flash_forward.flash_forward import check

# Queries and keys of a tile, and queries of a warp, by D: with two fragments of them a warp reads
# k and v half as often from shared memory. With more keys registers spill.
TILES = {64: (128, 128, 32), 128: (128, 48, 32)}
FEW = (64, 128, 16)  # of up to as many queries, whose time is that of k and v from memory

SOURCE = CudaSource(Path(__file__).with_name("flash_forward.cu"))


def flash_forward(q, k, v, causal, sm_scale):
    sm_scale = check(q, k, v, causal, sm_scale)
    (B, H, M, D), (_, H_kv, N, _) = q.shape, k.shape
    o = torch.empty_like(q)
    lse = torch.empty((B, H, M), dtype=torch.float32, device=q.device)
    if o.numel() > 0:
        BLOCK_M, BLOCK_N, WARP_M = TILES[D] if M > FEW[0] else FEW
        THREADS = BLOCK_M // WARP_M * 32
        grid, shared_bytes = (B * H * -(-M // BLOCK_M),), 2 * (BLOCK_M + 2 * BLOCK_N) * D
        offset = N - M if causal else N  # query i sees the keys j <= i + offset
        template = dict(T=q.dtype, D=D, BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N, WARP_M=WARP_M)
        args = (q, k, v, o, lse, H, H // max(1, H_kv), M, N, offset)
        args += tuple(stride for x in (q, k, v, o) for stride in x.stride()[:3])
        SOURCE.launch(
            "flash_forward_kernel", grid, (THREADS,), *args, sm_scale,
            shared_bytes=shared_bytes, THREADS=THREADS, **template,
        )  # fmt: skip
    return o, lse
