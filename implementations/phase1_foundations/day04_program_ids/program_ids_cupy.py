"""Each block of threads owns block_size elements, each thread one of them."""

from pathlib import Path

import torch

from implementations import TORCH_DEVICE
from implementations.common.cuda_cpp import CudaSource
from implementations.phase1_foundations.day04_program_ids.program_ids import check

SOURCE = CudaSource(Path(__file__).with_name("program_ids.cu"))


def program_ids(n, block_size):
    check(n, block_size)
    out = torch.empty(n, dtype=torch.int32, device=TORCH_DEVICE)
    if n > 0:
        grid = (-(-n // block_size),)
        SOURCE.launch("program_ids_kernel", grid, (block_size,), out, n)
    return out
