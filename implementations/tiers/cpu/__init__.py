"""The three backends without a GPU: their kernels run on the CPU, by the same host functions.

`install` puts in place what stands in for a backend there: Triton's interpreter, mended; CUDA C++
compiled for the CPU; Numba's kernels with greenlets for threads. They run one at a time, under
`ONE_AT_A_TIME`, from whichever threads they are launched: what a kernel finds around it is global.

The GPU that hosts are told of has two multiprocessors, or STUDY_MULTIPROCESSORS, and compute
capability 9.0, or STUDY_CAPABILITY.
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from threading import RLock

from implementations.common import device
from implementations.common.device import Properties

ONE_AT_A_TIME = RLock()


class OnCpu(Properties):
    """As many programs as multiprocessors, always: so few that a small grid loops."""

    def programs(self, per_multiprocessor: int) -> int:
        return self.multiprocessors


PROPERTIES = OnCpu(capability=(9, 0), multiprocessors=2, shared_bytes=227 * 1024)
MULTIPROCESSORS, CAPABILITY = "STUDY_MULTIPROCESSORS", "STUDY_CAPABILITY"
MODEL = "NVIDIA H200"  # whose tuned configurations are taken


def install(stand_in: str | None) -> None:
    """Have hosts find the CPU where they ask for a GPU, and a module of this package put in place
    what its backend needs. RuntimeError where that cannot be."""
    device.describe = _described
    device.named = lambda device: MODEL
    if stand_in:
        import_module(f"{__name__}.{stand_in}").install()


def told(names: Mapping[str, str]) -> dict:
    """What is told otherwise of the GPU, by these variables of the environment."""
    found = {}
    if count := names.get(MULTIPROCESSORS):
        found["multiprocessors"] = int(count)
    if version := names.get(CAPABILITY):
        found["capability"] = tuple(map(int, version.split(".")))
    return found


def _described(device) -> Properties:
    return replace(PROPERTIES, **told(os.environ))


def demand_other_bits() -> None:
    """Refuse to add floats as they arrive, where the same bits are wanted of each run."""
    if os.environ.get("STUDY_SAME_BITS"):
        raise RuntimeError("floats must be added in an order, got an atomic addition")


def demand_clusters() -> None:
    """RuntimeError where the GPU that hosts are told of has no clusters of blocks."""
    if not _described(None).clusters():
        raise RuntimeError("clusters need compute capability 9.0")


def pointed_at(args: tuple) -> list:
    """The tensors whose addresses stand in those of a launch's arguments that are device tables."""
    return [x for arg in args for x in getattr(arg, "points_to", ())]
