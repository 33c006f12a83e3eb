"""For each chunk of queries three launches, of which the first two are those of Day 27."""

from itertools import product
from pathlib import Path

import torch

from implementations.common.cuda_cpp import CudaSource
from implementations.common.device import properties
from implementations.phase4_advanced_kernels.day27_standard_attention.attention_standard_cupy import (  # noqa: E501
    MAX_THREADS,
    MIN_THREADS,
    PACKS,
    WARP_M,
    WARP_N,
)
from implementations.phase4_advanced_kernels.day27_standard_attention.attention_standard_cupy import (  # noqa: E501
    SOURCE as DAY_27,
)
from implementations.phase4_advanced_kernels.day28_attention_memory.attention_chunked import (
    BLOCK_M,
    BLOCK_N,
    check,
    chunk,
    row_stride,
)

# Queries and, of D, the part of a tile of o: a chunk has few rows, and small tiles make more of it.
OUT_M, PARTS = 64, 2
OUT_K = 64  # keys of a step of the loop that makes o
OUT_WARPS = (2, 2)  # down and across a tile of o
MAX_STAGES = 4

SOURCE = CudaSource(Path(__file__).with_name("attention_chunked.cu"))


def attention_chunked(q, k, v, causal, sm_scale):
    sm_scale = check(q, k, v, causal, sm_scale)
    (B, H, M, D), N = q.shape, k.shape[2]
    o = torch.empty_like(q)
    if o.numel() == 0:
        return o
    stride = row_stride(N)
    heads, rows = chunk(properties(q.device), B * H, M, N)
    s = torch.empty((heads, rows, stride), dtype=q.dtype, device=q.device)  # of one after another

    TILE_THREADS = BLOCK_M * BLOCK_N // (WARP_M * WARP_N) * 32
    scores = dict(T=q.dtype, D=D, BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N, WARP_M=WARP_M, WARP_N=WARP_N)
    scores |= dict(THREADS=TILE_THREADS, shared_bytes=2 * (BLOCK_M + BLOCK_N) * D)
    threads = max(MIN_THREADS, min(stride // (8 * PACKS), MAX_THREADS))
    ROW_THREADS = 1 << (threads.bit_length() - 1)
    softmax = dict(T=q.dtype, BLOCK_M=BLOCK_M, PACKS=PACKS, THREADS=ROW_THREADS)
    OUT_N, OUT_THREADS = D // PARTS, OUT_WARPS[0] * OUT_WARPS[1] * 32
    stage_bytes = 2 * (OUT_M + OUT_N) * OUT_K
    STAGES = properties(q.device).stages(MAX_STAGES, stage_bytes)
    output = dict(T=q.dtype, D=D, BLOCK_M=OUT_M, BLOCK_N=OUT_N, BLOCK_K=OUT_K, STAGES=STAGES)
    output |= dict(WARP_M=OUT_M // OUT_WARPS[0], WARP_N=OUT_N // OUT_WARPS[1], THREADS=OUT_THREADS)
    output |= dict(shared_bytes=STAGES * stage_bytes)

    Q, K, V, O = (x.flatten(0, 1) for x in (q, k, v, o))
    for head, first in product(range(0, B * H, heads), range(0, M, rows)):
        K_c, V_c = K[head : head + heads], V[head : head + heads]
        Q_c, O_c = (x[head : head + heads, first : first + rows] for x in (Q, O))
        count, M_c, _ = Q_c.shape
        # query i of the chunk sees the keys j <= i + offset
        offset = N - M + first if causal else N
        sizes = (M_c, N, offset, stride)

        grid, args = (count * -(-M_c // BLOCK_M) * -(-stride // BLOCK_N),), (Q_c, K_c, s, *sizes)
        name = "attention_standard_scores_kernel"
        DAY_27.launch(name, grid, (TILE_THREADS,), *args, sm_scale, **scores)
        name = "attention_standard_softmax_kernel"
        DAY_27.launch(name, (count * M_c,), (ROW_THREADS,), s, *sizes, **softmax)
        grid, args = (count * -(-M_c // OUT_M) * PARTS,), (s, V_c, O_c, *sizes)
        name = "attention_chunked_output_kernel"
        SOURCE.launch(name, grid, (OUT_THREADS,), *args, **output)
    return o
