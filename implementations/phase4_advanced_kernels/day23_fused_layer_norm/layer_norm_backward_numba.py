"""Blocks or clusters walk over rows and sum columns meanwhile; longer rows are read twice."""

from functools import cache

import numpy as np
import torch
from numba import cuda, float32, int32, int64, uint32

from implementations.common.device import properties
from implementations.common.numba_cuda import launch
from implementations.instructions.access import (
    global_address,
    load,
    load_pack,
    shared_address,
    store,
    store_pack,
)
from implementations.instructions.async_copy import (
    cp_async_16,
    cp_async_bulk,
    cp_async_commit,
    cp_async_wait,
)
from implementations.instructions.cluster import (
    cluster_barrier_arrive,
    cluster_barrier_wait,
    cluster_dims,
    store_async,
)
from implementations.instructions.mbarrier import (
    fence_mbarrier_init,
    mbarrier_expect,
    mbarrier_init,
    mbarrier_wait,
)
from implementations.instructions.reduce import Sum, reduce_row
from implementations.instructions.row_norm import make_sum_row_pair
from implementations.phase4_advanced_kernels.day23_fused_layer_norm.layer_norm_backward import check

BLOCK = 256  # threads of a block, unless one row takes more than a warp
PER_THREAD = 16  # elements a thread holds, of dy, x, dw and db each
MAX_THREADS = 512  # threads of a block: more would have too few registers
MAX_CLUSTER = 8  # blocks of a cluster, at most
RESIDENT = 512  # threads that a multiprocessor has at once
# A cluster's blocks lie in one group of neighbouring multiprocessors, of which a whole number of
# clusters leaves some over: as many in all groups, at most, by CLUSTER. One cluster more than find
# room would run when all others have ended.
LEFT_OVER = {2: 0, 4: 12, 8: 12}
TX, TY = 64, 4  # threads of a block along a row and down it: a strip of 1 KB
PARTS = 8  # of the rows, for blocks that own a strip
SUM_TX, SUM_TY = 32, 8  # of the last kernel, at most


@cache  # a closure is Numba's template: the upper-case names are compile-time constants
def make_load_row(VEC, PACKS, THREADS, BLOCK):
    """The function that starts the copies of a row's packs, of which this thread's first is at
    `start` and `left` elements before the row's end, to this thread's places from `at` on: it alone
    reads them, so they need no barrier."""

    @cuda.jit(device=True)
    def load_row(sRows, at, src, start, left):
        for p in range(PACKS):
            n = p * THREADS * VEC  # neighbours read neighbouring packs
            if n < left:
                dst = at + p * BLOCK * VEC
                if VEC > 1:
                    cp_async_16(shared_address(sRows, dst), global_address(src, start + n), 16)
                else:
                    sRows[dst] = src[start + n]

    return load_row


@cuda.jit(device=True)
def load_part(sRows, of_dy, of_x, dy, x, start, count, full):
    """Have the copy engine bring `count` elements of dy and of x, from `start` on, to a buffer,
    whose barrier is `full`."""
    size = int32(count * dy.itemsize)
    mbarrier_expect(full, 2 * size)
    cp_async_bulk(shared_address(sRows, of_dy), global_address(dy, start), size, full)
    cp_async_bulk(shared_address(sRows, of_x), global_address(x, start), size, full)


def floats_before(THREADS, CLUSTER):
    """Of shared memory: the sums of two rows, of a pair for each warp, which the rows follow; in a
    cluster before them four barriers of 8 bytes and as many pairs for each block."""
    of_cluster = 8 + 4 * CLUSTER if CLUSTER > 1 else 0
    return of_cluster, of_cluster + 4 * max(THREADS // 32, 1)


@cache
def layer_norm_backward_kernel(VEC, PACKS, BUFFERS, THREADS, ROWS, CLUSTER):
    """The kernel in which a block, or a cluster of blocks that have a part of the row each, has
    ROWS rows at a time, whose threads hold them and, over all rows, the sums of their columns.
    BUFFERS rows are on their way. `parts`: (2, groups, N), of each block or cluster the sums of
    dy * x_hat and of dy."""
    HELD, STRIP, BLOCK = PACKS * VEC, THREADS * VEC, ROWS * THREADS
    ROW = HELD * BLOCK  # of a buffer
    PAIRS = 2 * max(THREADS // 32, 1)  # of a row, a pair for each warp
    FULL, SUMMED, BLOCK_SUMS = 0, 4, 8  # barriers of a buffer and of a row; the sums of blocks
    WARP_SUMS, FLOATS = floats_before(THREADS, CLUSTER)
    LOADER = 32  # the thread of a cluster's block that tells the copy engine
    assert CLUSTER == 1 or VEC > 1, "bulk copies need rows of whole chunks of 16 bytes"
    load_row = make_load_row(VEC, PACKS, THREADS, BLOCK)
    sum_row_pair, wait_for_rows = make_sum_row_pair(THREADS, 1), cp_async_wait(BUFFERS - 1)

    # unless told that 512 resident threads are meant, the compiler takes registers that only fewer
    # have
    @cuda.jit(launch_bounds=(THREADS * ROWS, RESIDENT // (THREADS * ROWS) if VEC > 1 else 1))
    def kernel(dy, x, w, mean, rstd, dx, parts, M, N):
        cluster_dims(CLUSTER)
        # Of two rows in turn: a warp may be at the next one while another still reads, but not at
        # the one after that, before which lies a barrier.
        sSums = cuda.shared.array(0, float32)
        sRows = cuda.shared.array(0, dy.dtype)  # behind them the buffers of dy, then those of x
        tx, ty = cuda.threadIdx.x, cuda.threadIdx.y
        tid = ty * THREADS + tx
        rank = cuda.blockIdx.x % CLUSTER
        group, groups = int64(cuda.blockIdx.x // CLUSTER), int64(cuda.gridDim.x // CLUSTER)
        rows = groups * ROWS  # that all have at once
        # A block has a part of the row. A thread's packs are counted from its first one: so the
        # others have constant places, for which no registers are needed.
        part = int32((N // VEC + CLUSTER - 1) // CLUSTER * VEC)
        of_part, count = rank * part, int32(min(part, N - rank * part))
        first, left_of_row = of_part + tx * VEC, int32(count - tx * VEC)
        buffers = FLOATS * 4 // dy.itemsize  # where they begin
        mine = buffers + tid * VEC
        if CLUSTER > 1:
            if tid == LOADER:
                for b in range(BUFFERS):
                    mbarrier_init(shared_address(sSums, FULL + b * 2), int32(1))
                for i in range(2):
                    mbarrier_init(shared_address(sSums, SUMMED + i * 2), int32(1))
                fence_mbarrier_init()
            cluster_barrier_arrive()

        row = group * ROWS + ty
        for b in range(BUFFERS):
            # a row sets out: in a block all threads copy their packs, in a cluster one has the
            # block's part copied
            coming, of_dy, of_x = row + b * rows, b * ROW, (BUFFERS + b) * ROW
            if CLUSTER == 1:
                left = left_of_row if coming < M else 0
                load_row(sRows, of_dy + mine, dy, coming * N + first, left)
                load_row(sRows, of_x + mine, x, coming * N + first, left)
                cp_async_commit()
            elif tid == LOADER and coming < M:
                of_dy, of_x, start = of_dy + buffers, of_x + buffers, coming * N + of_part
                full = shared_address(sSums, FULL + b * 2)
                load_part(sRows, of_dy, of_x, dy, x, start, count, full)
        next_mean = mean[row] if row < M else float32(0)
        next_rstd = rstd[row] if row < M else float32(0)
        w_held = cuda.local.array(HELD, float32)
        dw = cuda.local.array(HELD, float32)
        db = cuda.local.array(HELD, float32)
        for k in range(HELD):
            dw[k] = float32(0)
            db[k] = float32(0)
        for p in range(PACKS):
            n = p * THREADS * VEC
            if n < left_of_row:
                if VEC > 1:
                    load_pack(w, first + n, w_held, p * VEC)
                else:
                    w_held[p] = load(w, first + n)
        x_hat = cuda.local.array(HELD, float32)
        g = cuda.local.array(HELD, float32)
        # All know the barriers from here on, and may write to the shared memory of others, which
        # have begun. None ends before all of it has come, as each waits for the sums of all.
        if CLUSTER > 1:
            cluster_barrier_wait()
        of_one = float32(1) / float32(N)
        i = uint32(0)
        while row - ty < M:
            left = left_of_row if row < M else 0  # threads beyond the last row take part
            mean_of_row, rstd_of_row = next_mean, next_rstd
            sum_g, sum_gx = float32(0), float32(0)  # g = dy * w
            buffer, turn = int32(i % BUFFERS), int32(i % 2)
            of_dy, of_x = buffer * ROW, (BUFFERS + buffer) * ROW
            full = shared_address(sSums, FULL + buffer * 2)
            if CLUSTER == 1:
                wait_for_rows()
            else:
                mbarrier_wait(full, int32(i // BUFFERS % 2))
            for p in range(PACKS):
                if p * THREADS * VEC < left:
                    if VEC > 1:
                        load_pack(sRows, of_dy + mine + p * BLOCK * VEC, g, p * VEC)
                        load_pack(sRows, of_x + mine + p * BLOCK * VEC, x_hat, p * VEC)
                    else:
                        g[p] = load(sRows, of_dy + mine + p * BLOCK)
                        x_hat[p] = load(sRows, of_x + mine + p * BLOCK)
                    for k in range(p * VEC, (p + 1) * VEC):
                        dy_k = g[k]
                        x_hat[k] = (x_hat[k] - mean_of_row) * rstd_of_row
                        g[k] = dy_k * w_held[k]
                        dw[k] += dy_k * x_hat[k]
                        db[k] += dy_k
                        sum_g += g[k]
                        sum_gx += g[k] * x_hat[k]
            if row + rows < M:
                next_mean, next_rstd = mean[row + rows], rstd[row + rows]
            # what has been read makes room: BUFFERS rows are on their way as this one is finished
            coming = row + BUFFERS * rows
            if CLUSTER == 1:
                coming_left = left_of_row if coming < M else 0
                load_row(sRows, of_dy + mine, dy, coming * N + first, coming_left)
                load_row(sRows, of_x + mine, x, coming * N + first, coming_left)
                cp_async_commit()
            # behind its barrier all have read the row
            sum_g, sum_gx = sum_row_pair(sum_g, sum_gx, sSums, WARP_SUMS + turn * PAIRS, 0)
            if CLUSTER > 1:
                if tid == LOADER and coming < M:
                    of_dy, of_x, start = of_dy + buffers, of_x + buffers, coming * N + of_part
                    load_part(sRows, of_dy, of_x, dy, x, start, count, full)
                of_blocks = BLOCK_SUMS + turn * 2 * CLUSTER  # of g, then of g * x_hat
                summed = shared_address(sSums, SUMMED + turn * 2)
                if tid == 0:
                    mbarrier_expect(summed, int32(2 * CLUSTER * 4))
                if tid < CLUSTER:  # each takes one block, so that every block has the sums of all
                    place = of_blocks + rank
                    store_async(shared_address(sSums, place), tid, sum_g, summed)
                    store_async(shared_address(sSums, place + CLUSTER), tid, sum_gx, summed)
                mbarrier_wait(summed, int32(i // 2 % 2))
                sum_g, sum_gx = float32(0), float32(0)
                for r in range(CLUSTER):
                    sum_g += sSums[of_blocks + r]
                    sum_gx += sSums[of_blocks + CLUSTER + r]

            mean_g, mean_gx = sum_g * of_one, sum_gx * of_one
            for p in range(PACKS):
                n = p * THREADS * VEC
                if n < left:
                    for k in range(p * VEC, (p + 1) * VEC):
                        g[k] = rstd_of_row * (g[k] - mean_g - x_hat[k] * mean_gx)
                    if VEC > 1:
                        store_pack(dx, row * N + first + n, g, p * VEC)
                    else:
                        store(dx, row * N + first + n, g[p])
            row += rows
            i += uint32(1)

        of_dw = group * N
        of_db = of_dw + groups * N
        if ROWS > 1:
            of_rows = ROWS * STRIP  # dw of each row of threads in the place of rows, then db
            for p in range(PACKS):
                cuda.syncthreads()  # what is there has been read
                for k in range(VEC):
                    sSums[FLOATS + tid * VEC + k] = dw[p * VEC + k]
                    sSums[FLOATS + of_rows + tid * VEC + k] = db[p * VEC + k]
                cuda.syncthreads()  # the sums of all rows of threads are there
                for j in range(tid, STRIP, ROWS * THREADS):
                    of_w, of_b = float32(0), float32(0)
                    for r in range(ROWS):
                        of_w += sSums[FLOATS + r * STRIP + j]
                        of_b += sSums[FLOATS + of_rows + r * STRIP + j]
                    if p * STRIP + j < N:
                        parts[of_dw + p * STRIP + j] = of_w
                        parts[of_db + p * STRIP + j] = of_b
        else:
            for p in range(PACKS):
                for k in range(VEC):
                    n = p * THREADS * VEC + k
                    if n < left_of_row:
                        parts[of_dw + first + n] = dw[p * VEC + k]
                        parts[of_db + first + n] = db[p * VEC + k]

    return kernel


@cache
def layer_norm_backward_means_kernel(VEC):
    """The kernel for longer rows in which a block has a row. `means`: (2, M), of each row the means
    of g = dy * w and of g * x_hat."""
    STEP = MAX_THREADS * VEC
    sum_row = reduce_row(MAX_THREADS, Sum, float32(0))

    @cuda.jit(launch_bounds=MAX_THREADS)
    def kernel(dy, x, w, mean, rstd, means, M, N):
        sPartialG = cuda.shared.array(32, float32)
        sPartialGx = cuda.shared.array(32, float32)
        row = int64(cuda.blockIdx.x)
        start = row * N
        mean_of_row, rstd_of_row = mean[row], rstd[row]

        dy_pack = cuda.local.array(VEC, float32)
        x_pack = cuda.local.array(VEC, float32)
        w_pack = cuda.local.array(VEC, float32)
        sum_g, sum_gx = float32(0), float32(0)
        for n in range(cuda.threadIdx.x * VEC, N, STEP):
            if VEC > 1:
                load_pack(dy, start + n, dy_pack, 0)
                load_pack(x, start + n, x_pack, 0)
                load_pack(w, n, w_pack, 0)
            else:
                dy_pack[0] = load(dy, start + n)
                x_pack[0] = load(x, start + n)
                w_pack[0] = load(w, n)
            of_g, of_gx = float32(0), float32(0)  # of a pack: a long sum would round off more
            for k in range(VEC):
                g = dy_pack[k] * w_pack[k]
                of_g += g
                of_gx += g * ((x_pack[k] - mean_of_row) * rstd_of_row)
            sum_g += of_g
            sum_gx += of_gx
        sum_g = sum_row(sum_g, sPartialG)
        sum_gx = sum_row(sum_gx, sPartialGx)
        if cuda.threadIdx.x == 0:
            means[row] = sum_g / float32(N)
            means[M + row] = sum_gx / float32(N)

    return kernel


@cache
def layer_norm_backward_columns_kernel(VEC):
    """The kernel in which a block then owns a strip of columns and PART rows. `parts`: (2,
    gridDim.y, N)."""
    STRIP = TX * VEC

    @cuda.jit(launch_bounds=TX * TY)
    def kernel(dy, x, w, mean, rstd, means, dx, parts, M, N, PART):
        sDw = cuda.shared.array((TY, STRIP), float32)
        sDb = cuda.shared.array((TY, STRIP), float32)
        tx, ty, part = cuda.threadIdx.x, cuda.threadIdx.y, int64(cuda.blockIdx.y)
        n0 = int64(cuda.blockIdx.x) * STRIP
        n = n0 + tx * VEC
        end = min(M, (part + 1) * PART)

        dw = cuda.local.array(VEC, float32)
        db = cuda.local.array(VEC, float32)
        for k in range(VEC):
            dw[k] = float32(0)
            db[k] = float32(0)
        dy_pack = cuda.local.array(VEC, float32)
        x_pack = cuda.local.array(VEC, float32)
        w_pack = cuda.local.array(VEC, float32)
        if n < N:
            if VEC > 1:
                load_pack(w, n, w_pack, 0)
            else:
                w_pack[0] = load(w, n)
            for row in range(part * PART + ty, end, TY):
                if VEC > 1:
                    load_pack(dy, row * N + n, dy_pack, 0)
                    load_pack(x, row * N + n, x_pack, 0)
                else:
                    dy_pack[0] = load(dy, row * N + n)
                    x_pack[0] = load(x, row * N + n)
                mean_of_row, rstd_of_row = mean[row], rstd[row]
                mean_g, mean_gx = means[row], means[M + row]
                for k in range(VEC):
                    x_hat = (x_pack[k] - mean_of_row) * rstd_of_row
                    dw[k] += dy_pack[k] * x_hat
                    db[k] += dy_pack[k]
                    dy_pack[k] = rstd_of_row * (dy_pack[k] * w_pack[k] - mean_g - x_hat * mean_gx)
                if VEC > 1:
                    store_pack(dx, row * N + n, dy_pack, 0)
                else:
                    store(dx, row * N + n, dy_pack[0])

        for k in range(VEC):
            sDw[ty, tx * VEC + k] = dw[k]
            sDb[ty, tx * VEC + k] = db[k]
        cuda.syncthreads()  # the sums of all rows of threads are there
        # from here on a thread has a column, or several
        for column in range(ty * TX + tx, min(STRIP, N - n0), TX * TY):
            of_w, of_b = float32(0), float32(0)
            for t in range(TY):
                of_w += sDw[t, column]
                of_b += sDb[t, column]
            parts[part * N + n0 + column] = of_w
            parts[(cuda.gridDim.y + part) * N + n0 + column] = of_b

    return kernel


@cache
def layer_norm_backward_sum_kernel(TY):
    """The kernel for dw or db, by blockIdx.y: a block adds up SUM_TX columns of `parts`, (2, count,
    N), TY rows at a time, always in the same order."""

    @cuda.jit(launch_bounds=SUM_TX * TY)
    def kernel(parts, dw, db, count, N):
        sSums = cuda.shared.array((TY, SUM_TX), float32)
        tx, ty = cuda.threadIdx.x, cuda.threadIdx.y
        n = int64(cuda.blockIdx.x) * SUM_TX + tx
        first = cuda.blockIdx.y * count

        total = float32(0)
        if n < N:
            for i in range(first + ty, first + count, TY):
                total += parts[i * N + n]
        sSums[ty, tx] = total
        cuda.syncthreads()  # the sums of all rows of threads are there
        if ty == 0 and n < N:
            total = float32(0)
            for t in range(TY):
                total += sSums[t, tx]
            if cuda.blockIdx.y == 0:
                store(dw, n, total)
            else:
                store(db, n, total)

    return kernel


def layer_norm_backward(dy, x, w, mean, rstd):
    check(dy, x, w, mean, rstd)
    M, N = x.shape
    dx, dw, db = torch.empty_like(x), torch.empty_like(w), torch.empty_like(w)
    if M == 0:
        return dx, dw.zero_(), db.zero_()  # sums of nothing
    VEC = 16 // x.element_size()  # elements of a pack of 16 bytes
    if N % VEC:  # rows do not start at a multiple of 16 bytes
        VEC = 1
    packs = N // VEC
    row_threads = max(min(packs, 32), -(-N // PER_THREAD))
    row_threads = 1 << (row_threads - 1).bit_length()
    given = dy.view(-1), x.view(-1), w, mean, rstd
    gpu = properties(x.device)
    clusters = gpu.clusters() and VEC > 1
    if row_threads <= MAX_THREADS * (MAX_CLUSTER if clusters else 1):
        THREADS = min(row_threads, MAX_THREADS)
        CLUSTER = row_threads // THREADS
        PACKS = -(-packs // row_threads)
        ROWS = BLOCK // THREADS if THREADS <= 32 else 1  # one row's warps share memory
        programs = RESIDENT // (THREADS * ROWS)  # of a multiprocessor
        groups = gpu.programs(programs)
        if CLUSTER > 1:
            groups = max(1, (gpu.multiprocessors - LEFT_OVER[CLUSTER]) // CLUSTER)
        count = min(groups, -(-M // ROWS))
        parts = torch.empty(2 * count * N, dtype=torch.float32, device=x.device)
        grid, block = (count * CLUSTER,), (THREADS, ROWS)
        buffer = 2 * x.element_size() * VEC * PACKS * THREADS * ROWS  # bytes of packs of dy and x
        BUFFERS = gpu.stages(2, programs * buffer)
        kernel = layer_norm_backward_kernel(VEC, PACKS, BUFFERS, THREADS, ROWS, CLUSTER)
        args = *given, dx.view(-1), parts, M, np.int32(N)  # in 64 bits it would cost registers
        _, before = floats_before(THREADS, CLUSTER)
        launch(kernel, grid, block, *args, shared_bytes=4 * before + BUFFERS * buffer)
    else:
        means = torch.empty(2 * M, dtype=torch.float32, device=x.device)
        kernel = layer_norm_backward_means_kernel(VEC)
        launch(kernel, (M,), (MAX_THREADS,), *given, means, M, N)

        strips = -(-packs // TX)
        PART = max(2 * TY, -(-M // PARTS))
        count = -(-M // PART)
        parts = torch.empty(2 * count * N, dtype=torch.float32, device=x.device)
        kernel = layer_norm_backward_columns_kernel(VEC)
        args = *given, means, dx.view(-1), parts, M, N, PART
        launch(kernel, (strips, count), (TX, TY), *args)

    TY_OF_SUM = min(SUM_TY, 1 << (count - 1).bit_length())  # no more than there is to add
    grid, block = (-(-N // SUM_TX), 2), (SUM_TX, TY_OF_SUM)
    launch(layer_norm_backward_sum_kernel(TY_OF_SUM), grid, block, parts, dw, db, count, N)
    return dx, dw, db
