"""Three launches: a block owns a tile of S, then a row of S, then a tile of o."""

from functools import cache

import numpy as np
import torch
from numba import cuda, float32, int16, int32, int64

from implementations.common.device import properties
from implementations.common.numba_cuda import launch
from implementations.instructions.async_copy import cp_async_commit, cp_async_wait
from implementations.instructions.attention import load_rows, multiply_rows, seen_keys, softmax_row
from implementations.instructions.tile_product import store_tile, tile_product
from implementations.phase4_advanced_kernels.day27_standard_attention.attention_standard import (
    check,
    row_stride,
)

BLOCK_M, BLOCK_N = 128, 128  # queries and keys of a tile of S; as many queries of one of o
BLOCK_K = 64  # keys of a step of the loop that makes o
WARP_M, WARP_N = 64, 32
FRAGMENTS = (WARP_M // 16, WARP_N // 8, 4)
MAX_STAGES = 4
PACKS = 2  # packs of 16 bytes of a row that a thread holds
MIN_THREADS, MAX_THREADS = 32, 512  # of a row


@cache  # a closure is Numba's template: the upper-case names are compile-time constants
def attention_standard_scores_kernel(dtype, D, THREADS):
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
def attention_standard_softmax_kernel(THREADS):
    softmax = softmax_row(THREADS, PACKS)

    @cuda.jit(launch_bounds=THREADS)
    def kernel(s, M, N, offset, stride):
        row = int32(cuda.blockIdx.x % M)
        # of each row the next kernel reads as many packs as the last row of its tile sees keys of
        last_row = min((row // BLOCK_M + 1) * BLOCK_M, M) - 1
        end = (seen_keys(last_row, N, offset) + 7) // 8 * 8
        softmax(s, int64(cuda.blockIdx.x) * stride, seen_keys(row, N, offset), end)

    return kernel


@cache
def attention_standard_output_kernel(dtype, D, STAGES, THREADS):
    product = tile_product(dtype, True, BLOCK_M, D, BLOCK_K, WARP_M, WARP_N, STAGES)
    store = store_tile(dtype, True, BLOCK_M, D, WARP_M, WARP_N)

    @cuda.jit(launch_bounds=THREADS)
    def kernel(p, v, o, M, N, offset, stride):
        shared = cuda.shared.array(0, int16)
        tiles_m = (M + BLOCK_M - 1) // BLOCK_M
        head = int64(cuda.blockIdx.x // tiles_m)
        # the last tiles, which see the most keys, come first
        m0 = int32((tiles_m - 1 - cuda.blockIdx.x % tiles_m) * BLOCK_M)
        seen = seen_keys(min(m0 + BLOCK_M, M) - 1, N, offset)
        p, v, o = p[head * M * stride :], v[head * N * D :], o[head * M * D :]

        rO = cuda.local.array(FRAGMENTS, float32)
        product(rO, shared, p, v, M, D, stride, m0, 0, 0, seen)
        store(rO, shared, o, M, D, m0, 0)

    return kernel


def attention_standard(q, k, v, causal, sm_scale):
    sm_scale = check(q, k, v, causal, sm_scale)
    (B, H, M, D), N = q.shape, k.shape[2]
    o = torch.empty_like(q)
    if o.numel() > 0:
        stride = row_stride(N)
        s = torch.empty((B, H, M, stride), dtype=q.dtype, device=q.device).view(-1)
        offset = N - M if causal else N  # query i sees the keys j <= i + offset
        sizes = [*map(np.int32, (M, N, offset, stride))]  # 64-bit loop counters would spill
        tiles_m, tiles_n = -(-M // BLOCK_M), -(-stride // BLOCK_N)
        Q, K, V, O, S = (x.view(torch.int16).view(-1) for x in (q, k, v, o, s))  # moved as bits

        grid, THREADS = (B * H * tiles_m * tiles_n,), BLOCK_M * BLOCK_N // (WARP_M * WARP_N) * 32
        kernel = attention_standard_scores_kernel(q.dtype, D, THREADS)
        args, shared_bytes = (Q, K, S, *sizes, np.float32(sm_scale)), 2 * (BLOCK_M + BLOCK_N) * D
        launch(kernel, grid, (THREADS,), *args, shared_bytes=shared_bytes)

        threads = max(MIN_THREADS, min(stride // (8 * PACKS), MAX_THREADS))
        THREADS = 1 << (threads.bit_length() - 1)
        launch(attention_standard_softmax_kernel(THREADS), (B * H * M,), (THREADS,), s, *sizes)

        grid, THREADS = (B * H * tiles_m,), BLOCK_M * D // (WARP_M * WARP_N) * 32
        stage_bytes = 2 * (BLOCK_M + D) * BLOCK_K
        STAGES = properties(q.device).stages(MAX_STAGES, stage_bytes)
        kernel = attention_standard_output_kernel(q.dtype, D, STAGES, THREADS)
        args, shared_bytes = (S, V, O, *sizes), STAGES * stage_bytes
        launch(kernel, grid, (THREADS,), *args, shared_bytes=shared_bytes)
    return o
