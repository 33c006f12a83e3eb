"""Three launches: a block owns a tile of S, then a row of S, then a tile of o."""

from pathlib import Path

import torch

from implementations.common.cuda_cpp import CudaSource
from implementations.common.device import properties
from implementations.phase4_advanced_kernels.day27_standard_attention.attention_standard import (
    check,
    row_stride,
)

BLOCK_M, BLOCK_N = 128, 128  # queries and keys of a tile of S; as many queries of one of o
BLOCK_K = 64  # keys of a step of the loop that makes o
WARP_M, WARP_N = 64, 32
MAX_STAGES = 4
PACKS = 2  # packs of 16 bytes of a row that a thread holds
MIN_THREADS, MAX_THREADS = 32, 512  # of a row

SOURCE = CudaSource(Path(__file__).with_name("attention_standard.cu"))


def attention_standard(q, k, v, causal, sm_scale):
    sm_scale = check(q, k, v, causal, sm_scale)
    (B, H, M, D), N = q.shape, k.shape[2]
    o = torch.empty_like(q)
    if o.numel() > 0:
        stride = row_stride(N)
        s = torch.empty((B, H, M, stride), dtype=q.dtype, device=q.device)
        offset = N - M if causal else N  # query i sees the keys j <= i + offset
        sizes = (M, N, offset, stride)
        tiles_m, tiles_n = -(-M // BLOCK_M), -(-stride // BLOCK_N)
        warps = dict(WARP_M=WARP_M, WARP_N=WARP_N)

        grid, THREADS = (B * H * tiles_m * tiles_n,), BLOCK_M * BLOCK_N // (WARP_M * WARP_N) * 32
        template = dict(T=q.dtype, D=D, BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N, **warps, THREADS=THREADS)
        kernel, shared_bytes = "attention_standard_scores_kernel", 2 * (BLOCK_M + BLOCK_N) * D
        args = (q, k, s, *sizes, sm_scale)
        SOURCE.launch(kernel, grid, (THREADS,), *args, shared_bytes=shared_bytes, **template)

        threads = max(MIN_THREADS, min(stride // (8 * PACKS), MAX_THREADS))
        THREADS = 1 << (threads.bit_length() - 1)
        template = dict(T=q.dtype, BLOCK_M=BLOCK_M, PACKS=PACKS, THREADS=THREADS)
        kernel = "attention_standard_softmax_kernel"
        SOURCE.launch(kernel, (B * H * M,), (THREADS,), s, *sizes, **template)

        grid, THREADS = (B * H * tiles_m,), BLOCK_M * D // (WARP_M * WARP_N) * 32
        stage_bytes = 2 * (BLOCK_M + D) * BLOCK_K
        STAGES = properties(q.device).stages(MAX_STAGES, stage_bytes)
        template = dict(T=q.dtype, D=D, BLOCK_M=BLOCK_M, BLOCK_K=BLOCK_K, **warps)
        template |= dict(STAGES=STAGES, THREADS=THREADS)
        kernel, shared_bytes = "attention_standard_output_kernel", STAGES * stage_bytes
        args = (s, v, o, *sizes)
        SOURCE.launch(kernel, grid, (THREADS,), *args, shared_bytes=shared_bytes, **template)
    return o
