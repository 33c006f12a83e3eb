"""Each thread owns a pack of 16 bytes of the output; it tests each element before its load."""

from functools import cache

import numpy as np
import torch
from numba import cuda, float32

from implementations.common.numba_cuda import launch
from implementations.instructions.access import load, store, store_pack
from implementations.phase1_foundations.day03_masking.shift import check

BLOCK = 256


@cache  # a closure is Numba's template: VEC is a compile-time constant
def shift_kernel(VEC):
    @cuda.jit
    def kernel(x, out, offset, fill_value):
        N = x.size
        # 64-bit: N may exceed 2^31
        i = cuda.grid(1) * VEC

        pack = cuda.local.array(VEC, float32)
        for k in range(VEC):
            src = i + k - offset
            # the test comes before the load: what x does not have is never read
            pack[k] = load(x, src) if src >= 0 and src < N else fill_value

        if i + VEC <= N:
            store_pack(out, i, pack, 0)
        else:  # the last pack is partial
            for k in range(VEC):
                if i + k < N:
                    store(out, i + k, pack[k])

    return kernel


def shift(x, offset, fill_value):
    offset, fill_value = check(x, offset, fill_value)
    N = x.numel()
    out = torch.empty_like(x)
    if N > 0:
        VEC = 16 // x.element_size()  # elements of a pack of 16 bytes
        grid = (-(-N // (BLOCK * VEC)),)
        launch(shift_kernel(VEC), grid, (BLOCK,), x, out, offset, np.float32(fill_value))
    return out
