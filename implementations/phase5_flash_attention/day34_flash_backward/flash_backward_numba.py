"""A block owns some keys of a head, and adds to dq when its turn at the queries comes."""

from functools import cache

import numpy as np
import torch
from numba import cuda, float32, int16, int32, int64, uint32

from implementations.common.numba_cuda import launch, words
from implementations.instructions.access import (
    add_pack,
    global_address,
    load_pack,
    pack_bf16,
    pack_f16,
    shared_address,
    store_pack,
)
from implementations.instructions.async_copy import (
    cp_async_4,
    cp_async_16,
    cp_async_commit,
    cp_async_wait,
)
from implementations.instructions.attention import (
    add_product,
    as_operand,
    exp2_approx,
    multiply_rows,
    opaque,
    seen_keys,
    store_strided_rows,
)
from implementations.instructions.mma import ldmatrix_x4_trans, mma_m16n8k16
from implementations.instructions.tile_product import swizzle
from implementations.instructions.turnstile import pass_turn, wait_turn
from implementations.phase5_flash_attention.day33_backward_theory.attention_delta_numba import (
    attention_delta,
)
from implementations.phase5_flash_attention.day34_flash_backward.flash_backward import (
    check,
    of_any_strides,
)

# Keys of a block, queries of a step of its walk, and keys of a warp, by D.
TILES = {64: (128, 32, 32), 128: (128, 64, 16)}

LOG2_E = float32(1.44269504088896)
# of a tile of dq a warp makes a part of so many rows; its sums lie in packs of a thread, of which a
# warp moves 512 bytes that lie together
WARP_M = 32


@cache  # a closure is Numba's template: the upper-case names are compile-time constants
def add_transposed(dtype, DEPTH, BLOCK_M, COLS, WARP_M, WARP_N):
    """`add(rC, shared, sA, sB)`: rC += A^T @ B of tiles of DEPTH rows that stand in shared memory
    from words sA and sB on: of each warp its WARP_M x WARP_N part, WARPS_M of them across A's
    BLOCK_M columns. B has COLS columns. A's fragments are transposed on their way into the
    registers, as B's are."""
    FRAGMENTS_M, FRAGMENTS_N, WARPS_M = WARP_M // 16, WARP_N // 8, BLOCK_M // WARP_M
    mma, swizzle_a, swizzle_b = mma_m16n8k16(dtype), swizzle(BLOCK_M), swizzle(COLS)

    @cuda.jit(device=True)
    def add(rC, shared, sA, sB):
        lane, warp = opaque(int32(cuda.threadIdx.x % 32)), cuda.threadIdx.x // 32
        row_a, col_a = lane % 8 + lane // 16 * 8, warp % WARPS_M * WARP_M + lane // 8 % 2 * 8
        row_b, col_b = lane % 16, warp // WARPS_M * WARP_N + lane // 16 * 8
        rA = cuda.local.array((FRAGMENTS_M, 4), int32)
        for k in range(0, DEPTH, 16):
            from_a, from_b = sA + (k + row_a) * BLOCK_M, sB + (k + row_b) * COLS
            for i in range(FRAGMENTS_M):
                at = from_a + swizzle_a(row_a, col_a + i * 16)
                r = ldmatrix_x4_trans(shared_address(shared, at))
                rA[i, 0], rA[i, 1], rA[i, 2], rA[i, 3] = r
            for j in range(0, FRAGMENTS_N, 2):
                at = from_b + swizzle_b(row_b, col_b + j * 8)
                r = ldmatrix_x4_trans(shared_address(shared, at))  # two fragments
                for i in range(FRAGMENTS_M):
                    a = (rA[i, 0], rA[i, 1], rA[i, 2], rA[i, 3])
                    c = mma(a, (r[0], r[1]), (rC[i, j, 0], rC[i, j, 1], rC[i, j, 2], rC[i, j, 3]))
                    rC[i, j, 0], rC[i, j, 1], rC[i, j, 2], rC[i, j, 3] = c
                    n = j + 1
                    c = mma(a, (r[2], r[3]), (rC[i, n, 0], rC[i, n, 1], rC[i, n, 2], rC[i, n, 3]))
                    rC[i, n, 0], rC[i, n, 1], rC[i, n, 2], rC[i, n, 3] = c

    return add


@cache
def load_pair(ROWS, D, THREADS):
    """`load(shared, tiles, a, start_a, stride_a, b, start_b, stride_b, rows)`: starts the copies of
    the first `rows` rows of a and of b, which stand from words start_a and start_b on, stride_a and
    stride_b words apart, to tiles of ROWS rows, one behind the other from word `tiles` on. Of the
    thread's places, which a loop would keep in registers, nothing stays."""
    CHUNKS, swizzle_row = D // 8, swizzle(D)  # chunks of a row
    STEP = THREADS // CHUNKS  # rows at once

    @cuda.jit(device=True)
    def load(shared, tiles, a, start_a, stride_a, b, start_b, stride_b, rows):
        tid = opaque(int32(cuda.threadIdx.x))
        row, col = int32(tid // CHUNKS), int32(tid % CHUNKS * 8)
        to = int32(tiles + row * D + swizzle_row(row, col))
        from_a = start_a + int64(row) * stride_a + col
        from_b = start_b + int64(row) * stride_b + col
        for i in range(0, ROWS, STEP):
            bytes = 16 if row + i < rows else 0
            at_a = global_address(a, from_a + i * stride_a)
            at_b = global_address(b, from_b + i * stride_b)
            cp_async_16(shared_address(shared, to + i * D), at_a, bytes)
            cp_async_16(shared_address(shared, to + (ROWS + i) * D), at_b, bytes)

    return load


@cache
def load_sums(FRAGMENTS):
    """`load(rdQ, sums, at)`: a thread's sums, from its place on, of FRAGMENTS * 8 columns."""
    PACKS = WARP_M // 16 * FRAGMENTS

    @cuda.jit(device=True)
    def load(rdQ, sums, at):
        rPack = cuda.local.array(4, float32)
        for p in range(PACKS):
            load_pack(sums, at + p * 128, rPack, 0)
            for e in range(4):
                rdQ[p // FRAGMENTS, p % FRAGMENTS, e] = rPack[e]

    return load


@cache
def store_queries(dtype, BLOCK_M, FRAGMENTS):
    """`store(rdQ, dq, start, stride_dqm, m0, M, sm_scale, lane, warp)`: the part of warp `warp` of
    the tile of rows m0, m0 + 1, ... of a head's dq, which begins at word `start` and has M."""
    WARPS_M, pack = BLOCK_M // WARP_M, pack_f16 if dtype == torch.float16 else pack_bf16

    @cuda.jit(device=True)
    def store(rdQ, dq, start, stride_dqm, m0, M, sm_scale, lane, warp):
        row = int32(m0 + warp % WARPS_M * WARP_M + lane // 4)
        col = warp // WARPS_M * FRAGMENTS * 8 + lane % 4 * 2
        to = start + int64(row) * stride_dqm + col
        for i in range(WARP_M // 16):
            for half in range(2):
                if row + i * 16 + half * 8 < M:
                    for j in range(FRAGMENTS):
                        low = rdQ[i, j, 2 * half] * sm_scale
                        high = rdQ[i, j, 2 * half + 1] * sm_scale
                        at = to + (i * 16 + half * 8) * stride_dqm + j * 8
                        dq[at // 2] = pack(low, high)  # two elements a word

    return store


@cache
def flash_backward_kernel(dtype, D, BLOCK_M, BLOCK_N, WARP_N, THREADS, IN_TURN):
    FRAGMENTS_N, FRAGMENTS_M = WARP_N // 16, BLOCK_M // 8  # of a warp, down and across
    S, OPERAND = (FRAGMENTS_N, FRAGMENTS_M, 4), (FRAGMENTS_N, FRAGMENTS_M // 2, 4)
    GRADIENT = (FRAGMENTS_N, D // 8, 4)
    STAGE = 2 * BLOCK_M * D  # words of a tile of q, then of one of do
    sK, sV, STAGES = 0, BLOCK_N * D, 2 * BLOCK_N * D
    SDS = STAGES + 2 * STAGE  # transposed: BLOCK_N rows
    STATISTICS = (SDS + BLOCK_N * BLOCK_M) // 2  # in floats; of each stage lse and delta
    WARP_D = BLOCK_M * D // THREADS  # columns of dq of a warp
    FRAGMENTS_D = WARP_D // 8
    PART, PACKS = (WARP_M // 16, FRAGMENTS_D, 4), WARP_M // 16 * FRAGMENTS_D
    load_keys, load_queries = load_pair(BLOCK_N, D, THREADS), load_pair(BLOCK_M, D, THREADS)
    multiply = multiply_rows(dtype, BLOCK_N, D, WARP_N, BLOCK_M)
    round_weights = as_operand(dtype, FRAGMENTS_N, FRAGMENTS_M)
    add = add_product(dtype, FRAGMENTS_N, BLOCK_M, D)
    add_dq = add_transposed(dtype, BLOCK_N, BLOCK_M, D, WARP_M, WARP_D)
    load_dq, store_dq = load_sums(FRAGMENTS_D), store_queries(dtype, BLOCK_M, FRAGMENTS_D)
    swizzle_ds, cp_async_wait_all = swizzle(BLOCK_M), cp_async_wait(0)
    store = store_strided_rows(dtype, D, WARP_N)

    assert THREADS >= BLOCK_M, "a thread copies what belongs to a query"

    @cuda.jit(device=True)
    def load(
        shared, floats, stage, q, start_q, stride_qm, do, start_do, stride_dom, lse, delta, row0,
        m0, M,
    ):  # fmt: skip
        tiles, statistics = int32(STAGES + stage * STAGE), STATISTICS + stage * 2 * BLOCK_M
        load_queries(shared, tiles, q, start_q, stride_qm, do, start_do, stride_dom, M - m0)
        i = opaque(int32(cuda.threadIdx.x))  # not kept from step to step
        if i < BLOCK_M:
            # zeros, as beyond of q and do, add to no sum
            bytes, at = (4, row0 + m0 + i) if m0 + i < M else (0, int64(0))
            to_lse = shared_address(floats, statistics + i)
            to_delta = shared_address(floats, statistics + BLOCK_M + i)
            cp_async_4(to_lse, global_address(lse, at), bytes)
            cp_async_4(to_delta, global_address(delta, at), bytes)

    @cuda.jit(launch_bounds=THREADS)
    def kernel(
        q, k, v, lse, delta, do, dq, dk, dv, sums, turns,
        H, group, M, N, offset,
        stride_qb, stride_qh, stride_qm,
        stride_kb, stride_kh, stride_kn,
        stride_vb, stride_vh, stride_vn,
        stride_dob, stride_doh, stride_dom,
        stride_dqb, stride_dqh, stride_dqm,
        stride_dkb, stride_dkh, stride_dkn,
        stride_dvb, stride_dvh, stride_dvn,
        sm_scale,
    ):  # fmt: skip
        shared = cuda.shared.array(0, int16)
        floats, pairs = cuda.shared.array(0, float32), cuda.shared.array(0, int32)  # the same
        warp = cuda.threadIdx.x // 32
        tiles_m = int32((M + BLOCK_M - 1) // BLOCK_M)
        tiles_n = int32((N + BLOCK_N - 1) // BLOCK_N)
        # the first keys, which most queries see and which are added first, come first; blocks that
        # run at once belong to many heads, and few of them wait for each other
        heads = int32(cuda.gridDim.x // tiles_n)
        head, turn = int32(cuda.blockIdx.x % heads), int32(cuda.blockIdx.x // heads)
        n0, b, h = int32(turn * BLOCK_N), int64(head // H), int32(head % H)
        start_q = b * stride_qb + h * group * stride_qh  # of the first of its heads
        start_do = b * stride_dob + h * group * stride_doh
        start_dq = b * stride_dqb + h * group * stride_dqh
        start_k = b * stride_kb + h * stride_kh + int64(n0) * stride_kn
        start_v = b * stride_vb + h * stride_vh + int64(n0) * stride_vn

        # of each head of q the tiles from that on in which the first query sees the first key
        first_query = int32(max(n0 - offset, int32(0)))
        first = int32(first_query // BLOCK_M * BLOCK_M)
        # of the tile that is loaded next
        from_q = start_q + int64(first) * stride_qm
        from_do = start_do + int64(first) * stride_dom

        scale = sm_scale * LOG2_E
        rP, rdS = cuda.local.array(S, float32), cuda.local.array(S, float32)
        operand = cuda.local.array(OPERAND, int32)
        rdK, rdV = cuda.local.array(GRADIENT, float32), cuda.local.array(GRADIENT, float32)
        rdQ, rPack = cuda.local.array(PART, float32), cuda.local.array(4, float32)
        for i in range(FRAGMENTS_N):
            for j in range(D // 8):
                for e in range(4):
                    rdK[i, j, e], rdV[i, j, e] = float32(0), float32(0)
        # of the tile of queries: its head among q's, its rows, and which of all it is
        g, m0, tile = int32(0) if first_query < M else group, first, int32(-1)
        load_keys(shared, sK, k, start_k, stride_kn, v, start_v, stride_vn, N - n0)
        if g < group:
            load(
                *(shared, floats, int32(0), q, from_q, stride_qm, do, from_do, stride_dom),
                *(lse, delta, int64(head * group + g) * M, m0, M),
            )
        cp_async_commit()
        step = int32(0)
        while g < group:
            cp_async_wait_all()
            cuda.syncthreads()  # the tiles have arrived for all, and all have left the other stage
            if IN_TURN and tile >= 0 and cuda.threadIdx.x == 0:
                pass_turn(global_address(turns, int64(tile)), turn + int32(1))  # all have added
            g_next, m_next = g, int32(m0 + BLOCK_M)
            from_q += int64(BLOCK_M) * stride_qm
            from_do += int64(BLOCK_M) * stride_dom
            if m_next >= M:
                from_q += stride_qh - int64(m_next - first) * stride_qm
                from_do += stride_doh - int64(m_next - first) * stride_dom
                g_next, m_next = int32(g + 1), first
            if not IN_TURN:  # made anew: to go with the tile takes more registers than there are
                from_q = start_q + g_next * stride_qh + int64(m_next) * stride_qm
                from_do = start_do + g_next * stride_doh + int64(m_next) * stride_dom
            if g_next < group:
                stage = int32((step + 1) % 2)
                load(
                    *(shared, floats, stage, q, from_q, stride_qm, do, from_do, stride_dom),
                    *(lse, delta, int64(head * group + g_next) * M, m_next, M),
                )
            cp_async_commit()
            # not kept from step to step, nor is what follows from it
            lane = opaque(int32(cuda.threadIdx.x % 32))
            sQ = int32(STAGES + step % 2 * STAGE)
            sLse = int32(STATISTICS + step % 2 * 2 * BLOCK_M + lane % 4 * 2)

            multiply(rP, shared, sK, sQ)  # scores, transposed
            for j in range(FRAGMENTS_M):
                for e in range(4):
                    lse2 = floats[sLse + j * 8 + e % 2] * LOG2_E
                    for i in range(FRAGMENTS_N):
                        rP[i, j, e] = exp2_approx(rP[i, j, e] * scale - lse2)
            if n0 + BLOCK_N > seen_keys(m0, N, offset):  # not all queries see all keys
                # keys are rows of a fragment: a thread holds rows lane // 4 and lane // 4 + 8 of it
                first_key = int32(n0 + warp * WARP_N + lane // 4)
                for i in range(FRAGMENTS_N):
                    for half in range(2):
                        # the column from which on queries see the key; none one beyond the last
                        key = int32(first_key + i * 16 + half * 8)
                        seen = int32(key - offset - m0 - lane % 4 * 2 if key < N else BLOCK_M)
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
            row0 = warp * WARP_N + lane // 4
            for i in range(FRAGMENTS_N):
                for j in range(FRAGMENTS_M // 2):
                    for e in range(4):  # eight rows of four lanes lie in different banks
                        row, col = row0 + i * 16 + e % 2 * 8, j * 16 + e // 2 * 8 + lane % 4 * 2
                        at = uint32(SDS + row * BLOCK_M + swizzle_ds(row, col))
                        pairs[at // uint32(2)] = operand[i, j, e]

            tile = int32((head * group + g) * tiles_m + m0 // BLOCK_M)
            # not the thread that passes turns, whose fence takes as long
            if IN_TURN and cuda.threadIdx.x == THREADS - 1:
                wait_turn(global_address(turns, int64(tile)), turn)
            cuda.syncthreads()  # ds has been written, and it is the block's turn
            sum = int64(tile) * (BLOCK_M * D) + (warp * PACKS * 32 + lane) * 4
            for i in range(WARP_M // 16):
                for j in range(FRAGMENTS_D):
                    for e in range(4):
                        rdQ[i, j, e] = float32(0)
            if IN_TURN and turn > 0:
                load_dq(rdQ, sums, sum)
            add(rdK, operand, shared, sQ)  # while the sums are on their way
            add_dq(rdQ, shared, SDS, sK)
            if not IN_TURN or n0 + BLOCK_N < seen_keys(min(m0 + BLOCK_M, M) - 1, N, offset):
                for p in range(PACKS):
                    for e in range(4):
                        rPack[e] = rdQ[p // FRAGMENTS_D, p % FRAGMENTS_D, e]
                    if IN_TURN:
                        store_pack(sums, sum + p * 128, rPack, 0)
                    else:
                        c = (rPack[0], rPack[1], rPack[2], rPack[3])
                        add_pack(global_address(sums, sum + p * 128), c)
            else:  # no query of the tile sees a later key
                start = start_dq + g * stride_dqh
                store_dq(rdQ, dq, start, stride_dqm, m0, M, sm_scale, lane, warp)
            g, m0, step = g_next, m_next, int32(step + 1)
        cp_async_wait_all()  # of keys that no query sees too
        cuda.syncthreads()  # all copies have arrived: the gradients leave through the place of k, v
        if IN_TURN and tile >= 0 and cuda.threadIdx.x == 0:
            pass_turn(global_address(turns, int64(tile)), turn + int32(1))

        for i in range(FRAGMENTS_N):
            for j in range(D // 8):
                for e in range(4):
                    rdK[i, j, e] *= sm_scale
        store(rdK, shared, sK, dk, b * stride_dkb + h * stride_dkh, stride_dkn, n0, N)
        store(rdV, shared, sV, dv, b * stride_dvb + h * stride_dvh, stride_dvn, n0, N)

    return kernel


@cache
def round_sums_kernel(dtype, D, BLOCK_M, THREADS):
    FRAGMENTS = BLOCK_M * D // THREADS // 8
    PART, PACKS = (WARP_M // 16, FRAGMENTS, 4), WARP_M // 16 * FRAGMENTS
    load, store = load_sums(FRAGMENTS), store_queries(dtype, BLOCK_M, FRAGMENTS)

    @cuda.jit(launch_bounds=THREADS)
    def kernel(sums, dq, H, M, stride_dqb, stride_dqh, stride_dqm, sm_scale):
        lane, warp = int32(cuda.threadIdx.x % 32), int32(cuda.threadIdx.x // 32)
        tiles_m = int32((M + BLOCK_M - 1) // BLOCK_M)
        tile = cuda.blockIdx.x
        head, m0 = int32(tile // tiles_m), int32(tile % tiles_m * BLOCK_M)
        start = int64(head // H) * stride_dqb + head % H * stride_dqh
        rdQ = cuda.local.array(PART, float32)
        load(rdQ, sums, int64(tile) * (BLOCK_M * D) + (warp * PACKS * 32 + lane) * 4)
        store(rdQ, dq, start, stride_dqm, m0, M, sm_scale, lane, warp)

    return kernel


def flash_backward(q, k, v, o, lse, do, causal, sm_scale):
    return gradients(q, k, v, o, lse, do, causal, sm_scale, in_turn=True)


def flash_backward_arrival(q, k, v, o, lse, do, causal, sm_scale):
    """The same, but blocks add to dq as they arrive: its bits change from run to run."""
    return gradients(q, k, v, o, lse, do, causal, sm_scale, in_turn=False)


def gradients(q, k, v, o, lse, do, causal, sm_scale, in_turn):
    sm_scale = check(q, k, v, o, lse, do, causal, sm_scale)
    (B, H, M, D), (_, H_kv, N, _) = q.shape, k.shape
    dq, dk, dv = map(torch.empty_like, (q, k, v))
    if N == 0 or causal and M > N:  # nothing is added to queries that see no key
        dq.zero_()
    if dk.numel() == 0:
        return dq, dk, dv
    delta = of_any_strides(attention_delta, o, do)
    offset = N - M if causal else N  # query i sees the keys j <= i + offset

    BLOCK_N, BLOCK_M, WARP_N = TILES[D]
    THREADS = BLOCK_N // WARP_N * 32
    # tiles of k and v, two stages of q and do and of lse and delta, a tile of ds
    shared_bytes = 4 * D * (BLOCK_N + 2 * BLOCK_M) + 16 * BLOCK_M + 2 * BLOCK_N * BLOCK_M
    tiles = B * H * -(-M // BLOCK_M)
    IN_TURN = in_turn or N <= BLOCK_N  # the only block of keys has its turn at once
    sums = lse.new_empty(tiles * BLOCK_M * D if N > BLOCK_N else 0)
    if not IN_TURN:
        sums.zero_()
    turns = lse.new_zeros(tiles, dtype=torch.int32)
    Q, K, V, dO, dQ, dK, dV = (words(x) for x in (q, k, v, do, dq, dk, dv))
    dQ = dQ.view(torch.int32)
    strides = []
    for x in (q, k, v, do, dq, dk, dv):
        strides += *x.stride()[:2], np.int32(x.stride(2))
    kernel = flash_backward_kernel(q.dtype, D, BLOCK_M, BLOCK_N, WARP_N, THREADS, IN_TURN)
    launch(
        *(kernel, (B * H_kv * -(-N // BLOCK_N),), (THREADS,)),
        *(Q, K, V, lse.view(-1), delta.view(-1), dO, dQ, dK, dV, sums, turns),
        *(*map(np.int32, (H_kv, H // H_kv, M, N, offset)), *strides, np.float32(sm_scale)),
        shared_bytes=shared_bytes,
    )
    if not IN_TURN:
        strides = *dq.stride()[:2], np.int32(dq.stride(2))
        launch(
            *(round_sums_kernel(q.dtype, D, BLOCK_M, THREADS), (tiles,), (THREADS,), sums, dQ),
            *(np.int32(H), np.int32(M), *strides, np.float32(sm_scale)),
        )
    return dq, dk, dv
