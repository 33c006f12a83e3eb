"""Machine code without a GPU: where STUDY_DEVICE is "compile", launches compile and are kept.

The environment variable `STUDY_ARCH` says for which of `TARGETS`: an H100 unless it is set.
"""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """A model of GPU. shared_bytes: of a multiprocessor, 1 KB of which no block can have."""

    capability: tuple[int, int]
    multiprocessors: int
    shared_bytes: int

    @property
    def block_shared_bytes(self) -> int:
        return self.shared_bytes - 1024


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
