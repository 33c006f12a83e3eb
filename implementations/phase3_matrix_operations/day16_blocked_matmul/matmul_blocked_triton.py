"""Each program owns a tile of C; tl.dot in IEEE fp32, num_stages pipelines the K loop."""

import torch
import triton
import triton.language as tl

from implementations.phase3_matrix_operations.day16_blocked_matmul.matmul_blocked import check

BLOCK_M, BLOCK_N, BLOCK_K = 64, 128, 32
NUM_WARPS, NUM_STAGES = 4, 4


@triton.jit
def matmul_blocked_kernel(
    a_ptr, b_ptr, c_ptr,
    M, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    # all programs along axis 0, where a grid may have 2^31 - 1 of them; along axis 1 only 65535
    pid, blocks_n = tl.program_id(0), tl.cdiv(N, BLOCK_N)
    offs_m = pid // blocks_n * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = pid % blocks_n * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_k = tl.arange(0, BLOCK_K)
    # rows and columns beyond the edge wrap around: loaded from a valid place, never stored
    a_ptrs = a_ptr + (offs_m % M).to(tl.int64)[:, None] * K + offs_k[None, :]
    b_ptrs = b_ptr + offs_k.to(tl.int64)[:, None] * N + (offs_n % N)[None, :]

    # beyond K both tiles are 0, which adds nothing
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for k in range(0, K, BLOCK_K):
        a = tl.load(a_ptrs, mask=offs_k[None, :] < K - k, other=0.0)  # (BLOCK_M, BLOCK_K)
        b = tl.load(b_ptrs, mask=offs_k[:, None] < K - k, other=0.0)  # (BLOCK_K, BLOCK_N)
        acc = tl.dot(a, b, acc, input_precision="ieee")  # the default would be TF32
        a_ptrs += BLOCK_K
        b_ptrs += BLOCK_K * tl.cast(N, tl.int64)

    c_ptrs = c_ptr + offs_m.to(tl.int64)[:, None] * N + offs_n[None, :]
    mask = (offs_m < M)[:, None] & (offs_n < N)[None, :]
    tl.store(c_ptrs, acc, mask=mask)


def matmul_blocked(a, b):
    check(a, b)
    (M, K), N = a.shape, b.shape[1]
    c = torch.empty((M, N), dtype=a.dtype, device=a.device)
    if c.numel() > 0:
        grid = (triton.cdiv(M, BLOCK_M) * triton.cdiv(N, BLOCK_N),)
        matmul_blocked_kernel[grid](
            a, b, c, M, N, K, BLOCK_M, BLOCK_N, BLOCK_K, num_warps=NUM_WARPS, num_stages=NUM_STAGES
        )
    return c
