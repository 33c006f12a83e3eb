"""Blocks or clusters walk over rows and sum columns meanwhile; longer rows are read twice."""

from pathlib import Path

import torch

from implementations.common.cuda_cpp import CudaSource
from implementations.common.device import properties
from implementations.phase4_advanced_kernels.day23_fused_layer_norm.layer_norm_backward import check

BLOCK = 256  # threads of a block, unless one row takes more than a warp
PER_THREAD = 16  # elements a thread holds, of dy, x, dw and db each
MAX_THREADS = 512  # threads of a block: more would have too few registers
MAX_CLUSTER = 8  # blocks of a cluster, at most
RESIDENT = 512  # threads that a multiprocessor has at once
# A cluster's blocks lie in one group of neighbouring multiprocessors, of which a whole number of
# clusters leaves some over: as many in all groups, at most, by CLUSTER. One cluster more than find
# room would run when all others have ended.
LEFT_OVER = {2: 0, 4: 12, 8: 12}
TX, TY = 64, 4  # threads of a block along a row and down it: a strip of 1 KB
PARTS = 8  # of the rows, for blocks that own a strip
SUM_TX, SUM_TY = 32, 8  # of the last kernel, at most

SOURCE = CudaSource(Path(__file__).with_name("layer_norm_backward.cu"))


def layer_norm_backward(dy, x, w, mean, rstd):
    check(dy, x, w, mean, rstd)
    M, N = x.shape
    dx, dw, db = torch.empty_like(x), torch.empty_like(w), torch.empty_like(w)
    if M == 0:
        return dx, dw.zero_(), db.zero_()  # sums of nothing
    VEC = 16 // x.element_size()  # elements of a pack of 16 bytes
    if N % VEC:  # rows do not start at a multiple of 16 bytes
        VEC = 1
    packs = N // VEC
    row_threads = max(min(packs, 32), -(-N // PER_THREAD))
    row_threads = 1 << (row_threads - 1).bit_length()
    gpu = properties(x.device)
    clusters = gpu.clusters() and VEC > 1
    if row_threads <= MAX_THREADS * (MAX_CLUSTER if clusters else 1):
        THREADS = min(row_threads, MAX_THREADS)
        CLUSTER = row_threads // THREADS
        PACKS = -(-packs // row_threads)
        ROWS = BLOCK // THREADS if THREADS <= 32 else 1  # one row's warps share memory
        programs = RESIDENT // (THREADS * ROWS)  # of a multiprocessor
        groups = gpu.programs(programs)
        if CLUSTER > 1:
            groups = max(1, (gpu.multiprocessors - LEFT_OVER[CLUSTER]) // CLUSTER)
        count = min(groups, -(-M // ROWS))
        parts = torch.empty(2, count, N, dtype=torch.float32, device=x.device)
        grid, block = (count * CLUSTER,), (THREADS, ROWS)
        buffer = 2 * x.element_size() * VEC * PACKS * THREADS * ROWS  # bytes of packs of dy and x
        BUFFERS = gpu.stages(2, programs * buffer)
        args = dy, x, w, mean, rstd, dx, parts, M, N
        template = dict(T=x.dtype, VEC=VEC, PACKS=PACKS, BUFFERS=BUFFERS)
        template |= dict(THREADS=THREADS, ROWS=ROWS, CLUSTER=CLUSTER)
        shared_bytes = 512 + BUFFERS * buffer  # the sums of two rows lie before them
        kernel = f"layer_norm_backward_{'cluster_' if CLUSTER > 1 else ''}kernel"
        SOURCE.launch(kernel, grid, block, *args, **template, shared_bytes=shared_bytes)
    else:
        means = torch.empty(2, M, dtype=torch.float32, device=x.device)
        args = dy, x, w, mean, rstd, means, M, N
        template = dict(T=x.dtype, VEC=VEC, THREADS=MAX_THREADS)
        kernel = "layer_norm_backward_means_kernel"
        SOURCE.launch(kernel, (M,), (MAX_THREADS,), *args, **template)

        strips = -(-packs // TX)
        PART = max(2 * TY, -(-M // PARTS))
        count = -(-M // PART)
        parts = torch.empty(2, count, N, dtype=torch.float32, device=x.device)
        args = dy, x, w, mean, rstd, means, dx, parts, M, N, PART
        kernel = "layer_norm_backward_columns_kernel"
        template = dict(T=x.dtype, VEC=VEC, TX=TX, TY=TY)
        SOURCE.launch(kernel, (strips, count), (TX, TY), *args, **template)

    TY_OF_SUM = min(SUM_TY, 1 << (count - 1).bit_length())  # no more than there is to add
    grid, block = (-(-N // SUM_TX), 2), (SUM_TX, TY_OF_SUM)
    template = dict(T=x.dtype, TX=SUM_TX, TY=TY_OF_SUM)
    args = parts, dw, db, count, N
    SOURCE.launch("layer_norm_backward_sum_kernel", grid, block, *args, **template)
    return dx, dw, db
