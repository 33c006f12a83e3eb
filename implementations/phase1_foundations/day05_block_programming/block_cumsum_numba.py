"""Each block of threads scans a block of elements, one pack a thread; warps scan by shuffles."""

from functools import cache

import torch
from numba import cuda, float32, int64

from implementations.common.numba_cuda import launch
from implementations.instructions.access import load, load_pack, store, store_pack
from implementations.phase1_foundations.day05_block_programming.block_cumsum import check


@cache  # a closure is Numba's template: the upper-case names are compile-time constants
def block_cumsum_kernel(VEC, THREADS):
    BLOCK, WARPS = THREADS * VEC, max(THREADS // 32, 1)
    # the lanes that a shuffle waits for: only those that exist, or it would wait for ever
    LANE_MASK = 2 ** min(THREADS, 32) - 1

    @cuda.jit(launch_bounds=THREADS)
    def kernel(x, out):
        sTotals = cuda.shared.array(WARPS, float32)
        N = x.size
        lane, warp = cuda.threadIdx.x % 32, cuda.threadIdx.x // 32
        i = int64(cuda.blockIdx.x) * BLOCK + cuda.threadIdx.x * VEC

        y = cuda.local.array(VEC, float32)  # fp32: running sums in 16 bits would gather errors
        if VEC > 1 and i + VEC <= N:
            load_pack(x, i, y, 0)
        else:  # zeros beyond N: these threads still take part in the shuffles
            for k in range(VEC):
                y[k] = load(x, i + k) if i + k < N else float32(0)

        total = float32(0)
        for k in range(VEC):
            total += y[k]
            y[k] = total

        before = float32(0)  # the sum of all threads before this one
        delta = 1
        while delta < min(THREADS, 32):
            total_before = cuda.shfl_up_sync(LANE_MASK, total, delta)  # of `delta` lanes
            if lane >= delta:
                before += total_before
                total += total_before
            delta *= 2
        if WARPS > 1:
            # warps meet here only; totals are written once, so no second barrier has to guard them
            if lane == 31:
                sTotals[warp] = total
            cuda.syncthreads()  # every warp's total is there
            for w in range(WARPS - 1):
                if w < warp:
                    before += sTotals[w]

        for k in range(VEC):
            y[k] += before
        if VEC > 1 and i + VEC <= N:
            store_pack(out, i, y, 0)
        else:
            for k in range(VEC):
                if i + k < N:
                    store(out, i + k, y[k])

    return kernel


def block_cumsum(x, block_size=1024):
    check(x, block_size)
    N = x.numel()
    out = torch.empty_like(x)
    if N > 0:
        VEC = 16 // x.element_size()  # elements of a thread: one pack of 16 bytes
        if block_size < VEC:
            VEC = 1
        THREADS = block_size // VEC
        grid = (-(-N // block_size),)
        launch(block_cumsum_kernel(VEC, THREADS), grid, (THREADS,), x, out)
    return out
