"""Each thread owns packs of 16 bytes and their parts of the mask, and makes its random words."""

from functools import cache

import numpy as np
import torch
from numba import cuda, float32, int64

from implementations.common.numba_cuda import launch
from implementations.instructions.access import load, load_pack, store, store_pack
from implementations.instructions.philox import philox_4x32
from implementations.phase4_advanced_kernels.day24_dropout.dropout import check

BLOCK = 256
PACKS_OF = {4: 1, 2: 4}  # of a thread, by the bytes of an element
MASK = {4: torch.int32, 8: torch.int64}  # what holds the bytes of so many bools


@cache  # a closure is Numba's template: VEC and PACKS are compile-time constants
def dropout_kernel(VEC, PACKS):
    COUNT = PACKS * VEC  # elements of a thread

    @cuda.jit
    def kernel(x, y, keep, keep_packs, threshold, scale, seed):
        N = x.size
        step = cuda.blockDim.x * VEC  # from a pack to the next
        first = int64(cuda.blockIdx.x) * PACKS * step  # 64-bit: N may exceed 2^31

        if first + PACKS * step <= N:
            values = cuda.local.array(COUNT, float32)
            for p in range(PACKS):  # all loads are under way while the words are made
                load_pack(x, first + p * step + cuda.threadIdx.x * VEC, values, p * VEC)
            for p in range(PACKS):
                i = first + p * step + cuda.threadIdx.x * VEC
                mask = int64(0)  # a byte for each element
                for c in range(VEC // 4):
                    words = philox_4x32(seed, i // 4 + c)
                    for j in range(4):
                        k = p * VEC + 4 * c + j
                        kept = words[j] >= threshold
                        # a NaN is dropped too: it is not multiplied by 0
                        values[k] = values[k] * scale if kept else float32(0)
                        mask |= int64(kept) << (8 * (4 * c + j))
                store_pack(y, i, values, p * VEC)
                keep_packs[i // VEC] = mask
        else:  # the last block goes four by four
            for c in range(first // 4 + cuda.threadIdx.x, (N + 3) // 4, cuda.blockDim.x):
                words = philox_4x32(seed, c)
                for j in range(4):
                    if 4 * c + j < N:
                        kept = words[j] >= threshold
                        value = load(x, 4 * c + j) * scale if kept else float32(0)
                        store(y, 4 * c + j, value)
                        keep[4 * c + j] = kept

    return kernel


def dropout(x, p, seed):
    threshold, scale, seed = check(x, p, seed)
    N = x.numel()
    y = torch.empty_like(x)
    flat = torch.empty(N, dtype=torch.bool, device=x.device)
    keep = flat.view(x.shape)
    if p == 1:  # no word is as large as the threshold
        return y.zero_(), keep.zero_()
    if N > 0:
        size = x.element_size()
        VEC, PACKS = 16 // size, PACKS_OF[size]  # elements of a pack, packs of a thread
        grid = (-(-N // (BLOCK * PACKS * VEC)),)
        keep_packs = flat[: N - N % VEC].view(MASK[VEC])  # of the whole packs
        numbers = np.uint32(threshold), np.float32(scale), seed
        args = x.view(-1), y.view(-1), flat, keep_packs, *numbers
        launch(dropout_kernel(VEC, PACKS), grid, (BLOCK,), *args)
    return y, keep
