"""Each thread owns a pack of 16 bytes and makes its random words anew."""

from functools import cache

import numpy as np
import torch
from numba import cuda, float32, int64

from implementations.common.numba_cuda import launch
from implementations.instructions.access import load, load_pack, store, store_pack
from implementations.instructions.philox import philox_4x32
from implementations.phase4_advanced_kernels.day25_low_memory_dropout.seeded_dropout import check

BLOCK = 256


@cache  # a closure is Numba's template: VEC is a compile-time constant
def seeded_dropout_kernel(VEC):
    @cuda.jit
    def kernel(x, y, threshold, scale, seed):
        N = x.size
        # 64-bit: N may exceed 2^31
        tid = cuda.grid(1)
        i = tid * VEC

        # the load is under way while the words are made
        pack = cuda.local.array(VEC, float32)
        if i + VEC <= N:
            load_pack(x, i, pack, 0)
        else:  # the last pack is partial, and threads beyond it have none
            for k in range(VEC):
                if i + k < N:
                    pack[k] = load(x, i + k)

        for c in range(VEC // 4):
            words = philox_4x32(seed, tid * (VEC // 4) + c)
            for j in range(4):
                k = 4 * c + j
                kept = int64(words[j]) >= threshold
                # a NaN is dropped too: it is not multiplied by 0
                pack[k] = pack[k] * scale if kept else float32(0)

        if i + VEC <= N:
            store_pack(y, i, pack, 0)
        else:
            for k in range(VEC):
                if i + k < N:
                    store(y, i + k, pack[k])

    return kernel


def seeded_dropout(x, p, seed):
    threshold, scale, seed = check(x, p, seed)
    N = x.numel()
    y = torch.empty_like(x)
    if N > 0:
        VEC = 16 // x.element_size()  # elements of a pack of 16 bytes
        grid = (-(-N // (BLOCK * VEC)),)
        args = x.view(-1), y.view(-1), threshold, np.float32(scale), seed
        launch(seeded_dropout_kernel(VEC), grid, (BLOCK,), *args)
    return y
