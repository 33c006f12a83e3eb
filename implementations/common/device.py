"""What hosts ask of the device that their kernels run on."""

from functools import cache

import torch

from implementations import DEVICE

WITHOUT_GPU = {"cpu": 2, "compile": 132}  # multiprocessors: so few that a small grid loops; an H100


@cache
def programs(per_multiprocessor: int) -> int:
    """How many programs make a grid that grows with the GPU and not with the data.

    On the CPU tier a multiprocessor has one.
    """
    if DEVICE == "cuda":
        return per_multiprocessor * torch.cuda.get_device_properties().multi_processor_count
    return WITHOUT_GPU[DEVICE] * (per_multiprocessor if DEVICE == "compile" else 1)


@cache
def clusters() -> bool:
    """Whether blocks can run in clusters: from compute capability 9.0 on, and on the CPU tier."""
    return DEVICE != "cuda" or torch.cuda.get_device_capability() >= (9, 0)
