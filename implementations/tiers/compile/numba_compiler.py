"""Numba's compiler without a GPU: the dispatcher makes a kernel's cubin, as at a real launch."""

from functools import cache
from types import SimpleNamespace

import torch
from numba.cuda.cudadrv import devices
from numba.cuda.dispatcher import _Kernel

from implementations.common import numba_cuda
from implementations.tiers import compile as tier

# from 9.0 on Numba adds the a of sm_90a
DEVICE = SimpleNamespace(id=0, compute_capability=tier.TARGET.capability)


def _name(kernel) -> str:
    """The function that holds or makes the kernel, and the numbers compiled into it."""
    function = kernel.py_func
    cells = (cell.cell_contents for cell in function.__closure__ or ())
    variables = zip(function.__code__.co_freevars, cells, strict=True)
    constants = [f"{name}={value}" for name, value in variables if isinstance(value, int | float)]
    name = function.__qualname__.split(".")[0]
    return f"{name}<{', '.join(constants)}>" if constants else name


@cache
def _cubin(compiled) -> bytes:
    """The machine code of a compiled kernel, linked once for all of its launches."""
    return compiled.library.get_cubin().code


def run(kernel, grid: tuple, block: tuple, args: tuple, shared_bytes: int) -> None:
    """Compile a `cuda.jit` kernel for the types of `args`, once for each, and record the launch.

    The PTX and the cubin are those that the launch would load.
    """
    compiled = kernel.compile(numba_cuda.signature(numba_cuda.kinds(args)))
    code = _cubin(compiled), compiled.entry_name
    texts = [
        f"{arg.dtype} {tuple(arg.shape)} {arg.stride()}" if isinstance(arg, torch.Tensor) else arg
        for arg in args
    ]
    tier.record(_name(kernel), code, grid, block, shared_bytes, texts)


def install() -> None:
    """A stand-in device in the driver's place, kernels that are never loaded, launches recorded."""
    context = SimpleNamespace(device=DEVICE)
    devices._runtime.get_or_create_context = lambda number=None: context
    _Kernel.bind = lambda kernel: None  # else `compile` would load the cubin
    numba_cuda.run = run
