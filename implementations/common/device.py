"""What hosts ask of the device that their kernels run on."""

from functools import cache

import torch

from implementations import DEVICE

WITHOUT_GPU = {"cpu": 2, "compile": 132}  # so few that a small grid loops; an H100


@cache
def multiprocessors() -> int:
    """The number of multiprocessors (SMs)."""
    return WITHOUT_GPU.get(DEVICE) or torch.cuda.get_device_properties().multi_processor_count
