"""Each thread owns packs of 16 bytes; the function is one of libdevice."""

from functools import cache

import torch
from numba import cuda, float32, int64
from numba.cuda import libdevice

from implementations.common.numba_cuda import launch
from implementations.instructions.access import load, load_pack, store, store_pack
from implementations.phase4_advanced_kernels.day26_extern_functions.asin import check

BLOCK = 128
PACKS_OF = {4: 1, 2: 4}  # of a thread, by the bytes of an element


@cache  # a closure is Numba's template: VEC and PACKS are compile-time constants
def asin_kernel(VEC, PACKS):
    COUNT = PACKS * VEC  # elements of a thread

    @cuda.jit
    def kernel(x, y):
        N = x.size
        step = cuda.blockDim.x * VEC  # from a pack to the next
        first = int64(cuda.blockIdx.x) * PACKS * step  # 64-bit: N may exceed 2^31

        # the function is that of fp32, and its result rounded once, when it is stored
        values = cuda.local.array(COUNT, float32)
        if first + PACKS * step <= N:
            i = first + cuda.threadIdx.x * VEC
            for p in range(PACKS):  # all loads are under way at once
                load_pack(x, i + p * step, values, p * VEC)
            for p in range(PACKS):
                for k in range(p * VEC, (p + 1) * VEC):
                    values[k] = libdevice.asinf(values[k])
                store_pack(y, i + p * step, values, p * VEC)
        else:  # the last block goes element by element
            for i in range(first + cuda.threadIdx.x, N, cuda.blockDim.x):
                store(y, i, libdevice.asinf(load(x, i)))

    return kernel


def asin(x):
    check(x)
    N = x.numel()
    y = torch.empty_like(x)
    if N > 0:
        size = x.element_size()
        VEC, PACKS = 16 // size, PACKS_OF[size]  # elements of a pack, packs of a thread
        grid = (-(-N // (BLOCK * PACKS * VEC)),)
        launch(asin_kernel(VEC, PACKS), grid, (BLOCK,), x.view(-1), y.view(-1))
    return y
