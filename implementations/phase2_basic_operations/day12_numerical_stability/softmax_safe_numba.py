"""In each of three launches THREADS threads read a row; rows of a warp or less share a block."""

from functools import cache

import torch
from numba import cuda, float32, int64
from numba.cuda import libdevice

from implementations.common.numba_cuda import launch
from implementations.instructions.access import load, load_pack, store, store_pack
from implementations.instructions.reduce import Max, Sum, reduce_row
from implementations.phase2_basic_operations.day12_numerical_stability.softmax_safe import check

BLOCK = 128  # threads of a block, unless one row takes more
MAX_THREADS = 512  # threads that share a row, at most
PACKS = 4  # packs of 16 bytes that a thread has under way at once
INF = float32(float("inf"))


@cache  # a closure is Numba's template: the upper-case names are compile-time constants
def make_load_step(VEC, THREADS):
    """The function that loads a thread's packs of one step, the first from x[start + n] on. Beyond
    N they are -inf, which changes no maximum and adds nothing to a sum of exponentials."""

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
def softmax_safe_max_kernel(VEC, THREADS, ROWS):
    HELD, STEP = PACKS * VEC, THREADS * PACKS * VEC
    load_step = make_load_step(VEC, THREADS)
    reduce_max = reduce_row(THREADS, Max, -INF)

    @cuda.jit(launch_bounds=THREADS * ROWS)
    def kernel(x, m, M, N):
        sPartial = cuda.shared.array(32, float32)
        row = int64(cuda.blockIdx.x) * ROWS + cuda.threadIdx.y
        end = N if row < M else 0  # beyond the last row, take part in the shuffles only

        pack = cuda.local.array(HELD, float32)
        m_i = -INF
        for n in range(cuda.threadIdx.x * VEC, end, STEP):
            load_step(x, row * N, n, N, pack)
            for k in range(HELD):
                # fmaxf drops a NaN; the next kernel takes it into the sum, so all the row is NaN
                m_i = libdevice.fmaxf(m_i, pack[k])
        # all threads of the block come here: the reduction has a barrier
        m_i = reduce_max(m_i, sPartial)

        if row < M and cuda.threadIdx.x == 0:
            m[row] = m_i

    return kernel


@cache
def softmax_safe_sum_kernel(VEC, THREADS, ROWS):
    HELD, STEP = PACKS * VEC, THREADS * PACKS * VEC
    load_step = make_load_step(VEC, THREADS)
    reduce_sum = reduce_row(THREADS, Sum, float32(0))

    @cuda.jit(launch_bounds=THREADS * ROWS)
    def kernel(x, m, l, M, N):
        sPartial = cuda.shared.array(32, float32)
        row = int64(cuda.blockIdx.x) * ROWS + cuda.threadIdx.y
        end = N if row < M else 0
        m_i = m[row] if row < M else float32(0)

        pack = cuda.local.array(HELD, float32)
        # fp32: a sum in 16 bits would stop growing
        l_i = float32(0)
        for n in range(cuda.threadIdx.x * VEC, end, STEP):
            load_step(x, row * N, n, N, pack)
            for k in range(HELD):
                # at most 1, as m_i is the largest element: the sum cannot overflow
                l_i += libdevice.fast_expf(pack[k] - m_i)
        # all threads of the block come here: the reduction has a barrier
        l_i = reduce_sum(l_i, sPartial)

        if row < M and cuda.threadIdx.x == 0:
            l[row] = l_i

    return kernel


@cache
def softmax_safe_divide_kernel(VEC, THREADS, ROWS):
    HELD, STEP = PACKS * VEC, THREADS * PACKS * VEC
    load_step = make_load_step(VEC, THREADS)

    @cuda.jit(launch_bounds=THREADS * ROWS)
    def kernel(x, m, l, out, M, N):
        row = int64(cuda.blockIdx.x) * ROWS + cuda.threadIdx.y
        # no barrier follows that would wait for these threads
        if row >= M:
            return
        m_i, scale = m[row], float32(1) / l[row]

        pack = cuda.local.array(HELD, float32)
        for n in range(cuda.threadIdx.x * VEC, N, STEP):
            load_step(x, row * N, n, N, pack)
            for k in range(HELD):
                pack[k] = libdevice.fast_expf(pack[k] - m_i) * scale
            for p in range(PACKS):
                at = n + p * THREADS * VEC
                if at < N:
                    if VEC > 1:
                        store_pack(out, row * N + at, pack, p * VEC)
                    else:
                        store(out, row * N + at, pack[p])

    return kernel


def softmax_safe(x):
    check(x)
    M, N = x.shape
    out = torch.empty_like(x)
    if x.numel() > 0:
        m = torch.empty(M, dtype=torch.float32, device=x.device)
        l = torch.empty_like(m)
        VEC = 16 // x.element_size()  # elements of a pack of 16 bytes
        if N % VEC:  # rows do not start at a multiple of 16 bytes
            VEC = 1
        packs = N // VEC
        threads = min(max(min(packs, 32), packs // PACKS), MAX_THREADS)
        THREADS = 1 << (threads - 1).bit_length()
        ROWS = BLOCK // THREADS if THREADS <= 32 else 1  # `sPartial` holds one row's warps
        grid, block = (-(-M // ROWS),), (THREADS, ROWS)
        template = VEC, THREADS, ROWS
        flat_x, flat_out = x.view(-1), out.view(-1)
        # a kernel begins when the one before has ended: no other barrier spans the grid
        launch(softmax_safe_max_kernel(*template), grid, block, flat_x, m, M, N)
        launch(softmax_safe_sum_kernel(*template), grid, block, flat_x, m, l, M, N)
        launch(softmax_safe_divide_kernel(*template), grid, block, flat_x, m, l, flat_out, M, N)
    return out
