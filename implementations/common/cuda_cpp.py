"""CUDA C++ through CuPy: a `.cu` beside its host file, compiled by NVRTC, on torch's stream.

NVRTC is called here and not by `RawModule(code=...)`, which always adds -ftz=true and whose cache
does not see a changed header; an instantiation takes about 0.2 s.
"""

import re
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch

from implementations.common.check import dtype_name
from implementations.common.device import properties
from implementations.common.registry import HEADERS
from implementations.instructions.tensor_map import TensorMap

C_TYPE = {torch.float32: "float", torch.float16: "__half", torch.bfloat16: "__nv_bfloat16"}
SCALARS = {  # of a kernel's parameters
    "int": np.int32,
    "unsigned": np.uint32,
    "long long": np.int64,
    "unsigned long long": np.uint64,
    "float": np.float32,
    "bool": np.bool_,
}
STATIC_SHARED_BYTES = 48 * 1024  # beyond this a kernel must opt in


class CudaSource:
    """The kernels of one `.cu`; each instantiation is compiled at its first launch."""

    def __init__(self, path: Path):
        self.path = path
        self.kernel = cache(self._kernel)

    def launch(
        self, kernel: str, grid: tuple, block: tuple, *args, shared_bytes: int = 0, **template
    ) -> None:
        """Launch a kernel on torch's current stream, on the device of its tensors.

        args: as the `.cu` declares them; tensors become pointers, numbers the declared type.
        template: the arguments of its template by name: a torch dtype for a type, an int, a bool.
        shared_bytes: dynamic shared memory of a block.
        Raises TypeError for other arguments than the `.cu` declares, OverflowError for a number
        that its type cannot hold.
        """
        declared = self.kernel(kernel)
        name = declared.instantiation(tuple(template.items()))
        if len(args) != len(declared.parameters):
            raise TypeError(
                f"{kernel} takes {len(declared.parameters)} arguments "
                f"({', '.join(declared.parameters)}), got {len(args)}"
            )
        typed = [convert(a) for convert, a in zip(declared.converters, args, strict=True)]
        run(self.path, name, grid, block, typed, shared_bytes)

    def _kernel(self, name: str) -> "Declared":
        return declared(self.path, name)


@dataclass(frozen=True)
class Declared:
    """A kernel as its `.cu` declares it: the names and types of its parameters."""

    name: str
    template: dict[str, str]
    parameters: dict[str, str]

    def __post_init__(self):
        converters = [_converter(self.name, *p) for p in self.parameters.items()]
        object.__setattr__(self, "converters", converters)
        object.__setattr__(self, "instantiation", cache(self._instantiation))

    def _instantiation(self, arguments: tuple) -> str:
        """ "kernel<float, 4>", of the template's arguments by name."""
        given = dict(arguments)
        if given.keys() != self.template.keys():
            raise TypeError(
                f"{self.name} takes the template arguments {', '.join(self.template) or 'none'}, "
                f"got {', '.join(given) or 'none'}"
            )
        texts = (_template_argument(self.name, n, t, given[n]) for n, t in self.template.items())
        return f"{self.name}<{', '.join(texts)}>" if self.template else self.name


def declared(path: Path, kernel: str) -> Declared:
    """A kernel as a `.cu` declares it. Raises ValueError where it does not."""
    text = re.sub(r"//.*|/\*[\s\S]*?\*/", "", path.read_text())
    head = rf"(?:template\s*<([^<>]*)>\s*)?__global__\s[^;{{}}]*?\b{kernel}\s*\(([^()]*)\)\s*{{"
    found = re.search(head, text)
    if not found:
        raise ValueError(f"{path.name} must declare the __global__ function {kernel}")
    return Declared(kernel, *map(_declarations, (found[1] or "", found[2])))


def _declarations(text: str) -> dict[str, str]:
    """ "const T* __restrict__ x, long long N" → {"x": "const T*", "N": "long long"}."""
    parts = (" ".join(part.replace("__restrict__", "").split()) for part in text.split(","))
    pairs = (part.replace("* ", "*").rpartition("*" if "*" in part else " ") for part in parts)
    return {name: (kind + end).strip() for kind, end, name in pairs if name}


def _template_argument(kernel: str, name: str, kind: str, value) -> str:
    if kind == "typename" and value in C_TYPE:
        return C_TYPE[value]
    if kind == "bool" and isinstance(value, bool):
        return str(value).lower()
    if kind == "int" and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    wanted = {"typename": f"one of {', '.join(map(dtype_name, C_TYPE))}"}.get(
        kind, f"of type {kind}"
    )
    raise TypeError(f"template argument {name} of {kernel} must be {wanted}, got {value!r}")


def _converter(kernel: str, name: str, kind: str):
    """What makes an argument what a kernel's parameter holds."""

    def pointer(value):
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"{name} of {kernel} must be a tensor, got {type(value).__name__}")
        return value

    def tensor_map(value):
        if not isinstance(value, TensorMap):
            raise TypeError(f"{name} of {kernel} must be a TensorMap, got {type(value).__name__}")
        return value

    if kind.endswith("*"):
        return pointer
    if kind.endswith("TensorMap"):
        return tensor_map
    if kind not in SCALARS:
        raise TypeError(f"parameter {name} of {kernel} must be of {', '.join(SCALARS)}, got {kind}")
    return SCALARS[kind]


# --- on a GPU; a tier without one takes the place of `run` ----------------------------------------


def run(path: Path, name: str, grid: tuple, block: tuple, args: list, shared_bytes: int) -> None:
    """Launch the instantiation `name`. args: tensors, tensor maps and NumPy scalars."""
    device = next((a.device.index for a in args if isinstance(a, torch.Tensor)), None)
    device = torch.cuda.current_device() if device is None else device
    values = [a if isinstance(a, np.generic) else _value(a) for a in args]
    kernel = _loaded(path, name, shared_bytes, device)
    stream = _stream(torch.cuda.current_stream(device).cuda_stream)
    with torch.cuda.device(device):
        kernel(grid, block, values, shared_mem=shared_bytes, stream=stream)


def _value(arg: torch.Tensor | TensorMap):
    return arg.data_ptr() if isinstance(arg, torch.Tensor) else arg.encoded()


@cache
def _loaded(path: Path, name: str, shared_bytes: int, device: int):
    import cupy

    major, minor = properties(torch.device("cuda", device)).capability
    arch = f"sm_{major}{minor}" + ("a" if major >= 9 else "")
    cubin, symbol = compile_cubin(path, name, arch)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        with cupy.cuda.Device(device):
            kernel = cupy.RawModule(path=file.name).get_function(symbol)
            if shared_bytes > STATIC_SHARED_BYTES:
                kernel.max_dynamic_shared_size_bytes = shared_bytes
    return kernel


@cache
def _stream(handle: int):
    import cupy

    return cupy.cuda.ExternalStream(handle) if handle else cupy.cuda.Stream.null


@cache
def compile_cubin(path: Path, name: str, arch: str) -> tuple[bytes, str]:
    """The cubin of one instantiation, e.g. "vector_add_kernel<float>", and its mangled name.

    Needs no driver. Raises RuntimeError with the compiler's log where the source does not compile.
    """
    from cuda.core import Program, ProgramOptions
    from cuda.pathfinder import find_nvidia_header_directory

    headers = [
        str(HEADERS),
        find_nvidia_header_directory("cudart"),
        find_nvidia_header_directory("cccl"),
    ]
    options = ProgramOptions(
        name=str(path), arch=arch, std="c++17", include_path=[h for h in headers if h], ftz=False
    )
    cubin = Program(path.read_text(), "c++", options).compile("cubin", name_expressions=(name,))
    return cubin.code, cubin.symbol_mapping[name].decode()
