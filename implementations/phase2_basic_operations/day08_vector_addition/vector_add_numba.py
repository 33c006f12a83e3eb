"""Each thread adds a pack of 16 bytes; in the last, partial pack it goes element by element."""

from functools import cache

import torch
from numba import cuda, float32

from implementations.common.numba_cuda import launch
from implementations.instructions.access import load, load_pack, store, store_pack
from implementations.phase2_basic_operations.day08_vector_addition.vector_add import check

BLOCK = 256


@cache  # a closure is Numba's template: VEC is a compile-time constant
def vector_add_kernel(VEC):
    @cuda.jit
    def kernel(x, y, out):
        N = x.size
        # 64-bit: N may exceed 2^31
        i = cuda.grid(1) * VEC

        # a sum of two in fp32, rounded to the dtype, has the bits of one in the dtype
        a = cuda.local.array(VEC, float32)
        b = cuda.local.array(VEC, float32)
        if i + VEC <= N:
            load_pack(x, i, a, 0)
            load_pack(y, i, b, 0)
            for k in range(VEC):
                a[k] += b[k]
            store_pack(out, i, a, 0)
        else:  # the last pack is partial, and threads beyond it have none
            for k in range(i, N):
                store(out, k, load(x, k) + load(y, k))

    return kernel


def vector_add(x, y):
    check(x, y)
    N = x.numel()
    out = torch.empty_like(x)
    if N > 0:
        VEC = 16 // x.element_size()  # elements of a pack of 16 bytes
        grid = (-(-N // (BLOCK * VEC)),)
        launch(vector_add_kernel(VEC), grid, (BLOCK,), x, y, out)
    return out
