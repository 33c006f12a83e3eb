"""Each block owns a tile of C and a slice of K; a second kernel sums them, or they in turn."""

from functools import cache

import numpy as np
import torch
from numba import cuda, float32, int16, int32, int64

from implementations.common.device import properties
from implementations.common.numba_cuda import launch
from implementations.instructions.access import global_address, load_pack, store, store_pack
from implementations.instructions.tile_product import store_tile, tile_product
from implementations.instructions.turnstile import pass_turn, wait_turn
from implementations.phase3_matrix_operations.day20_split_k.matmul_split_k import check

# Rows and columns of a tile, and how many blocks a multiprocessor is given; the small one is for
# matrices of one large tile's width or height.
SMALL, LARGE = (64, 2), (128, 1)
BLOCK_K = 64
WARP_M, WARP_N = 64, 32
MAX_STAGES = 4
SUM_THREADS, SUM_SPLITS = 256, 4  # of a block that sums, and how many slices a thread of it sums

FRAGMENTS_M, FRAGMENTS_N = WARP_M // 16, WARP_N // 8


@cache
def matmul_split_k_kernel(dtype, ALIGNED, SPLIT, IN_TURN, BLOCK, STAGES):
    """partials: of each slice and tile BLOCK * BLOCK floats in the order of registers: fragment by
    fragment, and of each a pack of 16 bytes from every thread. So a warp stores 512 bytes at once.
    If IN_TURN, of each tile only as many, and in turns how many slices have been added, from 0 on.
    """
    THREADS = BLOCK * BLOCK // (WARP_M * WARP_N) * 32
    product = tile_product(dtype, ALIGNED, BLOCK, BLOCK, BLOCK_K, WARP_M, WARP_N, STAGES)
    store_c = store_tile(dtype, ALIGNED, BLOCK, BLOCK, WARP_M, WARP_N)

    @cuda.jit(launch_bounds=THREADS)
    def kernel(A, B, C, partials, turns, M, N, K, SLICE):
        shared = cuda.shared.array(0, int16)

        tiles_n, tile, split = (N + BLOCK - 1) // BLOCK, cuda.blockIdx.x, cuda.blockIdx.y
        m0, n0 = int32(tile // tiles_n * BLOCK), int32(tile % tiles_n * BLOCK)
        k_begin = int32(split * SLICE)
        k_end = int32(k_begin + min(K - k_begin, SLICE))

        rC = cuda.local.array((FRAGMENTS_M, FRAGMENTS_N, 4), float32)
        product(rC, shared, A, B, M, N, K, m0, n0, k_begin, k_end)
        place = int64(tile) if IN_TURN else int64(split) * cuda.gridDim.x + tile
        first = place * (BLOCK * BLOCK // 4) + cuda.threadIdx.x
        if IN_TURN:
            if cuda.threadIdx.x == 0:
                wait_turn(global_address(turns, int64(tile)), split)
            cuda.syncthreads()  # it is the block's turn
            if split > 0:
                sum = cuda.local.array(4, float32)
                for i in range(FRAGMENTS_M):
                    for j in range(FRAGMENTS_N):
                        fragment = i * FRAGMENTS_N + j
                        load_pack(partials, (first + fragment * THREADS) * 4, sum, 0)
                        for e in range(4):
                            rC[i, j, e] += sum[e]
        if not SPLIT or IN_TURN and split == cuda.gridDim.y - 1:
            store_c(rC, shared, C, M, N, m0, n0)
            return
        for i in range(FRAGMENTS_M):
            for j in range(FRAGMENTS_N):
                fragment = i * FRAGMENTS_N + j
                store_pack(partials, (first + fragment * THREADS) * 4, rC[i, j], 0)
        if IN_TURN:
            cuda.syncthreads()  # all have added
            if cuda.threadIdx.x == 0:
                pass_turn(global_address(turns, int64(tile)), split + int32(1))

    return kernel


@cache
def sum_splits_kernel(BLOCK, TX, TY):
    """Each block sums TX packs over all slices: a thread every TY-th of a pack, then one thread the
    TY sums. packs: of a slice."""
    THREADS = BLOCK * BLOCK // (WARP_M * WARP_N) * 32

    @cuda.jit(launch_bounds=TX * TY)
    def kernel(partials, C, M, N, splits, packs):
        sSums = cuda.shared.array((TY, TX, 4), float32)
        tx, ty = cuda.threadIdx.x, cuda.threadIdx.y
        pack = int32(cuda.blockIdx.x * TX + tx)

        partial, sum = cuda.local.array(4, float32), cuda.local.array(4, float32)
        for e in range(4):
            sum[e] = float32(0)
        for split in range(ty, splits, TY):  # neighbours load neighbouring packs
            load_pack(partials, (int64(split) * packs + pack) * 4, partial, 0)
            for e in range(4):
                sum[e] += partial[e]
        for e in range(4):
            sSums[ty, tx, e] = sum[e]
        cuda.syncthreads()  # the sums of all threads are there
        if ty > 0:
            return
        for t in range(1, TY):
            for e in range(4):
                sum[e] += sSums[t, tx, e]

        # Where the pack comes from: element e is of row lane // 4 + e // 2 * 8 of its fragment, and
        # of column lane % 4 * 2 + e % 2.
        lane, warp, fragment = pack % 32, pack % THREADS // 32, pack // THREADS
        i, j = fragment // FRAGMENTS_N % FRAGMENTS_M, fragment % FRAGMENTS_N
        tile, tiles_n = pack // (BLOCK * BLOCK // 4), (N + BLOCK - 1) // BLOCK
        row = tile // tiles_n * BLOCK + warp % (BLOCK // WARP_M) * WARP_M + i * 16
        col = tile % tiles_n * BLOCK + warp // (BLOCK // WARP_M) * WARP_N + j * 8
        for e in range(4):
            m, n = row + lane // 4 + e // 2 * 8, col + lane % 4 * 2 + e % 2
            if m < M and n < N:
                store(C, int64(m) * N + n, sum[e])

    return kernel


def matmul_split_k(a, b, in_turn=False):
    check(a, b, in_turn)
    (M, K), N = a.shape, b.shape[1]
    c = torch.empty((M, N), dtype=a.dtype, device=a.device)
    if c.numel() == 0:
        return c
    gpu = properties(a.device)
    BLOCK, blocks = SMALL if min(M, N) <= LARGE[0] else LARGE
    tiles, steps = -(-M // BLOCK) * -(-N // BLOCK), max(1, -(-K // BLOCK_K))
    # as many slices of whole steps as give each multiprocessor its blocks once
    SLICE = -(-steps // max(1, blocks * gpu.multiprocessors // tiles)) * BLOCK_K
    splits = -(-steps * BLOCK_K // SLICE)
    SPLIT = splits > 1
    IN_TURN = SPLIT and in_turn
    shape = (1 if IN_TURN else splits, tiles, BLOCK * BLOCK) if SPLIT else (0,)
    partials = torch.empty(shape, dtype=torch.float32, device=a.device).view(-1)
    turns = torch.zeros(tiles if IN_TURN else 0, dtype=torch.int32, device=a.device)

    THREADS = BLOCK * BLOCK // (WARP_M * WARP_N) * 32
    ALIGNED = K % 8 == 0 and N % 8 == 0
    stage_bytes = 2 * BLOCK * BLOCK_K * 2
    STAGES = gpu.stages(MAX_STAGES, stage_bytes)
    kernel = matmul_split_k_kernel(a.dtype, ALIGNED, SPLIT, IN_TURN, BLOCK, STAGES)
    A, B, C = (x.view(torch.int16).view(-1) for x in (a, b, c))  # the kernel moves bits
    M, N, K, SLICE = map(np.int32, (M, N, K, SLICE))  # 64-bit loop counters would spill
    args, shared_bytes = (A, B, C, partials, turns, M, N, K, SLICE), STAGES * stage_bytes
    launch(kernel, (tiles, splits), (THREADS,), *args, shared_bytes=shared_bytes)
    if SPLIT and not IN_TURN:
        packs = tiles * BLOCK * BLOCK // 4
        TY = min(max(1, (1 << (splits - 1).bit_length()) // SUM_SPLITS), 32)
        TX = SUM_THREADS // TY
        args = (partials, c.view(-1), M, N, np.int32(splits), np.int32(packs))
        launch(sum_splits_kernel(BLOCK, TX, TY), (packs // TX,), (TX, TY), *args)
    return c
