"""What hosts ask of the GPU that their kernels run on."""

from dataclasses import dataclass
from functools import cache

import torch


@dataclass(frozen=True)
class Properties:
    """A GPU. shared_bytes: the most shared memory that a block can have."""

    capability: tuple[int, int]
    multiprocessors: int
    shared_bytes: int

    def programs(self, per_multiprocessor: int) -> int:
        """How many programs make a grid that grows with the GPU and not with the data."""
        return per_multiprocessor * self.multiprocessors

    def clusters(self) -> bool:
        """Whether blocks can run in clusters: from compute capability 9.0 on."""
        return self.capability >= (9, 0)

    def stages(self, most: int, stage_bytes: int) -> int:
        """How many stages of a pipeline to keep in shared memory: `most`, or as many as fit."""
        return min(most, self.shared_bytes // stage_bytes)


def properties(device: torch.device | None = None) -> Properties:
    """Of the GPU that a tensor's `device` names; None: of the current one."""
    return describe(device)


def has_wgmma(device: torch.device) -> bool:
    """Whether that GPU's warpgroups multiply out of shared memory: compute capability 9.0 alone."""
    return properties(device).capability[0] == 9


def model(device: torch.device | None = None) -> str:
    """That GPU's name, such as "NVIDIA H200"."""
    return named(device)


# --- on a GPU; a tier without one takes the place of `describe` and `named` -----------------------


@cache
def _described(index: int) -> Properties:
    found = torch.cuda.get_device_properties(index)
    shared_bytes = found.shared_memory_per_block_optin
    return Properties((found.major, found.minor), found.multi_processor_count, shared_bytes)


def describe(device: torch.device | None) -> Properties:
    """What the driver says of a GPU."""
    index = device.index if device else None
    return _described(torch.cuda.current_device() if index is None else index)


def named(device: torch.device | None) -> str:
    """What the driver calls a GPU."""
    return torch.cuda.get_device_name(device)
