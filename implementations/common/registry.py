"""Finds the kernels on the disk and loads their backends.

`kernels()`, `spec(kernel)`, `load(kernel, backend)` and `files(kernel, backend)` are all that the
study knows. A kernel is a folder `phase*/day*/` with `<kernel>.py`; a backend is a row of
`BACKENDS` and a file `<kernel>_<backend>.py` in each such folder. Folders are looked for under
every entry of `implementations.__path__`.
"""

import importlib
import inspect
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, wraps
from importlib.util import find_spec
from pathlib import Path

import torch

import implementations
from implementations import DEVICE
from implementations.common import device
from implementations.common.check import PLAIN
from implementations.common.spec import KernelSpec

HEADERS = Path(__file__).parents[1] / "instructions"  # what a `.cu` may include


class Unavailable(RuntimeError):
    """A backend cannot run here; the message says why."""


@dataclass(frozen=True)
class Backend:
    """title: as the report calls it. packages: what its files import.
    stand_ins: by tier without a GPU, the module that makes it run there.
    capability: the least CUDA compute capability; a kernel's file may ask for more by `CAPABILITY`.
    """

    title: str
    packages: tuple[str, ...]
    stand_ins: Mapping[str, str] = field(default_factory=dict)
    capability: tuple[int, int] = (8, 0)


BACKENDS = {
    "triton": Backend(
        "Triton", ("triton",), {"cpu": "triton_interpreter", "compile": "triton_compiler"}
    ),
    "cupy": Backend("CUDA C++", ("cupy", "cuda.core"), {"cpu": "cuda_cpp", "compile": "cuda_cpp"}),
    "numba": Backend(
        "Numba", ("numba", "numba.cuda"), {"cpu": "numba_fibers", "compile": "numba_compiler"}
    ),
}


def folders() -> dict[str, Path]:
    """Kernel name → its folder, in the order of the days."""
    return _folders(tuple(implementations.__path__), tuple(BACKENDS))


@cache
def _folders(roots: tuple[str, ...], backends: tuple[str, ...]) -> dict[str, Path]:
    suffixes = tuple(f"_{backend}" for backend in backends)
    found = {}
    for root in roots:
        for path in sorted(Path(root).glob("phase*/day*/*.py")):
            if not path.stem.endswith(suffixes):
                found[path.stem] = path.parent
    return found


def kernels() -> tuple[str, ...]:
    """The names of all kernels, in the order of the days."""
    return tuple(folders())


def phase(kernel: str) -> int:
    """The phase of a kernel, 1 to 5, from its folder's name."""
    return int(re.match(r"phase(\d+)", folders()[kernel].parent.name)[1])


def _module(kernel: str, suffix: str = ""):
    folder = folders()[kernel]
    return importlib.import_module(
        ".".join(("implementations", folder.parent.name, folder.name, kernel + suffix))
    )


def spec(kernel: str) -> KernelSpec:
    """The kernel's `SPEC`. KeyError for a name that has no folder."""
    module = _module(kernel)
    if not isinstance(getattr(module, "SPEC", None), KernelSpec):
        raise TypeError(f"{module.__file__} must define SPEC, a KernelSpec")
    return module.SPEC


def missing(backend: str) -> str | None:
    """Why a backend cannot run on this machine, or None if it can; without a GPU it then will.

    CUDA is not initialised for it, as a child that is forked afterwards could not use the GPU: what
    the GPU lacks is said once it is, at a kernel's first call at the latest.
    """
    if DEVICE == "cuda":
        return absent(backend) or _lacks(BACKENDS[backend].capability)
    return _stand_in(backend)


@cache
def _stand_in(backend: str) -> str | None:
    row = BACKENDS[backend]
    try:
        tier = importlib.import_module(f"implementations.tiers.{DEVICE}")
        tier.install(row.stand_ins.get(DEVICE))
    except ModuleNotFoundError as error:
        return f"package {error.name} is not installed"
    except RuntimeError as error:
        return str(error)
    return absent(backend) if DEVICE not in row.stand_ins else None


@cache
def absent(backend: str) -> str | None:
    """Which of a backend's packages is not installed here, as a sentence; None if all are."""
    for package in BACKENDS[backend].packages:
        try:
            found = find_spec(package)
        except ModuleNotFoundError:
            found = None
        if not found:
            return f"package {package.split('.')[0]} is not installed"
    return None


def _lacks(capability: tuple[int, int]) -> str | None:
    """What the current GPU lacks; None while CUDA is not initialised."""
    if DEVICE == "cuda" and not torch.cuda.is_initialized():
        return None
    have = device.properties().capability
    if have >= capability:
        return None
    return "needs compute capability {}.{}, this is {}.{}".format(*capability, *have)


def load(kernel: str, backend: str) -> Callable:
    """The host function of `kernel` in `backend`, with the reference's name and parameters, or what
    stands for that in one of its modes.

    Raises Unavailable, with the reason, where it cannot run here; TypeError where its parameters
    are not the reference's.
    """
    if of := spec(kernel).modes.get(backend):
        load(kernel, of)  # which puts in place what a mode of it needs as well
        return spec(kernel).baselines[backend]
    if reason := missing(backend):
        raise Unavailable(f"{backend}: {reason}")
    module = _module(kernel, f"_{backend}")
    needed = getattr(module, "CAPABILITY", BACKENDS[backend].capability)
    if reason := _lacks(needed):
        raise Unavailable(f"{kernel} in {backend}: {reason}")
    host = getattr(module, kernel)
    ours, theirs = inspect.signature(host), inspect.signature(spec(kernel).reference)
    if ours != theirs:
        raise TypeError(
            f"{module.__file__}: {kernel}{ours} must have the reference's parameters {theirs}"
        )
    return _anywhere(host, f"{kernel} in {backend}", needed, spec(kernel).make_gradient is not None)


class _Thread(threading.local):
    """The GPUs that this thread has used: before that the driver would refuse a launch."""

    def __init__(self):
        self.gpus = set()


_thread = _Thread()


def _anywhere(
    host: Callable, name: str, capability: tuple[int, int], differentiable: bool
) -> Callable:
    """A host function that runs on its inputs' GPU, whichever is current (Triton launches on the
    current one), from any thread; torch.compile leaves it as it is, and cannot see into launches,
    unless it is `differentiable`, and so one of operators. On a GPU of less than `capability` a
    call raises Unavailable.
    """
    able = set()  # the GPUs that were asked

    def guarded(*args, **kwargs):
        index = _gpu(args) if kwargs == {} else _gpu((*args, *kwargs.values()))
        if DEVICE != "cuda":
            return host(*args, **kwargs)
        if index in able and index in _thread.gpus and index == torch.cuda.current_device():
            return host(*args, **kwargs)
        with torch.cuda.device(torch.cuda.current_device() if index < 0 else index):
            torch.cuda.mem_get_info()  # which makes the GPU's context this thread's
            if reason := _lacks(capability):
                raise Unavailable(f"{name}: {reason}")
            able.add(index)
            _thread.gpus.add(index)
            return host(*args, **kwargs)

    # not in every call: it takes some 20 µs
    compiled = host if differentiable else torch.compiler.disable(guarded)

    @wraps(host)
    def call(*args, **kwargs):
        run = compiled if torch.compiler.is_dynamo_compiling() else guarded
        return run(*args, **kwargs)

    return call


def _gpu(values) -> int:
    """The GPU of the first tensor among some values, or in a list among them; -1 for none."""
    for value in values:
        if type(value) in PLAIN:
            return value.get_device()
        if isinstance(value, list | tuple) and value:
            return _gpu(value)
    return -1


def files(kernel: str, backend: str) -> tuple[Path, ...]:
    """The files of one implementation: the host's, and in CUDA C++ the kernels'."""
    names = (f"{kernel}_{backend}.py", *((f"{kernel}.cu",) if backend == "cupy" else ()))
    paths = (folders()[kernel] / name for name in names)
    return tuple(path for path in paths if path.exists())
