"""What a user would call instead of a kernel: what specs list as `baselines`."""

from collections.abc import Callable
from functools import cache

import torch

from implementations.common.registry import Unavailable


def compiled(function: Callable) -> Callable:
    """`torch.compile(function)`, built at the first call: importing a spec stays cheap."""

    @cache
    def build():
        torch._dynamo.config.recompile_limit = 1000  # beyond it a new size would not be compiled
        return torch.compile(function, dynamic=False)

    def call(*args):
        return build()(*args)

    return call


def by_cupy(name: str, **options) -> Callable:
    """CuPy's own function `name` of torch tensors: in torch's memory, on its current stream.

    Raises Unavailable for bfloat16, which CuPy lacks.
    """

    def call(*args):
        import cupy

        if any(x.dtype == torch.bfloat16 for x in args):
            raise Unavailable("CuPy has no bfloat16")
        memory = cupy.cuda.PythonFunctionAllocator(
            torch.cuda.caching_allocator_alloc,
            lambda pointer, device: torch.cuda.caching_allocator_delete(pointer),
        )
        stream = cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream)
        with stream, cupy.cuda.using_allocator(memory.malloc):
            arrays = (cupy.asarray(x) for x in args)
            return torch.as_tensor(getattr(cupy, name)(*arrays, **options), device="cuda")

    return call
