"""Each row is held in the registers of THREADS threads; rows of a warp or less share a block."""

from functools import cache

import torch
from numba import cuda, float32, int64
from numba.cuda import libdevice

from implementations.common.numba_cuda import launch
from implementations.instructions.access import load, load_pack, store, store_pack
from implementations.instructions.reduce import Max, Sum, reduce_row
from implementations.phase2_basic_operations.day13_fused_softmax.softmax_fused import check

BLOCK = 128  # threads of a block, unless one row takes more
PER_THREAD = 32  # elements a thread holds, at most
INF = float32(float("inf"))


@cache  # a closure is Numba's template: the upper-case names are compile-time constants
def softmax_fused_kernel(VEC, PACKS, THREADS, ROWS):
    HELD = PACKS * VEC
    reduce_max = reduce_row(THREADS, Max, -INF)
    reduce_sum = reduce_row(THREADS, Sum, float32(0))

    @cuda.jit(launch_bounds=THREADS * ROWS)
    def kernel(x, out, M, N):
        # one for each reduction: a warp may write its sum while another still reads the maxima
        sPartialMax = cuda.shared.array(32, float32)
        sPartialSum = cuda.shared.array(32, float32)
        row = cuda.blockIdx.x * ROWS + cuda.threadIdx.y
        in_rows = row < M  # threads beyond the last row still take part in the shuffles
        start = int64(row) * N

        v = cuda.local.array(HELD, float32)
        m = -INF
        for p in range(PACKS):
            n = (p * THREADS + cuda.threadIdx.x) * VEC  # neighbours read neighbouring packs
            if in_rows and n < N:
                if VEC > 1:
                    load_pack(x, start + n, v, p * VEC)
                else:
                    v[p] = load(x, start + n)
            else:
                # it changes no maximum, and its exponential adds nothing to a sum
                for k in range(VEC):
                    v[p * VEC + k] = -INF
        for k in range(HELD):
            # fmaxf drops a NaN, whose exponential then makes the sum NaN
            m = libdevice.fmaxf(m, v[k])
        m = reduce_max(m, sPartialMax)

        l = float32(0)
        for k in range(HELD):
            v[k] = libdevice.fast_expf(v[k] - m)
            l += v[k]
        l = reduce_sum(l, sPartialSum)

        # one division a row; rows beyond the last have NaN here, and store nothing
        scale = float32(1) / l
        for k in range(HELD):
            v[k] *= scale
        for p in range(PACKS):
            n = (p * THREADS + cuda.threadIdx.x) * VEC
            if in_rows and n < N:
                if VEC > 1:
                    store_pack(out, start + n, v, p * VEC)
                else:
                    store(out, start + n, v[p])

    return kernel


def softmax_fused(x):
    check(x)
    M, N = x.shape
    out = torch.empty_like(x)
    if x.numel() > 0:
        VEC = 16 // x.element_size()  # elements of a pack of 16 bytes
        if N % VEC:  # rows do not start at a multiple of 16 bytes
            VEC = 1
        packs = -(-N // VEC)
        threads = max(min(packs, 32), -(-N // PER_THREAD))
        THREADS = 1 << (threads - 1).bit_length()
        PACKS = -(-packs // THREADS)
        ROWS = BLOCK // THREADS if THREADS <= 32 else 1  # one row's warps share memory
        kernel = softmax_fused_kernel(VEC, PACKS, THREADS, ROWS)
        launch(kernel, (-(-M // ROWS),), (THREADS, ROWS), x.view(-1), out.view(-1), M, N)
    return out
