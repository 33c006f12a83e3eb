"""A group of threads takes each row, or each part of a long one, whose pairs are then merged."""

from functools import cache

import numpy as np
import torch
from numba import cuda, float32, int64, uint32
from numba.cuda import libdevice

from implementations.common.numba_cuda import launch
from implementations.instructions.access import load, load_pack
from implementations.instructions.attention import INF, LOWEST, exp2_approx
from implementations.instructions.reduce import Max, Sum, reduce_row
from implementations.phase5_flash_attention.day31_online_softmax.softmax_stats import check

BLOCK = 256  # threads of a block
PACKS = 4  # packs of 16 bytes that each thread has under way at once
PART_PACKS = 4096  # packs of a row that a block reads at most: 64 KB
MERGE_BLOCK = 1024  # threads that merge the parts of a row that has many, else a warp
MANY_PARTS = 16  # at most these are merged by a warp
# Between LOWEST and LARGEST m_i stays, as inf - inf would be NaN: of elements that are all -inf,
# LOWEST is subtracted, and l_i is 0; of one that is inf LARGEST, and l_i is inf.
LARGEST = float32(np.finfo(np.float32).max)
LOG2E = float32(1.4426950408889634)


@cuda.jit(device=True)
def fast_exp(x):
    """exp(x), below the smallest normal number 0, in fewer steps than fast_expf."""
    return exp2_approx(x * LOG2E)


@cache  # a closure is Numba's template: the upper-case names are compile-time constants
def make_take(HELD):
    """The function that takes the first HELD elements of `pack` into a thread's pair, which is
    scaled once for all of them."""

    @cuda.jit(device=True)
    def take(m_i, l_i, pack):
        m = m_i
        for k in range(HELD):
            m = libdevice.fmaxf(m, pack[k])  # drops a NaN, whose exponential makes l_i NaN
        m = libdevice.fminf(m, LARGEST)
        l_i *= fast_exp(m_i - m)
        for k in range(HELD):
            l_i += fast_exp(pack[k] - m)
        return m, l_i

    return take


@cache
def make_store_merged(THREADS):
    """The function that makes one of the pairs of a row's threads, which the first of them stores
    at m[at] and l[at] where it `is_row`."""
    reduce_max = reduce_row(THREADS, Max, LOWEST)
    reduce_sum = reduce_row(THREADS, Sum, float32(0))

    @cuda.jit(device=True)
    def store_merged(m_i, l_i, m, l, at, is_row):
        # one for each reduction: a warp may write its sum while another still reads the maxima
        sMax = cuda.shared.array(32, float32)
        sSum = cuda.shared.array(32, float32)
        m_row = reduce_max(m_i, sMax)
        l_row = reduce_sum(l_i * fast_exp(m_i - m_row), sSum)
        if cuda.threadIdx.x == 0 and is_row:
            # an l of 0, inf or NaN says what the maximum was
            m[at] = -INF if l_row == float32(0) else m_row if l_row < INF else l_row
            l[at] = l_row

    return store_merged


@cache
def softmax_stats_kernel(VEC, THREADS, ROWS):
    HELD, STEP = PACKS * VEC, THREADS * VEC
    take, take_pack, store_merged = make_take(HELD), make_take(VEC), make_store_merged(THREADS)

    # told that 4 resident blocks are enough, the compiler has registers for all packs
    @cuda.jit(launch_bounds=(BLOCK, 4))
    def kernel(x, m, l, M, N, PART, parts):
        pid_m = int64(uint32(cuda.blockIdx.x) // uint32(parts))  # signed, it would take long
        part = cuda.blockIdx.x - pid_m * parts
        row = pid_m * ROWS + cuda.threadIdx.y
        start = row * N + part * PART
        # threads beyond the last row have nothing to take, but still take part in the shuffles
        count = min(N - part * PART, PART) if row < M else 0

        m_i, l_i = LOWEST, float32(0)
        pack = cuda.local.array(HELD, float32)
        n = cuda.threadIdx.x * VEC  # neighbours read neighbouring packs
        while n + (PACKS - 1) * STEP < count:
            for p in range(PACKS):  # all loads are under way before the first is used
                if VEC > 1:
                    load_pack(x, start + n + p * STEP, pack, p * VEC)
                else:
                    pack[p] = load(x, start + n + p * STEP)
            m_i, l_i = take(m_i, l_i, pack)
            n += PACKS * STEP
        for p in range(PACKS - 1):  # what is left, fewer than PACKS packs
            if n + p * STEP < count:
                if VEC > 1:
                    load_pack(x, start + n + p * STEP, pack, 0)
                else:
                    pack[0] = load(x, start + n + p * STEP)
                m_i, l_i = take_pack(m_i, l_i, pack)

        store_merged(m_i, l_i, m, l, row * parts + part, row < M)

    return kernel


@cache
def softmax_stats_merge_kernel(THREADS, ROWS):
    store_merged = make_store_merged(THREADS)

    @cuda.jit(launch_bounds=THREADS * ROWS)
    def kernel(m_parts, l_parts, m, l, M, parts):
        row = int64(cuda.blockIdx.x) * ROWS + cuda.threadIdx.y
        start, count = row * parts, parts if row < M else 0

        m_i, l_i = LOWEST, float32(0)
        for i in range(cuda.threadIdx.x, count, THREADS):
            m_of_part, l_of_part = m_parts[start + i], l_parts[start + i]
            m_new = libdevice.fminf(libdevice.fmaxf(m_i, m_of_part), LARGEST)
            l_i *= fast_exp(m_i - m_new)
            l_i += l_of_part * fast_exp(m_of_part - m_new)
            m_i = m_new
        store_merged(m_i, l_i, m, l, row, row < M)

    return kernel


def softmax_stats(x):
    check(x)
    M, N = x.shape
    m, l = (torch.empty(M, dtype=torch.float32, device=x.device) for _ in range(2))
    if x.numel() == 0:
        return m.fill_(-torch.inf), l.zero_()  # of nothing
    VEC = 16 // x.element_size()  # elements of a pack of 16 bytes
    if N % VEC:  # rows do not start at a multiple of 16 bytes
        VEC = 1
    packs = N // VEC
    threads = max(min(packs, 4), packs // PACKS)  # at least 4 neighbours, for 64 bytes
    THREADS = min(1 << (threads - 1).bit_length(), 32) if threads <= 128 else BLOCK
    ROWS = BLOCK // THREADS if THREADS <= 32 else 1
    PART = PART_PACKS * VEC
    parts = -(-N // PART)

    pairs = m, l
    if parts > 1:
        pairs = torch.empty((2, M * parts), dtype=torch.float32, device=x.device)
    grid = (-(-M // ROWS) * parts,)
    kernel = softmax_stats_kernel(VEC, THREADS, ROWS)
    launch(kernel, grid, (THREADS, ROWS), x.view(-1), *pairs, M, N, PART, parts)
    if parts > 1:
        THREADS = 32 if parts <= MANY_PARTS else MERGE_BLOCK
        ROWS = BLOCK // THREADS if THREADS == 32 else 1
        kernel = softmax_stats_merge_kernel(THREADS, ROWS)
        launch(kernel, (-(-M // ROWS),), (THREADS, ROWS), *pairs, m, l, M, parts)
    return m, l
