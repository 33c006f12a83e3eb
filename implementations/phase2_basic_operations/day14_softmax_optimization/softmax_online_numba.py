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
SHARING = 512  # threads of a block in a cluster: of two on a multiprocessor one loads meanwhile
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
def merge_lanes(LANES):
    """The function that merges m and l of LANES neighbouring lanes, in each of them."""

    @cuda.jit(device=True)
    def lanes(m, l):
        delta = LANES // 2
        while delta > 0:
            m_b = cuda.shfl_xor_sync(0xFFFFFFFF, m, delta)
            l_b = cuda.shfl_xor_sync(0xFFFFFFFF, l, delta)
            m, l = merge(m, l, m_b, l_b)
            delta //= 2
        return m, l

    return lanes


@cache
def merge_row(THREADS, CLUSTER):
    """The function that merges m and l of the whole row, in each of its threads. `rank`: the place
    of this block in the cluster."""
    IN_BLOCK = max(THREADS // 32, 1)
    WARPS = CLUSTER * IN_BLOCK
    merge_in_warp, merge_warps = merge_lanes(min(THREADS, 32)), merge_lanes(32)

    @cuda.jit(device=True)
    def row(m, l, rank):
        m, l = merge_in_warp(m, l)
        if THREADS > 32:
            m_of_warp = cuda.shared.array(WARPS, float32)
            l_of_warp = cuda.shared.array(WARPS, float32)
            lane, warp = cuda.threadIdx.x % 32, rank * IN_BLOCK + cuda.threadIdx.x // 32
            if CLUSTER > 1:
                # Shared memory of a block that has not begun may not be written, and that of one
                # that has ended is gone: one barrier before the stores, and one after them.
                cluster_barrier_wait()  # the other blocks have begun
                # each lane takes one block, so that every block has the pairs of all warps
                if lane < CLUSTER:
                    store_remote(shared_address(m_of_warp, warp), lane, m)
                    store_remote(shared_address(l_of_warp, warp), lane, l)
                cluster_barrier()  # all is there; a block that ends now is not written to any more
            else:
                if lane == 0:
                    m_of_warp[warp] = m
                    l_of_warp[warp] = l
                cuda.syncthreads()
            # every warp's pair is there; neighbours read neighbouring words: no bank conflict
            m, l = LOWEST, float32(0)
            for w in range(lane, WARPS, 32):
                m, l = merge(m, l, m_of_warp[w], l_of_warp[w])
            m, l = merge_warps(m, l)
        return m, l

    return row


@cache
def load_packs(VEC, PACKS, STEP):
    """The function that loads thread t's packs of the `count` elements from x[start] on. Beyond
    these they are -inf, which changes no maximum and adds nothing to a sum of exponentials."""

    @cuda.jit(device=True)
    def packs(v, x, start, t, count):
        for p in range(PACKS):
            n = (p * STEP + t) * VEC  # neighbours read neighbouring packs
            if n < count:
                if VEC > 1:
                    load_pack(x, start + n, v, p * VEC)
                else:
                    v[p] = load(x, start + n)
            else:
                for k in range(VEC):
                    v[p * VEC + k] = -INF

    return packs


@cache
def store_packs(VEC, PACKS, STEP):
    """The function that stores thread t's packs of the `count` elements from out[start] on."""

    @cuda.jit(device=True)
    def packs(v, out, start, t, count):
        for p in range(PACKS):
            n = (p * STEP + t) * VEC
            if n < count:
                if VEC > 1:
                    store_pack(out, start + n, v, p * VEC)
                else:
                    store(out, start + n, v[p])

    return packs


@cache
def exponentials(HELD):
    """The function that sets v to exp(v - m), m a thread's own maximum, and returns its m and l."""

    @cuda.jit(device=True)
    def thread(v):
        m = LOWEST
        for k in range(HELD):
            # fmaxf drops a NaN, whose exponential then makes the sum NaN
            m = libdevice.fmaxf(m, v[k])
        l = float32(0)
        for k in range(HELD):
            v[k] = libdevice.fast_expf(v[k] - m)
            l += v[k]
        return m, l

    return thread


@cache
def softmax_online_kernel(VEC, PACKS, THREADS, ROWS, CLUSTER, LONG):
    """The kernel that reads once what the registers hold. Of a LONG row that is the last part; the
    others are read for m and l, and then again, backwards, as the L2 keeps what was read last."""
    HELD, STEP = PACKS * VEC, CLUSTER * THREADS
    PART = STEP * HELD
    load_part, store_part = load_packs(VEC, PACKS, STEP), store_packs(VEC, PACKS, STEP)
    of_thread, of_row = exponentials(HELD), merge_row(THREADS, CLUSTER)

    @cuda.jit(launch_bounds=THREADS * ROWS)
    def kernel(x, out, M, N):
        cluster_dims(CLUSTER)
        row = cuda.blockIdx.x // CLUSTER * ROWS + cuda.threadIdx.y
        rank = cuda.blockIdx.x % CLUSTER
        t = rank * THREADS + cuda.threadIdx.x  # this thread's place in the row
        last = (N - 1) // PART * PART if LONG else 0  # where the last part starts
        count = N - last if row < M else 0  # threads beyond the last row still take part
        start = int64(row) * N
        # the loads below need no other block, so the wait for this comes after them
        if CLUSTER > 1:
            cluster_barrier_arrive()

        v = cuda.local.array(HELD, float32)
        m, l = LOWEST, float32(0)
        for n in range(0, last, PART):
            load_part(v, x, start + n, t, PART)
            m_t, l_t = of_thread(v)
            m, l = merge(m, l, m_t, l_t)
        load_part(v, x, start + last, t, count)

        m_t, l_t = of_thread(v)
        m, l = of_row(*merge(m, l, m_t, l_t), rank)

        # v has this thread's maximum subtracted: the factor makes that the row's
        scale = libdevice.fast_expf(m_t - m) / l
        for k in range(HELD):
            v[k] *= scale
        store_part(v, out, start + last, t, count)

        for n in range(last - PART, -1, -PART):
            load_part(v, x, start + n, t, PART)
            for k in range(HELD):
                v[k] = libdevice.fast_expf(v[k] - m) / l
            store_part(v, out, start + n, t, PART)

    return kernel


def softmax_online(x):
    check(x)
    M, N = x.shape
    out = torch.empty_like(x)
    if x.numel() > 0:
        VEC = 16 // x.element_size()  # elements of a pack of 16 bytes
        if N % VEC:  # rows do not start at a multiple of 16 bytes
            VEC = 1
        most = MAX_CLUSTER if properties(x.device).clusters() else 1
        packs = -(-N // VEC)
        threads = max(min(packs, 32), -(-N // PER_THREAD))  # of a row
        threads = 1 << (threads - 1).bit_length()
        LONG = threads > most * MAX_THREADS
        if LONG:
            threads = most * SHARING
        CLUSTER = min(threads // SHARING, most) if threads > MAX_THREADS else 1
        THREADS = threads // CLUSTER
        PACKS = min(-(-packs // threads), PER_THREAD // VEC)
        ROWS = BLOCK // THREADS if THREADS <= 32 else 1  # one row's warps share memory
        grid = (-(-M // ROWS) * CLUSTER,)
        kernel = softmax_online_kernel(VEC, PACKS, THREADS, ROWS, CLUSTER, LONG)
        launch(kernel, grid, (THREADS, ROWS), x.view(-1), out.view(-1), M, N)
    return out
