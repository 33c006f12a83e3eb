"""Day 5: prefix sums are formed within blocks, whose threads must work together."""

import torch
import torch.nn.functional as F

from implementations.common.check import (
    MAX_GRID_X,
    check_at_most,
    check_block_size,
    check_tensor,
)
from implementations.common.rules import Reduction
from implementations.common.spec import KernelSpec, Work, generator

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def block_cumsum(x, block_size=1024):
    """The running sum y[i] = x[b] + ... + x[i], where b is the start of the block that holds i.

    x: (N,), float32, float16 or bfloat16, contiguous. block_size: a power of two up to 1024; there
    are at most 2147483647 blocks, and the last may be shorter. Returns (N,) of the same dtype; sums
    are float32, each rounded once.
    Raises TypeError for another dtype or a block_size that is no int, ValueError for another shape,
    stride, device or block_size.
    """
    N = x.numel()
    blocks = F.pad(x, (0, -N % block_size)).view(-1, block_size)
    return torch.cumsum(blocks, dim=1).view(-1)[:N]


def check(x, block_size):
    check_tensor("x", x, ndim=1, dtypes=DTYPES)
    check_block_size(block_size)
    check_at_most("x", f"blocks of {block_size}", -(-x.numel() // block_size), MAX_GRID_X)


def make_inputs(dtype, device, seed, N, block_size):
    g = generator(device, seed)
    return torch.randn(N, dtype=dtype, device=device, generator=g), block_size


def work(dtype, N, block_size):
    return Work(bytes=2 * N * dtype.itemsize, flops=N)


CHECK = (  # N, block_size
    *((0, 1024), (5, 1), (7, 2), (37, 4), (203, 8), (999, 32), (301, 64)),
    *((1003, 256), (2048, 1024), (4099, 1024)),
)

SPEC = KernelSpec(
    name="block_cumsum",
    day=5,
    title="Prefix sum in blocks",
    reference=block_cumsum,
    make_inputs=make_inputs,
    work=work,
    check_sizes=tuple({"N": N, "block_size": b} for N, b in CHECK),
    bench_sizes=tuple({"N": N, "block_size": 1024} for N in (2**22, 2**25, 2**28)),
    headline={"N": 2**28, "block_size": 1024},
    huge_sizes=({"N": 2**31 + 4099, "block_size": 1024},),
    limits={
        "N": {"N": MAX_GRID_X, "block_size": 1},
        "block_size": {"N": 1, "block_size": 1024},
    },
    dtypes=DTYPES,
    agreement=Reduction("block_size"),
    baselines={"torch": block_cumsum},
    refused={
        "no power of two": lambda x, block_size: (x, 3),
        "block of nothing": lambda x, block_size: (x, 0),
        "negative block": lambda x, block_size: (x, -1),
        "block_size a float": lambda x, block_size: (x, float(block_size)),
        "block_size a bool": lambda x, block_size: (x, True),
    },
    sources=("Hillis and Steele, Data Parallel Algorithms, Communications of the ACM 29, 1986",),
)
