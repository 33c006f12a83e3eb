"""Each thread owns a pack of 16 bytes and its part of the mask, and makes its random words."""

from functools import cache

import numpy as np
import torch
from numba import cuda, float32, int64

from implementations.common.numba_cuda import launch
from implementations.instructions.access import load, load_pack, store, store_pack
from implementations.instructions.philox import philox_4x32
from implementations.phase4_advanced_kernels.day24_dropout.dropout import check

BLOCK = 256
MASK = {4: torch.int32, 8: torch.int64}  # what holds the bytes of so many bools


@cache  # a closure is Numba's template: VEC is a compile-time constant
def dropout_kernel(VEC):
    @cuda.jit
    def kernel(x, y, keep, keep_packs, threshold, scale, seed):
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

        mask = int64(0)  # a byte for each element
        for c in range(VEC // 4):
            words = philox_4x32(seed, tid * (VEC // 4) + c)
            for j in range(4):
                k = 4 * c + j
                kept = int64(words[j]) >= threshold
                mask |= int64(kept) << (8 * k)
                # a NaN is dropped too: it is not multiplied by 0
                pack[k] = pack[k] * scale if kept else float32(0)

        if i + VEC <= N:
            store_pack(y, i, pack, 0)
            keep_packs[tid] = mask
        else:
            for k in range(VEC):
                if i + k < N:
                    store(y, i + k, pack[k])
                    keep[i + k] = mask >> (8 * k) & 1

    return kernel


def dropout(x, p, seed):
    threshold, scale, seed = check(x, p, seed)
    N = x.numel()
    y = torch.empty_like(x)
    keep = torch.empty_like(x, dtype=torch.bool)
    if N > 0:
        VEC = 16 // x.element_size()  # elements of a pack of 16 bytes
        grid = (-(-N // (BLOCK * VEC)),)
        flat = keep.view(-1)
        keep_packs = flat[: N - N % VEC].view(MASK[VEC])  # of the whole packs
        args = x.view(-1), y.view(-1), flat, keep_packs, threshold, np.float32(scale), seed
        launch(dropout_kernel(VEC), grid, (BLOCK,), *args)
    return y, keep
