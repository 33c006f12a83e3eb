"""A block owns some queries of a head, and walks over the keys that they see."""

from functools import cache

import numpy as np
import torch
from numba import cuda, float32, int16, int32, int64
from numba.cuda import libdevice

from implementations.common.numba_cuda import launch, words
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
from implementations.phase5_flash_attention.day32_flash_forward.flash_forward import check

# Queries and keys of a tile, and queries of a warp, by D: with two fragments of them a warp reads
# k and v half as often from shared memory. With more keys registers spill.
TILES = {64: (128, 128, 32), 128: (128, 64, 32)}
FEW = (64, 128, 16)  # of up to as many queries, whose time is that of k and v from memory

LOG2_E = float32(1.44269504088896)


@cache  # a closure is Numba's template: the upper-case names are compile-time constants
def flash_forward_kernel(dtype, D, BLOCK_M, BLOCK_N, WARP_M):
    THREADS = BLOCK_M // WARP_M * 32
    FRAGMENTS_M, FRAGMENTS_N = WARP_M // 16, BLOCK_N // 8  # of a warp, down and across
    load_q = load_strided_rows(BLOCK_M, D, THREADS)
    load_k = load_v = load_strided_rows(BLOCK_N, D, THREADS)
    multiply = multiply_rows(dtype, BLOCK_M, D, WARP_M, BLOCK_N)
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
    def kernel(
        q, k, v, o, lse,
        H, group, M, N, offset,
        stride_qb, stride_qh, stride_qm,
        stride_kb, stride_kh, stride_kn,
        stride_vb, stride_vh, stride_vn,
        stride_ob, stride_oh, stride_om,
        sm_scale,
    ):  # fmt: skip
        shared = cuda.shared.array(0, int16)
        lane, warp = cuda.threadIdx.x % 32, cuda.threadIdx.x // 32
        tiles_m = (M + BLOCK_M - 1) // BLOCK_M
        head = int32(cuda.blockIdx.x // tiles_m)
        b, h = int64(head // H), int64(head % H)
        # the last tiles, which see the most keys, come first
        m0 = int32((tiles_m - 1 - cuda.blockIdx.x % tiles_m) * BLOCK_M)
        start_q = b * stride_qb + h * stride_qh
        start_k = b * stride_kb + h // group * stride_kh
        start_v = b * stride_vb + h // group * stride_vh

        # all queries of the tile see the keys of the first `whole` tiles, some those of `tiles`
        whole = int32(seen_keys(m0, N, offset) // BLOCK_N)
        last_row = min(m0 + BLOCK_M, M) - 1
        tiles = int32((seen_keys(last_row, N, offset) + BLOCK_N - 1) // BLOCK_N)

        # of a fragment, a thread holds two columns of the rows lane // 4 and lane // 4 + 8
        first_row = int32(m0 + warp * WARP_M + lane // 4)
        rS, rP = cuda.local.array(S, float32), cuda.local.array(P, int32)
        rO = cuda.local.array(O, float32)
        m_i = cuda.local.array((FRAGMENTS_M, 2), float32)  # of scores as they are, not scaled
        l_i = cuda.local.array((FRAGMENTS_M, 2), float32)
        alpha = cuda.local.array((FRAGMENTS_M, 2), float32)
        for i in range(FRAGMENTS_M):
            for half in range(2):
                m_i[i, half], l_i[i, half] = -INF, float32(0)
            for j in range(D // 8):
                for e in range(4):
                    rO[i, j, e] = float32(0)
        scale = sm_scale * LOG2_E  # exp(sm_scale x) is 2^(scale x)

        load_q(shared, sQ, q, start_q, stride_qm, m0, M)
        load_k(shared, sK, k, start_k, stride_kn, 0, N)
        cp_async_commit()
        for tile in range(tiles):
            n0 = int32(tile * BLOCK_N)
            cp_async_wait_all()
            cuda.syncthreads()  # the keys have arrived for all, and all have left the values before
            load_v(shared, sV, v, start_v, stride_vn, n0, N)
            cp_async_commit()

            multiply(rS, shared, sQ, sK)

            cp_async_wait_all()
            cuda.syncthreads()  # the values have arrived for all, and all have left the keys
            if tile >= whole:
                for i in range(FRAGMENTS_M):
                    for half in range(2):
                        row = int32(first_row + i * 16 + half * 8)
                        left = int32(seen_keys(row, N, offset) - n0 - lane % 4 * 2)
                        for j in range(FRAGMENTS_N):
                            for e in range(2):
                                if j * 8 + e >= left:
                                    rS[i, j, 2 * half + e] = -INF
            # a row's maximum so far, and what the sums so far are worth beside it
            moved = False
            for i in range(FRAGMENTS_M):
                for half in range(2):
                    m = m_i[i, half]
                    for j in range(FRAGMENTS_N):
                        pair = libdevice.fmaxf(rS[i, j, 2 * half], rS[i, j, 2 * half + 1])
                        m = libdevice.fmaxf(m, pair)
                    m = quad_max(m)
                    # of a row that has seen no key the maximum is -inf, and -inf - -inf were NaN
                    m_used = float32(0) if m == -INF else m
                    alpha[i, half] = exp2_approx((m_i[i, half] - m_used) * scale)
                    moved |= alpha[i, half] < float32(1)
                    m_i[i, half] = m
                    l = l_i[i, half] * alpha[i, half]  # of this thread's columns alone
                    for j in range(FRAGMENTS_N):
                        for e in range(2):
                            p = exp2_approx(rS[i, j, 2 * half + e] * scale - m_used * scale)
                            rS[i, j, 2 * half + e] = p
                            l += p
                    l_i[i, half] = l
            if cuda.any_sync(0xFFFFFFFF, moved):  # by the first tiles; later maxima seldom do
                for i in range(FRAGMENTS_M):
                    for j in range(D // 8):
                        for e in range(4):
                            rO[i, j, e] *= alpha[i, e // 2]
            round_weights(rP, rS)
            # not earlier, beside the scores: their registers are those of the addresses
            if tile + 1 < tiles:
                load_k(shared, sK, k, start_k, stride_kn, n0 + BLOCK_N, N)
            cp_async_commit()
            add_values(rO, rP, shared, sV)
        cp_async_wait_all()  # of a tile of queries that sees no key too

        for i in range(FRAGMENTS_M):
            for half in range(2):
                row = int32(first_row + i * 16 + half * 8)
                l = quad_sum(l_i[i, half])
                # a query that sees no key gets zeros, and the logarithm of no sum, -inf
                share = float32(1) / l if seen_keys(row, N, offset) > 0 else float32(0)
                for j in range(D // 8):
                    for e in range(2):
                        rO[i, j, 2 * half + e] *= share
                if row < M and lane % 4 == 0:
                    at = int64(head) * M + row
                    lse[at] = m_i[i, half] * sm_scale + libdevice.logf(l)
        cuda.syncthreads()  # all have read q: o leaves through its place
        store(rO, shared, sQ, o, b * stride_ob + h * stride_oh, stride_om, m0, M)

    return kernel


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
        args = [words(x) for x in (q, k, v, o)] + [lse.view(-1)]
        args += map(np.int32, (H, H // max(1, H_kv), M, N, offset))
        for x in (q, k, v, o):
            args += *x.stride()[:2], np.int32(x.stride(2))
        kernel = flash_forward_kernel(q.dtype, D, BLOCK_M, BLOCK_N, WARP_M)
        launch(kernel, grid, (THREADS,), *args, np.float32(sm_scale), shared_bytes=shared_bytes)
    return o, lse
