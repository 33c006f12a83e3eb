"""Each program takes a tile, one warp's packs or a short row wide, and broadcasts over it."""

import torch
import triton
import triton.language as tl

from implementations.phase2_basic_operations.day09_vector_operations.broadcast_fma import check

NUM_WARPS = 8
ROWS = 4  # packs of 16 bytes that a thread holds


@triton.jit
def broadcast_fma_kernel(
    x_ptr, row_ptr, col_ptr, out_ptr,
    M, N,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    pid_n, pid_m = tl.program_id(0), tl.program_id(1)
    offs_m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = pid_n.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs = offs_m.to(tl.int64)[:, None] * N + offs_n[None, :]  # (BLOCK_M, BLOCK_N)
    mask_m, mask_n = offs_m < M, offs_n < N
    mask = mask_m[:, None] & mask_n[None, :]

    # fp32, so that the dtype of x is rounded to once, at the end
    x = tl.load(x_ptr + offs, mask=mask).to(tl.float32)
    scale = tl.load(row_ptr + offs_n, mask=mask_n).to(tl.float32)
    bias = tl.load(col_ptr + offs_m, mask=mask_m).to(tl.float32)

    y = tl.fma(x, scale[None, :], bias[:, None])  # fused: the product is not rounded

    tl.store(out_ptr + offs, y, mask=mask)


def broadcast_fma(x, row, col):
    check(x, row, col)
    M, N = x.shape
    out = torch.empty_like(x)
    if x.numel() > 0:
        VEC = 16 // x.element_size()
        BLOCK_N = min(32 * VEC, triton.next_power_of_2(N))  # a warp's packs, or a short row
        BLOCK_M = NUM_WARPS * 32 * ROWS * VEC // BLOCK_N
        grid = (triton.cdiv(N, BLOCK_N), triton.cdiv(M, BLOCK_M))
        broadcast_fma_kernel[grid](x, row, col, out, M, N, BLOCK_M, BLOCK_N, num_warps=NUM_WARPS)
    return out
