"""Each thread takes the same pack of ROWS rows, on a grid of columns, rows and matrices."""

from functools import cache

import torch
from numba import cuda, float32, int64
from numba.cuda import libdevice

from implementations.common.numba_cuda import launch
from implementations.instructions.access import load, load_pack, store, store_pack
from implementations.phase1_foundations.day06_multidimensional_grids.affine_3d import check

BLOCK = (32, 8)  # threads along x and y
ROWS = 4


@cache  # a closure is Numba's template: the upper-case names are compile-time constants
def make_affine_rows(VEC, ROWS):
    """The function that computes a pack in each of ROWS rows, which lie `step` rows of N elements
    apart. The first is row m; its pack starts at x[start]."""
    HELD = ROWS * VEC

    @cuda.jit(device=True)
    def affine_rows(x, row_scale, bias, out, start, m, step, N):
        pack = cuda.local.array(HELD, float32)  # rounded once, when it is stored
        scale = cuda.local.array(ROWS, float32)
        for r in range(ROWS):  # all loads are under way before the first is used
            if VEC > 1:
                load_pack(x, start + r * step * N, pack, r * VEC)
            else:
                pack[r] = load(x, start + r * step * N)
            scale[r] = load(row_scale, m + r * step)

        for r in range(ROWS):
            for k in range(VEC):  # fused: the product is not rounded
                pack[r * VEC + k] = libdevice.fmaf(pack[r * VEC + k], scale[r], bias[k])

        for r in range(ROWS):
            if VEC > 1:
                store_pack(out, start + r * step * N, pack, r * VEC)
            else:
                store(out, start + r * step * N, pack[r])

    return affine_rows


@cache
def affine_3d_kernel(VEC):
    affine_rows, affine_row = make_affine_rows(VEC, ROWS), make_affine_rows(VEC, 1)

    @cuda.jit
    def kernel(x, row_scale, col_bias, out, M, N):
        n = (int64(cuda.blockIdx.x) * cuda.blockDim.x + cuda.threadIdx.x) * VEC
        step = cuda.blockDim.y  # neighbouring warps take neighbouring rows
        m0 = cuda.blockIdx.y * (ROWS * step) + cuda.threadIdx.y
        # no barrier follows that would wait for these threads; VEC divides N, so packs are whole
        if n >= N:
            return

        bias = cuda.local.array(VEC, float32)
        if VEC > 1:
            load_pack(col_bias, n, bias, 0)
        else:
            bias[0] = load(col_bias, n)
        start = int64(cuda.blockIdx.z) * M * N + n  # of column n in this matrix
        if m0 + (ROWS - 1) * step < M:
            affine_rows(x, row_scale, bias, out, start + m0 * N, m0, step, N)
        else:  # at the lower edge the rows come one by one
            m = m0
            while m < M:
                affine_row(x, row_scale, bias, out, start + m * N, m, step, N)
                m += step

    return kernel


def affine_3d(x, row_scale, col_bias):
    check(x, row_scale, col_bias)
    B, M, N = x.shape
    out = torch.empty_like(x)
    if x.numel() > 0:
        VEC = 16 // x.element_size()  # elements of a pack of 16 bytes
        if N % VEC:  # rows do not start at a multiple of 16 bytes
            VEC = 1
        grid = (-(-N // (BLOCK[0] * VEC)), -(-M // (BLOCK[1] * ROWS)), B)
        kernel = affine_3d_kernel(VEC)
        launch(kernel, grid, BLOCK, x.view(-1), row_scale, col_bias, out.view(-1), M, N)
    return out
