"""Each row is held in the registers of lanes, a block or a cluster; a longer one is read twice."""

import math
from functools import cache

import numpy as np
import torch
from numba import cuda, float32, int64

from implementations.common.device import properties
from implementations.common.numba_cuda import launch
from implementations.instructions.cluster import (
    cluster_barrier_arrive,
    cluster_barrier_wait,
    cluster_dims,
)
from implementations.instructions.row_norm import (
    make_add_deviations,
    make_load_row,
    make_store_normalized,
    make_sum_row,
)
from implementations.phase4_advanced_kernels.day22_layer_normalization.layer_norm import check

BLOCK = 128  # threads of a block, unless one row takes more
PER_THREAD = 32  # elements a thread holds, at most
MAX_THREADS = 1024  # threads of a block, at most
CLUSTER_BLOCK = 512  # threads of a cluster's block: of two on a multiprocessor one loads meanwhile
MAX_CLUSTER = 8  # blocks of a cluster, at most


@cache  # a closure is Numba's template: the upper-case names are compile-time constants
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


def dealt(x, max_threads=MAX_THREADS):
    """The grid, the block and the constants by which a matrix's rows get their threads, of which a
    block has max_threads at most."""
    M, N = x.shape
    VEC = 16 // x.element_size()  # elements of a pack of 16 bytes
    if N % VEC:  # rows do not start at a multiple of 16 bytes
        VEC = 1
    max_cluster = MAX_CLUSTER if properties(x.device).clusters() else 1
    packs = N // VEC
    row_threads = max(min(packs, 32), -(-N // PER_THREAD))
    row_threads = 1 << (row_threads - 1).bit_length()
    LONG = row_threads > max_cluster * max_threads
    if LONG:
        row_threads = max_cluster * CLUSTER_BLOCK
    CLUSTER = min(row_threads // CLUSTER_BLOCK, max_cluster) if row_threads > max_threads else 1
    THREADS = row_threads // CLUSTER
    PACKS = min(-(-packs // row_threads), PER_THREAD // VEC)
    ROWS = BLOCK // THREADS if THREADS <= 32 else 1  # one row's warps share memory
    grid = (-(-M // ROWS) * CLUSTER,)
    return grid, (THREADS, ROWS), (VEC, PACKS, THREADS, ROWS, CLUSTER, LONG)


def layer_norm(x, w, b, eps):
    eps = check(x, w, b, eps)
    M, N = x.shape
    y = torch.empty_like(x)
    mean = torch.empty(M, dtype=torch.float32, device=x.device)
    rstd = torch.empty_like(mean)
    if x.numel() > 0:
        grid, block, constants = dealt(x)
        args = x.view(-1), w, b, y.view(-1), mean, rstd, M, N, np.float32(eps)
        launch(layer_norm_kernel(*constants), grid, block, *args)
    return y, mean, rstd
