"""Numba CUDA: kernels launched on torch tensors and torch's current stream."""

import os
from functools import cache

import torch

from implementations import DEVICE

os.environ.setdefault("NUMBA_CUDA_ARRAY_INTERFACE_SYNC", "0")  # torch orders the streams
os.environ.setdefault("NUMBA_CUDA_LOW_OCCUPANCY_WARNINGS", "0")  # small check sizes are meant

from numba import cuda  # noqa: E402  (reads the two settings above)

STATIC_SHARED_BYTES = 48 * 1024  # beyond this a kernel must opt in


def launch(kernel, grid: tuple, block: tuple, *args, shared_bytes: int = 0) -> None:
    """Launch a `cuda.jit` kernel on torch's current stream.

    args: tensors become arrays of their shape (bfloat16, which NumPy lacks, as int16 words),
    numbers stay. `shared_bytes` is dynamic shared memory.
    """
    if DEVICE == "compile":
        from implementations.common.offline import numba_compiler

        numba_compiler.record(kernel, tuple(map(_host_array, args)), block, shared_bytes)
        return
    if DEVICE == "cpu":
        kernel[grid, block, 0, shared_bytes](*map(_host_array, args))
        return
    args = tuple(_device_array(a) for a in args)
    if shared_bytes > STATIC_SHARED_BYTES:
        _allow_shared(kernel, tuple(map(kernel.typeof_pyval, args)), shared_bytes)
    kernel[grid, block, _stream(torch.cuda.current_stream().cuda_stream), shared_bytes](*args)


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor


def _host_array(value):
    return _bits(value).numpy() if isinstance(value, torch.Tensor) else value


def _device_array(value):
    return (
        cuda.as_cuda_array(_bits(value), sync=False) if isinstance(value, torch.Tensor) else value
    )


@cache
def _stream(handle: int):
    return cuda.external_stream(handle) if handle else cuda.default_stream()


@cache
def _allow_shared(kernel, types: tuple, shared_bytes: int) -> None:
    """Numba has no public way to ask for more than 48 KB of shared memory; the driver has."""
    from cuda.bindings import driver as binding
    from numba.cuda.cudadrv.driver import driver

    function = kernel.compile(types)._codelibrary.get_cufunc()
    attribute = binding.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    driver.cuKernelSetAttribute(attribute, shared_bytes, function.handle, function.device.id)
