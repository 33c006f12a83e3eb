"""Each program takes a BLOCK_M x BLOCK_N tile, on a grid of columns, rows and matrices."""

import torch
import triton
import triton.language as tl

from implementations.phase1_foundations.day06_multidimensional_grids.affine_3d import check

BLOCK_M = 32
NUM_WARPS = 8


@triton.jit
def affine_3d_kernel(
    x_ptr, row_scale_ptr, col_bias_ptr, out_ptr,
    M, N,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    pid_n, pid_m, pid_b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    offs_m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = pid_n.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    row = pid_b.to(tl.int64) * M + offs_m  # of all matrices, one below the other
    offs = row[:, None] * N + offs_n[None, :]  # (BLOCK_M, BLOCK_N)
    mask_m, mask_n = offs_m < M, offs_n < N
    mask = mask_m[:, None] & mask_n[None, :]

    # fp32, so that the dtype of x is rounded to once, at the end
    x = tl.load(x_ptr + offs, mask=mask).to(tl.float32)
    scale = tl.load(row_scale_ptr + offs_m, mask=mask_m).to(tl.float32)
    bias = tl.load(col_bias_ptr + offs_n, mask=mask_n).to(tl.float32)

    y = tl.fma(x, scale[:, None], bias[None, :])  # fused: the product is not rounded

    tl.store(out_ptr + offs, y, mask=mask)


def affine_3d(x, row_scale, col_bias):
    check(x, row_scale, col_bias)
    B, M, N = x.shape
    out = torch.empty_like(x)
    if x.numel() > 0:
        BLOCK_N = 32 * 16 // x.element_size()  # a warp's 32 packs of 16 bytes
        grid = (triton.cdiv(N, BLOCK_N), triton.cdiv(M, BLOCK_M), B)
        affine_3d_kernel[grid](
            x, row_scale, col_bias, out, M, N, BLOCK_M, BLOCK_N, num_warps=NUM_WARPS
        )
    return out
