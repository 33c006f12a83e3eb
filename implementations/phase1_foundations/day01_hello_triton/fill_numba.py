"""Each thread stores PACKS packs of 16 bytes; the first threads also store what fills no pack."""

from functools import cache

import numpy as np
import torch
from numba import cuda, float32

from implementations.common.numba_cuda import launch
from implementations.instructions.access import store, store_pack
from implementations.phase1_foundations.day01_hello_triton.fill import check

BLOCK = 256
PACKS = 4  # packs of a thread: each block that is started has more work


@cache  # a closure is Numba's template: VEC is a compile-time constant
def fill_kernel(VEC):
    @cuda.jit
    def kernel(out, value):
        N = out.size
        # neighbours store neighbouring packs, which is coalesced; 64-bit: N may exceed 2^31
        first = cuda.blockIdx.x * (BLOCK * PACKS) + cuda.threadIdx.x
        packs = N // VEC

        # The host has rounded value to out's dtype, so store_pack rounds nothing any more.
        pack = cuda.local.array(VEC, float32)
        for k in range(VEC):
            pack[k] = value

        for p in range(PACKS):
            i = first + p * BLOCK
            if i < packs:
                store_pack(out, i * VEC, pack, 0)
        if first < N % VEC:  # what fills no pack
            store(out, packs * VEC + first, value)

    return kernel


def fill(like, value):
    value = check(like, value)
    N = like.numel()
    out = torch.empty_like(like)
    if N > 0:
        VEC = 16 // like.element_size()  # elements of a pack of 16 bytes
        grid = (-(-N // (BLOCK * PACKS * VEC)),)
        launch(fill_kernel(VEC), grid, (BLOCK,), out.view(-1), np.float32(value))
    return out
