"""Host time: how long a call takes until it returns, whatever the GPU does meanwhile.

A row of dispatch.csv is a kernel in a backend or its main baseline, at the smallest size that it is
checked at and that is not empty; or a launch alone, of an empty kernel that takes two arrays: the
kernel `_launch`, of the size "arrays=2".
    host_us_p20, host_us_p50, host_us_p80   of a call, in µs by the wall's clock, once compiled
    calls               that were timed
    error               why there are no figures
"""

import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from rich.table import Column, Table
from torch.utils._pytree import tree_leaves

from implementations import DEVICE
from implementations.common import registry
from implementations.common.check import dtype_name
from implementations.common.cuda_cpp import CudaSource
from implementations.common.spec import KernelSpec, Size
from study.bench import entries, store
from study.bench.cells import KEY, Cell, Selection, seed, size_text
from study.bench.entries import UNAVAILABLE, reference
from study.bench.fingerprint import digest, fingerprint, parse
from study.bench.progress import console, progress, say_failed
from study.bench.worker import PACKAGES, Worker, WorkerFailed

TIMEOUT = 120  # seconds for a cell, compilation included
CALLS = 1000
EVERY = 50  # calls after which the GPU is waited for, so that its queue never fills
FIGURES = ("host_us_p20", "host_us_p50", "host_us_p80", "calls")
COLUMNS = [*KEY, *FIGURES, "error", "source_hash"]

LAUNCH = "_launch"
SOURCE = CudaSource(Path(__file__).with_name("dispatch.cu"))


def cells(kernel: str, backends: Iterable[str]) -> list[Cell]:
    """What is timed of a kernel, in its first dtype."""
    spec = registry.spec(kernel)
    names = [*backends, *filter(None, [reference(kernel)])]
    size = size_text(smallest(spec))
    return [Cell(kernel, name, dtype_name(spec.dtypes[0]), size) for name in names]


def smallest(spec: KernelSpec) -> Size:
    """The check size of the least work of which neither the work nor an input is empty."""
    dtype = spec.dtypes[0]

    def full(size: Size) -> bool:
        inputs = spec.make_inputs(dtype, "cpu", 0, **size)
        return all(x.numel() for x in tree_leaves(inputs) if isinstance(x, torch.Tensor))

    by_bytes = sorted(spec.check_sizes, key=lambda size: spec.work(dtype, **size).bytes)
    return next(size for size in by_bytes if spec.work(dtype, **size).bytes and full(size))


def launch_in_triton() -> Callable:
    import triton

    @triton.jit
    def two_arrays_kernel(x_ptr, y_ptr, N):
        pass

    return lambda x, y: two_arrays_kernel[(1,)](x, y, x.numel())


def launch_in_cuda() -> Callable:
    return lambda x, y: SOURCE.launch("two_arrays_kernel", (1,), (32,), x, y, x.numel())


def launch_in_numba() -> Callable:
    from numba import cuda

    from implementations.common.numba_cuda import launch

    @cuda.jit
    def two_arrays_kernel(x, y):
        pass

    return lambda x, y: launch(two_arrays_kernel, (1,), (32,), x, y)


LAUNCHES = {"triton": launch_in_triton, "cupy": launch_in_cuda, "numba": launch_in_numba}


def launches(backends: Iterable[str]) -> list[Cell]:
    """The launches that are timed alone."""
    return [Cell(LAUNCH, backend, "float32", "arrays=2") for backend in backends]


def source_hash(cell: Cell) -> str:
    """The fingerprint of what is called: for a launch, of the launcher."""
    if cell.kernel != LAUNCH:
        return fingerprint(cell.kernel, cell.backend)
    name = LAUNCHES[cell.backend].__name__
    own = [d for d in parse(Path(__file__)).definitions if name in d.names]
    return digest([*own, *(parse(SOURCE.path).definitions if cell.backend == "cupy" else ())])


def host_us(function: Callable, inputs: tuple) -> np.ndarray:
    """The µs that each of CALLS calls takes to return; none waits for the GPU within its time."""
    times = np.empty(CALLS)
    for i in range(CALLS):
        if i % EVERY == 0:
            torch.cuda.synchronize()
        begin = time.perf_counter_ns()
        function(*inputs)
        times[i] = (time.perf_counter_ns() - begin) / 1e3
    torch.cuda.synchronize()
    return times


def time_cell(cell: Cell) -> dict:
    """The row of one cell. What is raised is passed on, unless the cell cannot run here."""
    try:
        function, inputs = _prepared(cell)
    except registry.Unavailable as reason:
        return _row(cell, f"{UNAVAILABLE}{reason}")
    for _ in range(EVERY):  # compiled, and whatever is kept from the first calls on is there
        function(*inputs)
    quantiles = np.quantile(host_us(function, inputs), (0.2, 0.5, 0.8))
    return _row(cell, "", *quantiles, CALLS)


def _prepared(cell: Cell) -> tuple[Callable, tuple]:
    """What is called, and its arguments. Raises Unavailable."""
    if cell.kernel == LAUNCH:
        if reason := registry.missing(cell.backend):
            raise registry.Unavailable(f"{cell.backend}: {reason}")
        return LAUNCHES[cell.backend](), tuple(torch.zeros(2, 1024, device="cuda"))
    function = entries.function(cell)
    spec = registry.spec(cell.kernel)
    return function, spec.arguments(cell.torch_dtype, "cuda", seed(cell), **cell.sizes)


def _row(cell: Cell, error: str, *figures: float) -> dict:
    found = zip(FIGURES, figures or (math.nan, math.nan, math.nan, 0), strict=True)
    return cell.key | dict(found) | {"error": error, "source_hash": source_hash(cell)}


def run(selection: Selection, *, data: Path) -> bool:
    """Time a selection, and the launches of its backends, in a worker; print a summary.

    The rows of a kernel replace those in the machine's dispatch.csv as it ends, others stay.
    Returns whether all that can run here did. Raises RuntimeError without a GPU, DamagedData where
    the file cannot be read; both before any work.
    """
    if DEVICE != "cuda":
        raise RuntimeError("dispatch needs a CUDA device, and torch finds none")
    path = data / store.machine_name(torch.cuda.get_device_name()) / "dispatch.csv"
    store.read(path)  # a damaged file is refused before any work
    of = {LAUNCH: launches(selection.backends)}
    of |= {kernel: cells(kernel, selection.backends) for kernel in selection.kernels}
    rows = []
    with (
        progress("dispatch", sum(map(len, of.values()))) as step,
        Worker(preload=PACKAGES) as worker,
    ):
        for kernel, wanted in of.items():
            found = []
            for cell in wanted:
                step(str(cell))
                found.append(_call(worker, cell))
            names = tuple(cell.backend for cell in wanted)
            store.replace(path, Selection((kernel,), names), found)
            rows += found
    return _summarise(rows)


def _call(worker: Worker, cell: Cell) -> dict:
    try:
        return worker.call(time_cell, cell, timeout=TIMEOUT)
    except WorkerFailed as failure:
        return _row(cell, failure.reason)


def _summarise(rows: list[dict]) -> bool:
    """Print the figures and all errors; whether there are none that count."""
    table = Table(Column("kernel", no_wrap=True), "size", "backend", "µs a call", "20 to 80 %")
    for row in rows:
        if not row["error"]:
            low, median, high = (f"{row[name]:.1f}" for name in FIGURES[:3])
            table.add_row(row["kernel"], row["size"], row["backend"], median, f"{low} to {high}")
    console.print(table)
    return say_failed(rows, "was not timed")
