"""A block owns some queries of a head, and walks twice over the keys that they see."""

from functools import cache

import numpy as np
import torch
from numba import cuda, float32, int16, int32, int64
from numba.cuda import libdevice

from implementations.common.numba_cuda import launch
from implementations.instructions.async_copy import cp_async_commit, cp_async_wait
from implementations.instructions.attention import (
    INF,
    add_product,
    as_operand,
    exp2_approx,
    load_strided_rows,
    multiply_rows,
    reduce_quad,
    seen_keys,
    store_strided_rows,
)
from implementations.instructions.reduce import Max, Sum
from implementations.phase5_flash_attention.day29_flash_attention_theory.flash_v1_forward import (
    check,
)

BLOCK_M = 128  # queries of a tile
BLOCK_N = {64: 64, 128: 32}  # keys of a tile, by D: with more of them registers spill
WARP_M = 32  # queries of a warp: a fragment of k and v serves two of q
THREADS = BLOCK_M // WARP_M * 32

LOG2_E = float32(1.44269504088896)


@cache
def seen_scores(dtype, D, BLOCK_N):
    """`scores(rS, shared, sQ, sK, masked, first_row, n0, N, offset)`: rS = the scores, not scaled,
    of the block's queries and the keys from n0 on, and -inf where a query does not see a key. Of a
    fragment, a thread holds two columns of the rows first_row and first_row + 8. masked: whether
    there may be such pairs."""
    multiply = multiply_rows(dtype, BLOCK_M, D, WARP_M, BLOCK_N)

    @cuda.jit(device=True)
    def scores(rS, shared, sQ, sK, masked, first_row, n0, N, offset):
        multiply(rS, shared, sQ, sK)
        if masked:
            for i in range(WARP_M // 16):
                for half in range(2):
                    row = int32(first_row + i * 16 + half * 8)
                    left = int32(seen_keys(row, N, offset) - n0 - cuda.threadIdx.x % 4 * 2)
                    for j in range(BLOCK_N // 8):
                        for e in range(2):
                            if j * 8 + e >= left:
                                rS[i, j, 2 * half + e] = -INF

    return scores


@cache  # a closure is Numba's template: the upper-case names are compile-time constants
def attention_two_pass_kernel(dtype, D, BLOCK_N):
    FRAGMENTS_M, FRAGMENTS_N = WARP_M // 16, BLOCK_N // 8  # of a warp, down and across
    load_q = load_strided_rows(BLOCK_M, D, THREADS)
    load_k = load_v = load_strided_rows(BLOCK_N, D, THREADS)
    scores = seen_scores(dtype, D, BLOCK_N)
    round_weights = as_operand(dtype, FRAGMENTS_M, FRAGMENTS_N)
    add_values = add_product(dtype, FRAGMENTS_M, BLOCK_N, D)
    store = store_strided_rows(dtype, D, WARP_M)
    quad_max, quad_sum, cp_async_wait_all = reduce_quad(Max), reduce_quad(Sum), cp_async_wait(0)
    S, P, O = (
        (FRAGMENTS_M, FRAGMENTS_N, 4),
        (FRAGMENTS_M, FRAGMENTS_N // 2, 4),
        (FRAGMENTS_M, D // 8, 4),
    )
    sQ, sK, sV = 0, BLOCK_M * D, (BLOCK_M + BLOCK_N) * D  # words of shared memory

    @cuda.jit(launch_bounds=THREADS)
    def kernel(q, k, v, o, M, N, offset, sm_scale):
        shared = cuda.shared.array(0, int16)
        lane, warp = cuda.threadIdx.x % 32, cuda.threadIdx.x // 32
        tiles_m = (M + BLOCK_M - 1) // BLOCK_M
        head = int64(cuda.blockIdx.x // tiles_m)
        # the last tiles, which see the most keys, come first
        m0 = int32((tiles_m - 1 - cuda.blockIdx.x % tiles_m) * BLOCK_M)
        start_q, start_k = head * M * D, head * N * D

        # all queries of the tile see the keys of the first `whole` tiles, some those of `tiles`
        whole = int32(seen_keys(m0, N, offset) // BLOCK_N)
        last_row = min(m0 + BLOCK_M, M) - 1
        tiles = int32((seen_keys(last_row, N, offset) + BLOCK_N - 1) // BLOCK_N)
        first_row = int32(m0 + warp * WARP_M + lane // 4)
        scale = sm_scale * LOG2_E  # exp(sm_scale x) is 2^(scale x)

        # first pass: no values are loaded, and the keys come in turn to their place and to that of
        # the values
        rS, rP = cuda.local.array(S, float32), cuda.local.array(P, int32)
        m_i = cuda.local.array((FRAGMENTS_M, 2), float32)  # of scores as they are, not scaled
        l_i = cuda.local.array((FRAGMENTS_M, 2), float32)
        for i in range(FRAGMENTS_M):
            for half in range(2):
                m_i[i, half], l_i[i, half] = -INF, float32(0)
        load_q(shared, sQ, q, start_q, D, m0, M)
        load_k(shared, sK, k, start_k, D, 0, N)
        cp_async_commit()
        for tile in range(tiles):
            n0 = int32(tile * BLOCK_N)
            cp_async_wait_all()
            cuda.syncthreads()  # the keys have arrived for all, and all have left those before
            if tile + 1 < tiles:
                load_k(shared, sV if tile % 2 == 0 else sK, k, start_k, D, n0 + BLOCK_N, N)
            cp_async_commit()

            sTile = sK if tile % 2 == 0 else sV
            scores(rS, shared, sQ, sTile, tile >= whole, first_row, n0, N, offset)
            # a row's maximum so far, and the sum so far beside it
            for i in range(FRAGMENTS_M):
                for half in range(2):
                    m = m_i[i, half]  # of this thread's columns alone, as l is
                    for j in range(FRAGMENTS_N):
                        pair = libdevice.fmaxf(rS[i, j, 2 * half], rS[i, j, 2 * half + 1])
                        m = libdevice.fmaxf(m, pair)
                    # where no key was seen the maximum is -inf, and -inf - -inf were NaN
                    m_used = float32(0) if m == -INF else m
                    l = l_i[i, half] * exp2_approx((m_i[i, half] - m_used) * scale)
                    for j in range(FRAGMENTS_N):
                        for e in range(2):
                            l += exp2_approx(rS[i, j, 2 * half + e] * scale - m_used * scale)
                    m_i[i, half], l_i[i, half] = m, l

        # a weight is exp(x - m) / l, of the m and l of all keys: 2^(scale x - shift)
        shift = cuda.local.array((FRAGMENTS_M, 2), float32)
        for i in range(FRAGMENTS_M):
            for half in range(2):
                m = quad_max(m_i[i, half])
                m_used = float32(0) if m == -INF else m
                alpha = exp2_approx((m_i[i, half] - m_used) * scale)
                l = quad_sum(l_i[i, half] * alpha)
                # a query that sees no key gets zeros: 2^(-inf - 0)
                sees = seen_keys(int32(first_row + i * 16 + half * 8), N, offset) > 0
                shift[i, half] = m_used * scale + libdevice.log2f(l) if sees else float32(0)

        # second pass: the same scores again, which become weights at once
        rO = cuda.local.array(O, float32)
        for i in range(FRAGMENTS_M):
            for j in range(D // 8):
                for e in range(4):
                    rO[i, j, e] = float32(0)
        cp_async_wait_all()  # the first keys, of a tile of queries that sees none
        cuda.syncthreads()  # all have left the last keys
        load_k(shared, sK, k, start_k, D, 0, N)
        cp_async_commit()
        for tile in range(tiles):
            n0 = int32(tile * BLOCK_N)
            cp_async_wait_all()
            cuda.syncthreads()  # the keys have arrived for all, and all have left the values before
            load_v(shared, sV, v, start_k, D, n0, N)
            cp_async_commit()

            scores(rS, shared, sQ, sK, tile >= whole, first_row, n0, N, offset)

            cp_async_wait_all()
            cuda.syncthreads()  # the values have arrived for all, and all have left the keys
            if tile + 1 < tiles:
                load_k(shared, sK, k, start_k, D, n0 + BLOCK_N, N)
            cp_async_commit()

            for i in range(FRAGMENTS_M):
                for j in range(FRAGMENTS_N):
                    for e in range(4):
                        rS[i, j, e] = exp2_approx(rS[i, j, e] * scale - shift[i, e // 2])
            round_weights(rP, rS)
            add_values(rO, rP, shared, sV)
        cp_async_wait_all()  # of a tile of queries that sees no key too

        cuda.syncthreads()  # all have read q: o leaves through its place
        store(rO, shared, sQ, o, start_q, D, m0, M)

    return kernel


def attention_two_pass(q, k, v, causal, sm_scale):
    sm_scale = check(q, k, v, causal, sm_scale)
    (B, H, M, D), N = q.shape, k.shape[2]
    o = torch.empty_like(q)
    if o.numel() > 0:
        grid, shared_bytes = (B * H * -(-M // BLOCK_M),), 2 * (BLOCK_M + 2 * BLOCK_N[D]) * D
        offset = N - M if causal else N  # query i sees the keys j <= i + offset
        args = [x.view(torch.int16).view(-1) for x in (q, k, v, o)]  # moved as bits
        args += map(np.int32, (M, N, offset))
        kernel = attention_two_pass_kernel(q.dtype, D, BLOCK_N[D])
        launch(kernel, grid, (THREADS,), *args, np.float32(sm_scale), shared_bytes=shared_bytes)
    return o
