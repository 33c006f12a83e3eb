"""Runs the machine's own limits: bandwidths, cuBLAS, and an empty kernel.

Which there are, and how large, says `study.bench.entries`.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

from implementations.common import registry
from implementations.common.cuda_cpp import CudaSource
from implementations.common.spec import generator
from study.bench.cells import Cell
from study.bench.entries import PACK
from study.bench.fingerprint import digest, parse

BLOCK = 256
PACKS = {"copy": 4, "read": 8, "write": 4}  # a thread's

SOURCE = CudaSource(Path(__file__).with_name("ceilings.cu"))


def inputs(cell: Cell, device: str = "cuda", seed: int = 0) -> tuple:
    """Arguments of the cell's function: normal random numbers."""
    g = generator(device, seed)
    size = cell.sizes
    if cell.backend == "matmul":
        M, N, K = size["M"], size["N"], size["K"]
        return tuple(
            torch.randn(s, dtype=cell.torch_dtype, device=device, generator=g)
            for s in ((M, K), (K, N))
        )
    if cell.backend == "write":
        return (size["bytes"],)
    if cell.backend in ("copy", "read"):
        count = size["bytes"] // 2 if cell.backend == "copy" else size["bytes"]
        return (torch.randn(count // 4, device=device, generator=g),)
    return ()


def copy(x):
    out = torch.empty_like(x)
    N = x.nbytes // PACK
    _launch("copy", N, x, out, N)
    return out


def read(x):
    N = x.nbytes // PACK
    out = torch.empty(_blocks("read", N) * BLOCK // 32, dtype=torch.int32, device=x.device)
    _launch("read", N, x, out, N)
    return out


def write(count):
    out = torch.empty(count, dtype=torch.uint8, device="cuda")
    N = count // PACK
    _launch("write", N, out, N, 0x3F800000)
    return out


def empty():
    SOURCE.launch("empty_kernel", (1,), (32,), UNUSED=0)


def _launch(backend, N, *args):
    grid = (_blocks(backend, N),)
    SOURCE.launch(f"{backend}_kernel", grid, (BLOCK,), *args, PACKS=PACKS[backend])


def _blocks(backend, N):
    return -(-N // (BLOCK * PACKS[backend]))


FUNCTIONS = {"copy": copy, "read": read, "write": write, "matmul": torch.mm, "empty": empty}


def function(cell: Cell) -> Callable:
    """What is called for a cell. Raises Unavailable."""
    if cell.backend != "matmul" and (reason := registry.missing("cupy")):
        raise registry.Unavailable(f"it is written in CUDA C++: {reason}")
    return FUNCTIONS[cell.backend]


@cache
def source_hash() -> str:
    """The fingerprint of what is in this file and its kernels."""
    own = (d for path in (Path(__file__), SOURCE.path) for d in parse(path).definitions)
    return digest(own, follow=lambda definition: False)
