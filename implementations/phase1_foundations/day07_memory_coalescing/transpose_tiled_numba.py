"""Each block moves a TILE x TILE tile, each thread squares of it, by packs of 16 bytes."""

from functools import cache

import torch
from numba import cuda, float32, int64, uint32
from numba.types import float16

from implementations.common.numba_cuda import launch
from implementations.instructions.access import load, load_pack, store, store_pack
from implementations.phase1_foundations.day07_memory_coalescing.transpose_tiled import check

TILE_BYTES = 256  # bytes of a tile's row: whole lines of 128 are read and stored
ROWS = 8  # rows of squares that a block's threads take at a time
MAX_SIDE = 64  # squares along a tile's side: 512 threads


@cuda.jit(device=True)
def load_one(array, index, values, first):
    values[first] = load(array, index)


@cuda.jit(device=True)
def store_one(array, index, values, first):
    store(array, index, values[first])


@cache  # a closure is Numba's template: the upper-case names are compile-time constants
def transpose_tiled_kernel(dtype, VEC, TILE):
    SIDE = TILE // VEC  # squares along a tile's side
    SQUARES = SIDE // ROWS  # of a thread
    HELD = SQUARES * VEC**2
    SIZE = TILE**2
    load_vec, store_vec = (load_pack, store_pack) if VEC > 1 else (load_one, store_one)

    @cuda.jit(launch_bounds=SIDE * ROWS)
    def kernel(x, out, M, N):
        # Pack p of row n stands at p ^ n // VEC. Neighbouring threads write a column of packs and
        # read a row of them. Rows are a multiple of 128 bytes long, so unswizzled the packs of a
        # column would all lie in the same banks.
        sTile = cuda.shared.array(SIZE, dtype, alignment=16)

        pid = uint32(cuda.blockIdx.x)
        tiles_m, tiles_n = uint32((M + TILE - 1) // TILE), uint32((N + TILE - 1) // TILE)
        if M <= N:  # along the shorter side first: tiles that share lines are under way together
            pid_m, pid_n = pid % tiles_m, pid // tiles_m
        else:
            pid_m, pid_n = pid // tiles_n, pid % tiles_n
        m0, n0 = int64(pid_m) * TILE, int64(pid_n) * TILE
        col = cuda.threadIdx.x  # the thread's squares are in column col

        pack = cuda.local.array(HELD, float32)
        for s in range(SQUARES):
            row = s * ROWS + cuda.threadIdx.y
            m, n = m0 + row * VEC, n0 + col * VEC
            # VEC divides M and N, or is 1: a square lies within the matrix or beyond, as a whole
            if m < M and n < N:
                for k in range(VEC):
                    load_vec(x, (m + k) * N + n, pack, (s * VEC + k) * VEC)

        column = cuda.local.array(VEC, float32)
        for s in range(SQUARES):
            row = s * ROWS + cuda.threadIdx.y
            for j in range(VEC):
                for k in range(VEC):
                    column[k] = pack[(s * VEC + k) * VEC + j]
                store_vec(sTile, ((col * VEC + j) * SIDE + (row ^ col)) * VEC, column, 0)
        # from here on each thread reads what others have written
        cuda.syncthreads()  # the tile is complete

        for s in range(SQUARES):
            row = s * ROWS + cuda.threadIdx.y
            n, m = n0 + row * VEC, m0 + col * VEC
            if n < N and m < M:
                for j in range(VEC):
                    load_vec(sTile, ((row * VEC + j) * SIDE + (col ^ row)) * VEC, column, 0)
                    store_vec(out, (n + j) * M + m, column, 0)

    return kernel


def transpose_tiled(x):
    check(x)
    M, N = x.shape
    out = torch.empty((N, M), dtype=x.dtype, device=x.device)
    if x.numel() > 0:
        VEC = 16 // x.element_size()  # elements of a pack of 16 bytes
        if M % VEC or N % VEC:  # rows do not start at a multiple of 16 bytes
            VEC = 1
        TILE = min(TILE_BYTES // x.element_size(), MAX_SIDE * VEC)
        grid = (-(-M // TILE) * -(-N // TILE),)
        block = (TILE // VEC, ROWS)
        # nothing is calculated, so bfloat16 can move as float16: the bits stay
        bits = torch.float32 if x.dtype == torch.float32 else torch.float16
        dtype = float32 if x.dtype == torch.float32 else float16
        kernel = transpose_tiled_kernel(dtype, VEC, TILE)
        launch(kernel, grid, block, x.view(bits).view(-1), out.view(bits).view(-1), M, N)
    return out
