"""Six launches beside delta's: a block owns a tile of S, a row of P, a tile of dS, dq, dv or dk."""

from functools import cache

import numpy as np
import torch
from numba import cuda, float32, int16, int32, int64
from numba.types import float16

from implementations.common.device import properties
from implementations.common.numba_cuda import launch
from implementations.instructions.access import load
from implementations.instructions.async_copy import cp_async_commit, cp_async_wait
from implementations.instructions.attention import load_rows, multiply_rows, seen_keys
from implementations.instructions.tile_product import load_part, store_tile, swizzle, tile_product
from implementations.instructions.transposed_product import transposed_product
from implementations.phase4_advanced_kernels.day27_standard_attention.attention_standard_numba import (  # noqa: E501
    BLOCK_M,
    BLOCK_N,
    MAX_THREADS,
    MIN_THREADS,
    PACKS,
    attention_standard_scores_kernel,
    attention_standard_softmax_kernel,
)
from implementations.phase5_flash_attention.day33_backward_theory.attention_backward_standard import (  # noqa: E501
    check,
    row_stride,
)
from implementations.phase5_flash_attention.day33_backward_theory.attention_delta_numba import (
    attention_delta,
)

# Keys of a step of the loop that makes dq, queries of one that makes dv or dk: these are of one
# tile of P and dS, all of whose rows are written as far as the last one sees.
BLOCK_K = 64
WARP_M, WARP_N = 64, 32
FRAGMENTS = (WARP_M // 16, WARP_N // 8, 4)
MAX_STAGES = 4


@cuda.jit(device=True)
def scale_tile(rC, scale):
    """In fp32: what is rounded then, once, is the gradient."""
    for i in range(FRAGMENTS[0]):
        for j in range(FRAGMENTS[1]):
            for e in range(4):
                rC[i, j, e] *= scale


@cache  # a closure is Numba's template: the upper-case names are compile-time constants
def attention_backward_standard_ds_kernel(dtype, D, THREADS):
    V_TILE, P_TILE = BLOCK_M * D, (BLOCK_M + BLOCK_N) * D  # where they start, after that of do
    CHUNKS = BLOCK_N // 8  # of a row of P
    T = float16 if dtype == torch.float16 else int16
    load_do, load_v = load_rows(BLOCK_M, D, THREADS), load_rows(BLOCK_N, D, THREADS)
    load_p, swizzle_p = load_part(True, BLOCK_M, BLOCK_N, THREADS // CHUNKS, 1), swizzle(BLOCK_N)
    multiply = multiply_rows(dtype, BLOCK_M, D, WARP_M, WARP_N)
    store = store_tile(dtype, True, BLOCK_M, BLOCK_N, WARP_M, WARP_N)
    cp_async_wait_all = cp_async_wait(0)

    @cuda.jit(launch_bounds=(THREADS, 2))
    def kernel(do, v, p, delta, ds, M, N, offset, stride):
        shared = cuda.shared.array(0, int16)
        weights = cuda.shared.array(0, T)  # the same memory, as numbers
        sDelta = cuda.shared.array(BLOCK_M, float32)
        tid = cuda.threadIdx.x
        lane, warp = tid % 32, tid // 32
        tiles_m, tiles_n = (M + BLOCK_M - 1) // BLOCK_M, (stride + BLOCK_N - 1) // BLOCK_N
        tile = cuda.blockIdx.x
        head = int64(tile // tiles_n // tiles_m)
        m0 = int32(tile // tiles_n % tiles_m * BLOCK_M)
        n0 = int32(tile % tiles_n * BLOCK_N)
        # none of the queries sees any of the keys: nobody will read the tile
        if n0 >= seen_keys(min(m0 + BLOCK_M, M) - 1, N, offset):
            return

        # all at once: the blocks of a multiprocessor load while others multiply
        load_do(shared, 0, do, head * M * D, m0, M)
        load_v(shared, V_TILE, v, head * N * D, n0, N)
        row, col = tid // CHUNKS, tid % CHUNKS * 8
        to = int32(P_TILE + row * BLOCK_N + swizzle_p(row, col))
        src = (head * M + m0 + row) * stride + n0 + col
        load_p(0, shared, to, p, src, int32(M - m0 - row), int32(stride - n0 - col), stride)
        cp_async_commit()
        if tid < BLOCK_M:
            sDelta[tid] = delta[head * M + m0 + tid] if m0 + tid < M else float32(0)
        cp_async_wait_all()
        cuda.syncthreads()  # the rows of all threads have arrived

        rS = cuda.local.array(FRAGMENTS, float32)
        multiply(rS, shared, 0, V_TILE)  # dp

        # of a fragment, lane l holds columns l % 4 * 2 + {0, 1} of rows l // 4 and l // 4 + 8
        first_m = warp % (BLOCK_M // WARP_M) * WARP_M + lane // 4
        first_n = warp // (BLOCK_M // WARP_M) * WARP_N + lane % 4 * 2
        for i in range(FRAGMENTS[0]):
            for h in range(2):
                m = int32(first_m + i * 16 + h * 8)
                delta_m = sDelta[m]
                seen = seen_keys(m0 + m, N, offset) - n0  # keys of the tile
                for j in range(FRAGMENTS[1]):
                    n = int32(first_n + j * 8)
                    at = int32(P_TILE + m * BLOCK_N + swizzle_p(m, n))
                    for e in range(2):
                        # where a key is not seen dp may be no number, and P what was left in memory
                        x = load(weights, at + e) * (rS[i, j, 2 * h + e] - delta_m)
                        rS[i, j, 2 * h + e] = x if n + e < seen else float32(0)

        cuda.syncthreads()  # all have read do, v and P: dS leaves through their place
        store(rS, shared, ds[head * M * stride :], M, stride, m0, n0)

    return kernel


@cache
def attention_backward_standard_dq_kernel(dtype, D, STAGES, THREADS):
    product = tile_product(dtype, True, BLOCK_M, D, BLOCK_K, WARP_M, WARP_N, STAGES)
    store = store_tile(dtype, True, BLOCK_M, D, WARP_M, WARP_N)

    @cuda.jit(launch_bounds=THREADS)
    def kernel(ds, k, dq, M, N, offset, stride, sm_scale):
        shared = cuda.shared.array(0, int16)
        tiles_m = (M + BLOCK_M - 1) // BLOCK_M
        head = int64(cuda.blockIdx.x // tiles_m)
        # the last tiles, which see the most keys, come first
        m0 = int32((tiles_m - 1 - cuda.blockIdx.x % tiles_m) * BLOCK_M)
        seen = seen_keys(min(m0 + BLOCK_M, M) - 1, N, offset)
        ds, k, dq = ds[head * M * stride :], k[head * N * D :], dq[head * M * D :]

        rC = cuda.local.array(FRAGMENTS, float32)
        product(rC, shared, ds, k, M, D, stride, m0, 0, 0, seen)
        scale_tile(rC, sm_scale)
        store(rC, shared, dq, M, D, m0, 0)

    return kernel


@cache
def attention_backward_standard_dkdv_kernel(dtype, D, STAGES, THREADS):
    """dx = scale * weights^T @ x: of P and do it is dv, by a scale of 1, of dS and q dk."""
    product = transposed_product(dtype, BLOCK_N, D, BLOCK_K, WARP_M, WARP_N, STAGES)
    store = store_tile(dtype, True, BLOCK_N, D, WARP_M, WARP_N)

    @cuda.jit(launch_bounds=THREADS)
    def kernel(weights, x, dx, M, N, offset, stride, scale):
        shared = cuda.shared.array(0, int16)
        # where attention is causal the first tiles, which most queries see, come first
        tiles_n = (N + BLOCK_N - 1) // BLOCK_N
        head = int64(cuda.blockIdx.x // tiles_n)
        n0 = int32(cuda.blockIdx.x % tiles_n * BLOCK_N)
        weights, x, dx = weights[head * M * stride :], x[head * M * D :], dx[head * N * D :]

        rC = cuda.local.array(FRAGMENTS, float32)
        product(rC, shared, weights, x, M, N, stride, offset, n0)
        scale_tile(rC, scale)
        store(rC, shared, dx, N, D, n0, 0)

    return kernel


def attention_backward_standard(q, k, v, o, do, causal, sm_scale):
    sm_scale = check(q, k, v, o, do, causal, sm_scale)
    (B, H, M, D), N = q.shape, k.shape[2]
    dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
    if q.numel() == 0 or k.numel() == 0:
        return dq.zero_(), dk.zero_(), dv.zero_()
    stride = row_stride(N)
    p, ds = (torch.empty((B, H, M, stride), dtype=q.dtype, device=q.device) for _ in range(2))
    delta = attention_delta(o, do).view(-1)
    offset = N - M if causal else N  # query i sees the keys j <= i + offset
    sizes = [*map(np.int32, (M, N, offset, stride))]  # 64-bit loop counters would spill
    tiles_m, tiles_n = -(-M // BLOCK_M), -(-stride // BLOCK_N)
    tensors = (q, k, v, do, p, ds, dq, dk, dv)
    Q, K, V, dO, P, dS, dQ, dK, dV = (x.view(torch.int16).view(-1) for x in tensors)  # as bits
    scale, one = np.float32(sm_scale), np.float32(1)

    grid, THREADS = (B * H * tiles_m * tiles_n,), BLOCK_M * BLOCK_N // (WARP_M * WARP_N) * 32
    kernel = attention_standard_scores_kernel(q.dtype, D, THREADS)
    shared_bytes = 2 * (BLOCK_M + BLOCK_N) * D
    launch(kernel, grid, (THREADS,), Q, K, P, *sizes, scale, shared_bytes=shared_bytes)

    threads = max(MIN_THREADS, min(stride // (8 * PACKS), MAX_THREADS))
    ROW_THREADS = 1 << (threads.bit_length() - 1)
    kernel = attention_standard_softmax_kernel(ROW_THREADS)
    launch(kernel, (B * H * M,), (ROW_THREADS,), p.view(-1), *sizes)

    kernel = attention_backward_standard_ds_kernel(q.dtype, D, THREADS)
    shared_bytes += 2 * BLOCK_M * BLOCK_N
    launch(kernel, grid, (THREADS,), dO, V, P, delta, dS, *sizes, shared_bytes=shared_bytes)

    THREADS = BLOCK_M * D // (WARP_M * WARP_N) * 32
    stage_bytes = 2 * (BLOCK_M + D) * BLOCK_K
    STAGES = properties(q.device).stages(MAX_STAGES, stage_bytes)
    shared_bytes = STAGES * stage_bytes
    kernel, grid = (
        attention_backward_standard_dq_kernel(q.dtype, D, STAGES, THREADS),
        B * H * tiles_m,
    )
    launch(kernel, (grid,), (THREADS,), dS, K, dQ, *sizes, scale, shared_bytes=shared_bytes)

    kernel = attention_backward_standard_dkdv_kernel(q.dtype, D, STAGES, THREADS)
    grid = (B * H * -(-N // BLOCK_N),)
    for args in ((P, dO, dV, *sizes, one), (dS, Q, dK, *sizes, scale)):
        launch(kernel, grid, (THREADS,), *args, shared_bytes=shared_bytes)
    return dq, dk, dv
