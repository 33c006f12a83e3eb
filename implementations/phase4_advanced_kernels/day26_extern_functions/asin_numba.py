"""Each thread owns a pack of 16 bytes; the function is one of libdevice."""

from functools import cache

import torch
from numba import cuda, float32
from numba.cuda import libdevice

from implementations.common.numba_cuda import launch
from implementations.instructions.access import load, load_pack, store, store_pack
from implementations.phase4_advanced_kernels.day26_extern_functions.asin import check

BLOCK = 256


@cache  # a closure is Numba's template: VEC is a compile-time constant
def asin_kernel(VEC):
    @cuda.jit
    def kernel(x, y):
        N = x.size
        # 64-bit: N may exceed 2^31
        i = cuda.grid(1) * VEC

        # the function is that of fp32, and its result rounded once, when it is stored
        pack = cuda.local.array(VEC, float32)
        if i + VEC <= N:
            load_pack(x, i, pack, 0)
            for k in range(VEC):
                pack[k] = libdevice.asinf(pack[k])
            store_pack(y, i, pack, 0)
        else:  # the last pack is partial, and threads beyond it have none
            for k in range(i, N):
                store(y, k, libdevice.asinf(load(x, k)))

    return kernel


def asin(x):
    check(x)
    N = x.numel()
    y = torch.empty_like(x)
    if N > 0:
        VEC = 16 // x.element_size()  # elements of a pack of 16 bytes
        grid = (-(-N // (BLOCK * VEC)),)
        launch(asin_kernel(VEC), grid, (BLOCK,), x.view(-1), y.view(-1))
    return y
