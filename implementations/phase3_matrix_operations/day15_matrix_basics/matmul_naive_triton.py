"""Each program owns a patch of C, an element a thread; it adds one outer product for each k."""

import torch
import triton
import triton.language as tl

from implementations.phase3_matrix_operations.day15_matrix_basics.matmul_naive import (
    BLOCK_M,
    BLOCK_N,
    check,
)

NUM_WARPS = BLOCK_M * BLOCK_N // 32


@triton.jit
def matmul_naive_kernel(
    a_ptr, b_ptr, c_ptr,
    M, N, K,
    stride_am, stride_ak, stride_bk, stride_bn,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    # all programs along axis 0, where a grid may have 2^31 - 1 of them; along axis 1 only 65535
    pid, blocks_n = tl.program_id(0), tl.cdiv(N, BLOCK_N)
    offs_m = (pid // blocks_n).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = (pid % blocks_n).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    a_ptrs = a_ptr + offs_m[:, None] * stride_am
    b_ptrs = b_ptr + offs_n[None, :] * stride_bn
    mask_m, mask_n = offs_m[:, None] < M, offs_n[None, :] < N

    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for _ in range(0, K):
        a = tl.load(a_ptrs, mask=mask_m, other=0.0)  # (BLOCK_M, 1), a column of A
        b = tl.load(b_ptrs, mask=mask_n, other=0.0)  # (1, BLOCK_N), a row of B
        acc += a * b
        a_ptrs += stride_ak
        b_ptrs += stride_bk

    c_ptrs = c_ptr + offs_m[:, None] * N + offs_n[None, :]
    tl.store(c_ptrs, acc, mask=mask_m & mask_n)


def matmul_naive(a, b):
    check(a, b)
    (M, K), N = a.shape, b.shape[1]
    c = torch.empty((M, N), dtype=a.dtype, device=a.device)
    if c.numel() > 0:
        grid = (triton.cdiv(M, BLOCK_M) * triton.cdiv(N, BLOCK_N),)
        strides = (*a.stride(), *b.stride())
        matmul_naive_kernel[grid](a, b, c, M, N, K, *strides, BLOCK_M, BLOCK_N, num_warps=NUM_WARPS)
    return c
