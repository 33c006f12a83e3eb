"""Each program owns a tile of C and a slice of K; a second kernel sums them, or they in turn."""

import torch
import triton
import triton.language as tl

from implementations.common.device import properties
from implementations.phase3_matrix_operations.day20_split_k.matmul_split_k import check

# Rows and columns of a tile, and how many programs a multiprocessor is given; the small one is for
# matrices of one large tile's width or height.
SMALL, LARGE = (64, 2), (128, 1)
BLOCK_K = 64
NUM_WARPS, NUM_STAGES = 4, 4
IN_TURN_WARPS = 8  # then a thread can hold its part of the sum beside that of the product
SUM_TILE = 8192  # partial products that a program sums


@triton.jit
def matmul_split_k_kernel(
    a_ptr, b_ptr, c_ptr, partials_ptr, turns_ptr,
    M, N, K, SLICE,
    SPLIT: tl.constexpr, IN_TURN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    tiles_n, tile, split = tl.cdiv(N, BLOCK_N), tl.program_id(0), tl.program_id(1)
    pid_m, pid_n = tile // tiles_n, tile % tiles_n
    k_begin = split * SLICE
    depth = min(K - k_begin, SLICE)

    offs_m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_k = tl.arange(0, BLOCK_K)
    # rows and columns beyond the edge wrap around: loaded from a valid place, never stored
    a_ptrs = a_ptr + (offs_m % M).to(tl.int64)[:, None] * K + (k_begin + offs_k)[None, :]
    b_ptrs = b_ptr + (k_begin + offs_k).to(tl.int64)[:, None] * N + (offs_n % N)[None, :]

    # fp32; beyond the slice both tiles are 0, which adds nothing
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for k in range(0, depth, BLOCK_K):
        a = tl.load(a_ptrs, mask=offs_k[None, :] < depth - k, other=0.0)  # (BLOCK_M, BLOCK_K)
        b = tl.load(b_ptrs, mask=offs_k[:, None] < depth - k, other=0.0)  # (BLOCK_K, BLOCK_N)
        acc = tl.dot(a, b, acc)
        a_ptrs += BLOCK_K
        b_ptrs += BLOCK_K * tl.cast(N, tl.int64)

    # whole tiles, one after the other: of each slice, or in turn only the sum
    place = tile.to(tl.int64) if IN_TURN else split.to(tl.int64) * tl.num_programs(0) + tile
    offs = tl.arange(0, BLOCK_M)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    partial_ptrs = partials_ptr + place * BLOCK_M * BLOCK_N + offs
    if IN_TURN:
        # one thread asks, and all wait for its answer; for programs of a lower index, which GPUs
        # begin first
        while tl.atomic_add(turns_ptr + tile, 0, sem="acquire") != split:
            pass
        if split > 0:
            acc += tl.load(partial_ptrs)
    last = split == tl.num_programs(1) - 1 if IN_TURN else not SPLIT
    if last:
        c_ptrs = c_ptr + offs_m.to(tl.int64)[:, None] * N + offs_n[None, :]
        mask = (offs_m < M)[:, None] & (offs_n < N)[None, :]
        tl.store(c_ptrs, acc.to(c_ptr.dtype.element_ty), mask=mask)
    else:
        tl.store(partial_ptrs, acc)
        if IN_TURN:
            tl.debug_barrier()  # all threads have stored
            tl.atomic_xchg(turns_ptr + tile, split + 1, sem="release")


@triton.jit
def sum_splits_kernel(
    partials_ptr, c_ptr,
    M, N, splits, size,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # of elements, all in one tile
    offs_s = tl.arange(0, BLOCK_S)
    partial_ptrs = partials_ptr + offs_s.to(tl.int64)[:, None] * size + offs[None, :]

    partials = tl.load(partial_ptrs, mask=offs_s[:, None] < splits, other=0.0)  # (BLOCK_S, BLOCK)
    c = tl.sum(partials, axis=0)

    tile, tiles_n = offs // (BLOCK_M * BLOCK_N), tl.cdiv(N, BLOCK_N)
    offs_m = tile // tiles_n * BLOCK_M + offs // BLOCK_N % BLOCK_M
    offs_n = tile % tiles_n * BLOCK_N + offs % BLOCK_N
    mask = (offs_m < M) & (offs_n < N)
    tl.store(c_ptr + offs_m.to(tl.int64) * N + offs_n, c.to(c_ptr.dtype.element_ty), mask=mask)


def matmul_split_k(a, b, in_turn=False):
    check(a, b, in_turn)
    (M, K), N = a.shape, b.shape[1]
    c = torch.empty((M, N), dtype=a.dtype, device=a.device)
    if c.numel() == 0:
        return c
    BLOCK, programs = SMALL if min(M, N) <= LARGE[0] else LARGE
    tiles = triton.cdiv(M, BLOCK) * triton.cdiv(N, BLOCK)
    steps = max(1, triton.cdiv(K, BLOCK_K))
    # as many slices of whole steps as give each multiprocessor its programs once
    programs *= properties(a.device).multiprocessors
    SLICE = triton.cdiv(steps, max(1, programs // tiles)) * BLOCK_K
    splits = triton.cdiv(steps * BLOCK_K, SLICE)
    SPLIT = splits > 1
    IN_TURN = SPLIT and in_turn
    shape = (1 if IN_TURN else splits, tiles, BLOCK * BLOCK) if SPLIT else (0,)
    partials = torch.empty(shape, dtype=torch.float32, device=a.device)
    turns = torch.zeros(tiles if IN_TURN else 0, dtype=torch.int32, device=a.device)

    matmul_split_k_kernel[tiles, splits](
        a, b, c, partials, turns, M, N, K, SLICE, SPLIT, IN_TURN, BLOCK, BLOCK, BLOCK_K,
        num_warps=IN_TURN_WARPS if IN_TURN else NUM_WARPS, num_stages=NUM_STAGES,
    )  # fmt: skip
    if SPLIT and not IN_TURN:
        size, BLOCK_S = tiles * BLOCK * BLOCK, triton.next_power_of_2(splits)
        STRIP = min(SUM_TILE // BLOCK_S, BLOCK * BLOCK)
        sum_splits_kernel[(size // STRIP,)](
            partials, c, M, N, splits, size, BLOCK, BLOCK, BLOCK_S, STRIP, num_warps=8
        )
    return c
