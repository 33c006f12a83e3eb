"""Each row is held in the registers of lanes, a block or a cluster; a longer one is read twice."""

from pathlib import Path

import torch

from implementations.common.cuda_cpp import CudaSource
from implementations.common.device import properties
from implementations.phase4_advanced_kernels.day22_layer_normalization.layer_norm import check

BLOCK = 128  # threads of a block, unless one row takes more
PER_THREAD = 32  # elements a thread holds, at most
MAX_THREADS = 1024  # threads of a block, at most
CLUSTER_BLOCK = 512  # threads of a cluster's block: of two on a multiprocessor one loads meanwhile
MAX_CLUSTER = 8  # blocks of a cluster, at most

SOURCE = CudaSource(Path(__file__).with_name("layer_norm.cu"))


def dealt(x):
    """The grid, the block and the template arguments by which a matrix's rows get their threads."""
    M, N = x.shape
    VEC = 16 // x.element_size()  # elements of a pack of 16 bytes
    if N % VEC:  # rows do not start at a multiple of 16 bytes
        VEC = 1
    max_cluster = MAX_CLUSTER if properties(x.device).clusters() else 1
    packs = N // VEC
    row_threads = max(min(packs, 32), -(-N // PER_THREAD))
    row_threads = 1 << (row_threads - 1).bit_length()
    LONG = row_threads > max_cluster * MAX_THREADS
    if LONG:
        row_threads = max_cluster * CLUSTER_BLOCK
    CLUSTER = min(row_threads // CLUSTER_BLOCK, max_cluster) if row_threads > MAX_THREADS else 1
    THREADS = row_threads // CLUSTER
    PACKS = min(-(-packs // row_threads), PER_THREAD // VEC)
    ROWS = BLOCK // THREADS if THREADS <= 32 else 1  # one row's warps share memory
    grid = (-(-M // ROWS) * CLUSTER,)
    template = dict(T=x.dtype, VEC=VEC, PACKS=PACKS, THREADS=THREADS, ROWS=ROWS)
    return grid, (THREADS, ROWS), template | dict(CLUSTER=CLUSTER, LONG=LONG)


def layer_norm(x, w, b, eps):
    eps = check(x, w, b, eps)
    M, N = x.shape
    y = torch.empty_like(x)
    mean = torch.empty(M, dtype=torch.float32, device=x.device)
    rstd = torch.empty_like(mean)
    if x.numel() > 0:
        grid, block, template = dealt(x)
        cluster = template["CLUSTER"] > 1
        kernel = "layer_norm_cluster_kernel" if cluster else "layer_norm_kernel"
        SOURCE.launch(kernel, grid, block, x, w, b, y, mean, rstd, M, N, eps, **template)
    return y, mean, rstd
