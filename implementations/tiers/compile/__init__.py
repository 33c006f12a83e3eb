"""Machine code without a GPU: where STUDY_DEVICE is "compile", launches compile and are kept.

`install` has a backend compile, for all it knows for a GPU, and record what it would launch. The
environment variable `STUDY_ARCH` says for which of `TARGETS`: an H100 unless it is set.
"""

import os
from dataclasses import dataclass
from importlib import import_module

from implementations.common import device
from implementations.common.device import Properties


@dataclass(frozen=True)
class Target:
    """A model of GPU. shared_bytes: of a multiprocessor, 1 KB of which no block can have."""

    capability: tuple[int, int]
    multiprocessors: int
    shared_bytes: int

    @property
    def properties(self) -> Properties:
        return Properties(self.capability, self.multiprocessors, self.shared_bytes - 1024)


TARGETS = {
    "sm_90a": Target((9, 0), 132, 228 * 1024),  # an H100
    "sm_80": Target((8, 0), 108, 164 * 1024),  # an A100
}
ARCH = os.environ.get("STUDY_ARCH", "sm_90a")
if ARCH not in TARGETS:
    raise RuntimeError(f"STUDY_ARCH must be one of {', '.join(TARGETS)}, got {ARCH!r}")
TARGET = TARGETS[ARCH]


@dataclass(frozen=True)
class Launch:
    """A kernel compiled for `ARCH` as this launch would run it.

    name: the kernel's. cubin: its machine code. symbol: its name in the cubin. threads: of a block.
    shared_bytes: dynamic shared memory of a block.
    """

    name: str
    cubin: bytes
    symbol: str
    threads: int
    shared_bytes: int


launches: list[Launch] = []  # of all host functions called so far


def install(stand_in: str | None) -> None:
    """Have hosts find the target where they ask for a GPU, and a module of this package put in
    place what its backend needs."""
    device.describe = lambda device: TARGET.properties
    if stand_in:
        import_module(f"{__name__}.{stand_in}").install()
