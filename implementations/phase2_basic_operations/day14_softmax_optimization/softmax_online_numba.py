"""Each row is held in the registers of lanes, a block or a cluster; a longer one is read twice."""

from functools import cache

import numpy as np
import torch
from numba import cuda, float32, int64
from numba.cuda import libdevice

from implementations.common.device import properties
from implementations.common.numba_cuda import launch
from implementations.instructions.access import load, load_pack, shared_address, store, store_pack
from implementations.instructions.cluster import (
    cluster_barrier,
    cluster_barrier_arrive,
    cluster_barrier_wait,
    cluster_dims,
    store_remote,
)
from implementations.phase2_basic_operations.day14_softmax_optimization.softmax_online import check

BLOCK = 128  # threads of a block, unless one row takes more
PER_THREAD = 32  # elements a thread holds, at most
MAX_THREADS = 1024  # threads of a block, at most
CLUSTER_BLOCK = 512  # threads of a cluster's block: of two on a multiprocessor one loads meanwhile
MAX_CLUSTER = 8  # blocks of a cluster, at most
INF = float32(float("inf"))
# No element but -inf is below it. Where it is the maximum, all elements are -inf and exp(x - m) is
# 0; with -inf as the maximum, -inf - -inf would be NaN.
LOWEST = float32(np.finfo(np.float32).min)


@cuda.jit(device=True)
def merge(m_a, l_a, m_b, l_b):
    """The common m, the maximum, and l, the sum of exp(x - m), of two parts of a row. The part with
    the larger maximum keeps its l as it is, so one exponential is enough."""
    m = libdevice.fmaxf(m_a, m_b)
    scale = libdevice.fast_expf(libdevice.fminf(m_a, m_b) - m)
    return m, l_a + l_b * scale if m_a >= m_b else l_b + l_a * scale


@cache  # a closure is Numba's template: the upper-case names are compile-time constants
def make_merge_lanes(LANES):
    """The function that merges m and l of LANES neighbouring lanes, in each of them."""

    @cuda.jit(device=True)
    def merge_lanes(m, l):
        delta = LANES // 2
        while delta > 0:
            m_b = cuda.shfl_xor_sync(0xFFFFFFFF, m, delta)
            l_b = cuda.shfl_xor_sync(0xFFFFFFFF, l, delta)
            m, l = merge(m, l, m_b, l_b)
            delta //= 2
        return m, l

    return merge_lanes


@cache
def make_merge_row(THREADS, CLUSTER):
    """The function that merges m and l of the whole row, in each of its threads. `rank`: the place
    of this block in the cluster."""
    IN_BLOCK = max(THREADS // 32, 1)
    WARPS = CLUSTER * IN_BLOCK
    merge_in_warp, merge_warps = make_merge_lanes(min(THREADS, 32)), make_merge_lanes(32)

    @cuda.jit(device=True)
    def merge_row(m, l, rank):
        m, l = merge_in_warp(m, l)
        if THREADS > 32:
            sM = cuda.shared.array(WARPS, float32)
            sL = cuda.shared.array(WARPS, float32)
            lane, warp = cuda.threadIdx.x % 32, rank * IN_BLOCK + cuda.threadIdx.x // 32
            if CLUSTER > 1:
                # Shared memory of a block that has not begun may not be written, and that of one
                # that has ended is gone: one barrier before the stores, and one after them.
                cluster_barrier_wait()  # the other blocks have begun
                # each lane takes one block, so that every block has the pairs of all warps
                if lane < CLUSTER:
                    store_remote(shared_address(sM, warp), lane, m)
                    store_remote(shared_address(sL, warp), lane, l)
                cluster_barrier()  # all is there; a block that ends now is not written to any more
            else:
                if lane == 0:
                    sM[warp] = m
                    sL[warp] = l
                cuda.syncthreads()
            # every warp's pair is there; neighbours read neighbouring words: no bank conflict
            m, l = LOWEST, float32(0)
            for w in range(lane, WARPS, 32):
                m, l = merge(m, l, sM[w], sL[w])
            m, l = merge_warps(m, l)
        return m, l

    return merge_row


@cache
def make_load_packs(VEC, PACKS, STEP):
    """The function that loads the packs of the row's thread `row_tid`, of the `count` elements from
    x[start] on. Beyond these they are -inf, which changes no maximum and adds nothing to a sum of
    exponentials."""

    @cuda.jit(device=True)
    def load_packs(v, x, start, row_tid, count):
        for p in range(PACKS):
            n = (p * STEP + row_tid) * VEC  # neighbours read neighbouring packs
            if n < count:
                if VEC > 1:
                    load_pack(x, start + n, v, p * VEC)
                else:
                    v[p] = load(x, start + n)
            else:
                for k in range(VEC):
                    v[p * VEC + k] = -INF

    return load_packs


@cache
def make_store_packs(VEC, PACKS, STEP):
    """The function that stores the packs of the row's thread `row_tid`, of the `count` elements
    from out[start] on."""

    @cuda.jit(device=True)
    def store_packs(v, out, start, row_tid, count):
        for p in range(PACKS):
            n = (p * STEP + row_tid) * VEC
            if n < count:
                if VEC > 1:
                    store_pack(out, start + n, v, p * VEC)
                else:
                    store(out, start + n, v[p])

    return store_packs


@cache
def make_exponentials(HELD):
    """The function that sets v to exp(v - m), m a thread's own maximum, and returns its m and l."""

    @cuda.jit(device=True)
    def exponentials(v):
        m = LOWEST
        for k in range(HELD):
            # fmaxf drops a NaN, whose exponential then makes the sum NaN
            m = libdevice.fmaxf(m, v[k])
        l = float32(0)
        for k in range(HELD):
            v[k] = libdevice.fast_expf(v[k] - m)
            l += v[k]
        return m, l

    return exponentials


@cache
def softmax_online_kernel(VEC, PACKS, THREADS, ROWS, CLUSTER, LONG):
    """The kernel that reads once what the registers hold. Of a LONG row that is the last part; the
    others are read for m and l, and then again, backwards, as the L2 keeps what was read last."""
    HELD, STEP = PACKS * VEC, CLUSTER * THREADS
    PART = STEP * HELD
    load_packs, store_packs = make_load_packs(VEC, PACKS, STEP), make_store_packs(VEC, PACKS, STEP)
    exponentials, merge_row = make_exponentials(HELD), make_merge_row(THREADS, CLUSTER)

    @cuda.jit(launch_bounds=THREADS * ROWS)
    def kernel(x, out, M, N):
        cluster_dims(CLUSTER)
        row = cuda.blockIdx.x // CLUSTER * ROWS + cuda.threadIdx.y
        rank = cuda.blockIdx.x % CLUSTER
        row_tid = rank * THREADS + cuda.threadIdx.x  # this thread's place in the row
        last = (N - 1) // PART * PART if LONG else 0  # where the last part starts
        count = N - last if row < M else 0  # threads beyond the last row still take part
        start = int64(row) * N
        # the loads below need no other block, so the wait for this comes after them
        if CLUSTER > 1:
            cluster_barrier_arrive()

        v = cuda.local.array(HELD, float32)
        m_of_thread, l_of_thread = LOWEST, float32(0)
        for n in range(0, last, PART):
            load_packs(v, x, start + n, row_tid, PART)
            m_held, l_held = exponentials(v)
            m_of_thread, l_of_thread = merge(m_of_thread, l_of_thread, m_held, l_held)
        load_packs(v, x, start + last, row_tid, count)

        m_held, l_held = exponentials(v)
        m_of_row, l_of_row = merge_row(*merge(m_of_thread, l_of_thread, m_held, l_held), rank)

        # v has this thread's maximum subtracted: the factor makes that the row's
        scale = libdevice.fast_expf(m_held - m_of_row) / l_of_row
        for k in range(HELD):
            v[k] *= scale
        store_packs(v, out, start + last, row_tid, count)

        for n in range(last - PART, -1, -PART):
            load_packs(v, x, start + n, row_tid, PART)
            for k in range(HELD):
                v[k] = libdevice.fast_expf(v[k] - m_of_row) / l_of_row
            store_packs(v, out, start + n, row_tid, PART)

    return kernel


def softmax_online(x):
    check(x)
    M, N = x.shape
    out = torch.empty_like(x)
    if x.numel() > 0:
        VEC = 16 // x.element_size()  # elements of a pack of 16 bytes
        if N % VEC:  # rows do not start at a multiple of 16 bytes
            VEC = 1
        max_cluster = MAX_CLUSTER if properties(x.device).clusters() else 1
        packs = -(-N // VEC)
        row_threads = max(min(packs, 32), -(-N // PER_THREAD))
        row_threads = 1 << (row_threads - 1).bit_length()
        LONG = row_threads > max_cluster * MAX_THREADS
        if LONG:
            row_threads = max_cluster * CLUSTER_BLOCK
        CLUSTER = min(row_threads // CLUSTER_BLOCK, max_cluster) if row_threads > MAX_THREADS else 1
        THREADS = row_threads // CLUSTER
        PACKS = min(-(-packs // row_threads), PER_THREAD // VEC)
        ROWS = BLOCK // THREADS if THREADS <= 32 else 1  # one row's warps share memory
        grid = (-(-M // ROWS) * CLUSTER,)
        kernel = softmax_online_kernel(VEC, PACKS, THREADS, ROWS, CLUSTER, LONG)
        launch(kernel, grid, (THREADS, ROWS), x.view(-1), out.view(-1), M, N)
    return out
