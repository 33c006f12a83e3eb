"""A block owns some keys of a head, for dk and dv, and then, in a second launch, some queries."""

from functools import cache

import numpy as np
import torch
from numba import cuda, float32, int16, int32, int64

from implementations.common.numba_cuda import launch, words
from implementations.instructions.access import global_address, shared_address
from implementations.instructions.async_copy import cp_async_4, cp_async_commit, cp_async_wait
from implementations.instructions.attention import (
    add_product,
    as_operand,
    exp2_approx,
    load_rows,
    multiply_rows,
    seen_keys,
    store_strided_rows,
)
from implementations.phase5_flash_attention.day33_backward_theory.attention_delta_numba import (
    attention_delta,
)
from implementations.phase5_flash_attention.day34_flash_backward.flash_backward import check

# Keys, or queries, that a block owns, those of a step of its walk, and those of a warp, by D.
TILES = {64: (128, 32, 32), 128: (64, 64, 16)}

LOG2_E = float32(1.44269504088896)


@cache  # a closure is Numba's template: the upper-case names are compile-time constants
def flash_backward_dk_dv_kernel(dtype, D, BLOCK_M, BLOCK_N, WARP_N, THREADS):
    FRAGMENTS_N, FRAGMENTS_M = WARP_N // 16, BLOCK_M // 8  # of a warp, down and across
    S, OPERAND = (FRAGMENTS_N, FRAGMENTS_M, 4), (FRAGMENTS_N, FRAGMENTS_M // 2, 4)
    GRADIENT = (FRAGMENTS_N, D // 8, 4)
    STAGE = 2 * BLOCK_M * D  # words of a tile of q, then of one of do
    sK, sV, STAGES = 0, BLOCK_N * D, 2 * BLOCK_N * D
    STATISTICS = (STAGES + 2 * STAGE) // 2  # in floats; of each stage lse and delta
    load_keys, load_queries = load_rows(BLOCK_N, D, THREADS), load_rows(BLOCK_M, D, THREADS)
    multiply = multiply_rows(dtype, BLOCK_N, D, WARP_N, BLOCK_M)
    round_weights = as_operand(dtype, FRAGMENTS_N, FRAGMENTS_M)
    add = add_product(dtype, FRAGMENTS_N, BLOCK_M, D)
    store, cp_async_wait_all = store_strided_rows(dtype, D, WARP_N), cp_async_wait(0)

    assert THREADS >= BLOCK_M, "a thread copies what belongs to a query"

    @cuda.jit(device=True)
    def load(shared, floats, stage, q, lse, delta, do, row0, m0, M):
        tile, statistics = STAGES + stage * STAGE, STATISTICS + stage * 2 * BLOCK_M
        load_queries(shared, tile, q, row0 * D, m0, M)
        load_queries(shared, tile + BLOCK_M * D, do, row0 * D, m0, M)
        i = cuda.threadIdx.x
        if i < BLOCK_M:
            # zeros, as beyond of q and do, add to no sum
            bytes, at = (4, row0 + m0 + i) if m0 + i < M else (0, int64(0))
            to_lse = shared_address(floats, statistics + i)
            to_delta = shared_address(floats, statistics + BLOCK_M + i)
            cp_async_4(to_lse, global_address(lse, at), bytes)
            cp_async_4(to_delta, global_address(delta, at), bytes)

    @cuda.jit(launch_bounds=THREADS)
    def kernel(q, k, v, lse, delta, do, dk, dv, group, M, N, offset, sm_scale):
        shared = cuda.shared.array(0, int16)
        floats = cuda.shared.array(0, float32)  # the same memory
        lane, warp = cuda.threadIdx.x % 32, cuda.threadIdx.x // 32
        tiles_n = int32((N + BLOCK_N - 1) // BLOCK_N)
        head = int32(cuda.blockIdx.x // tiles_n)
        n0 = int32(cuda.blockIdx.x % tiles_n * BLOCK_N)  # the first, which most queries see, first
        start = int64(head) * N * D

        # of each head of q the tiles from that on in which the first query sees the first key
        first = int32(max(n0 - offset, int32(0)) // BLOCK_M * BLOCK_M)
        steps = int32(group * max((M - first + BLOCK_M - 1) // BLOCK_M, 0))
        row0 = int64(head * group) * M  # where the head of the tile begins

        scale = sm_scale * LOG2_E
        rP, rdS = cuda.local.array(S, float32), cuda.local.array(S, float32)
        operand = cuda.local.array(OPERAND, int32)
        rdK, rdV = cuda.local.array(GRADIENT, float32), cuda.local.array(GRADIENT, float32)
        for i in range(FRAGMENTS_N):
            for j in range(D // 8):
                for e in range(4):
                    rdK[i, j, e], rdV[i, j, e] = float32(0), float32(0)
        load_keys(shared, sK, k, start, n0, N)
        load_keys(shared, sV, v, start, n0, N)
        if steps > 0:
            load(shared, floats, int32(0), q, lse, delta, do, row0, first, M)
        cp_async_commit()
        m_next = first
        for step in range(steps):
            cp_async_wait_all()
            cuda.syncthreads()  # the tiles have arrived for all, and all have left the other stage
            m0, m_next = m_next, int32(m_next + BLOCK_M)
            if m_next >= M:
                m_next, row0 = first, row0 + M  # of the next head
            if step + 1 < steps:
                load(shared, floats, int32((step + 1) % 2), q, lse, delta, do, row0, m_next, M)
            cp_async_commit()
            sQ = int32(STAGES + step % 2 * STAGE)
            sLse = int32(STATISTICS + step % 2 * 2 * BLOCK_M + lane % 4 * 2)

            multiply(rP, shared, sK, sQ)  # scores, transposed
            for j in range(FRAGMENTS_M):
                for e in range(4):
                    lse2 = floats[sLse + j * 8 + e % 2] * LOG2_E
                    for i in range(FRAGMENTS_N):
                        rP[i, j, e] = exp2_approx(rP[i, j, e] * scale - lse2)
            if n0 + BLOCK_N - 1 > m0 + offset:  # not all queries see all keys
                # keys are rows of a fragment: a thread holds rows lane // 4 and lane // 4 + 8 of it
                first_key = int32(n0 + warp * WARP_N + lane // 4)
                for i in range(FRAGMENTS_N):
                    for half in range(2):
                        # the column from which on queries see the key
                        key = first_key + i * 16 + half * 8
                        seen = int32(key - offset - m0 - lane % 4 * 2)
                        for j in range(FRAGMENTS_M):
                            for e in range(2):
                                if j * 8 + e < seen:
                                    rP[i, j, 2 * half + e] = float32(0)
            round_weights(operand, rP)
            add(rdV, operand, shared, sQ + BLOCK_M * D)

            multiply(rdS, shared, sV, sQ + BLOCK_M * D)  # dP, transposed
            for j in range(FRAGMENTS_M):
                for e in range(4):
                    of_query = floats[sLse + BLOCK_M + j * 8 + e % 2]
                    for i in range(FRAGMENTS_N):
                        rdS[i, j, e] = rP[i, j, e] * (rdS[i, j, e] - of_query)
            round_weights(operand, rdS)
            add(rdK, operand, shared, sQ)
        cp_async_wait_all()  # of keys that no query sees too
        cuda.syncthreads()  # all copies have arrived: the gradients leave through the place of k, v

        for i in range(FRAGMENTS_N):
            for j in range(D // 8):
                for e in range(4):
                    rdK[i, j, e] *= sm_scale
        store(rdK, shared, sK, dk, start, int64(D), n0, N)
        store(rdV, shared, sV, dv, start, int64(D), n0, N)

    return kernel


@cache
def flash_backward_dq_kernel(dtype, D, BLOCK_M, BLOCK_N, WARP_M, THREADS):
    FRAGMENTS_M, FRAGMENTS_N = WARP_M // 16, BLOCK_N // 8  # of a warp, down and across
    S, OPERAND = (FRAGMENTS_M, FRAGMENTS_N, 4), (FRAGMENTS_M, FRAGMENTS_N // 2, 4)
    GRADIENT = (FRAGMENTS_M, D // 8, 4)
    STAGE = 2 * BLOCK_N * D  # words of a tile of k, then of one of v
    sQ, sdO, STAGES = 0, BLOCK_M * D, 2 * BLOCK_M * D
    load_queries, load_keys = load_rows(BLOCK_M, D, THREADS), load_rows(BLOCK_N, D, THREADS)
    multiply = multiply_rows(dtype, BLOCK_M, D, WARP_M, BLOCK_N)
    round_weights = as_operand(dtype, FRAGMENTS_M, FRAGMENTS_N)
    add = add_product(dtype, FRAGMENTS_M, BLOCK_N, D)
    store, cp_async_wait_all = store_strided_rows(dtype, D, WARP_M), cp_async_wait(0)

    @cuda.jit(device=True)
    def load(shared, stage, k, v, start, n0, N):
        load_keys(shared, STAGES + stage * STAGE, k, start, n0, N)
        load_keys(shared, STAGES + stage * STAGE + BLOCK_N * D, v, start, n0, N)

    @cuda.jit(launch_bounds=THREADS)
    def kernel(q, k, v, lse, delta, do, dq, group, M, N, offset, sm_scale):
        shared = cuda.shared.array(0, int16)
        lane, warp = cuda.threadIdx.x % 32, cuda.threadIdx.x // 32
        tiles_m = int32((M + BLOCK_M - 1) // BLOCK_M)
        head = int32(cuda.blockIdx.x // tiles_m)
        # the last tiles, which see the most keys, come first
        m0 = int32((tiles_m - 1 - cuda.blockIdx.x % tiles_m) * BLOCK_M)
        row0, start = int64(head) * M, int64(head // group) * N * D

        # all queries of the tile see the keys of the first `whole` tiles, some those of `tiles`
        whole = int32(seen_keys(m0, N, offset) // BLOCK_N)
        last_row = min(m0 + BLOCK_M, M) - 1
        tiles = int32((seen_keys(last_row, N, offset) + BLOCK_N - 1) // BLOCK_N)

        # queries are rows of all fragments: a thread holds rows lane // 4 and lane // 4 + 8 of one
        first_row = int32(m0 + warp * WARP_M + lane // 4)
        scale = sm_scale * LOG2_E
        rP, rdS = cuda.local.array(S, float32), cuda.local.array(S, float32)
        operand = cuda.local.array(OPERAND, int32)
        rdQ = cuda.local.array(GRADIENT, float32)
        of_lse = cuda.local.array((FRAGMENTS_M, 2), float32)
        of_delta = cuda.local.array((FRAGMENTS_M, 2), float32)
        load_queries(shared, sQ, q, row0 * D, m0, M)
        load_queries(shared, sdO, do, row0 * D, m0, M)
        if tiles > 0:
            load(shared, int32(0), k, v, start, int32(0), N)
        cp_async_commit()
        for i in range(FRAGMENTS_M):
            for half in range(2):
                row = row0 + min(int32(first_row + i * 16 + half * 8), int32(M - 1))
                of_lse[i, half], of_delta[i, half] = lse[row] * LOG2_E, delta[row]
            for j in range(D // 8):
                for e in range(4):
                    rdQ[i, j, e] = float32(0)
        for tile in range(tiles):
            n0 = int32(tile * BLOCK_N)
            cp_async_wait_all()
            cuda.syncthreads()  # the tiles have arrived for all, and all have left the other stage
            if tile + 1 < tiles:
                load(shared, int32((tile + 1) % 2), k, v, start, n0 + BLOCK_N, N)
            cp_async_commit()
            sK = int32(STAGES + tile % 2 * STAGE)

            multiply(rP, shared, sQ, sK)  # scores
            multiply(rdS, shared, sdO, sK + BLOCK_N * D)  # dP
            for i in range(FRAGMENTS_M):
                for j in range(FRAGMENTS_N):
                    for e in range(4):
                        p = exp2_approx(rP[i, j, e] * scale - of_lse[i, e // 2])
                        rdS[i, j, e] = p * (rdS[i, j, e] - of_delta[i, e // 2])
            if tile >= whole:
                for i in range(FRAGMENTS_M):
                    for half in range(2):
                        row = int32(first_row + i * 16 + half * 8)
                        left = int32(seen_keys(row, N, offset) - n0 - lane % 4 * 2)
                        for j in range(FRAGMENTS_N):
                            for e in range(2):
                                if j * 8 + e >= left:
                                    rdS[i, j, 2 * half + e] = float32(0)
            round_weights(operand, rdS)
            add(rdQ, operand, shared, sK)
        cp_async_wait_all()  # of queries that see no key too
        cuda.syncthreads()  # all copies have arrived: the gradient leaves through the place of q

        for i in range(FRAGMENTS_M):
            for j in range(D // 8):
                for e in range(4):
                    rdQ[i, j, e] *= sm_scale
        store(rdQ, shared, sQ, dq, row0 * D, int64(D), m0, M)

    return kernel


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
    Q, K, V, dO, dQ, dK, dV = (words(x) for x in (q, k, v, do, dq, dk, dv))
    inputs = (Q, K, V, lse.view(-1), delta.view(-1), dO)
    sizes = (*map(np.int32, (H // max(1, H_kv), M, N, offset)), np.float32(sm_scale))
    if dk.numel() > 0:
        kernel = flash_backward_dk_dv_kernel(q.dtype, D, WALKED, OWNED, WARP, THREADS)
        grid, args = (B * H_kv * -(-N // OWNED),), (*inputs, dK, dV, *sizes)
        launch(kernel, grid, (THREADS,), *args, shared_bytes=shared_bytes)
    if dq.numel() > 0:
        kernel = flash_backward_dq_kernel(q.dtype, D, OWNED, WALKED, WARP, THREADS)
        grid, args = (B * H * -(-M // OWNED),), (*inputs, dQ, *sizes)
        launch(kernel, grid, (THREADS,), *args, shared_bytes=shared_bytes)
    return dq, dk, dv
