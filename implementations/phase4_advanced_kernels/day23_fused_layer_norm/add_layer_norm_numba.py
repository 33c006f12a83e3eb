"""Each row is held in the registers of lanes, a block or a cluster; of longer ones s is reread."""

import math
from functools import cache

import numpy as np
import torch
from numba import cuda, float32, int64

from implementations.common.numba_cuda import launch
from implementations.instructions.access import load, load_pack, rounded, store, store_pack
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
from implementations.phase4_advanced_kernels.day22_layer_normalization.layer_norm_numba import dealt
from implementations.phase4_advanced_kernels.day23_fused_layer_norm.add_layer_norm import check

MAX_THREADS = 512  # threads of a block: more would have too few registers for x and the residual


@cache  # a closure is Numba's template: the upper-case names are compile-time constants
def make_add_row(VEC, PACKS, STEP):
    """The function that stores s, the sum of x and the residual, of the packs of the row's thread
    `row_tid` among the `count` elements from s[start] on, and sets v to it as it is rounded. Beyond
    these it is 0."""
    HELD = PACKS * VEC

    @cuda.jit(device=True)
    def add_row(v, x, residual, s, start, row_tid, count):
        r = cuda.local.array(HELD, float32)
        for p in range(PACKS):
            n = (p * STEP + row_tid) * VEC  # neighbours read neighbouring packs
            if n < count:
                if VEC > 1:
                    load_pack(x, start + n, v, p * VEC)
                    load_pack(residual, start + n, r, p * VEC)
                else:
                    v[p] = load(x, start + n)
                    r[p] = load(residual, start + n)
            else:
                for k in range(VEC):
                    v[p * VEC + k] = float32(0)
        for p in range(PACKS):
            n = (p * STEP + row_tid) * VEC
            if n < count:
                for k in range(VEC):
                    v[p * VEC + k] = rounded(s, v[p * VEC + k] + r[p * VEC + k])
                if VEC > 1:
                    store_pack(s, start + n, v, p * VEC)
                else:
                    store(s, start + n, v[p])

    return add_row


@cache
def add_layer_norm_kernel(VEC, PACKS, THREADS, ROWS, CLUSTER, LONG):
    """The kernel that reads once a row that the registers hold. The first part of a LONG one gives
    the shift; all parts give the sums, and are then read again, backwards from the last, which is
    held, as the L2 keeps what was read last."""
    HELD, STEP = PACKS * VEC, CLUSTER * THREADS
    PART, WARPS = STEP * HELD, CLUSTER * 32
    add_row, load_row = make_add_row(VEC, PACKS, STEP), make_load_row(VEC, PACKS, STEP)
    add_deviations, sum_row = make_add_deviations(VEC, PACKS, STEP), make_sum_row(THREADS, CLUSTER)
    store_normalized = make_store_normalized(VEC, PACKS, STEP)

    @cuda.jit(launch_bounds=THREADS * ROWS)
    def kernel(x, residual, y, s, w, b, mean, rstd, M, N, eps):
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
        add_row(v, x, residual, s, start, row_tid, first)
        total = float32(0)
        for k in range(HELD):
            total += v[k]
        # Shared memory of a block that has not begun may not be written, and that of one that has
        # ended is gone: the others have begun from here on, and sum_row ends with a barrier.
        if CLUSTER > 1:
            cluster_barrier_wait()
        total = sum_row(total, sSum, rank)

        # of rows far from zero s * s would keep no digit of the variance; s - shift loses none
        shift = total / float32(PART if LONG else N)
        s1, s2 = add_deviations(float32(0), float32(0), v, shift, row_tid, first)
        if LONG:
            for n in range(PART, last, PART):
                add_row(v, x, residual, s, start + n, row_tid, PART)
                s1, s2 = add_deviations(s1, s2, v, shift, row_tid, PART)
            add_row(v, x, residual, s, start + last, row_tid, count)
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
            load_row(v, s, start + n, row_tid, PART)
            store_normalized(v, w, b, n, y, start + n, shift, left, rstd_of_row, row_tid, PART)

    return kernel


def add_layer_norm(x, residual, w, b, eps):
    eps = check(x, residual, w, b, eps)
    M, N = x.shape
    y, s = torch.empty_like(x), torch.empty_like(x)
    mean = torch.empty(M, dtype=torch.float32, device=x.device)
    rstd = torch.empty_like(mean)
    if x.numel() > 0:
        grid, block, constants = dealt(x, MAX_THREADS)
        matrices = (t.view(-1) for t in (x, residual, y, s))
        args = *matrices, w, b, mean, rstd, M, N, np.float32(eps)
        launch(add_layer_norm_kernel(*constants), grid, block, *args)
    return y, s, mean, rstd
