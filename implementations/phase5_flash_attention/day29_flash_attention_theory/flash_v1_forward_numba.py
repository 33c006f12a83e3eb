"""A block owns a head, and walks over the keys, and for each tile of them over the queries."""

from functools import cache

import numpy as np
import torch
from numba import cuda, float32, int16, int32, int64
from numba.cuda import libdevice

from implementations.common.numba_cuda import launch
from implementations.instructions.access import load_pack, store_pack
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
    BLOCK_M,
    BLOCK_N,
    check,
    padded,
)

WARP_M = 16  # queries of a warp
THREADS = BLOCK_M // WARP_M * 32

LOG2_E = float32(1.44269504088896)


@cache  # a closure is Numba's template: the upper-case names are compile-time constants
def flash_v1_forward_kernel(dtype, D):
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

    @cuda.jit(device=True)
    def zero(rO):
        for i in range(FRAGMENTS_M):
            for j in range(D // 8):
                for e in range(4):
                    rO[i, j, e] = float32(0)

    # acc lies in memory as the threads hold it: what one of them reads, it has written itself, so
    # nobody waits, and neighbours have neighbouring packs
    @cuda.jit(device=True)
    def load_acc(rO, acc, start):
        for i in range(FRAGMENTS_M):
            for j in range(D // 8):
                at = start + ((i * (D // 8) + j) * THREADS + cuda.threadIdx.x) * 4
                load_pack(acc, at, rO[i, j], 0)

    @cuda.jit(device=True)
    def store_acc(rO, acc, start):
        for i in range(FRAGMENTS_M):
            for j in range(D // 8):
                at = start + ((i * (D // 8) + j) * THREADS + cuda.threadIdx.x) * 4
                store_pack(acc, at, rO[i, j], 0)

    @cuda.jit(launch_bounds=THREADS)
    def kernel(q, k, v, o, lse, acc, m_ws, l_ws, M, N, offset, stride, sm_scale):
        shared = cuda.shared.array(0, int16)
        lane, warp = cuda.threadIdx.x % 32, cuda.threadIdx.x // 32
        head = int64(cuda.blockIdx.x)
        start_q, start_k, start = head * M * D, head * N * D, head * stride
        scale = sm_scale * LOG2_E  # exp(sm_scale x) is 2^(scale x)

        # of a fragment, a thread holds two columns of the rows lane // 4 and lane // 4 + 8
        first_row = int32(warp * WARP_M + lane // 4)
        rS, rP = cuda.local.array(S, float32), cuda.local.array(P, int32)
        rO = cuda.local.array(O, float32)
        alpha = cuda.local.array((FRAGMENTS_M, 2), float32)
        seen_by_last = seen_keys(M - 1, N, offset)
        for n in range(0, seen_by_last, BLOCK_N):
            n0 = int32(n)
            cuda.syncthreads()  # all have left the keys and values before, and have written m and l
            load_k(shared, sK, k, start_k, D, n0, N)
            load_v(shared, sV, v, start_k, D, n0, N)
            # the first query that sees any of these keys is n0 - offset
            first = max(n0 - offset, 0) // BLOCK_M * BLOCK_M
            for m in range(first, M, BLOCK_M):
                m0 = int32(m)
                load_q(shared, sQ, q, start_q, D, m0, M)
                cp_async_commit()
                cp_async_wait_all()
                cuda.syncthreads()  # the queries have arrived for all, and the keys and values have

                multiply(rS, shared, sQ, sK)
                cuda.syncthreads()  # all have left the queries

                if n0 + BLOCK_N > seen_keys(m0, N, offset):
                    for i in range(FRAGMENTS_M):
                        for half in range(2):
                            row = int32(m0 + first_row + i * 16 + half * 8)
                            left = int32(seen_keys(row, N, offset) - n0 - lane % 4 * 2)
                            for j in range(FRAGMENTS_N):
                                for e in range(2):
                                    if j * 8 + e >= left:
                                        rS[i, j, 2 * half + e] = -INF
                # a row's maximum so far, and what the sums so far are worth beside it
                for i in range(FRAGMENTS_M):
                    for half in range(2):
                        at = start + int32(m0 + first_row + i * 16 + half * 8)
                        m_i = m_ws[at] if n0 > 0 else -INF
                        m_new = m_i  # of scores as they are, not scaled
                        for j in range(FRAGMENTS_N):
                            pair = libdevice.fmaxf(rS[i, j, 2 * half], rS[i, j, 2 * half + 1])
                            m_new = libdevice.fmaxf(m_new, pair)
                        m_new = quad_max(m_new)
                        # of a row that has seen no key the maximum is -inf, and -inf - -inf were
                        # NaN
                        m_used = float32(0) if m_new == -INF else m_new
                        alpha[i, half] = exp2_approx((m_i - m_used) * scale)
                        l = float32(0)
                        for j in range(FRAGMENTS_N):
                            for e in range(2):
                                p = exp2_approx(rS[i, j, 2 * half + e] * scale - m_used * scale)
                                rS[i, j, 2 * half + e] = p
                                l += p
                        l = quad_sum(l)
                        if lane % 4 == 0:  # the other lanes of the row have read m
                            m_ws[at] = m_new
                            l_ws[at] = l_ws[at] * alpha[i, half] + l if n0 > 0 else l
                round_weights(rP, rS)

                start_acc = (start + m0) * D
                zero(rO)
                if n0 > 0:
                    load_acc(rO, acc, start_acc)
                for i in range(FRAGMENTS_M):
                    for j in range(D // 8):
                        for e in range(4):
                            rO[i, j, e] *= alpha[i, e // 2]
                add_values(rO, rP, shared, sV)
                store_acc(rO, acc, start_acc)

        for m in range(0, M, BLOCK_M):
            m0 = int32(m)
            cuda.syncthreads()  # o leaves through the place of q, and the last m and l are written
            # a query that sees no key gets zeros, and the logarithm of no sum, -inf
            any_key = seen_keys(min(m0 + BLOCK_M, M) - 1, N, offset) > 0
            zero(rO)
            if any_key:
                load_acc(rO, acc, (start + m0) * D)
            for i in range(FRAGMENTS_M):
                for half in range(2):
                    row = int32(m0 + first_row + i * 16 + half * 8)
                    m_i, l_i = -INF, float32(0)
                    if any_key:
                        m_i, l_i = m_ws[start + row], l_ws[start + row]
                    share = float32(1) / l_i if seen_keys(row, N, offset) > 0 else float32(0)
                    for j in range(D // 8):
                        for e in range(2):
                            rO[i, j, 2 * half + e] *= share
                    if row < M and lane % 4 == 0:
                        lse[head * M + row] = m_i * sm_scale + libdevice.logf(l_i)
            store(rO, shared, sQ, o, start_q, D, m0, M)

    return kernel


def flash_v1_forward(q, k, v, causal, sm_scale):
    sm_scale = check(q, k, v, causal, sm_scale)
    (B, H, M, D), N = q.shape, k.shape[2]
    o = torch.empty_like(q)
    lse = torch.empty((B, H, M), dtype=torch.float32, device=q.device)
    if o.numel() > 0:
        rows = padded(M)
        acc = torch.empty((B, H, rows, D), dtype=torch.float32, device=q.device)
        m, l = (torch.empty((B, H, rows), dtype=torch.float32, device=q.device) for _ in range(2))
        offset = N - M if causal else N  # query i sees the keys j <= i + offset
        args = [x.view(torch.int16).view(-1) for x in (q, k, v, o)]  # moved as bits
        args += [x.view(-1) for x in (lse, acc, m, l)]
        args += [*map(np.int32, (M, N, offset, rows)), np.float32(sm_scale)]
        kernel, shared_bytes = flash_v1_forward_kernel(q.dtype, D), 2 * (BLOCK_M + 2 * BLOCK_N) * D
        launch(kernel, (B * H,), (THREADS,), *args, shared_bytes=shared_bytes)
    return o, lse
