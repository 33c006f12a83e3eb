"""What is timed in the same rounds: the kernels, their baselines, and the machine's own limits.

The limits are cells of two made-up kernels: `_ceiling`, with the backends copy, read and write
(dtype uint8, size "bytes=<n>") and matmul (size "M=..,N=..,K=.."), and `_floor`, an empty kernel.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache

import torch

from implementations import DEVICE
from implementations.common import registry
from implementations.common.check import dtype_name
from implementations.common.spec import Size, Work
from study.bench.cells import AGAIN, SLOWER, WARM, Cell, Selection, parse_size, size_text

UNAVAILABLE = "unavailable: "  # what an error begins with that is not the kernel's fault
TESTED = "triton"  # the backend that also tests the protocol
WARM_BYTES = 2**28  # of more nothing is left in the L2 of any GPU when the next call begins

PACK = 16  # bytes, of each access of a bandwidth
BANDWIDTHS = ("copy", "read", "write")
FLOOR = Cell("_floor", "empty", "uint8", "blocks=1")


@dataclass(frozen=True)
class Group:
    """What is timed in the same rounds: all entries of one kernel, dtype and size.

    entries: the implementations, baselines, ceilings and the floor, each as a cell.
    """

    kernel: str
    dtype: str
    size: str
    entries: tuple[Cell, ...]

    def __str__(self):
        return f"{self.kernel}-{self.dtype}-{self.size}"

    @property
    def work(self) -> Work:
        """The work of one call of its kernel."""
        return work(self.kernel, "", self.dtype, self.size)

    def without(self, entries: Iterable[Cell]) -> "Group":
        return replace(self, entries=tuple(e for e in self.entries if e not in entries))


def groups(selection: Selection) -> Iterator[Group]:
    """What is timed for a selection."""
    for kernel in selection.kernels:
        spec = registry.spec(kernel)
        for dtype in map(dtype_name, spec.dtypes):
            for size in spec.timed_sizes(getattr(torch, dtype)):
                yield group(kernel, dtype, size_text(size), selection.backends)


def group(kernel: str, dtype: str, size: str, backends: Iterable[str]) -> Group:
    """The entries of one kernel, dtype and size.

    At the headline also what tests the protocol: the same kernel again, and, since it takes twenty
    calls a replay, in the first dtype only, that with a planted slowdown; there the bandwidths too.
    """
    spec, sizes = registry.spec(kernel), parse_size(size)
    headline = sizes == spec.headline
    first = headline and dtype == dtype_name(spec.dtypes[0])
    done = work(kernel, "", dtype, size)
    names = [(backend, "") for backend in (*backends, *spec.baselines)]
    if TESTED in backends:
        names += [(TESTED, AGAIN)] * headline + [(TESTED, SLOWER)] * first
    if spec.warm and done.bytes <= WARM_BYTES:
        names += [(backend, WARM) for backend in backends]
    entries = [Cell(kernel, backend, dtype, size, variant) for backend, variant in names]
    limits = [ceiling(done, dtype, sizes)]
    if first and done.limit != "matmul":
        limits += [bandwidth(kind, done.bytes) for kind in BANDWIDTHS]
    return Group(kernel, dtype, size, (*entries, *dict.fromkeys(limits), FLOOR))


def checked(group: Group) -> Group:
    """The entries that get a verdict, and are cross-checked for it: of the kernel itself, and not
    those that test the protocol or stay in the L2."""
    return group.without([e for e in group.entries if e.kernel != group.kernel or e.variant])


@cache
def work(kernel: str, backend: str, dtype: str, size: str) -> Work:
    """The work of one call of any entry."""
    sizes, dtype = parse_size(size), getattr(torch, dtype)
    if not kernel.startswith("_"):
        return registry.spec(kernel).work(dtype, **sizes)
    if backend == "matmul":
        M, N, K = sizes["M"], sizes["N"], sizes["K"]
        return Work((M * K + K * N + M * N) * dtype.itemsize, 2 * M * N * K, "matmul")
    return Work(sizes.get("bytes", 0), 0, backend if backend in BANDWIDTHS else "copy")


def reference(kernel: str) -> str:
    """The name of a kernel's main baseline, "" where it has none."""
    return next(iter(registry.spec(kernel).baselines), "")


def function(entry: Cell) -> Callable:
    """The implementation or the baseline that is called for an entry. Raises Unavailable."""
    spec = registry.spec(entry.kernel)
    if entry.backend in spec.baselines and entry.backend not in spec.modes:
        return spec.called(spec.baselines[entry.backend])
    if DEVICE == "cuda":
        torch.cuda.init()  # before which nobody knows what the GPU lacks
    return spec.called(registry.load(entry.kernel, entry.backend))


def ceiling(work: Work, dtype: str, size: Size) -> Cell:
    """The ceiling of a kernel that does `work` at this dtype and size.

    As many bytes copied, read or written, or cuBLAS at the same M, N, K; where these are not all
    that is done, a square of about as many flops.
    """
    if work.limit != "matmul":
        return bandwidth(work.limit, work.bytes)
    if not {"M", "N", "K"} <= set(size) or work.flops != 2 * size["M"] * size["N"] * size["K"]:
        n = max(128, round((work.flops / 2) ** (1 / 3) / 128) * 128)
        size = {"M": n, "N": n, "K": n}
    return Cell("_ceiling", "matmul", dtype, size_text({name: size[name] for name in "MNK"}))


def bandwidth(backend: str, count: int) -> Cell:
    """Copy, read or write that moves about `count` bytes in all: whole packs each way."""
    return Cell("_ceiling", backend, "uint8", f"bytes={-(-count // (2 * PACK)) * 2 * PACK}")
