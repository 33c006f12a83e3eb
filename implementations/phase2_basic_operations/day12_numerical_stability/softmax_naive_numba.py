"""Each row is read twice by THREADS threads; rows of a warp or less share a block."""

from functools import cache

import torch
from numba import cuda, float32, int64
from numba.cuda import libdevice

from implementations.common.numba_cuda import launch
from implementations.instructions.access import load, load_pack, store, store_pack
from implementations.instructions.reduce import Sum, reduce_row
from implementations.phase2_basic_operations.day12_numerical_stability.softmax_naive import check

BLOCK = 128  # threads of a block, unless one row takes more
MAX_THREADS = 512  # threads that share a row, at most
PACKS = 4  # packs of 16 bytes that a thread has under way at once
INF = float32(float("inf"))


@cache  # a closure is Numba's template: the upper-case names are compile-time constants
def make_load_step(VEC, THREADS):
    """The function that loads a thread's packs of one step, the first from x[start + n] on. Beyond
    N they are -inf, whose exponential adds nothing to a sum."""

    @cuda.jit(device=True)
    def load_step(x, start, n, N, pack):
        for p in range(PACKS):
            at = n + p * THREADS * VEC  # neighbours read neighbouring packs
            if at < N:
                if VEC > 1:
                    load_pack(x, start + at, pack, p * VEC)
                else:
                    pack[p] = load(x, start + at)
            else:
                for k in range(VEC):
                    pack[p * VEC + k] = -INF

    return load_step


@cache
def softmax_naive_kernel(VEC, THREADS, ROWS):
    HELD, STEP = PACKS * VEC, THREADS * PACKS * VEC
    load_step = make_load_step(VEC, THREADS)
    reduce_sum = reduce_row(THREADS, Sum, float32(0))

    @cuda.jit(launch_bounds=THREADS * ROWS)
    def kernel(x, out, M, N):
        sPartial = cuda.shared.array(32, float32)
        row = int64(cuda.blockIdx.x) * ROWS + cuda.threadIdx.y
        end = N if row < M else 0  # beyond the last row, take part in the shuffles only
        start = row * N

        pack = cuda.local.array(HELD, float32)
        # fp32: a sum in 16 bits would stop growing
        l = float32(0)
        for n in range(cuda.threadIdx.x * VEC, end, STEP):
            load_step(x, start, n, N, pack)
            for k in range(HELD):
                # nothing is subtracted: for elements above 88.7 this is infinite
                l += libdevice.fast_expf(pack[k])
        # all threads of the block come here: the reduction has a barrier
        scale = float32(1) / reduce_sum(l, sPartial)

        # the second read comes from the L2 while the rows under way fit there
        for n in range(cuda.threadIdx.x * VEC, end, STEP):
            load_step(x, start, n, N, pack)
            for k in range(HELD):
                pack[k] = libdevice.fast_expf(pack[k]) * scale
            for p in range(PACKS):
                at = n + p * THREADS * VEC
                if at < N:
                    if VEC > 1:
                        store_pack(out, start + at, pack, p * VEC)
                    else:
                        store(out, start + at, pack[p])

    return kernel


def softmax_naive(x):
    check(x)
    M, N = x.shape
    out = torch.empty_like(x)
    if x.numel() > 0:
        VEC = 16 // x.element_size()  # elements of a pack of 16 bytes
        if N % VEC:  # rows do not start at a multiple of 16 bytes
            VEC = 1
        packs = N // VEC
        threads = min(max(min(packs, 32), packs // PACKS), MAX_THREADS)
        THREADS = 1 << (threads - 1).bit_length()
        ROWS = BLOCK // THREADS if THREADS <= 32 else 1  # `sPartial` holds one row's warps
        kernel = softmax_naive_kernel(VEC, THREADS, ROWS)
        launch(kernel, (-(-M // ROWS),), (THREADS, ROWS), x.view(-1), out.view(-1), M, N)
    return out
