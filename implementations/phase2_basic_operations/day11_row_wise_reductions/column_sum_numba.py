"""Each block sums a strip of columns, or a part of its rows, whose sums are summed again."""

from functools import cache

import torch
from numba import cuda, float32, int64

from implementations.common.device import properties
from implementations.common.numba_cuda import launch
from implementations.instructions.access import load, load_pack
from implementations.phase2_basic_operations.day11_row_wise_reductions.column_sum import check

BLOCK = 256  # threads of a block
PACKS = 4  # packs of 16 bytes that each thread has under way at once
WIDE, NARROW = 32, 2  # packs of a strip's row: 512 bytes, and 32, the least that memory moves
PART_ROWS = 1024  # rows of a part, at least
PROGRAMS_PER_SM = 15  # 132 multiprocessors: under 2 * PART_ROWS parts, so no third launch


@cache  # a closure is Numba's template: the upper-case names are compile-time constants
def column_sum_kernel(VEC, TX, TY):
    HELD, STRIP = PACKS * VEC, TX * VEC

    # unless told that 5 resident blocks are enough, the compiler saves registers and loads later
    @cuda.jit(launch_bounds=(BLOCK, 5))
    def kernel(x, out, M, N, PART):
        sSums = cuda.shared.array((TY, STRIP), float32)
        tx, ty, part = cuda.threadIdx.x, cuda.threadIdx.y, cuda.blockIdx.y
        tid = ty * TX + tx
        n0 = int64(cuda.blockIdx.x) * STRIP
        start = part * PART * N + n0 + tx * VEC  # neighbours along a row read neighbouring packs
        # rows of this thread's part; threads beyond the last column have none, but meet the barrier
        count = min(M - part * PART, PART) if n0 + tx * VEC < N else 0

        pack = cuda.local.array(HELD, float32)
        # fp32: a sum in 16 bits would stop growing, or overflow
        acc = cuda.local.array(VEC, float32)
        for k in range(VEC):
            acc[k] = float32(0)
        m = int64(ty)
        while m + (PACKS - 1) * TY < count:
            for p in range(PACKS):  # all loads are under way before the first is used
                if VEC > 1:
                    load_pack(x, start + (m + p * TY) * N, pack, p * VEC)
                else:
                    pack[p] = load(x, start + (m + p * TY) * N)
            for p in range(PACKS):
                for k in range(VEC):
                    acc[k] += pack[p * VEC + k]
            m += PACKS * TY
        for p in range(PACKS - 1):  # what is left, fewer than PACKS rows
            if m + p * TY < count:
                if VEC > 1:
                    load_pack(x, start + (m + p * TY) * N, pack, 0)
                else:
                    pack[0] = load(x, start + (m + p * TY) * N)
                for k in range(VEC):
                    acc[k] += pack[k]

        for k in range(VEC):
            sSums[ty, tx * VEC + k] = acc[k]
        cuda.syncthreads()  # the sums of all TY rows of threads are there
        if tid < STRIP and n0 + tid < N:  # from here on a thread has one column
            total = float32(0)
            # neighbours read neighbouring words, so banks do not conflict
            for t in range(TY):
                total += sSums[t, tid]
            out[part * N + n0 + tid] = total

    return kernel


def column_sum(x):
    check(x)
    M, N = x.shape
    if x.numel() == 0:
        return torch.empty(N, dtype=torch.float32, device=x.device).zero_()  # sums of nothing
    VEC = 16 // x.element_size()  # elements of a pack of 16 bytes
    if N % VEC:  # rows do not start at a multiple of 16 bytes
        VEC = 1
    packs = N // VEC
    parts = max(
        1, min(M // PART_ROWS, properties(x.device).programs(PROGRAMS_PER_SM) // -(-packs // WIDE))
    )
    # where rows are not divided, strips are so narrow that each multiprocessor gets two
    width = WIDE if parts > 1 else max(NARROW, min(packs // properties(x.device).programs(2), WIDE))
    TX = 1 << (min(width, packs) - 1).bit_length()
    TY = BLOCK // TX
    STEP = TY * PACKS
    PART = (M // (parts * STEP) + 1) * STEP
    parts = -(-M // PART)

    sums = torch.empty(parts, N, dtype=torch.float32, device=x.device)
    grid = (-(-packs // TX), parts)
    launch(column_sum_kernel(VEC, TX, TY), grid, (TX, TY), x.view(-1), sums.view(-1), M, N, PART)
    return sums.view(N) if parts == 1 else column_sum(sums)
