"""A block owns some keys of a head, and adds to dq when its turn at the queries comes."""

from pathlib import Path

import torch

from implementations.common.cuda_cpp import CudaSource
from implementations.phase5_flash_attention.day33_backward_theory.attention_delta_cupy import (
    attention_delta,
)
from implementations.phase5_flash_attention.day34_flash_backward.flash_backward import (
    check,
    of_any_strides,
)

# Keys of a block, queries of a step of its walk, and keys of a warp, by D.
TILES = {64: (128, 32, 32), 128: (128, 64, 16)}

SOURCE = CudaSource(Path(__file__).with_name("flash_backward.cu"))


def flash_backward(q, k, v, o, lse, do, causal, sm_scale):
    return gradients(q, k, v, o, lse, do, causal, sm_scale, in_turn=True)


def flash_backward_arrival(q, k, v, o, lse, do, causal, sm_scale):
    """The same, but blocks add to dq as they arrive: its bits change from run to run."""
    return gradients(q, k, v, o, lse, do, causal, sm_scale, in_turn=False)


def gradients(q, k, v, o, lse, do, causal, sm_scale, in_turn):
    sm_scale = check(q, k, v, o, lse, do, causal, sm_scale)
    (B, H, M, D), (_, H_kv, N, _) = q.shape, k.shape
    dq, dk, dv = map(torch.empty_like, (q, k, v))
    if N == 0 or causal and M > N:  # nothing is added to queries that see no key
        dq.zero_()
    if dk.numel() == 0:
        return dq, dk, dv
    delta = of_any_strides(attention_delta, o, do)
    offset = N - M if causal else N  # query i sees the keys j <= i + offset

    BLOCK_N, BLOCK_M, WARP_N = TILES[D]
    THREADS = BLOCK_N // WARP_N * 32
    # tiles of k and v, two stages of q and do and of lse and delta, a tile of ds
    shared_bytes = 4 * D * (BLOCK_N + 2 * BLOCK_M) + 16 * BLOCK_M + 2 * BLOCK_N * BLOCK_M
    tiles = B * H * -(-M // BLOCK_M)
    IN_TURN = in_turn or N <= BLOCK_N  # the only block of keys has its turn at once
    sums = lse.new_empty(tiles * BLOCK_M * D if N > BLOCK_N else 0)
    if not IN_TURN:
        sums.zero_()
    turns = lse.new_zeros(tiles, dtype=torch.int32)
    grid, tensors = (B * H_kv * -(-N // BLOCK_N),), (q, k, v, lse, delta, do, dq, dk, dv)
    strides = (stride for x in (q, k, v, do, dq, dk, dv) for stride in x.stride()[:3])
    template = dict(T=q.dtype, D=D, BLOCK_M=BLOCK_M, THREADS=THREADS)
    SOURCE.launch(
        *("flash_backward_kernel", grid, (THREADS,), *tensors, sums, turns),
        *(H_kv, H // H_kv, M, N, offset, *strides, sm_scale),
        **(template | dict(BLOCK_N=BLOCK_N, WARP_N=WARP_N, IN_TURN=IN_TURN)),
        shared_bytes=shared_bytes,
    )
    if not IN_TURN:
        args = (sums, dq, H, M, *dq.stride()[:3], sm_scale)
        SOURCE.launch("round_sums_kernel", (tiles,), (THREADS,), *args, **template)
    return dq, dk, dv
