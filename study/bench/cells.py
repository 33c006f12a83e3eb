"""A cell is one measurement: a kernel, a backend, a dtype and a size. Selection, and text form."""

import difflib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from implementations.common import registry
from implementations.common.check import dtype_name
from implementations.common.spec import Size

KEY = ["kernel", "backend", "dtype", "size"]  # the columns that name a cell
TIMED = [*KEY, "variant"]  # those of a cell that is timed
# Variants, other than "", the kernel as it is:
AGAIN = "again"  # the same once more, to test the protocol
SLOWER = "slower"  # with a planted slowdown of 5 %, to test the protocol
WARM = "warm"  # on data that the call before left in the L2


class UnknownName(RuntimeError):
    """The name of a kernel, backend or machine that does not exist."""

    exit_code = 2  # of the command line


def size_text(size: Size) -> str:
    """{"M": 5, "N": 257} → "M=5,N=257"; {"N": 4096, "causal": True} → "N=4096,causal=True"."""
    return ",".join(f"{name}={value}" for name, value in size.items())


def parse_size(text: str) -> Size:
    """The inverse of `size_text`. Raises ValueError for what is no size."""
    pairs = (part.split("=") for part in text.split(","))
    return {name: _value(value) for name, value in pairs}


def _value(text: str) -> int | bool | float:
    if text in ("True", "False"):
        return text == "True"
    try:
        return int(text)
    except ValueError:
        return float(text)


@dataclass(frozen=True)
class Cell:
    """One kernel in one backend (or baseline) at one dtype ("float16") and size ("M=5,N=257").

    variant: how it is timed, AGAIN, SLOWER or WARM; "" is the kernel as it is.
    """

    kernel: str
    backend: str
    dtype: str
    size: str
    variant: str = ""

    def __str__(self):
        name = f"{self.kernel}-{self.backend}-{self.dtype}-{self.size}"
        return f"{name}-{self.variant}" if self.variant else name

    @property
    def key(self) -> dict[str, str]:
        """The columns KEY of its row, in a table that knows no variants."""
        return {name: getattr(self, name) for name in KEY}

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def sizes(self) -> Size:
        return parse_size(self.size)


def seed(cell: Cell) -> int:
    """The seed of a cell's inputs: the same in every backend and on every machine."""
    text = f"{cell.kernel}-{cell.dtype}-{cell.size}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")


@dataclass(frozen=True)
class Selection:
    """The kernels and backends a command works on, in the registry's order."""

    kernels: tuple[str, ...]
    backends: tuple[str, ...]

    @property
    def by_name(self) -> bool:
        """Whether only some backends are wanted: then one that cannot run here is a failure."""
        return self.backends != tuple(registry.BACKENDS)

    def cells(self, kind: str) -> Iterator[Cell]:
        """The cells that are checked everywhere ("check"), checked on a GPU only ("large": the
        headlines, more sizes, and the huge ones in the last dtype) or timed ("bench")."""
        for kernel in self.kernels:
            spec = registry.spec(kernel)
            for dtype in spec.dtypes:
                huge = spec.huge_sizes if dtype == spec.dtypes[-1] else ()
                sizes = {
                    "check": spec.check_sizes,
                    "large": (spec.headline, *spec.more_sizes, *huge),
                    "bench": spec.timed_sizes(dtype),
                }
                for size in sizes[kind]:
                    for backend in self.backends:
                        yield Cell(kernel, backend, dtype_name(dtype), size_text(size))


def must_be_known(kind: str, name: str, known: Sequence[str]) -> None:
    """Raises UnknownName, which offers the nearest, for a `name` that is not among the `known`."""
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known[:3]
        raise UnknownName(f"no {kind} is called {name!r}; the nearest: {', '.join(near)}")


def _pick(kind: str, wanted: str | None, known: tuple[str, ...]) -> tuple[str, ...]:
    if wanted is None:
        return known
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    for name in names:
        must_be_known(kind, name, known)
    return tuple(name for name in known if name in names)


def select(
    kernels: str | None = None, backends: str | None = None, phase: int | None = None
) -> Selection:
    """A selection from comma-separated names (None: all) and a phase. Raises UnknownName."""
    names = registry.kernels()
    if phase is not None:
        names = tuple(k for k in names if registry.phase(k) == phase)
        if not names:
            phases = sorted({registry.phase(k) for k in registry.kernels()})
            raise UnknownName(f"no phase {phase}; there are {', '.join(map(str, phases))}")
    picked = _pick("kernel", kernels, registry.kernels())
    return Selection(
        tuple(k for k in names if k in picked), _pick("backend", backends, tuple(registry.BACKENDS))
    )
