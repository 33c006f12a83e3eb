"""Numba CUDA: kernels launched on torch tensors and torch's current stream.

A launch by Numba itself wraps every tensor as an array anew, which takes some 100 µs. Here the
compiled kernel is kept, and what it is given is packed as Numba lays arrays out.
"""

import ctypes
import os
import struct
from functools import cache

import numpy as np
import torch

os.environ.setdefault("NUMBA_CUDA_ARRAY_INTERFACE_SYNC", "0")  # torch orders the streams
os.environ.setdefault("NUMBA_CUDA_LOW_OCCUPANCY_WARNINGS", "0")  # small check sizes are meant

from numba import from_dtype, types  # noqa: E402  (reads the two settings above)

from implementations.instructions.tensor_map import TensorMap  # noqa: E402

STATIC_SHARED_BYTES = 48 * 1024  # beyond this a kernel must opt in
ELEMENT = {torch.bfloat16: types.int16, torch.bool: types.boolean}  # NumPy has no bfloat16
FORMAT = {types.float16: "e", types.float32: "f", types.float64: "d", types.boolean: "?"}


def launch(kernel, grid: tuple, block: tuple, *args, shared_bytes: int = 0) -> None:
    """Launch a `cuda.jit` kernel on torch's current stream, on the device of its tensors.

    args: tensors become arrays of their shape (bfloat16 as int16 words), a TensorMap the array of
    its bytes; a Python int is an int64, a NumPy scalar keeps its type.
    shared_bytes: dynamic shared memory of a block.
    """
    run(kernel, grid, block, args, shared_bytes)


def signature(args: tuple) -> tuple:
    """The Numba types that a kernel is compiled for."""
    return tuple(map(_type, args))


def _type(value):
    if isinstance(value, torch.Tensor):
        return _array(value.dtype, value.ndim, "C" if value.is_contiguous() else "A")
    if isinstance(value, TensorMap):
        return _array(torch.uint8, 1, "C")
    return _scalar(type(value))


@cache
def _array(dtype: torch.dtype, ndim: int, layout: str):
    element = ELEMENT.get(dtype) or from_dtype(torch.empty(0, dtype=dtype).numpy().dtype)
    return types.Array(element, ndim, layout)


@cache
def _scalar(kind: type):
    named = {int: types.int64, float: types.float64, bool: types.boolean}
    return named[kind] if kind in named else from_dtype(np.dtype(kind))


# --- on a GPU; a tier without one takes the place of `run` ----------------------------------------


def run(kernel, grid: tuple, block: tuple, args: tuple, shared_bytes: int) -> None:
    """Launch a kernel of this signature; it is compiled and loaded once a device."""
    device = next((a.device.index for a in args if isinstance(a, torch.Tensor)), None)
    device = torch.cuda.current_device() if device is None else device
    function, layout = _loaded(kernel, signature(args), shared_bytes, device)
    values = []
    for arg in args:
        x = arg.on_device() if isinstance(arg, TensorMap) else arg
        if isinstance(x, torch.Tensor):
            size = x.element_size()
            values += 0, 0, x.numel(), size, x.data_ptr(), *x.shape
            values += [size * stride for stride in x.stride()]
        else:
            values.append(x)
    with torch.cuda.device(device):
        _launch(function, grid, block, layout.pack(*values), shared_bytes, device)


def _launch(function, grid, block, parameters: bytes, shared_bytes: int, device: int) -> None:
    from cuda.bindings import driver

    size = ctypes.c_size_t(len(parameters))
    buffer = ctypes.create_string_buffer(parameters, len(parameters))
    extra = (ctypes.c_void_p * 5)(1, ctypes.addressof(buffer), 2, ctypes.addressof(size), None)
    stream = torch.cuda.current_stream(device).cuda_stream
    grid, block = ((*shape, 1, 1)[:3] for shape in (grid, block))
    (error,) = driver.cuLaunchKernel(
        function, *grid, *block, shared_bytes, stream, 0, ctypes.addressof(extra)
    )
    if error:
        raise RuntimeError(f"the launch must succeed, the driver says {error.name}")


@cache
def _loaded(kernel, kinds: tuple, shared_bytes: int, device: int):
    """The driver's function, and the layout of its parameters."""
    from cuda.bindings import driver

    with torch.cuda.device(device):
        compiled = kernel.compile(kinds)
        function = compiled._codelibrary.get_cufunc()
        if shared_bytes > STATIC_SHARED_BYTES:  # Numba has no public way to ask for more
            attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            driver.cuKernelSetAttribute(attribute, shared_bytes, function.handle, device)
    layout = "".join(map(_format, kinds))
    return driver.CUfunction(int(function.handle)), struct.Struct(layout)


def _format(kind) -> str:
    """How `struct` packs a parameter, aligned as in C."""
    if isinstance(kind, types.Array):  # meminfo, parent, count, itemsize, data, shape, strides
        return "PPnnP" + "nn" * kind.ndim
    if isinstance(kind, types.Integer):
        letter = {8: "b", 16: "h", 32: "i", 64: "q"}[kind.bitwidth]
        return letter if kind.signed else letter.upper()
    return FORMAT[kind]
