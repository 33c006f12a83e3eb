"""CUDA C++ kernels on the CPU: the `.cu` compiled as C++20 behind cuda/cuda_on_cpu.hpp, and run.

What was compiled stays in the user's cache, under a hash of all that went into it. The kernel runs
in this process; where STUDY_SANITIZE is "address" or "thread", in one of its own, and what
AddressSanitizer or ThreadSanitizer finds there is raised. STUDY_THREAD_SEED, an integer, draws the
order of the threads (fibers.cpp).
"""

import ctypes
import hashlib
import os
import re
import shlex
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch

from implementations.common import cuda_cpp
from implementations.common.registry import HEADERS
from implementations.instructions.tensor_map import ALIGNMENT, BYTES, TensorMap
from implementations.tiers.cpu import ONE_AT_A_TIME, demand_clusters, pointed_at

CUDA = Path(__file__).with_name("cuda")
NO_COMPILER = "no C++ compiler was found: install g++ (or set CXX)"

# A multiplication and an addition stay apart, and memory may be read as another type than it was
# written as: kernels do.
FLAGS = (
    "-std=c++20 -O2 -ffp-contract=off -fno-strict-aliasing -fPIC -fvisibility=hidden -DSTUDY_CPU -w"
)
SANITIZERS = ("address", "thread")
SUFFIXES = (".h", ".hpp", ".cuh", ".cpp")  # of what is included

ALIGN = r"(?:(?:__align__|alignas)\(\w+\)\s*)?"
CLUSTERS = r"__attribute__\(\(cluster_dims\((\w+), 1, 1\)\)\)"
EXTERN_SHARED = re.compile(rf"extern\s+{ALIGN}__shared__\s+{ALIGN}([^;()]+?)\s*(\w+)\s*\[\s*\]\s*;")


def compiler() -> str | None:
    """The command of the C++ compiler: CXX, else g++ or clang++. None where there is none."""
    for command in [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++"]:
        if shutil.which(shlex.split(command)[0]):
            return command
    return None


def install() -> None:
    """Let launches run here. RuntimeError, saying what to install, without a compiler."""
    if compiler() is None:
        raise RuntimeError(NO_COMPILER)
    cuda_cpp.run = run


def run(kernel, name: str, grid: tuple, block: tuple, args: tuple, shared_bytes: int) -> None:
    """Run an instantiation as `launch` does; its arguments are as the `.cu` declares them."""
    with ONE_AT_A_TIME:
        launch(kernel.path, name, grid, block, kernel.typed(args), shared_bytes)


def launch(
    path: Path, name: str, grid: tuple, block: tuple, args: Sequence, shared_bytes: int = 0
) -> None:
    """Run the instantiation `name` of a kernel in `path` to its end.

    args: CPU tensors, passed as pointers, tensor maps and NumPy scalars. Raises RuntimeError where
    the source does not compile, a driver would refuse the launch, threads deadlock, or a sanitizer
    reports.
    """
    grid, block = ((*size, 1, 1)[:3] for size in (grid, block))
    args = [_struct(a) if isinstance(a, TensorMap) else a for a in args]
    args = [a if isinstance(a, torch.Tensor) else np.asarray(a) for a in args]
    if sanitizer := os.environ.get("STUDY_SANITIZE"):
        if sanitizer not in SANITIZERS:
            raise ValueError(f"STUDY_SANITIZE must be address or thread, got {sanitizer!r}")
        _launch_sanitized(sanitizer, path, name, grid, block, args, shared_bytes)
        return
    values = [np.array(a.data_ptr()) if isinstance(a, torch.Tensor) else a for a in args]
    error = _load(_library(path, name))(
        (ctypes.c_uint * 3)(*grid),
        (ctypes.c_uint * 3)(*block),
        _cluster(path.read_text(), name),
        shared_bytes,
        b"".join(bytes(_parameter(a)) for a in args),
        (ctypes.c_void_p * len(values))(*(value.ctypes.data for value in values)),
    )
    if error:
        raise RuntimeError(error.decode())


def _parameter(arg) -> tuple[int, int]:
    """The kind, as a character's code, and the size of the parameter that fits: see fibers.hpp."""
    if isinstance(arg, torch.Tensor):
        return ord("p"), 8
    kind = {"b": "i", "u": "i", "V": "s"}.get(arg.dtype.kind, arg.dtype.kind)
    return ord(kind), arg.dtype.itemsize


def _struct(map_: TensorMap) -> np.ndarray:
    """A tensor map as tensor_map.cuh declares it."""
    x, rank = map_.tensor, map_.tensor.ndim
    shape, strides, box = (
        (*values, *(0,) * (5 - rank)) for values in (x.shape, x.stride(), map_.box)
    )
    packed = struct.pack(
        "P4i5q5q5i",
        *(x.data_ptr(), rank, x.element_size(), map_.swizzle, 0),
        *(*shape, *strides, *box),
    )
    memory = np.zeros(BYTES + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    memory[start : start + len(packed)] = np.frombuffer(packed, np.uint8)
    return memory[start : start + BYTES].view(f"V{BYTES}").reshape(())


def _cluster(text: str, name: str) -> int:
    """The blocks of a cluster of an instantiation: what the kernel's attribute says, a number or a
    template parameter's name; 1 without it. RuntimeError where the GPU has no clusters."""
    kernel, *arguments = re.split("[<,>] ?", name)
    head = rf"(?:template <([^<>]*)>\s*)?__global__ [^;{{}}]*?{CLUSTERS}\s*{kernel}\("
    found = re.search(head, text)
    if not found:
        return 1
    parameters = [parameter.split()[-1] for parameter in (found[1] or "").split(",") if parameter]
    size = int(dict(zip(parameters, arguments, strict=False)).get(found[2], found[2]))
    if size > 1:
        demand_clusters()
    return size


@cache
def _load(library: Path):
    launch = ctypes.CDLL(str(library)).study_launch
    launch.argtypes = [ctypes.c_void_p] * 2 + [ctypes.c_uint, ctypes.c_size_t]
    launch.argtypes += [ctypes.c_char_p, ctypes.c_void_p]
    launch.restype = ctypes.c_char_p
    return launch


# --- compiling ------------------------------------------------------------------------------------


def _library(path: Path, name: str, sanitizer: str | None = None) -> Path:
    """A shared library of one instantiation and the runtime that launches it.

    Only the kernel is instrumented: what the runtime does is no matter of a sanitizer. Dynamic
    shared memory becomes a pointer, and so has bounds.
    """
    install()
    text = EXTERN_SHARED.sub(r"\1* const \2 = (\1*)study::dynamic_shared();", path.read_text())
    kernel = f"""#include "cuda_on_cpu.hpp"
namespace {{
#line 1 "{path}"
{text}
}}
#line 1 "{name}"
STUDY_KERNEL({name})
"""
    define, instrument = _sanitizer_flags(sanitizer)
    folders = (CUDA, HEADERS, path.parent)
    objects = (
        _compiled(kernel, [*define, *_checks(), *instrument, "-c"], ".o", folders),
        _compiled('#include "fibers.cpp"\n', [*define, "-c"], ".o"),
    )
    return _compiled("", [*instrument, "-shared", *map(str, objects)], ".so")


def _checks() -> list[str]:
    """What checks the kernel as it runs: an address must fit its type's alignment and an index its
    array; a variable without a value gets one that is noticed. fibers.cpp raises the errors.
    """
    arrays = "array-bounds" if "clang" in _version(compiler()) else "bounds"
    flags = [f"-fsanitize=alignment,{arrays}", "-fno-sanitize-recover=all"]
    pattern = "-ftrivial-auto-var-init=pattern"
    return [*flags, pattern] if _takes(compiler(), pattern) else flags


def _sanitizer_flags(sanitizer: str | None) -> tuple[list[str], list[str]]:
    """What tells our sources of a sanitizer, and what makes the compiler instrument."""
    if sanitizer is None:
        return [], []
    define = [f"-DSTUDY_SANITIZE_{sanitizer.upper()}"]
    return define, [f"-fsanitize={sanitizer}", "-O1", "-g", "-fno-omit-frame-pointer"]


def _compiled(source: str, arguments: list[str], suffix: str, folders=(CUDA,)) -> Path:
    """What the compiler makes of `source`, which may include from `folders`.

    It comes from the cache if it was made before of the same source and headers, by the same
    compiler with the same arguments.
    """
    command = [*shlex.split(compiler()), *FLAGS.split(), *arguments]
    command += [f"-I{folder}" for folder in folders]
    headers = [p for f in folders for p in sorted(f.iterdir()) if p.suffix in SUFFIXES]
    parts = [_version(compiler()), *command, source, *(p.read_text() for p in headers)]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    output = caches / "triton-cuda-numba-study" / (key + suffix)
    if not output.exists():
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.parent) as folder:
            made = Path(folder) / output.name
            language = ["-x", "c++", "-"] if source else []
            result = _run([*command, *language, "-o", str(made)], input=source)
            if result.returncode:
                raise RuntimeError(_first_errors(result.stderr))
            made.replace(output)  # in one step: other processes may be looking
    return output


@cache
def _version(compiler: str) -> str:
    return _run([*shlex.split(compiler), "--version"]).stdout


@cache
def _takes(compiler: str, flag: str) -> bool:
    command = [*shlex.split(compiler), flag, "-fsyntax-only", "-x", "c++", os.devnull]
    return _run(command).returncode == 0


def _run(command: list[str], **options) -> subprocess.CompletedProcess:
    return subprocess.run(command, check=False, capture_output=True, text=True, **options)


def _first_errors(log: str, lines: int = 4) -> str:
    """Of a compiler's log the first errors, and what led there, as "file.cu:12:5: ..."."""
    wanted = re.compile(r"error:|required (from|by)|requested here|undefined reference")
    found = [line for line in log.splitlines() if wanted.search(line)] or log.splitlines()
    return "\n".join(re.sub(r"^\S*/", "", line) for line in found[:lines])


# --- sanitizers -----------------------------------------------------------------------------------


def _launch_sanitized(sanitizer, path, name, grid, block, args, shared_bytes):
    """Run in a process of its own, on copies of the tensors' memory, which are then copied back."""
    library = _library(path, name, sanitizer)
    define, instrument = _sanitizer_flags(sanitizer)
    program = _compiled('#include "sanitized.cpp"\n', [*define, *instrument, "-rdynamic"], "")
    tensors = pointed_at(args)
    memories, places = _memories([*args, *tensors])
    places, targets = places[: len(args)], places[len(args) :]
    numbers = [*grid, *block, _cluster(path.read_text(), name), shared_bytes, len(memories)]
    for address, size in memories:
        numbers += size, address % 64
    numbers.append(len(args))
    for arg, place in zip(args, places, strict=True):
        numbers += *place, *_parameter(arg)
    addresses = _addresses(args, places, tensors, targets)
    numbers += len(addresses), *(number for address in addresses for number in address)
    with tempfile.NamedTemporaryFile() as file:
        file.write(struct.pack(f"{len(numbers)}Q", *numbers))
        for address, size in memories:
            file.write(ctypes.string_at(address, size))
        file.flush()
        _watch([str(program), str(library), file.name])
        file.seek(8 * len(numbers))
        for address, size in memories:
            ctypes.memmove(address, file.read(size), size)


def _addresses(args, places, tensors, targets) -> list[tuple[int, int, int, int]]:
    """Where addresses of tensors lie in memory, and what these point to: places both."""
    known = {x.data_ptr(): at for x, at in zip(tensors, targets, strict=True) if x.numel()}
    return [
        (memory, start + 8 * i, *known[word])
        for arg, (memory, start) in zip(args, places, strict=True)
        if hasattr(arg, "points_to")
        for i, word in enumerate(arg.flatten().tolist())
        if word in known
    ]


def _memories(args) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The memory that arguments lie in, as (address, bytes): of tensors with one storage, what they
    span together. For each argument the index of its memory, and where in it the argument begins.
    """
    spans, homes = {}, []
    for i, arg in enumerate(args):
        if isinstance(arg, torch.Tensor):
            last = sum((n - 1) * stride for n, stride in zip(arg.shape, arg.stride(), strict=True))
            begin, size = arg.data_ptr(), (last + 1) * arg.element_size() if arg.numel() else 0
            home = arg.untyped_storage().data_ptr()
        else:
            begin, size, home = arg.ctypes.data, arg.nbytes, -1 - i
        first, end = spans.get(home, (begin, begin + size))
        spans[home] = min(first, begin), max(end, begin + size)
        homes.append((home, begin))
    order = {home: i for i, home in enumerate(spans)}
    places = [(order[home], begin - spans[home][0]) for home, begin in homes]
    return [(first, end - first) for first, end in spans.values()], places


def _watch(command: list[str]) -> None:
    """Run a program that a sanitizer watches. RuntimeError says what it found, or the program."""
    environment = os.environ | {
        "ASAN_OPTIONS": "detect_leaks=0",
        "TSAN_OPTIONS": "halt_on_error=1 report_thread_leaks=0",
    }
    for prefix in ([], ["setarch", "-R"]):  # for TSan, where addresses are too random
        result = _run([*prefix, *command], env=environment)
        if "unexpected memory mapping" not in result.stderr:
            break
    if result.returncode:
        raise RuntimeError(_report(result.stderr) or f"it ended with status {result.returncode}")


def _report(log: str) -> str:
    """A sanitizer's report in one line: the error, and each access with its place and thread.

    A log without a report is given back.
    """
    stacks = re.findall(r"(.*)\n((?: +#\d+ .*\n)+)", log)
    error = re.search(r"SUMMARY: (\w+: [\w -]*\w)", log)
    if not (error and stacks):
        return log.strip()
    names = dict(re.findall(r"Thread (T\d+) '(.*?)'", log))
    accesses = []
    for header, frames in [stacks[0], *(s for s in stacks if "Previous" in s[0])]:
        what = re.search(r"(?i)(previous )?(atomic )?(read|write) of size \d+", header)
        places = re.findall(r"[^/\s]+\.cuh?:\d+", frames)
        places.sort(key=lambda place: ".cuh:" in place)  # rather the kernel than a header of ours
        thread = re.search(r"T\d+", header)
        words = [what[0].lower()] if what else []
        words += [f"at {places[0]}"] if places else []
        words += [f"by {names[thread[0]]}"] if thread and thread[0] in names else []
        accesses.append(" ".join(words))
    return f"{error[1]}: {', '.join(accesses)}"
