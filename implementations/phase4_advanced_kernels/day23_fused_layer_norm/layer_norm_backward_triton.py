"""Programs walk over rows and sum columns meanwhile; rows that no program holds are read twice."""

import torch
import triton
import triton.language as tl

from implementations.common.device import properties
from implementations.phase4_advanced_kernels.day23_fused_layer_norm.layer_norm_backward import check

TILE = 2048  # elements a program holds, unless one row is longer
PER_THREAD = 16  # elements a thread holds, of dy, x, dw and db each
MAX_BLOCK_N = 8192  # elements of a row on chip: more threads would have too few registers
RESIDENT = 512  # threads that a multiprocessor has at once
MEANS_TILE = 4096  # elements of a longer row that a program adds at a time
BLOCK_M, STRIP = 4, 256  # rows and columns of a tile where programs own strips
PARTS = 8  # of the rows, for programs that own a strip
SUM_M, SUM_N = 16, 32  # a tile of the last kernel


@triton.jit
def add_pairs(a, b, c, d):
    return a + c, b + d


@triton.jit
def layer_norm_backward_kernel(
    dy_ptr, x_ptr, w_ptr, mean_ptr, rstd_ptr, dx_ptr, dw_ptr, db_ptr,
    M, N,
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BUFFERS: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0).to(tl.int64)
    offs_m = tl.arange(0, ROWS)[:, None].to(tl.int64)
    offs_n = tl.arange(0, BLOCK_N)[None, :]
    in_columns = offs_n < N

    w = tl.load(w_ptr + offs_n, mask=in_columns, other=0.0).to(tl.float32)
    dw = tl.zeros((ROWS, BLOCK_N), tl.float32)
    db = tl.zeros((ROWS, BLOCK_N), tl.float32)
    step = tl.num_programs(0).to(tl.int64) * ROWS
    of_one = 1.0 / N
    # BUFFERS tiles are on their way meanwhile
    for m in tl.range(pid * ROWS, M, step, num_stages=1 + BUFFERS):
        rows = m + offs_m
        in_rows = rows < M
        mask = in_rows & in_columns
        offs = rows * N + offs_n
        dy = tl.load(dy_ptr + offs, mask=mask, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + offs, mask=mask, other=0.0).to(tl.float32)
        mean = tl.load(mean_ptr + rows, mask=in_rows, other=0.0)
        rstd = tl.load(rstd_ptr + rows, mask=in_rows, other=0.0)

        # beyond N a statistic that is not finite would make it NaN
        x_hat = tl.where(in_columns, (x - mean) * rstd, 0.0)
        g = dy * w
        # both sums at once: there is a barrier for each sum
        sum_g, sum_gx = tl.reduce((g, g * x_hat), 1, add_pairs, keep_dims=True)
        mean_g, mean_gx = sum_g * of_one, sum_gx * of_one
        dx = rstd * (g - mean_g - x_hat * mean_gx)
        dw += dy * x_hat
        db += dy

        tl.store(dx_ptr + offs, dx, mask=mask)

    offs = pid * N + offs_n
    tl.store(dw_ptr + offs, tl.sum(dw, 0, keep_dims=True), mask=in_columns)
    tl.store(db_ptr + offs, tl.sum(db, 0, keep_dims=True), mask=in_columns)


# Rows that are longer: a program has a row, and sums g = dy * w and g * x_hat.
@triton.jit
def layer_norm_backward_means_kernel(
    dy_ptr, x_ptr, w_ptr, mean_ptr, rstd_ptr, mean_g_ptr, mean_gx_ptr,
    N,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    dy_ptr += row * N
    x_ptr += row * N
    mean = tl.load(mean_ptr + row)
    rstd = tl.load(rstd_ptr + row)

    sum_g = 0.0
    sum_gx = 0.0
    for n in tl.range(0, N, BLOCK_N, num_stages=3):  # two tiles are under way meanwhile
        offs_n = n + tl.arange(0, BLOCK_N).to(tl.int64)
        mask = offs_n < N
        dy = tl.load(dy_ptr + offs_n, mask=mask, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + offs_n, mask=mask, other=0.0).to(tl.float32)
        w = tl.load(w_ptr + offs_n, mask=mask, other=0.0).to(tl.float32)
        g = dy * w
        sum_g += tl.sum(g)
        sum_gx += tl.sum(tl.where(mask, g * ((x - mean) * rstd), 0.0))

    tl.store(mean_g_ptr + row, sum_g / N)
    tl.store(mean_gx_ptr + row, sum_gx / N)


# Then a program owns a strip of columns and PART rows.
@triton.jit
def layer_norm_backward_columns_kernel(
    dy_ptr, x_ptr, w_ptr, mean_ptr, rstd_ptr, mean_g_ptr, mean_gx_ptr, dx_ptr, dw_ptr, db_ptr,
    M, N, PART,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    strip, part = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    offs_m = tl.arange(0, BLOCK_M)[:, None].to(tl.int64)
    offs_n = strip * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    in_columns = offs_n < N

    w = tl.load(w_ptr + offs_n, mask=in_columns, other=0.0).to(tl.float32)
    dw = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    db = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    end = tl.minimum((part + 1) * PART, M)
    for m in tl.range(part * PART, end, BLOCK_M, num_stages=4):  # three tiles are on their way
        rows = m + offs_m
        in_rows = rows < end
        mask = in_rows & in_columns
        offs = rows * N + offs_n
        dy = tl.load(dy_ptr + offs, mask=mask, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + offs, mask=mask, other=0.0).to(tl.float32)
        mean = tl.load(mean_ptr + rows, mask=in_rows, other=0.0)
        rstd = tl.load(rstd_ptr + rows, mask=in_rows, other=0.0)
        mean_g = tl.load(mean_g_ptr + rows, mask=in_rows, other=0.0)
        mean_gx = tl.load(mean_gx_ptr + rows, mask=in_rows, other=0.0)

        x_hat = (x - mean) * rstd
        dx = rstd * (dy * w - mean_g - x_hat * mean_gx)
        dw += dy * x_hat
        db += dy

        tl.store(dx_ptr + offs, dx, mask=mask)

    offs = part * N + offs_n
    tl.store(dw_ptr + offs, tl.sum(dw, 0, keep_dims=True), mask=in_columns)
    tl.store(db_ptr + offs, tl.sum(db, 0, keep_dims=True), mask=in_columns)


# What `count` programs have summed is summed again, always in the same order.
@triton.jit
def layer_norm_backward_sum_kernel(
    parts_ptr, dw_ptr, db_ptr,
    count, N,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    is_db = tl.program_id(1)
    offs_m = tl.arange(0, BLOCK_M)[:, None]
    offs_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    in_columns = offs_n < N
    parts_ptr += is_db.to(tl.int64) * count * N

    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for m in tl.range(0, count, BLOCK_M, num_stages=3):  # two tiles are under way meanwhile
        rows = (m + offs_m).to(tl.int64)
        acc += tl.load(parts_ptr + rows * N + offs_n, mask=(rows < count) & in_columns, other=0.0)

    out_ptr = dw_ptr if is_db == 0 else db_ptr
    tl.store(out_ptr + offs_n, tl.sum(acc, 0, keep_dims=True), mask=in_columns)


def layer_norm_backward(dy, x, w, mean, rstd):
    check(dy, x, w, mean, rstd)
    M, N = x.shape
    dx, dw, db = torch.empty_like(x), torch.empty_like(w), torch.empty_like(w)
    if M == 0:
        return dx, dw.zero_(), db.zero_()  # sums of nothing
    if N <= MAX_BLOCK_N:
        BLOCK_N = triton.next_power_of_2(N)
        ROWS = max(1, TILE // BLOCK_N)
        num_warps = ROWS * BLOCK_N // (32 * PER_THREAD)
        gpu, programs = properties(x.device), RESIDENT // (32 * num_warps)  # of a multiprocessor
        BUFFERS = gpu.stages(2, 2 * programs * ROWS * BLOCK_N * x.element_size())
        count = min(gpu.programs(programs), triton.cdiv(M, ROWS))
        parts = torch.empty(2, count, N, dtype=torch.float32, device=x.device)
        args = dy, x, w, mean, rstd, dx, *parts, M, N, ROWS, BLOCK_N, BUFFERS
        layer_norm_backward_kernel[(count,)](*args, num_warps=num_warps)
    else:
        means = torch.empty(2, M, dtype=torch.float32, device=x.device)
        args = dy, x, w, mean, rstd, *means, N, MEANS_TILE
        layer_norm_backward_means_kernel[(M,)](*args, num_warps=8)

        strips = triton.cdiv(N, STRIP)
        PART = max(2 * BLOCK_M, triton.cdiv(M, PARTS))
        count = triton.cdiv(M, PART)
        parts = torch.empty(2, count, N, dtype=torch.float32, device=x.device)
        args = dy, x, w, mean, rstd, *means, dx, *parts, M, N, PART, BLOCK_M, STRIP
        layer_norm_backward_columns_kernel[(strips, count)](*args, num_warps=4)

    grid = (triton.cdiv(N, SUM_N), 2)
    layer_norm_backward_sum_kernel[grid](parts, dw, db, count, N, SUM_M, SUM_N, num_warps=4)
    return dx, dw, db
