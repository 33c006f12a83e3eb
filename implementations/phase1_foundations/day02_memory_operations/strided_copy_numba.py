"""Each thread copies PER_THREAD elements, a block's width apart; all loads precede all stores."""

import torch
from numba import cuda, uint64

from implementations.common.numba_cuda import launch
from implementations.phase1_foundations.day02_memory_operations.strided_copy import check

BLOCK = 256
PER_THREAD = 6  # loads that a thread has under way: single elements are small


@cuda.jit
def strided_copy_kernel(x, out, start, step):
    n = out.size
    # neighbours write side by side and read `step` apart; 64-bit: x may exceed 2^31 elements
    first = cuda.blockIdx.x * (BLOCK * PER_THREAD) + cuda.threadIdx.x

    v = cuda.local.array(PER_THREAD, x.dtype)
    for k in range(PER_THREAD):  # all loads are under way before the first store
        i = first + k * BLOCK
        if i < n:
            v[k] = x[uint64(start + i * step)]  # a signed index would be tested for its sign

    for k in range(PER_THREAD):
        i = first + k * BLOCK
        if i < n:
            out[uint64(i)] = v[k]


def strided_copy(x, start, step, n):
    check(x, start, step, n)
    out = torch.empty(n, dtype=x.dtype, device=x.device)
    if n > 0:
        grid = (-(-n // (BLOCK * PER_THREAD)),)
        launch(strided_copy_kernel, grid, (BLOCK,), x, out, start, step)
    return out
