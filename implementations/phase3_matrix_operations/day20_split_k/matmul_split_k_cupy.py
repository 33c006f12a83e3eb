"""Each block owns a tile of C and a slice of K; a second kernel sums them, or they in turn."""

from pathlib import Path

import torch

from implementations.common.cuda_cpp import CudaSource
from implementations.common.device import properties
from implementations.phase3_matrix_operations.day20_split_k.matmul_split_k import check

# Rows and columns of a tile, and how many blocks a multiprocessor is given; the small one is for
# matrices of one large tile's width or height.
SMALL, LARGE = (64, 2), (128, 1)
BLOCK_K = 64
WARP_M, WARP_N = 64, 32
MAX_STAGES = 4
SUM_THREADS, SUM_SPLITS = 256, 4  # of a block that sums, and how many slices a thread of it sums

SOURCE = CudaSource(Path(__file__).with_name("matmul_split_k.cu"))


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
    partials = torch.empty(shape, dtype=torch.float32, device=a.device)
    turns = torch.zeros(tiles if IN_TURN else 0, dtype=torch.int32, device=a.device)

    THREADS = BLOCK * BLOCK // (WARP_M * WARP_N) * 32
    tile = dict(BLOCK_M=BLOCK, BLOCK_N=BLOCK, WARP_M=WARP_M, WARP_N=WARP_N, THREADS=THREADS)
    # then all rows of a and b start at a multiple of 16 bytes
    ALIGNED = K % 8 == 0 and N % 8 == 0
    stage_bytes = 2 * BLOCK * BLOCK_K * 2
    STAGES = gpu.stages(MAX_STAGES, stage_bytes)
    flags = dict(ALIGNED=ALIGNED, SPLIT=SPLIT, IN_TURN=IN_TURN)
    template = dict(T=a.dtype, BLOCK_K=BLOCK_K, STAGES=STAGES, **flags, **tile)
    kernel, shared_bytes = "matmul_split_k_kernel", STAGES * stage_bytes
    args = (a, b, c, partials, turns, M, N, K, SLICE)
    SOURCE.launch(kernel, (tiles, splits), (THREADS,), *args, shared_bytes=shared_bytes, **template)
    if SPLIT and not IN_TURN:
        packs = tiles * BLOCK * BLOCK // 4
        TY = min(max(1, (1 << (splits - 1).bit_length()) // SUM_SPLITS), 32)
        TX = SUM_THREADS // TY
        template = dict(T=a.dtype, TX=TX, TY=TY, **tile)
        args = (partials, c, M, N, splits, packs)
        SOURCE.launch("sum_splits_kernel", (packs // TX,), (TX, TY), *args, **template)
    return c
