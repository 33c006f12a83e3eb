"""What hosts would launch."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import triton.language as tl
from triton._utils import TRITON_MAX_TENSOR_NUMEL
from triton.runtime import interpreter

from implementations.common import cuda_cpp, numba_cuda, registry


@contextmanager
def launches() -> Iterator[list[tuple]]:
    """The grid and, outside of Triton, the block of all launches meanwhile, which are noted and not
    run; arguments that do not fit raise."""
    found = []
    for backend in registry.BACKENDS:
        registry.missing(backend)  # which puts in place what runs launches

    def cuda(kernel, name, grid, block, args, shared_bytes):
        kernel.typed(args)
        found.append((grid, block))

    def numba(kernel, grid, block, args, shared_bytes):
        for arg in args:
            assert isinstance(arg, torch.Tensor | np.generic | float) or np.int64(arg) == arg
        found.append((grid, block))

    def triton(self, *args, grid, warmup, **kwargs):
        parameters = inspect.signature(self.fn).parameters
        for name, value in (dict(zip(parameters, args, strict=False)) | kwargs).items():
            if name in parameters and parameters[name].annotation is tl.constexpr:
                assert value <= TRITON_MAX_TENSOR_NUMEL
            assert isinstance(value, torch.Tensor | float) or np.int64(value) == value
        found.append((grid,))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda_cpp, "run", cuda)
        patch.setattr(numba_cuda, "run", numba)
        patch.setattr(interpreter.InterpretedFunction, "run", triton)
        yield found
