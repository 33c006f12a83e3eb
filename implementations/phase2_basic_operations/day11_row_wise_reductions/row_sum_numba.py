"""A group of threads sums each row, or each part of a long one, whose sums are summed again."""

from functools import cache

import torch
from numba import cuda, float32, int64, uint32

from implementations.common.numba_cuda import launch
from implementations.instructions.access import load, load_pack
from implementations.phase2_basic_operations.day11_row_wise_reductions.row_sum import check

BLOCK = 256  # threads of a block
PACKS = 4  # packs of 16 bytes that each thread has under way at once
PART_PACKS = 4096  # packs of a row that a block reads at most: 64 KB


@cache  # a closure is Numba's template: the upper-case names are compile-time constants
def row_sum_kernel(VEC, THREADS, ROWS):
    HELD, STEP, WARPS = PACKS * VEC, THREADS * VEC, THREADS // 32

    # unless told that 5 resident blocks are enough, the compiler saves registers and loads later
    @cuda.jit(launch_bounds=(BLOCK, 5))
    def kernel(x, out, M, N, PART, parts):
        sPartial = cuda.shared.array(32, float32)
        tx = cuda.threadIdx.x
        pid_m = int64(uint32(cuda.blockIdx.x) // uint32(parts))  # signed, it would take long
        part = cuda.blockIdx.x - pid_m * parts
        row = pid_m * ROWS + cuda.threadIdx.y
        start = row * N + part * PART
        # threads beyond the last row have nothing to add, but still take part in the shuffles
        count = min(N - part * PART, PART) if row < M else 0

        pack = cuda.local.array(HELD, float32)
        # fp32: a sum in 16 bits would stop growing, or overflow
        acc = cuda.local.array(VEC, float32)
        for k in range(VEC):
            acc[k] = float32(0)
        n = tx * VEC  # neighbours read neighbouring packs
        while n + (PACKS - 1) * STEP < count:
            for p in range(PACKS):  # all loads are under way before the first is used
                if VEC > 1:
                    load_pack(x, start + n + p * STEP, pack, p * VEC)
                else:
                    pack[p] = load(x, start + n + p * STEP)
            for p in range(PACKS):
                for k in range(VEC):
                    acc[k] += pack[p * VEC + k]
            n += PACKS * STEP
        for p in range(PACKS - 1):  # what is left, fewer than PACKS packs
            if n + p * STEP < count:
                if VEC > 1:
                    load_pack(x, start + n + p * STEP, pack, 0)
                else:
                    pack[0] = load(x, start + n + p * STEP)
                for k in range(VEC):
                    acc[k] += pack[k]

        total = float32(0)
        for k in range(VEC):
            total += acc[k]
        delta = min(THREADS, 32) // 2
        while delta > 0:
            total += cuda.shfl_xor_sync(0xFFFFFFFF, total, delta)
            delta //= 2
        # sPartial: written once and read after the one barrier, by all threads the same word
        if WARPS > 1:
            if tx % 32 == 0:
                sPartial[tx // 32] = total
            cuda.syncthreads()  # every warp's total is there
            total = float32(0)
            for w in range(WARPS):
                total += sPartial[w]

        if tx == 0 and row < M:
            out[row * parts + part] = total

    return kernel


def row_sum(x):
    check(x)
    M, N = x.shape
    if x.numel() == 0:
        return torch.empty(M, dtype=torch.float32, device=x.device).zero_()  # sums of nothing
    VEC = 16 // x.element_size()  # elements of a pack of 16 bytes
    if N % VEC:  # rows do not start at a multiple of 16 bytes
        VEC = 1
    packs = N // VEC
    threads = max(min(packs, 4), packs // PACKS)  # at least 4 neighbours, for 64 bytes
    THREADS = min(1 << (threads - 1).bit_length(), 32) if threads <= 128 else BLOCK
    ROWS = BLOCK // THREADS  # several while a row takes a warp or less, else one
    PART = PART_PACKS * VEC
    parts = -(-N // PART)

    sums = torch.empty(M, parts, dtype=torch.float32, device=x.device)
    grid = (-(-M // ROWS) * parts,)
    kernel = row_sum_kernel(VEC, THREADS, ROWS)
    launch(kernel, grid, (THREADS, ROWS), x.view(-1), sums.view(-1), M, N, PART, parts)
    return sums.view(M) if parts == 1 else row_sum(sums)
