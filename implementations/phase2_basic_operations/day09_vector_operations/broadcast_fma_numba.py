"""Each thread takes the same pack of ROWS rows, for which it loads its pack of `row` once."""

from functools import cache

import torch
from numba import cuda, float32, int64
from numba.cuda import libdevice

from implementations.common.numba_cuda import launch
from implementations.instructions.access import load, load_pack, store, store_pack
from implementations.phase2_basic_operations.day09_vector_operations.broadcast_fma import check

THREADS = 256
ROWS = 4


@cache  # a closure is Numba's template: the upper-case names are compile-time constants
def make_fma_rows(VEC, ROWS):
    """The function that computes a pack in each of ROWS rows, which lie `step` rows of N elements
    apart. The first is row m; its pack starts at x[start]."""
    HELD = ROWS * VEC

    @cuda.jit(device=True)
    def fma_rows(x, scale, col, out, start, m, step, N):
        pack = cuda.local.array(HELD, float32)  # rounded once, when it is stored
        bias = cuda.local.array(ROWS, float32)
        for r in range(ROWS):  # all loads are under way before the first is used
            if VEC > 1:
                load_pack(x, start + r * step * N, pack, r * VEC)
            else:
                pack[r] = load(x, start + r * step * N)
            bias[r] = load(col, m + r * step)

        for r in range(ROWS):
            for k in range(VEC):  # fused: the product is not rounded
                pack[r * VEC + k] = libdevice.fmaf(pack[r * VEC + k], scale[k], bias[r])

        for r in range(ROWS):
            if VEC > 1:
                store_pack(out, start + r * step * N, pack, r * VEC)
            else:
                store(out, start + r * step * N, pack[r])

    return fma_rows


@cache
def broadcast_fma_kernel(VEC):
    fma_rows, fma_row = make_fma_rows(VEC, ROWS), make_fma_rows(VEC, 1)

    @cuda.jit
    def kernel(x, row, col, out, M, N):
        n = (int64(cuda.blockIdx.x) * cuda.blockDim.x + cuda.threadIdx.x) * VEC
        step = cuda.blockDim.y  # neighbours along y take neighbouring rows
        m0 = cuda.blockIdx.y * (ROWS * step) + cuda.threadIdx.y
        # no barrier follows that would wait for these threads; VEC divides N, so packs are whole
        if n >= N:
            return

        scale = cuda.local.array(VEC, float32)  # once for all rows
        if VEC > 1:
            load_pack(row, n, scale, 0)
        else:
            scale[0] = load(row, n)
        if m0 + (ROWS - 1) * step < M:
            fma_rows(x, scale, col, out, m0 * N + n, m0, step, N)
        else:  # at the lower edge the rows come one by one
            m = m0
            while m < M:
                fma_row(x, scale, col, out, m * N + n, m, step, N)
                m += step

    return kernel


def broadcast_fma(x, row, col):
    check(x, row, col)
    M, N = x.shape
    out = torch.empty_like(x)
    if x.numel() > 0:
        VEC = 16 // x.element_size()  # elements of a pack of 16 bytes
        if N % VEC:  # rows do not start at a multiple of 16 bytes
            VEC = 1
        packs = -(-N // VEC)
        width = min(32, 1 << (packs - 1).bit_length())  # a warp, or less where rows are short
        block = (width, THREADS // width)
        grid = (-(-packs // width), -(-M // (block[1] * ROWS)))
        kernel = broadcast_fma_kernel(VEC)
        launch(kernel, grid, block, x.view(-1), row, col, out.view(-1), M, N)
    return out
