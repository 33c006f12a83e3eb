"""Machine code without a GPU: where STUDY_DEVICE is "compile", launches compile and are kept.

`install` has a backend compile, for all it knows for a GPU, and record what it would launch. The
environment variable `STUDY_ARCH` says for which of `TARGETS`: an H200 unless it is set.
"""

import os
from dataclasses import dataclass
from importlib import import_module
from math import prod

from implementations.common import device
from implementations.common.device import Properties


@dataclass(frozen=True)
class Target:
    """A model of GPU. shared_bytes: of a multiprocessor, 1 KB of which no block can have."""

    model: str
    capability: tuple[int, int]
    multiprocessors: int
    shared_bytes: int

    @property
    def properties(self) -> Properties:
        return Properties(self.capability, self.multiprocessors, self.shared_bytes - 1024)


TARGETS = {
    "sm_90a": Target("NVIDIA H200", (9, 0), 132, 228 * 1024),
    "sm_80": Target("NVIDIA A100-SXM4-80GB", (8, 0), 108, 164 * 1024),
}
ARCH = os.environ.get("STUDY_ARCH", "sm_90a")
if ARCH not in TARGETS:
    raise RuntimeError(f"STUDY_ARCH must be one of {', '.join(TARGETS)}, got {ARCH!r}")
TARGET = TARGETS[ARCH]


@dataclass(frozen=True)
class Launch:
    """A kernel compiled for `ARCH` as this launch would run it.

    name: the kernel's. cubin: its machine code. symbol: its name in the cubin. grid, block: in x, y
    and z. shared_bytes: dynamic shared memory of a block. arguments: what the kernel is given, as
    text; of tensors all but the address.
    """

    name: str
    cubin: bytes
    symbol: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int
    arguments: tuple[str, ...]

    @property
    def threads(self) -> int:
        """Of a block."""
        return prod(self.block)


launches: list[Launch] = []  # of all host functions called so far


def record(name: str, code: tuple, grid: tuple, block: tuple, shared_bytes: int, args) -> None:
    """Add a launch. code: cubin and symbol. args: texts, or numbers, which get their type."""
    grid, block = (tuple(map(int, (*sides, 1, 1)[:3])) for sides in (grid, block))
    texts = (a if isinstance(a, str) else f"{type(a).__name__} {a}" for a in args)
    launches.append(Launch(name, *code, grid, block, shared_bytes, tuple(texts)))


def install(stand_in: str | None) -> None:
    """Have hosts find the target where they ask for a GPU, and a module of this package put in
    place what its backend needs."""
    device.describe = lambda device: TARGET.properties
    device.named = lambda device: TARGET.model
    if stand_in:
        import_module(f"{__name__}.{stand_in}").install()
