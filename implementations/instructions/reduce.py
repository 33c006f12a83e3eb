"""Reductions over the threads of a row, which are some lanes of a warp, or a block. The twin of
reduce.cuh.
"""

from functools import cache

from numba import cuda
from numba.cuda import libdevice


@cuda.jit(device=True)
def Max(a, b):
    return libdevice.fmaxf(a, b)


@cuda.jit(device=True)
def Sum(a, b):
    return a + b


@cache
def reduce_row(THREADS, op, neutral):
    """`reduce(value, sPartial)`: the reduction of `value` over the threads of a row, in every one
    of them. `sPartial` holds a value a warp and is used once, so the one barrier suffices."""
    FIRST = min(THREADS, 32) // 2

    @cuda.jit(device=True)
    def reduce(value, sPartial):
        delta = FIRST
        while delta > 0:
            value = op(value, cuda.shfl_xor_sync(0xFFFFFFFF, value, delta))
            delta //= 2
        if THREADS > 32:
            lane, warp = cuda.threadIdx.x % 32, cuda.threadIdx.x // 32
            if lane == 0:
                sPartial[warp] = value
            cuda.syncthreads()
            value = sPartial[lane] if lane < THREADS // 32 else neutral
            delta = 16
            while delta > 0:
                value = op(value, cuda.shfl_xor_sync(0xFFFFFFFF, value, delta))
                delta //= 2
        return value

    return reduce


@cache
def make_sum_lanes(LANES):
    """`sum_lanes(value)`: the sum of `value` over LANES neighbouring lanes, in each of them."""

    @cuda.jit(device=True)
    def sum_lanes(value):
        delta = LANES // 2
        while delta > 0:
            value += cuda.shfl_xor_sync(0xFFFFFFFF, value, delta)
            delta //= 2
        return value

    return sum_lanes
