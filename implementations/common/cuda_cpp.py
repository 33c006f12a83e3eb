"""CUDA C++ through CuPy: a `.cu` beside its host file, compiled by NVRTC, on torch's stream.

NVRTC is called here and not by `RawModule(code=...)`, which always adds -ftz=true and whose cache
does not see a changed header; an instantiation takes about 0.2 s.
"""

import tempfile
from functools import cache
from math import prod
from pathlib import Path

import numpy as np
import torch

from implementations import DEVICE
from implementations.common import offline

COMMON = Path(__file__).parent
C_TYPE = {torch.float32: "float", torch.float16: "__half", torch.bfloat16: "__nv_bfloat16"}
STATIC_SHARED_BYTES = 48 * 1024  # beyond this a kernel must opt in


@cache
def compile_cubin(path: Path, name: str, arch: str) -> tuple[bytes, str]:
    """The cubin of one instantiation, e.g. "vector_add_kernel<float>", and its mangled name.

    Needs no driver. Raises RuntimeError with the compiler's log where the source does not compile.
    """
    from cuda.core import Program, ProgramOptions
    from cuda.pathfinder import find_nvidia_header_directory

    headers = [
        str(COMMON),
        find_nvidia_header_directory("cudart"),
        find_nvidia_header_directory("cccl"),
    ]
    options = ProgramOptions(
        name=str(path), arch=arch, std="c++17", include_path=[h for h in headers if h], ftz=False
    )
    cubin = Program(path.read_text(), "c++", options).compile("cubin", name_expressions=(name,))
    return cubin.code, cubin.symbol_mapping[name].decode()


class CudaSource:
    """The kernels of one `.cu`; each instantiation is compiled at its first launch."""

    def __init__(self, path: Path):
        self.path = path
        self.kernel = cache(self._kernel)

    def _kernel(self, name: str, shared_bytes: int):
        import cupy

        major, minor = torch.cuda.get_device_capability()
        arch = f"sm_{major}{minor}" + ("a" if major >= 9 else "")
        cubin, symbol = compile_cubin(self.path, name, arch)
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(cubin)
            file.flush()
            kernel = cupy.RawModule(path=file.name).get_function(symbol)
        if shared_bytes > STATIC_SHARED_BYTES:
            kernel.max_dynamic_shared_size_bytes = shared_bytes
        return kernel

    def launch(self, name: str, grid: tuple, block: tuple, *args, shared_bytes: int = 0) -> None:
        """Launch instantiation `name` on torch's current stream.

        args: tensors are passed as pointers, ints as `int`, floats as `float`; a NumPy scalar keeps
        its own type. `shared_bytes` is dynamic shared memory.
        """
        if DEVICE == "compile":
            cubin, symbol = compile_cubin(self.path, name, offline.ARCH)
            offline.launches.append(offline.Launch(name, cubin, symbol, prod(block), shared_bytes))
        elif DEVICE == "cpu":
            from implementations.common.cpu import cuda_cpp as cpu

            args = tuple(a if isinstance(a, torch.Tensor) else _scalar(a) for a in args)
            cpu.launch(self.path, name, grid, block, args, shared_bytes)
        else:
            args = tuple(a.data_ptr() if isinstance(a, torch.Tensor) else _scalar(a) for a in args)
            stream = _stream(torch.cuda.current_stream().cuda_stream)
            self.kernel(name, shared_bytes)(
                grid, block, args, shared_mem=shared_bytes, stream=stream
            )


def _scalar(value):
    """A Python number as the C type it stands for: CuPy would pass a long long or a double."""
    if isinstance(value, np.generic):
        return value
    return np.float32(value) if isinstance(value, float) else np.int32(value)


@cache
def _stream(handle: int):
    import cupy

    return cupy.cuda.ExternalStream(handle) if handle else cupy.cuda.Stream.null
