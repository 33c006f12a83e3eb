"""The machine's own limits, timed among the kernels: bandwidths, cuBLAS, and an empty kernel.

Their cells are of two made-up kernels: `_ceiling`, with the backends copy, read and write (dtype
uint8, size "bytes=<n>") and matmul (size "M=..,N=..,K=.."), and `_floor`.
"""

from functools import cache
from pathlib import Path

import torch

from implementations.common.cuda_cpp import CudaSource
from implementations.common.spec import Size, Work, generator
from study.bench.cells import Cell, size_text
from study.bench.fingerprint import digest, parse

BLOCK = 256
PACK = 16  # bytes
PACKS = {"copy": 4, "read": 8, "write": 4}  # a thread's

FLOOR = Cell("_floor", "empty", "uint8", "blocks=1")

SOURCE = CudaSource(Path(__file__).with_name("ceilings.cu"))


BANDWIDTHS = ("copy", "read", "write")


def ceiling(work: Work, dtype: str, size: Size) -> Cell:
    """The ceiling of a kernel that does `work` at this dtype and size.

    As many bytes copied, read or written, or cuBLAS at the same M, N, K; where the size has none, a
    square of about as many flops.
    """
    if work.limit != "matmul":
        return bandwidth(work.limit, work.bytes)
    if not {"M", "N", "K"} <= set(size):
        n = max(128, round((work.flops / 2) ** (1 / 3) / 128) * 128)
        size = {"M": n, "N": n, "K": n}
    return Cell("_ceiling", "matmul", dtype, size_text({name: size[name] for name in "MNK"}))


def bandwidth(backend: str, count: int) -> Cell:
    """Copy, read or write that moves about `count` bytes in all: whole packs each way."""
    return Cell("_ceiling", backend, "uint8", f"bytes={-(-count // (2 * PACK)) * 2 * PACK}")


def work(cell: Cell) -> Work:
    """The work of a `_ceiling` or `_floor` cell."""
    size = cell.sizes
    if cell.backend == "matmul":
        M, N, K = size["M"], size["N"], size["K"]
        count = (M * K + K * N + M * N) * cell.torch_dtype.itemsize
        return Work(count, 2 * M * N * K, "matmul")
    return Work(size.get("bytes", 0), 0, "copy" if cell == FLOOR else cell.backend)


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


@cache
def source_hash() -> str:
    """The fingerprint of what is in this file and its kernels."""
    own = (d for path in (Path(__file__), SOURCE.path) for d in parse(path).definitions)
    return digest(own, follow=lambda definition: False)
