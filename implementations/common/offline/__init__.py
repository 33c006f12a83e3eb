"""Machine code without a GPU: where STUDY_DEVICE is "compile", launches compile and are kept."""

from dataclasses import dataclass

ARCH = "sm_90a"


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
