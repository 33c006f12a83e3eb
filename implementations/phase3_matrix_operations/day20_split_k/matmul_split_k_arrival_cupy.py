"""Each block owns a tile of C and a slice of K, and adds to the tile's sum when it arrives."""

from pathlib import Path

import torch

from implementations.common.cuda_cpp import CudaSource
from implementations.common.device import properties
from implementations.phase3_matrix_operations.day20_split_k.matmul_split_k_cupy import (
    BLOCK_K,
    LARGE,
    MAX_STAGES,
    SMALL,
    WARP_M,
    WARP_N,
)

SOURCE = CudaSource(Path(__file__).with_name("matmul_split_k_arrival.cu"))


def matmul_split_k_arrival(a, b):
    (M, K), N = a.shape, b.shape[1]
    c = torch.empty((M, N), dtype=a.dtype, device=a.device)
    if c.numel() == 0:
        return c
    gpu = properties(a.device)
    BLOCK, blocks = SMALL if min(M, N) <= LARGE[0] else LARGE
    tiles, steps = -(-M // BLOCK) * -(-N // BLOCK), max(1, -(-K // BLOCK_K))
    SLICE = -(-steps // max(1, blocks * gpu.multiprocessors // tiles)) * BLOCK_K
    splits = -(-steps * BLOCK_K // SLICE)
    # all that must be zero, by one launch
    zeros = torch.zeros(tiles * (BLOCK * BLOCK + 1), dtype=torch.float32, device=a.device)
    sums, arrived = zeros[:-tiles], zeros[-tiles:].view(torch.int32)

    THREADS = BLOCK * BLOCK // (WARP_M * WARP_N) * 32
    tile = dict(BLOCK_M=BLOCK, BLOCK_N=BLOCK, WARP_M=WARP_M, WARP_N=WARP_N, THREADS=THREADS)
    ALIGNED = K % 8 == 0 and N % 8 == 0
    stage_bytes = 2 * BLOCK * BLOCK_K * 2
    STAGES = gpu.stages(MAX_STAGES, stage_bytes)
    kernel, shared_bytes = "matmul_split_k_arrival_kernel", STAGES * stage_bytes
    args = (a, b, c, sums, arrived, M, N, K, SLICE)
    template = dict(T=a.dtype, ALIGNED=ALIGNED, BLOCK_K=BLOCK_K, STAGES=STAGES, **tile)
    SOURCE.launch(kernel, (tiles, splits), (THREADS,), *args, shared_bytes=shared_bytes, **template)
    return c
