"""Each program owns a tile of C as on Day 17; programs take the tiles in groups of GROUP_M rows."""

import torch
import triton
import triton.language as tl

from implementations.phase3_matrix_operations.day18_cache_optimization.matmul_grouped_order import (
    check,
)

BLOCK_M, BLOCK_N, BLOCK_K = 128, 256, 64
GROUP_M = 16
NUM_WARPS, NUM_STAGES = 8, 3


@triton.jit
def matmul_grouped_order_kernel(
    a_ptr, b_ptr, c_ptr,
    M, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    tiles_m, tiles_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    tile, group_size = tl.program_id(0), GROUP_M * tiles_n
    first_m, in_group = tile // group_size * GROUP_M, tile % group_size
    rows = min(tiles_m - first_m, GROUP_M)  # the last group may have fewer
    pid_m, pid_n = first_m + in_group % rows, in_group // rows

    offs_m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_k = tl.arange(0, BLOCK_K)
    # rows and columns beyond the edge wrap around: loaded from a valid place, never stored
    a_ptrs = a_ptr + (offs_m % M).to(tl.int64)[:, None] * K + offs_k[None, :]
    b_ptrs = b_ptr + offs_k.to(tl.int64)[:, None] * N + (offs_n % N)[None, :]

    # fp32; beyond K both tiles are 0, which adds nothing
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for k in range(0, K, BLOCK_K):
        a = tl.load(a_ptrs, mask=offs_k[None, :] < K - k, other=0.0)  # (BLOCK_M, BLOCK_K)
        b = tl.load(b_ptrs, mask=offs_k[:, None] < K - k, other=0.0)  # (BLOCK_K, BLOCK_N)
        acc = tl.dot(a, b, acc)
        a_ptrs += BLOCK_K
        b_ptrs += BLOCK_K * tl.cast(N, tl.int64)

    c_ptrs = c_ptr + offs_m.to(tl.int64)[:, None] * N + offs_n[None, :]
    mask = (offs_m < M)[:, None] & (offs_n < N)[None, :]
    tl.store(c_ptrs, acc.to(c_ptr.dtype.element_ty), mask=mask)


def matmul_grouped_order(a, b):
    check(a, b)
    (M, K), N = a.shape, b.shape[1]
    c = torch.empty((M, N), dtype=a.dtype, device=a.device)
    if c.numel() > 0:
        grid = (triton.cdiv(M, BLOCK_M) * triton.cdiv(N, BLOCK_N),)
        matmul_grouped_order_kernel[grid](
            a, b, c, M, N, K, BLOCK_M, BLOCK_N, BLOCK_K, GROUP_M,
            num_warps=NUM_WARPS, num_stages=NUM_STAGES,
        )  # fmt: skip
    return c
