"""A fixed number of blocks leave the largest of their elements, and one block more takes these."""

import math
from functools import cache

import torch
from numba import cuda, float32, int64

from implementations.common.device import properties
from implementations.common.numba_cuda import launch
from implementations.instructions.access import load, load_pack, store
from implementations.phase2_basic_operations.day10_reduction_basics.vector_max import check

THREADS = 256
WARPS = THREADS // 32
PACKS = 4  # packs of 16 bytes that each thread has under way at once
PROGRAMS_PER_SM = 64  # several times what is resident: a free multiprocessor starts another
INF = float32(float("inf"))


@cuda.jit(device=True)
def maximum(a, b):
    """The larger of both, NaN where one of them is: fmaxf would drop the NaN."""
    return a if a > b or math.isnan(a) else b


@cuda.jit(device=True)
def reduce_block(value):
    """The largest `value` of the threads of a block, in every one of them: a tree over the lanes of
    a warp, then one over the warps. Called once, so that one barrier suffices."""
    sPartial = cuda.shared.array(WARPS, float32)
    lane, warp = cuda.threadIdx.x % 32, cuda.threadIdx.x // 32

    delta = 16
    while delta > 0:
        value = maximum(value, cuda.shfl_xor_sync(0xFFFFFFFF, value, delta))
        delta //= 2
    if lane == 0:
        sPartial[warp] = value
    cuda.syncthreads()  # every warp's largest is there

    # lanes that read the same word share one access, so banks do not conflict
    value = sPartial[lane % WARPS]
    delta = WARPS // 2
    while delta > 0:
        value = maximum(value, cuda.shfl_xor_sync(0xFFFFFFFF, value, delta))
        delta //= 2
    return value


@cache  # a closure is Numba's template: VEC is a compile-time constant
def vector_max_kernel(VEC):
    BLOCK, HELD = THREADS * PACKS * VEC, PACKS * VEC

    @cuda.jit(launch_bounds=THREADS)
    def kernel(x, out):
        N = x.size
        pid, tid = cuda.blockIdx.x, cuda.threadIdx.x
        # 64-bit: N may exceed 2^31
        step = int64(cuda.gridDim.x) * BLOCK

        # the neutral element: 0 would exceed negative elements
        largest = -INF
        pack = cuda.local.array(HELD, float32)
        start = int64(pid) * BLOCK
        while start + BLOCK <= N:
            for p in range(PACKS):  # all loads are under way before the first is used
                load_pack(x, start + (p * THREADS + tid) * VEC, pack, p * VEC)

            for k in range(HELD):
                largest = maximum(largest, pack[k])
            start += step

        # the last, partial BLOCK falls to the block of threads whose turn it is
        for i in range(start + tid, N, THREADS):
            largest = maximum(largest, load(x, i))

        largest = reduce_block(largest)
        if tid == 0:
            store(out, pid, largest)

    return kernel


def vector_max(x):
    check(x)
    N = x.numel()
    out = torch.empty((), dtype=x.dtype, device=x.device)
    BLOCK = THREADS * PACKS * 16 // x.element_size()
    blocks = min(-(-N // BLOCK), properties(x.device).programs(PROGRAMS_PER_SM))
    partial = torch.empty(blocks, dtype=torch.float32, device=x.device)  # exact for all dtypes
    for src, dst in ((x, partial), (partial, out.view(1))):
        kernel = vector_max_kernel(16 // src.element_size())
        launch(kernel, (dst.numel(),), (THREADS,), src, dst)
    return out
