"""CUDA C++ without a GPU: NVRTC makes an instantiation's cubin, as at a real launch."""

from math import prod

from implementations.common import cuda_cpp
from implementations.tiers import compile as tier


def run(path, name: str, grid: tuple, block: tuple, args: list, shared_bytes: int) -> None:
    """Compile the instantiation `name`, once, and record the launch."""
    cubin, symbol = cuda_cpp.compile_cubin(path, name, tier.ARCH)
    tier.launches.append(tier.Launch(name, cubin, symbol, prod(block), shared_bytes))


def install() -> None:
    """Let every launch compile and be recorded."""
    cuda_cpp.run = run
