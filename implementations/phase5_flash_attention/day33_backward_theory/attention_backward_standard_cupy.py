"""Six launches beside delta's: a block owns a tile of S, a row of P, a tile of dS, dq, dv or dk."""

from pathlib import Path

import torch

from implementations.common.cuda_cpp import CudaSource
from implementations.common.device import properties
from implementations.phase4_advanced_kernels.day27_standard_attention.attention_standard_cupy import (  # noqa: E501
    BLOCK_M,
    BLOCK_N,
    MAX_THREADS,
    MIN_THREADS,
    PACKS,
)
from implementations.phase4_advanced_kernels.day27_standard_attention.attention_standard_cupy import (  # noqa: E501
    SOURCE as DAY_27,
)
from implementations.phase5_flash_attention.day33_backward_theory.attention_backward_standard import (  # noqa: E501
    check,
    row_stride,
)
from implementations.phase5_flash_attention.day33_backward_theory.attention_delta_cupy import (
    attention_delta,
)

# Keys of a step of the loop that makes dq, queries of one that makes dv or dk: these are of one
# tile of P and dS, all of whose rows are written as far as the last one sees.
BLOCK_K = 64
WARP_M, WARP_N = 64, 32
MAX_STAGES = 4

SOURCE = CudaSource(Path(__file__).with_name("attention_backward_standard.cu"))


def attention_backward_standard(q, k, v, o, do, causal, sm_scale):
    sm_scale = check(q, k, v, o, do, causal, sm_scale)
    (B, H, M, D), N = q.shape, k.shape[2]
    dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
    if q.numel() == 0 or k.numel() == 0:
        return dq.zero_(), dk.zero_(), dv.zero_()
    stride = row_stride(N)
    p, ds = (torch.empty((B, H, M, stride), dtype=q.dtype, device=q.device) for _ in range(2))
    delta = attention_delta(o, do)
    offset = N - M if causal else N  # query i sees the keys j <= i + offset
    sizes = (M, N, offset, stride)
    tiles_m, tiles_n = -(-M // BLOCK_M), -(-stride // BLOCK_N)
    warps = dict(WARP_M=WARP_M, WARP_N=WARP_N)

    grid, THREADS = (B * H * tiles_m * tiles_n,), BLOCK_M * BLOCK_N // (WARP_M * WARP_N) * 32
    tile = dict(T=q.dtype, D=D, BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N, **warps, THREADS=THREADS)
    kernel, shared_bytes = "attention_standard_scores_kernel", 2 * (BLOCK_M + BLOCK_N) * D
    args = (q, k, p, *sizes, sm_scale)
    DAY_27.launch(kernel, grid, (THREADS,), *args, shared_bytes=shared_bytes, **tile)

    threads = max(MIN_THREADS, min(stride // (8 * PACKS), MAX_THREADS))
    ROW_THREADS = 1 << (threads.bit_length() - 1)
    template = dict(T=q.dtype, BLOCK_M=BLOCK_M, PACKS=PACKS, THREADS=ROW_THREADS)
    kernel = "attention_standard_softmax_kernel"
    DAY_27.launch(kernel, (B * H * M,), (ROW_THREADS,), p, *sizes, **template)

    kernel, shared_bytes = (
        "attention_backward_standard_ds_kernel",
        shared_bytes + 2 * BLOCK_M * BLOCK_N,
    )
    args = (do, v, p, delta, ds, *sizes)
    SOURCE.launch(kernel, grid, (THREADS,), *args, shared_bytes=shared_bytes, **tile)

    THREADS = BLOCK_M * D // (WARP_M * WARP_N) * 32
    stage_bytes = 2 * (BLOCK_M + D) * BLOCK_K
    STAGES = properties(q.device).stages(MAX_STAGES, stage_bytes)
    template = dict(T=q.dtype, D=D, BLOCK_K=BLOCK_K, **warps, STAGES=STAGES, THREADS=THREADS)
    template |= dict(shared_bytes=STAGES * stage_bytes)
    kernel, args = "attention_backward_standard_dq_kernel", (ds, k, dq, *sizes, sm_scale)
    SOURCE.launch(kernel, (B * H * tiles_m,), (THREADS,), *args, BLOCK_M=BLOCK_M, **template)

    kernel, grid = "attention_backward_standard_dkdv_kernel", (B * H * -(-N // BLOCK_N),)
    for args in ((p, do, dv, *sizes, 1.0), (ds, q, dk, *sizes, sm_scale)):
        SOURCE.launch(kernel, grid, (THREADS,), *args, BLOCK_N=BLOCK_N, **template)
    return dq, dk, dv
