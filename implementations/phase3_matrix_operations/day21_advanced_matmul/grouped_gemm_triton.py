"""As many programs as multiprocessors walk the tiles of all problems, to and fro, by a table."""

import torch
import triton
import triton.language as tl

from implementations.common.device import properties
from implementations.common.device_table import device_table
from implementations.phase3_matrix_operations.day21_advanced_matmul.grouped_gemm import check

BLOCK_M, BLOCK_N, BLOCK_K = 128, 256, 64
NUM_WARPS, NUM_STAGES = 8, 3


@triton.jit(do_not_specialize=["problems", "tiles"])
def grouped_gemm_kernel(
    table_ptr, like_ptr,  # like_ptr: of the operands' type
    problems, tiles,
    ALIGNED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    pid, programs = tl.program_id(0), tl.num_programs(0)
    tile, step = pid, 2 * (programs - pid) - 1  # to and fro: 0 1 2 | 5 4 3 | 6 7 8 ...
    while tile < tiles:
        # the tile is of the last problem that begins at or before it
        problem, end = 0, problems
        while end - problem > 1:
            middle = (problem + end) // 2
            begun = tl.load(table_ptr + middle * 7 + 6) <= tile
            problem, end = tl.where(begun, middle, problem), tl.where(begun, end, middle)
        row_ptr = table_ptr + problem * 7
        a_ptr = tl.load(row_ptr).to(like_ptr.dtype)
        b_ptr = tl.load(row_ptr + 1).to(like_ptr.dtype)
        c_ptr = tl.load(row_ptr + 2).to(like_ptr.dtype)
        M, N = tl.load(row_ptr + 3).to(tl.int32), tl.load(row_ptr + 4).to(tl.int32)
        K, first = tl.load(row_ptr + 5).to(tl.int32), tl.load(row_ptr + 6).to(tl.int32)
        if ALIGNED:  # whole chunks of 16 bytes, which the compiler cannot know
            a_ptr, b_ptr = tl.multiple_of(a_ptr, 16), tl.multiple_of(b_ptr, 16)
            c_ptr, N, K = tl.multiple_of(c_ptr, 16), tl.multiple_of(N, 8), tl.multiple_of(K, 8)

        rows = tl.cdiv(M, BLOCK_M)
        pid_m, pid_n = (tile - first) % rows, (tile - first) // rows  # neighbours share a tile of B
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
            b_ptrs += BLOCK_K * N.to(tl.int64)

        c_ptrs = c_ptr + offs_m.to(tl.int64)[:, None] * N + offs_n[None, :]
        mask = (offs_m < M)[:, None] & (offs_n < N)[None, :]
        tl.store(c_ptrs, acc.to(like_ptr.dtype.element_ty), mask=mask)
        tile += step
        step = 2 * programs - step


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
            tiles += triton.cdiv(M, BLOCK_M) * triton.cdiv(N, BLOCK_N)
            ALIGNED = ALIGNED and K % 8 == 0 and N % 8 == 0
    if tiles > 0:
        device = rows[0][0].device
        table = device_table(rows, device)
        programs = min(tiles, properties(device).programs(1))
        grouped_gemm_kernel[(programs,)](
            table, rows[0][0], len(rows), tiles,
            ALIGNED, BLOCK_M, BLOCK_N, BLOCK_K, num_warps=NUM_WARPS, num_stages=NUM_STAGES,
        )  # fmt: skip
    return c_list
