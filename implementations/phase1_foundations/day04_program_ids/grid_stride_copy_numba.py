"""The grid has a fixed size; each block of threads copies every gridDim-th BLOCK of elements."""

from functools import cache

import torch
from numba import cuda, int32, int64

from implementations.common.device import properties
from implementations.common.numba_cuda import launch
from implementations.instructions.access import global_address, load_global_16, store_global_16
from implementations.phase1_foundations.day04_program_ids.grid_stride_copy import check

THREADS = 256
PACKS = 4  # packs of 16 bytes that each thread has under way at once
PROGRAMS_PER_SM = 256  # many times what is resident: fewer and longer programs were slower


@cache  # a closure is Numba's template: VEC is a compile-time constant
def grid_stride_copy_kernel(VEC):
    BLOCK = THREADS * PACKS * VEC

    @cuda.jit(launch_bounds=THREADS)
    def kernel(x, out):
        N = x.size
        pid, tid = cuda.blockIdx.x, cuda.threadIdx.x
        # 64-bit: N may exceed 2^31
        step = int64(cuda.gridDim.x) * BLOCK

        pack = cuda.local.array((PACKS, 4), int32)  # 16 bytes, in four registers
        start = int64(pid) * BLOCK
        while start + BLOCK <= N:
            for p in range(PACKS):  # all loads are under way before the first store
                src_ptr = global_address(x, start + (p * THREADS + tid) * VEC)
                pack[p, 0], pack[p, 1], pack[p, 2], pack[p, 3] = load_global_16(src_ptr)

            for p in range(PACKS):
                dst_ptr = global_address(out, start + (p * THREADS + tid) * VEC)
                store_global_16(dst_ptr, (pack[p, 0], pack[p, 1], pack[p, 2], pack[p, 3]))
            start += step

        # the last, partial BLOCK falls to the block of threads whose turn it is
        for i in range(start + tid, N, THREADS):
            out[i] = x[i]

    return kernel


def grid_stride_copy(x):
    check(x)
    N = x.numel()
    out = torch.empty_like(x)
    if N > 0:
        VEC = 16 // x.element_size()  # elements of a pack of 16 bytes
        grid = (
            min(-(-N // (THREADS * PACKS * VEC)), properties(x.device).programs(PROGRAMS_PER_SM)),
        )
        launch(grid_stride_copy_kernel(VEC), grid, (THREADS,), x, out)
    return out
