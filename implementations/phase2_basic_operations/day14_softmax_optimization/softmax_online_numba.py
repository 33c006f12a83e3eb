"""One row a few lanes, a block or a cluster, in their registers; a loop if it is longer still."""

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

BLOCK = 128  # threads a block, unless one row takes more
PER_THREAD = 32  # elements a thread holds, at most
MAX_THREADS = 1024  # of a block
SHARING = 512  # threads of a block in a cluster: two share a multiprocessor, one loads meanwhile
MAX_CLUSTER = 8  # blocks
INF = float32(float("inf"))
# Below every element but -inf, whose exp(x - m) is 0 then: no -inf - -inf where all are.
LOWEST = float32(np.finfo(np.float32).min)


@cuda.jit(device=True)
def merge(m_a, l_a, m_b, l_b):
    """Of two parts of a row their common m, the maximum, and l, the sum of exp(x - m)."""
    m = libdevice.fmaxf(m_a, m_b)
    scale = libdevice.fast_expf(libdevice.fminf(m_a, m_b) - m)
    return m, l_a + l_b * scale if m_a >= m_b else l_b + l_a * scale


@cache  # a closure is Numba's template: the upper-case names are compile-time constants
def merge_lanes(LANES):
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
    """The whole row's m and l, in each of its threads. `rank`: of this block in the cluster."""
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
                cluster_barrier_wait()  # the other blocks have begun
                if lane < CLUSTER:
                    store_remote(shared_address(m_of_warp, warp), lane, m)
                    store_remote(shared_address(l_of_warp, warp), lane, l)
                cluster_barrier()  # all is there; a block that ends now is not written to any more
            else:
                if lane == 0:
                    m_of_warp[warp] = m
                    l_of_warp[warp] = l
                cuda.syncthreads()
            m, l = LOWEST, float32(0)
            for w in range(lane, WARPS, 32):
                m, l = merge(m, l, m_of_warp[w], l_of_warp[w])
            m, l = merge_warps(m, l)
        return m, l

    return row


@cache
def load_packs(VEC, PACKS, STEP):
    """Thread t's packs of the `count` elements from x[start] on as fp32, -inf beyond."""

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
    """v = exp(v - m) for a thread's elements and their own maximum; m and l."""

    @cuda.jit(device=True)
    def thread(v):
        m = LOWEST
        for k in range(HELD):
            m = libdevice.fmaxf(m, v[k])
        l = float32(0)
        for k in range(HELD):
            v[k] = libdevice.fast_expf(v[k] - m)
            l += v[k]
        return m, l

    return thread


@cache
def softmax_online_kernel(VEC, PACKS, THREADS, ROWS, CLUSTER, LONG):
    """What the registers hold is read once. Of a LONG row that is the last part; the others are
    read for m and l, and again, backwards, as the L2 keeps what was read last."""
    HELD, STEP = PACKS * VEC, CLUSTER * THREADS
    PART = STEP * HELD
    load_part, store_part = load_packs(VEC, PACKS, STEP), store_packs(VEC, PACKS, STEP)
    of_thread, of_row = exponentials(HELD), merge_row(THREADS, CLUSTER)

    @cuda.jit(launch_bounds=THREADS * ROWS)
    def kernel(x, out, M, N):
        cluster_dims(CLUSTER)
        row = cuda.blockIdx.x // CLUSTER * ROWS + cuda.threadIdx.y
        rank = cuda.blockIdx.x % CLUSTER
        t = rank * THREADS + cuda.threadIdx.x  # of the row's threads
        last = (N - 1) // PART * PART if LONG else 0  # where the last part starts
        count = N - last if row < M else 0  # threads beyond the last row still take part
        start = int64(row) * N
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
        VEC = 16 // x.element_size()
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
        ROWS = BLOCK // THREADS if THREADS <= 32 else 1  # warps of one row share memory
        grid = (-(-M // ROWS) * CLUSTER,)
        kernel = softmax_online_kernel(VEC, PACKS, THREADS, ROWS, CLUSTER, LONG)
        launch(kernel, grid, (THREADS, ROWS), x.view(-1), out.view(-1), M, N)
    return out
