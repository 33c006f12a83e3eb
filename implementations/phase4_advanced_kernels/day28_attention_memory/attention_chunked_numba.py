"""For each chunk of queries three launches, of which the first two are those of Day 27."""

from functools import cache
from itertools import product

import numpy as np
import torch
from numba import cuda, float32, int16, int32, int64

from implementations.common.device import properties
from implementations.common.numba_cuda import launch
from implementations.instructions.attention import seen_keys
from implementations.instructions.tile_product import store_tile, tile_product
from implementations.phase4_advanced_kernels.day27_standard_attention.attention_standard_numba import (  # noqa: E501
    MAX_THREADS,
    MIN_THREADS,
    PACKS,
    WARP_M,
    WARP_N,
    attention_standard_scores_kernel,
    attention_standard_softmax_kernel,
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


@cache  # a closure is Numba's template: the upper-case names are compile-time constants
def attention_chunked_output_kernel(dtype, D, OUT_N, STAGES, THREADS):
    OUT_WARP_M, OUT_WARP_N, TILES_N = OUT_M // OUT_WARPS[0], OUT_N // OUT_WARPS[1], D // OUT_N
    OUT_FRAGMENTS = (OUT_WARP_M // 16, OUT_WARP_N // 8, 4)
    multiply = tile_product(dtype, True, OUT_M, OUT_N, OUT_K, OUT_WARP_M, OUT_WARP_N, STAGES)
    store = store_tile(dtype, True, OUT_M, OUT_N, OUT_WARP_M, OUT_WARP_N)

    @cuda.jit(launch_bounds=THREADS)
    def kernel(p, v, o, M, N, offset, stride):
        shared = cuda.shared.array(0, int16)
        tiles_m, tile = (M + OUT_M - 1) // OUT_M, cuda.blockIdx.x
        head, n0 = int64(tile // TILES_N // tiles_m), int32(tile % TILES_N * OUT_N)
        # the last tiles, which see the most keys, come first
        m0 = int32((tiles_m - 1 - tile // TILES_N % tiles_m) * OUT_M)
        seen = seen_keys(min(m0 + OUT_M, M) - 1, N, offset)
        p, v, o = p[head * M * stride :], v[head * N * D :], o[head * M * D :]

        rO = cuda.local.array(OUT_FRAGMENTS, float32)
        multiply(rO, shared, p, v, M, D, stride, m0, n0, 0, seen)
        store(rO, shared, o, M, D, m0, n0)

    return kernel


def attention_chunked(q, k, v, causal, sm_scale):
    sm_scale = check(q, k, v, causal, sm_scale)
    (B, H, M, D), N = q.shape, k.shape[2]
    o = torch.empty_like(q)
    if o.numel() == 0:
        return o
    stride = row_stride(N)
    heads, rows = chunk(properties(q.device), B * H, M, N)
    s = torch.empty((heads, rows, stride), dtype=q.dtype, device=q.device)  # of one after another
    s = s.view(-1)

    TILE_THREADS = BLOCK_M * BLOCK_N // (WARP_M * WARP_N) * 32
    tile_bytes = 2 * (BLOCK_M + BLOCK_N) * D
    scores = attention_standard_scores_kernel(q.dtype, D, TILE_THREADS)
    threads = max(MIN_THREADS, min(stride // (8 * PACKS), MAX_THREADS))
    ROW_THREADS = 1 << (threads.bit_length() - 1)
    softmax = attention_standard_softmax_kernel(ROW_THREADS)
    OUT_N, OUT_THREADS = D // PARTS, OUT_WARPS[0] * OUT_WARPS[1] * 32
    stage_bytes = 2 * (OUT_M + OUT_N) * OUT_K
    STAGES = properties(q.device).stages(MAX_STAGES, stage_bytes)
    out_bytes = STAGES * stage_bytes
    output = attention_chunked_output_kernel(q.dtype, D, OUT_N, STAGES, OUT_THREADS)

    Q, K, V, O = (x.view(torch.int16).flatten(0, 1) for x in (q, k, v, o))  # moved as bits
    S = s.view(torch.int16)
    for head, first in product(range(0, B * H, heads), range(0, M, rows)):
        K_c, V_c = (x[head : head + heads].view(-1) for x in (K, V))
        Q_c, O_c = (x[head : head + heads, first : first + rows] for x in (Q, O))
        count, M_c, _ = Q_c.shape
        Q_c, O_c = Q_c.view(-1), O_c.view(-1)
        # query i of the chunk sees the keys j <= i + offset
        offset = N - M + first if causal else N
        sizes = [*map(np.int32, (M_c, N, offset, stride))]  # 64-bit loop counters would spill

        grid = (count * -(-M_c // BLOCK_M) * -(-stride // BLOCK_N),)
        args = (Q_c, K_c, S, *sizes, np.float32(sm_scale))
        launch(scores, grid, (TILE_THREADS,), *args, shared_bytes=tile_bytes)
        launch(softmax, (count * M_c,), (ROW_THREADS,), s, *sizes)
        grid, args = (count * -(-M_c // OUT_M) * PARTS,), (S, V_c, O_c, *sizes)
        launch(output, grid, (OUT_THREADS,), *args, shared_bytes=out_bytes)
    return o
