"""For each chunk of queries three launches: tiles of S, rows of S, tiles of o, as on Day 27."""

from functools import cache
from itertools import product

import numpy as np
import torch
from numba import cuda, float32, int16, int32, int64

from implementations.common.device import properties
from implementations.common.numba_cuda import launch
from implementations.instructions.async_copy import cp_async_commit, cp_async_wait
from implementations.instructions.attention import load_rows, multiply_rows, seen_keys, softmax_row
from implementations.instructions.tile_product import store_tile, tile_product
from implementations.phase4_advanced_kernels.day28_attention_memory.attention_chunked import (
    BLOCK_M,
    BLOCK_N,
    check,
    chunk,
    row_stride,
)

WARP_M, WARP_N = 64, 32
FRAGMENTS = (WARP_M // 16, WARP_N // 8, 4)
PACKS = 2  # packs of 16 bytes of a row that a thread holds
MIN_THREADS, MAX_THREADS = 32, 512  # of a row
# Queries and, of D, the part of a tile of o: a chunk has few rows, and small tiles make more of it.
OUT_M, PARTS = 64, 2
OUT_K = 64  # keys of a step of the loop that makes o
OUT_WARPS = (2, 2)  # down and across a tile of o
MAX_STAGES = 4


@cache  # a closure is Numba's template: the upper-case names are compile-time constants
def attention_chunked_scores_kernel(dtype, D, THREADS):
    load_q, load_k = load_rows(BLOCK_M, D, THREADS), load_rows(BLOCK_N, D, THREADS)
    multiply = multiply_rows(dtype, BLOCK_M, D, WARP_M, WARP_N)
    store = store_tile(dtype, True, BLOCK_M, BLOCK_N, WARP_M, WARP_N)
    cp_async_wait_all = cp_async_wait(0)

    @cuda.jit(launch_bounds=THREADS)
    def kernel(q, k, s, M, N, offset, stride, sm_scale):
        shared = cuda.shared.array(0, int16)
        tiles_m, tiles_n = (M + BLOCK_M - 1) // BLOCK_M, (stride + BLOCK_N - 1) // BLOCK_N
        tile = cuda.blockIdx.x
        head = int64(tile // tiles_n // tiles_m)
        m0 = int32(tile // tiles_n % tiles_m * BLOCK_M)
        n0 = int32(tile % tiles_n * BLOCK_N)
        # none of the queries sees any of the keys: nobody will read the tile
        if n0 >= seen_keys(min(m0 + BLOCK_M, M) - 1, N, offset):
            return

        # all of D at once: the blocks of a multiprocessor load while others multiply
        load_q(shared, 0, q, head * M * D, m0, M)
        load_k(shared, BLOCK_M * D, k, head * N * D, n0, N)
        cp_async_commit()
        cp_async_wait_all()
        cuda.syncthreads()  # the rows of all threads have arrived

        rS = cuda.local.array(FRAGMENTS, float32)
        multiply(rS, shared, 0, BLOCK_M * D)
        for i in range(FRAGMENTS[0]):
            for j in range(FRAGMENTS[1]):
                for e in range(4):
                    rS[i, j, e] *= sm_scale  # in fp32, and then rounded once

        cuda.syncthreads()  # all have read q and k: S leaves through their place
        store(rS, shared, s[head * M * stride :], M, stride, m0, n0)

    return kernel


@cache
def attention_chunked_softmax_kernel(THREADS):
    softmax = softmax_row(THREADS, PACKS)

    @cuda.jit(launch_bounds=THREADS)
    def kernel(s, M, N, offset, stride):
        row = int32(cuda.blockIdx.x % M)
        # of each row the next kernel reads as many packs as the last row of its tile sees keys of
        last_row = min((row // OUT_M + 1) * OUT_M, M) - 1
        end = (seen_keys(last_row, N, offset) + 7) // 8 * 8
        softmax(s, int64(cuda.blockIdx.x) * stride, seen_keys(row, N, offset), end)

    return kernel


@cache
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
    scores = attention_chunked_scores_kernel(q.dtype, D, TILE_THREADS)
    threads = max(MIN_THREADS, min(stride // (8 * PACKS), MAX_THREADS))
    ROW_THREADS = 1 << (threads.bit_length() - 1)
    softmax = attention_chunked_softmax_kernel(ROW_THREADS)
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
        offset = (
            N - M + first if causal else N
        )  # query i of the chunk sees the keys j <= i + offset
        sizes = [*map(np.int32, (M_c, N, offset, stride))]  # 64-bit loop counters would spill

        grid = (count * -(-M_c // BLOCK_M) * -(-stride // BLOCK_N),)
        args = (Q_c, K_c, S, *sizes, np.float32(sm_scale))
        launch(scores, grid, (TILE_THREADS,), *args, shared_bytes=tile_bytes)
        launch(softmax, (count * M_c,), (ROW_THREADS,), s, *sizes)
        grid, args = (count * -(-M_c // OUT_M) * PARTS,), (S, V_c, O_c, *sizes)
        launch(output, grid, (OUT_THREADS,), *args, shared_bytes=out_bytes)
    return o
