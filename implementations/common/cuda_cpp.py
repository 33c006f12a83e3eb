"""CUDA C++ through CuPy: a `.cu` beside its host file, compiled by NVRTC, on torch's stream.

NVRTC is called here and not by `RawModule(code=...)`, which always adds -ftz=true and whose cache
does not see a changed header; an instantiation takes about 0.2 s.
"""

import ctypes
import re
import struct
import tempfile
from functools import cache
from numbers import Real
from operator import index
from pathlib import Path

import numpy as np
import torch

from implementations.common.check import dtype_name
from implementations.common.device import properties
from implementations.common.driver import Function, device_of
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
FORMATS = dict(zip(SCALARS, "iIqQf?", strict=True))  # of `struct`
STATIC_SHARED_BYTES = 48 * 1024  # beyond this a kernel must opt in


class CudaSource:
    """The kernels of one `.cu`; each instantiation is compiled at its first launch."""

    def __init__(self, path: Path):
        self.path = path
        self.instantiations: dict[tuple, tuple[Kernel, str]] = {}

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
        key = kernel, *template.items()
        if key not in self.instantiations:
            found = Kernel(self.path, kernel)
            self.instantiations[key] = found, found.instantiation(template)
        run(*self.instantiations[key], grid, block, args, shared_bytes)


class Kernel:
    """A kernel as its `.cu` declares it. ValueError where that declares none of this name.

    template, parameters: name → type.
    """

    def __init__(self, path: Path, name: str):
        text = re.sub(r"//.*|/\*[\s\S]*?\*/", "", path.read_text())
        head = r"(?:template\s*<([^<>]*)>\s*)?__global__\s[^;{}]*?\b"
        found = re.search(rf"{head}{name}\s*\(([^()]*)\)\s*{{", text)
        if not found:
            raise ValueError(f"{path.name} must define the __global__ function {name}")
        self.path, self.name = path, name
        self.template, self.parameters = (_declared(text or "") for text in found.groups())
        self.converters = [self._converter(*parameter) for parameter in self.parameters.items()]
        self.pointers = [kind.endswith("*") for kind in self.parameters.values()]

    def typed(self, args: tuple) -> list:
        """Arguments as the parameters hold them: tensors, tensor maps and NumPy scalars."""
        if len(args) != len(self.converters):
            raise TypeError(
                f"{self.name} takes the {len(self.converters)} arguments "
                f"{', '.join(self.parameters)}, got {len(args)}"
            )
        return [convert(arg) for convert, arg in zip(self.converters, args, strict=True)]

    def instantiation(self, given: dict) -> str:
        """ "kernel<float, 4>", of the template's arguments by name."""
        if given.keys() != self.template.keys():
            raise TypeError(
                f"{self.name} takes the template arguments {', '.join(self.template) or 'none'}, "
                f"got {', '.join(given) or 'none'}"
            )
        texts = [self._text(name, kind, given[name]) for name, kind in self.template.items()]
        return f"{self.name}<{', '.join(texts)}>" if texts else self.name

    def _text(self, name: str, kind: str, value) -> str:
        """An argument of the template as C++ has it."""
        if kind == "typename" and value in C_TYPE:
            return C_TYPE[value]
        if kind == "bool" and isinstance(value, bool):
            return str(value).lower()
        if kind == "int" and isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        dtypes = ", ".join(map(dtype_name, C_TYPE))
        wanted = f"one of {dtypes}" if kind == "typename" else f"of type {kind}"
        raise TypeError(f"{name} of {self.name} must be {wanted}, got {value!r}")

    def _converter(self, name: str, kind: str):
        """What makes of an argument what a parameter holds."""
        of = f"{name} of {self.name}"
        if kind in SCALARS:
            scalar = SCALARS[kind]
            exact = {"float": _real, "bool": bool}.get(kind, index)

            def number(value):
                try:
                    return scalar(exact(value))
                except (TypeError, OverflowError) as error:
                    raise type(error)(f"{of} must be of type {kind}, got {value!r}") from error

            return number
        wanted = torch.Tensor if kind.endswith("*") else TensorMap
        if wanted is TensorMap and kind != "const TensorMap":
            raise TypeError(f"{of} must be a pointer, a TensorMap or of {', '.join(SCALARS)}")

        def checked(value):
            if not isinstance(value, wanted):
                raise TypeError(f"{of} must be a {wanted.__name__}, got {type(value).__name__}")
            return value

        return checked


def _real(value) -> float:
    if not isinstance(value, Real):
        raise TypeError("no real number")
    return float(value)


def _declared(text: str) -> dict[str, str]:
    """ "const T* __restrict__ x, long long N" → {"x": "const T*", "N": "long long"}."""
    found = {}
    for part in re.sub(r"__restrict__|__grid_constant__|=[^,]*", "", text).split(","):
        kind, name = re.fullmatch(r"\s*(.*?)(\w*)\s*", part, re.DOTALL).groups()
        if name:
            found[name] = " ".join(kind.replace("*", "* ").split())
    return found


# --- on a GPU; a tier without one takes the place of `run` ----------------------------------------


def run(kernel: Kernel, name: str, grid: tuple, block: tuple, args: tuple, shared_bytes: int):
    """Launch the instantiation `name` of a kernel."""
    device = device_of(args)
    function = _loaded(kernel, name, shared_bytes, device)
    try:
        pairs = zip(args, kernel.pointers, strict=True)
        values = [arg.data_ptr() if pointer else arg for arg, pointer in pairs]
        function.launch(grid, block, values, shared_bytes, device)
    except (AttributeError, ValueError, OverflowError, struct.error):
        values = map(_value, kernel.typed(args))  # which says what does not fit
        function.launch(grid, block, [*values], shared_bytes, device)


def _value(arg):
    """A typed argument as `struct` packs it."""
    if isinstance(arg, TensorMap):
        return arg.encoded().tobytes()
    return arg.data_ptr() if isinstance(arg, torch.Tensor) else arg.item()


def _format(kind: str) -> str:
    """How `struct` packs a parameter of this type."""
    if kind.endswith("TensorMap"):
        return "128s"
    return "Q" if kind.endswith("*") else FORMATS[kind]


@cache
def _loaded(kernel: Kernel, name: str, shared_bytes: int, device: int) -> Function:
    import cupy

    major, minor = properties(torch.device("cuda", device)).capability
    arch = f"sm_{major}{minor}" + ("a" if major >= 9 else "")
    cubin, symbol = compile_cubin(kernel.path, name, arch)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file, cupy.cuda.Device(device):
        file.write(cubin)
        file.flush()
        loaded = cupy.RawModule(path=file.name).get_function(symbol)
        if shared_bytes > STATIC_SHARED_BYTES:
            loaded.max_dynamic_shared_size_bytes = shared_bytes
        function = Function(loaded.kernel.ptr, [*map(_format, kernel.parameters.values())])
    # never freed: CuPy cannot unload a module while the interpreter ends
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(loaded))
    return function


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
