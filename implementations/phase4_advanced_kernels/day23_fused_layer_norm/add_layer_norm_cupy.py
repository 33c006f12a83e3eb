"""Each row is held in the registers of lanes, a block or a cluster; of longer ones s is reread."""

from pathlib import Path

import torch

from implementations.common.cuda_cpp import CudaSource
from implementations.phase4_advanced_kernels.day22_layer_normalization.layer_norm_cupy import dealt
from implementations.phase4_advanced_kernels.day23_fused_layer_norm.add_layer_norm import check

SOURCE = CudaSource(Path(__file__).with_name("add_layer_norm.cu"))


def add_layer_norm(x, residual, w, b, eps):
    eps = check(x, residual, w, b, eps)
    M, N = x.shape
    y, s = torch.empty_like(x), torch.empty_like(x)
    mean = torch.empty(M, dtype=torch.float32, device=x.device)
    rstd = torch.empty_like(mean)
    if x.numel() > 0:
        grid, block, template = dealt(x)
        cluster = template["CLUSTER"] > 1
        kernel = "add_layer_norm_cluster_kernel" if cluster else "add_layer_norm_kernel"
        args = x, residual, w, b, y, s, mean, rstd, M, N, eps
        SOURCE.launch(kernel, grid, block, *args, **template)
    return y, s, mean, rstd
