"""Each row is held in the registers of lanes, a block or a cluster; a longer one is read twice."""

import math
from functools import cache

import numpy as np
import torch
from numba import cuda, float32, int64

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
from implementations.phase4_advanced_kernels.day22_layer_normalization.layer_norm import check

BLOCK = 128  # threads of a block, unless one row takes more
PER_THREAD = 32  # elements a thread holds, at most
MAX_THREADS = 1024  # threads of a block, at most
CLUSTER_BLOCK = 512  # threads of a cluster's block: of two on a multiprocessor one loads meanwhile
MAX_CLUSTER = 8  # blocks of a cluster, at most


@cache  # a closure is Numba's template: the upper-case names are compile-time constants
def make_sum_lanes(LANES):
    """The function that adds up a value over LANES neighbouring lanes, in each of them."""

    @cuda.jit(device=True)
    def sum_lanes(value):
        delta = LANES // 2
        while delta > 0:
            value += cuda.shfl_xor_sync(0xFFFFFFFF, value, delta)
            delta //= 2
        return value

    return sum_lanes


@cache
def make_sum_row(THREADS, CLUSTER):
    """The function that adds up a value over the threads of a row, in every one of them. `sSums`
    holds it a warp of the row, and is used once: one barrier suffices. `rank`: this block's place
    in the cluster, whose blocks have begun."""
    IN_BLOCK = max(THREADS // 32, 1)
    WARPS = CLUSTER * IN_BLOCK
    sum_in_warp, sum_warps = make_sum_lanes(min(THREADS, 32)), make_sum_lanes(32)

    @cuda.jit(device=True)
    def sum_row(value, sSums, rank):
        value = sum_in_warp(value)
        if THREADS > 32:
            lane, warp = cuda.threadIdx.x % 32, rank * IN_BLOCK + cuda.threadIdx.x // 32
            if CLUSTER > 1:
                # each lane takes one block, so that every block has the sums of all warps
                if lane < CLUSTER:
                    store_remote(shared_address(sSums, warp), lane, value)
                cluster_barrier()  # all is there; a block that ends now is not written to any more
            else:
                if lane == 0:
                    sSums[warp] = value
                cuda.syncthreads()
            # every warp adds up all; neighbours read neighbouring words: no bank conflict
            value = float32(0)
            for w in range(lane, WARPS, 32):
                value += sSums[w]
            value = sum_warps(value)
        return value

    return sum_row


@cache
def make_load_row(VEC, PACKS, STEP):
    """The function that loads the packs of the row's thread `row_tid`, of the `count` elements from
    x[start] on, as fp32. Beyond these they are 0."""

    @cuda.jit(device=True)
    def load_row(v, x, start, row_tid, count):
        for p in range(PACKS):
            n = (p * STEP + row_tid) * VEC  # neighbours read neighbouring packs
            if n < count:
                if VEC > 1:
                    load_pack(x, start + n, v, p * VEC)
                else:
                    v[p] = load(x, start + n)
            else:
                for k in range(VEC):
                    v[p * VEC + k] = float32(0)

    return load_row


@cache
def make_add_deviations(VEC, PACKS, STEP):
    """The function that adds the deviations of a thread's elements from `shift` to s1, and their
    squares to s2; pack by pack, as a long sum would round off more of what it is given."""

    @cuda.jit(device=True)
    def add_deviations(s1, s2, v, shift, row_tid, count):
        for p in range(PACKS):
            if (p * STEP + row_tid) * VEC < count:
                d1, d2 = float32(0), float32(0)
                for k in range(VEC):
                    d = v[p * VEC + k] - shift
                    d1 += d
                    d2 += d * d
                s1 += d1
                s2 += d2
        return s1, s2

    return add_deviations


@cache
def make_store_normalized(VEC, PACKS, STEP):
    """The function that stores y of a thread's elements v, of the `count` elements from y[start]
    on; those of w and b, which all rows share, start at `first` and come from the L1 or the L2. The
    mean is shift + left."""

    @cuda.jit(device=True)
    def store_normalized(v, w, b, first, y, start, shift, left, rstd, row_tid, count):
        w_pack = cuda.local.array(VEC, float32)
        b_pack = cuda.local.array(VEC, float32)
        for p in range(PACKS):
            n = (p * STEP + row_tid) * VEC
            if n < count:
                if VEC > 1:
                    load_pack(w, first + n, w_pack, 0)
                    load_pack(b, first + n, b_pack, 0)
                else:
                    w_pack[0] = load(w, first + n)
                    b_pack[0] = load(b, first + n)
                for k in range(VEC):
                    normal = (v[p * VEC + k] - shift - left) * rstd
                    v[p * VEC + k] = normal * w_pack[k] + b_pack[k]
                if VEC > 1:
                    store_pack(y, start + n, v, p * VEC)
                else:
                    store(y, start + n, v[p])

    return store_normalized


@cache
def layer_norm_kernel(VEC, PACKS, THREADS, ROWS, CLUSTER, LONG):
    """The kernel that reads once a row that the registers hold. The first part of a LONG one gives
    the shift; all parts give the sums, and are then read again, backwards from the last, which is
    held, as the L2 keeps what was read last."""
    HELD, STEP = PACKS * VEC, CLUSTER * THREADS
    PART, WARPS = STEP * HELD, CLUSTER * 32
    load_row, sum_row = make_load_row(VEC, PACKS, STEP), make_sum_row(THREADS, CLUSTER)
    add_deviations = make_add_deviations(VEC, PACKS, STEP)
    store_normalized = make_store_normalized(VEC, PACKS, STEP)

    @cuda.jit(launch_bounds=THREADS * ROWS)
    def kernel(x, w, b, y, mean, rstd, M, N, eps):
        cluster_dims(CLUSTER)
        sSum = cuda.shared.array(WARPS, float32)
        sSum1 = cuda.shared.array(WARPS, float32)
        sSum2 = cuda.shared.array(WARPS, float32)
        row = int64(cuda.blockIdx.x // CLUSTER) * ROWS + cuda.threadIdx.y
        rank = cuda.blockIdx.x % CLUSTER
        row_tid = rank * THREADS + cuda.threadIdx.x  # this thread's place in the row
        last = (N - 1) // PART * PART if LONG else 0  # where the last part starts
        count = N - last if row < M else 0  # threads beyond the last row still take part
        first = PART if LONG else count  # elements of the first part
        start = row * N
        if CLUSTER > 1:
            cluster_barrier_arrive()

        v = cuda.local.array(HELD, float32)
        load_row(v, x, start, row_tid, first)
        total = float32(0)
        for k in range(HELD):
            total += v[k]
        # Shared memory of a block that has not begun may not be written, and that of one that has
        # ended is gone: the others have begun from here on, and sum_row ends with a barrier.
        if CLUSTER > 1:
            cluster_barrier_wait()
        total = sum_row(total, sSum, rank)

        # of rows far from zero x * x would keep no digit of the variance; x - shift loses none
        shift = total / float32(PART if LONG else N)
        s1, s2 = add_deviations(float32(0), float32(0), v, shift, row_tid, first)
        if LONG:
            for n in range(PART, last, PART):
                load_row(v, x, start + n, row_tid, PART)
                s1, s2 = add_deviations(s1, s2, v, shift, row_tid, PART)
            load_row(v, x, start + last, row_tid, count)
            s1, s2 = add_deviations(s1, s2, v, shift, row_tid, count)
        left = sum_row(s1, sSum1, rank) / float32(N)  # of the mean, which was rounded, or of a part
        variance = sum_row(s2, sSum2, rank) / float32(N) - left * left
        rstd_of_row = float32(1) / math.sqrt(variance + eps)
        if row_tid == 0 and row < M:
            # an infinity in a later part is not in the shift, and makes the variance NaN
            mean[row] = variance if math.isnan(variance) else shift + left
            rstd[row] = rstd_of_row

        store_normalized(v, w, b, last, y, start + last, shift, left, rstd_of_row, row_tid, count)
        for n in range(last - PART, -1, -PART):
            load_row(v, x, start + n, row_tid, PART)
            store_normalized(v, w, b, n, y, start + n, shift, left, rstd_of_row, row_tid, PART)

    return kernel


def layer_norm(x, w, b, eps):
    eps = check(x, w, b, eps)
    M, N = x.shape
    y = torch.empty_like(x)
    mean = torch.empty(M, dtype=torch.float32, device=x.device)
    rstd = torch.empty_like(mean)
    if x.numel() > 0:
        VEC = 16 // x.element_size()  # elements of a pack of 16 bytes
        if N % VEC:  # rows do not start at a multiple of 16 bytes
            VEC = 1
        max_cluster = MAX_CLUSTER if properties(x.device).clusters() else 1
        packs = N // VEC
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
        kernel = layer_norm_kernel(VEC, PACKS, THREADS, ROWS, CLUSTER, LONG)
        args = x.view(-1), w, b, y.view(-1), mean, rstd, M, N, np.float32(eps)
        launch(kernel, grid, (THREADS, ROWS), *args)
    return y, mean, rstd
