"""As many blocks as multiprocessors walk the tiles of all problems, to and fro, by a table."""

from pathlib import Path

import torch

from implementations.common.cuda_cpp import CudaSource
from implementations.common.device import has_wgmma, properties
from implementations.common.device_table import device_table
from implementations.phase3_matrix_operations.day21_advanced_matmul.grouped_gemm import check

BLOCK_M, BLOCK_N, BLOCK_K = 128, 256, 64
THREADS = BLOCK_M * BLOCK_N // 128  # a warp for each 64 x 64
STAGE_BYTES = (BLOCK_M + BLOCK_N) * BLOCK_K * 2  # bytes of shared memory that a stage takes
MAX_STAGES = 3
WGMMA_THREADS, WGMMA_STAGES = 384, 4
WGMMA_BYTES = WGMMA_STAGES * (STAGE_BYTES + 2 * 8)  # two barriers a stage

SOURCE = CudaSource(Path(__file__).with_name("grouped_gemm.cu"))


def grouped_gemm(a_list, b_list):
    check(a_list, b_list)
    pairs = [*zip(a_list, b_list, strict=True)]
    c_list = [torch.empty((len(a), b.shape[1]), dtype=a.dtype, device=a.device) for a, b in pairs]
    # those of the longest K first: what is left for the end, and may be left uneven, is short
    by_length = sorted(zip(a_list, b_list, c_list, strict=True), key=lambda abc: -abc[0].shape[1])
    rows, tiles, ALIGNED = [], 0, True
    for a, b, c in by_length:
        (M, K), N = a.shape, b.shape[1]
        if c.numel() > 0:
            rows.append((a, b, c, M, N, K, tiles))
            tiles += -(-M // BLOCK_M) * -(-N // BLOCK_N)
            # then all rows start at a multiple of 16 bytes
            ALIGNED = ALIGNED and K % 8 == 0 and N % 8 == 0
    if tiles > 0:
        device = rows[0][0].device
        table = device_table(rows, device)
        grid = (min(tiles, properties(device).programs(1)),)
        args, T = (table, len(rows), tiles), rows[0][0].dtype
        template = dict(T=T, BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N, BLOCK_K=BLOCK_K)
        if ALIGNED and has_wgmma(device):
            template |= dict(STAGES=WGMMA_STAGES, THREADS=WGMMA_THREADS)
            kernel, threads, shared_bytes = "grouped_gemm_wgmma_kernel", WGMMA_THREADS, WGMMA_BYTES
        else:
            STAGES = properties(device).stages(MAX_STAGES, STAGE_BYTES)
            template |= dict(ALIGNED=ALIGNED, STAGES=STAGES, THREADS=THREADS)
            kernel, threads, shared_bytes = "grouped_gemm_kernel", THREADS, STAGES * STAGE_BYTES
        SOURCE.launch(kernel, grid, (threads,), *args, shared_bytes=shared_bytes, **template)
    return c_list
