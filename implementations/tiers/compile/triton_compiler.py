"""Triton's compiler without a GPU: a launch is specialised and compiled as on one, no more."""

from functools import wraps

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.errors import OutOfResources
from triton.runtime.jit import JITFunction

from implementations.tiers import compile as tier

WARP = 32  # threads
PROPERTIES = {
    "max_shared_mem": tier.TARGET.properties.shared_bytes,
    "multiprocessor_count": tier.TARGET.multiprocessors,
}
MAJOR, MINOR = tier.TARGET.capability


class Driver:
    """What Triton asks of a driver until a kernel is compiled."""

    class utils:
        get_device_properties = staticmethod(lambda device: PROPERTIES)

    get_current_target = staticmethod(lambda: GPUTarget("cuda", 10 * MAJOR + MINOR, WARP))
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device=None: 0)
    get_active_torch_device = staticmethod(lambda: torch.device("cpu"))
    get_benchmarker = staticmethod(lambda: _compile_once)


def _compile_once(call, quantiles=(0.5,)):
    """Instead of a benchmark: autotune compiles every configuration, and keeps the first."""
    call()
    return [1.0] * len(quantiles)


def _name(kernel) -> str:
    """The kernel's name, and what this launch compiles into it."""
    names, meta = kernel.src.fn.arg_names, kernel.metadata
    constants = {names[at]: value for (at, *_), value in kernel.src.constants.items()}
    constants |= {"num_warps": meta.num_warps, "num_stages": meta.num_stages}
    return f"{kernel.name}<{', '.join(f'{name}={value}' for name, value in constants.items())}>"


def _recording(run):
    """`JITFunction.run` with the launch replaced by a record of it."""

    @wraps(run)
    def compile_only(self, *args, grid, warmup, **kwargs):
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        meta = kernel.metadata
        limit = tier.TARGET.properties.shared_bytes
        if meta.shared > limit:  # autotune passes such a configuration over
            raise OutOfResources(meta.shared, limit, "shared memory")
        sides = grid(kwargs) if callable(grid) else grid
        given = [f"*{a.dtype}" if isinstance(a, torch.Tensor) else a for a in args]
        given += [f"{name}={value}" for name, value in sorted(kwargs.items())]
        code, threads = (kernel.asm["cubin"], kernel.name), (meta.num_warps * WARP,)
        tier.record(_name(kernel), code, sides, threads, meta.shared, given)
        return kernel

    return compile_only


def install() -> None:
    """Let every launch compile and be recorded. Once."""
    driver.set_active(Driver())
    JITFunction.run = _recording(JITFunction.run)
