"""Numba CUDA: kernels launched on torch tensors and torch's current stream.

A launch by Numba itself wraps every tensor as an array anew, which takes some 100 µs. Here the
compiled kernel is kept, and what it is given is packed as Numba lays arrays out.
"""

import os
from functools import cache

import numpy as np
import torch

os.environ.setdefault("NUMBA_CUDA_ARRAY_INTERFACE_SYNC", "0")  # torch orders the streams
os.environ.setdefault("NUMBA_CUDA_LOW_OCCUPANCY_WARNINGS", "0")  # small check sizes are meant

from numba import from_dtype, types  # noqa: E402  (reads the two settings above)

from implementations.common.driver import Function, device_of  # noqa: E402
from implementations.instructions.tensor_map import TensorMap  # noqa: E402

STATIC_SHARED_BYTES = 48 * 1024  # beyond this a kernel must opt in
ELEMENT = {torch.bfloat16: types.int16, torch.bool: types.boolean}  # NumPy has no bfloat16
PYTHON = {int: types.int64, float: types.float64, bool: types.boolean}
FORMAT = {types.float16: "e", types.float32: "f", types.float64: "d", types.boolean: "?"}


def launch(kernel, grid: tuple, block: tuple, *args, shared_bytes: int = 0) -> None:
    """Launch a `cuda.jit` kernel on torch's current stream, on the device of its tensors.

    args: tensors become arrays of their shape (bfloat16 as int16 words), a TensorMap the array of
    its bytes; a Python int is an int64, a NumPy scalar keeps its type.
    shared_bytes: dynamic shared memory of a block.
    """
    run(kernel, grid, block, args, shared_bytes)


def words(x: torch.Tensor) -> torch.Tensor:
    """What lies between the first and the last element of a tensor of 16 bits, whatever its
    strides, as int16 in one dimension."""
    count = 1 + sum((n - 1) * step for n, step in zip(x.shape, x.stride(), strict=True))
    return x.view(torch.int16).as_strided((count if x.numel() else 0,), (1,))


def kinds(args: tuple) -> tuple:
    """What a kernel is compiled for, of each argument: an array's dtype, dimensions and whether it
    is contiguous, or a number's type."""
    return tuple(
        (arg.dtype, arg.ndim, arg.is_contiguous()) if isinstance(arg, torch.Tensor) else type(arg)
        for arg in args
    )


def signature(kinds: tuple) -> tuple:
    """The Numba types of `kinds`."""
    return tuple(map(_type, kinds))


@cache
def _type(kind):
    if kind is TensorMap:
        return types.Array(types.uint8, 1, "C")
    if isinstance(kind, type):
        return PYTHON.get(kind) or from_dtype(np.dtype(kind))
    dtype, ndim, contiguous = kind
    element = ELEMENT.get(dtype) or from_dtype(torch.empty(0, dtype=dtype).numpy().dtype)
    return types.Array(element, ndim, "C" if contiguous else "A")


# --- on a GPU; a tier without one takes the place of `run` ----------------------------------------


def run(kernel, grid: tuple, block: tuple, args: tuple, shared_bytes: int) -> None:
    """Launch a kernel; for arguments of other kinds, and on another device, it is loaded anew."""
    values = []
    for arg in args:
        x = arg.on_device() if isinstance(arg, TensorMap) else arg
        if isinstance(x, torch.Tensor):
            size = x.element_size()
            values += 0, 0, x.numel(), size, x.data_ptr(), *x.shape
            values += [size * stride for stride in x.stride()]
        else:
            values.append(x)
    device = device_of(args)
    function = _loaded(kernel, kinds(args), shared_bytes, device)
    function.launch(grid, block, values, shared_bytes, device)


@cache
def _loaded(kernel, kinds: tuple, shared_bytes: int, device: int) -> Function:
    from cuda.bindings import driver

    types = signature(kinds)
    with torch.cuda.device(device):
        compiled = kernel.compile(types)
        function = compiled._codelibrary.get_cufunc()  # private: Numba is pinned
        if shared_bytes > STATIC_SHARED_BYTES:
            attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            driver.cuKernelSetAttribute(attribute, shared_bytes, function.handle, device)
    formats = [format for kind in types for format in _formats(kind)]
    return Function(int(function.handle), formats)  # the kernel keeps what it compiled


def _formats(kind) -> str:
    """How `struct` packs what a kernel is given for a parameter."""
    if isinstance(kind, types.Array):  # meminfo, parent, count, itemsize, data, shape, strides
        return "QQqqQ" + "qq" * kind.ndim
    if isinstance(kind, types.Integer):
        letter = {8: "b", 16: "h", 32: "i", 64: "q"}[kind.bitwidth]
        return letter if kind.signed else letter.upper()
    return FORMAT[kind]
