"""Each program moves a TILE x TILE tile; tl.trans turns it, through shared memory."""

import torch
import triton
import triton.language as tl

from implementations.phase1_foundations.day07_memory_coalescing.transpose_tiled import check

TILE_BYTES = 256  # bytes of a tile's row: whole lines of 128 are read and stored
PER_THREAD = 64  # bytes of a thread: four packs of 16


@triton.jit
def transpose_tiled_kernel(x_ptr, out_ptr, M, N, TILE: tl.constexpr):
    pid, tiles_m, tiles_n = tl.program_id(0), tl.cdiv(M, TILE), tl.cdiv(N, TILE)
    if M <= N:  # along the shorter side first: tiles that share lines are under way together
        pid_m, pid_n = pid % tiles_m, pid // tiles_m
    else:
        pid_m, pid_n = pid // tiles_n, pid % tiles_n
    offs_m = pid_m.to(tl.int64) * TILE + tl.arange(0, TILE)
    offs_n = pid_n.to(tl.int64) * TILE + tl.arange(0, TILE)
    mask_m, mask_n = offs_m < M, offs_n < N

    x_ptrs = x_ptr + offs_m[:, None] * N + offs_n[None, :]
    x = tl.load(x_ptrs, mask=mask_m[:, None] & mask_n[None, :])  # neighbours along N

    out_ptrs = out_ptr + offs_n[:, None] * M + offs_m[None, :]
    tl.store(out_ptrs, tl.trans(x), mask=mask_n[:, None] & mask_m[None, :])  # along M


def transpose_tiled(x):
    check(x)
    M, N = x.shape
    out = torch.empty((N, M), dtype=x.dtype, device=x.device)
    if x.numel() > 0:
        TILE = TILE_BYTES // x.element_size()
        num_warps = TILE * TILE_BYTES // (32 * PER_THREAD)
        grid = (triton.cdiv(M, TILE) * triton.cdiv(N, TILE),)
        transpose_tiled_kernel[grid](x, out, M, N, TILE, num_warps=num_warps)
    return out
