"""What hosts ask of the device that their kernels run on."""

from functools import cache

import torch

from implementations import DEVICE
from implementations.common import offline

ON_CPU = 2  # multiprocessors of the CPU tier, with one program each: so few that a small grid loops


@cache
def programs(per_multiprocessor: int) -> int:
    """How many programs make a grid that grows with the GPU and not with the data."""
    if DEVICE == "cpu":
        return ON_CPU
    if DEVICE == "compile":
        return per_multiprocessor * offline.TARGET.multiprocessors
    return per_multiprocessor * torch.cuda.get_device_properties().multi_processor_count


def capability() -> tuple[int, int]:
    """The compute capability of the GPU, or of that which is compiled for."""
    return torch.cuda.get_device_capability() if DEVICE == "cuda" else offline.TARGET.capability


@cache
def clusters() -> bool:
    """Whether blocks can run in clusters: from compute capability 9.0 on, and on the CPU tier."""
    return DEVICE == "cpu" or capability() >= (9, 0)


@cache
def shared_bytes() -> int:
    """The most shared memory that a block can have."""
    if DEVICE == "cuda":
        return torch.cuda.get_device_properties().shared_memory_per_block_optin
    return offline.TARGET.block_shared_bytes


def stages(most: int, stage_bytes: int) -> int:
    """How many stages of a pipeline to keep in shared memory: `most`, or as many as fit."""
    return min(most, shared_bytes() // stage_bytes)
