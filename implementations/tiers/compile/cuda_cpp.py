"""CUDA C++ without a GPU: NVRTC makes an instantiation's cubin, as at a real launch."""

import numpy as np

from implementations.common import cuda_cpp
from implementations.tiers import compile as tier


def run(kernel, name: str, grid: tuple, block: tuple, args: tuple, shared_bytes: int) -> None:
    """Compile the instantiation `name`, once, and record the launch."""
    code = cuda_cpp.compile_cubin(kernel.path, name, tier.ARCH)
    texts = [arg if isinstance(arg, np.generic) else "pointer" for arg in kernel.typed(args)]
    tier.record(name, code, grid, block, shared_bytes, texts)


def install() -> None:
    """Let every launch compile and be recorded."""
    cuda_cpp.run = run
