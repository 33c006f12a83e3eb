"""Where a softmax stops being right: its error as its inputs grow, and the largest one it bears.

A row of stability.csv is one of SIZE's matrices: a kernel, backend and dtype at one scale.
    scale            what the matrix, of normal random numbers, was multiplied by and then rounded
    finite           the share of its rows that came out finite
    relative_error   in those, the largest |y - ŷ| over the largest ŷ of its row, where ŷ is the
                     softmax of the same rounded inputs in float64
    largest          whatever the scale: the largest c for which the row (c, 0, ..., 0) comes out
                     finite and right to half of its dtype's digits
    error            why there are no figures
"""

import math
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import torch
from rich.table import Column, Table

from implementations import DEVICE, TORCH_DEVICE
from implementations.common import registry
from implementations.common.check import dtype_name
from implementations.common.spec import generator
from study.agree.verify import workers_here
from study.bench import entries, store
from study.bench.cells import KEY, Cell, Selection, size_text
from study.bench.entries import UNAVAILABLE
from study.bench.fingerprint import fingerprint
from study.bench.progress import console, progress, say_failed
from study.bench.worker import Worker, WorkerFailed

TIMEOUT = 300  # seconds for a cell: in Numba on the CPU it takes most of a minute
SIZE = {"M": 64, "N": 512}  # at each scale
FIGURES = ("scale", "finite", "relative_error", "largest")
COLUMNS = [*KEY, *FIGURES, "error", "source_hash"]


def cells(kernel: str, backends: Iterable[str]) -> list[Cell]:
    """What is studied of a kernel: every dtype in the backends and the main baseline; nothing
    where its spec has no scales."""
    spec = registry.spec(kernel)
    names = [*backends, *filter(None, [entries.reference(kernel)])] if spec.scales else []
    dtypes = map(dtype_name, spec.dtypes)
    return [Cell(kernel, name, dtype, size_text(SIZE)) for dtype in dtypes for name in names]


def relative_errors(softmax, x: torch.Tensor) -> torch.Tensor:
    """Of each row of x, the largest error over the largest ŷ; no finite number where y is none."""
    oracle = torch.softmax(x.double(), dim=-1)
    return (softmax(x).double() - oracle).abs().amax(dim=-1) / oracle.amax(dim=-1)


def by_scale(softmax, dtype: torch.dtype, scales: tuple[float, ...]) -> list[dict]:
    """The figures of each scale, from the same random numbers on every machine."""
    normal = torch.randn(*SIZE.values(), generator=generator("cpu", seed=0))
    x = torch.cat([scale * normal for scale in scales]).to(TORCH_DEVICE, dtype)
    found = []
    for scale, errors in zip(scales, relative_errors(softmax, x).split(SIZE["M"]), strict=True):
        finite = errors.isfinite()
        worst = float(errors[finite].max()) if finite.any() else math.nan
        share = float(finite.double().mean())
        found.append({"scale": scale, "finite": share, "relative_error": worst})
    return found


def largest(softmax, dtype: torch.dtype) -> float:
    """The largest c as above, by bisection over the numbers of `dtype`; NaN where none is right."""
    word, info = {4: torch.int32, 2: torch.int16}[dtype.itemsize], torch.finfo(dtype)

    def right(bits: int) -> bool:
        x = torch.zeros(1, SIZE["N"], dtype=dtype, device=TORCH_DEVICE)
        x.view(word)[0, 0] = bits
        return bool(relative_errors(softmax, x) <= math.sqrt(info.eps / 2))

    # the bits of positive floats are in their order; those of -1 are a NaN
    low, high = -1, int(torch.tensor(info.max, dtype=dtype).view(word)) + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if right(middle) else (low, middle)
    return float(torch.tensor(low, dtype=word).view(dtype))


def study(cell: Cell) -> list[dict]:
    """The rows of one cell. What the kernel raises is passed on, unless it cannot run here."""
    try:
        softmax = entries.function(cell)
    except registry.Unavailable as reason:
        return [_row(cell, f"{UNAVAILABLE}{reason}")]
    found = by_scale(softmax, cell.torch_dtype, registry.spec(cell.kernel).scales)
    bears = largest(softmax, cell.torch_dtype)
    return [_row(cell, "", **figures, largest=bears) for figures in found]


def _row(cell: Cell, error: str, **figures) -> dict:
    stamp = {"error": error, "source_hash": fingerprint(cell.kernel, cell.backend)}
    return cell.key | dict.fromkeys(FIGURES, math.nan) | figures | stamp


def run(selection: Selection, *, data: Path) -> bool:
    """Study a selection, each cell in a worker; print a summary. On a GPU, save stability.csv.

    The rows of a kernel replace those in the file as it ends, others stay. Returns whether all that
    can run here did. Raises DamagedData where the file cannot be read, before any work.
    """
    if DEVICE == "compile":
        raise RuntimeError("stability must run the kernels, got STUDY_DEVICE=compile")
    if DEVICE == "cuda":
        path = data / store.machine_name(torch.cuda.get_device_name()) / "stability.csv"
        store.read(path)
    of = {kernel: cells(kernel, selection.backends) for kernel in selection.kernels}
    wanted = [cell for kernel in of for cell in of[kernel]]
    rows = []
    with (
        progress("stability", len(wanted)) as step,
        workers_here(len(wanted)) as each,
    ):

        def study_cell(worker: Worker, cell: Cell) -> list[dict]:
            step(str(cell))
            return _call(worker, cell)

        studied = each(study_cell, wanted)
        for kernel in filter(of.get, of):
            found = [row for _ in of[kernel] for row in next(studied)]
            if DEVICE == "cuda":
                names = tuple({cell.backend for cell in of[kernel]})
                store.replace(path, Selection((kernel,), names), found)
            rows += found
    return _summarise(rows)


def _call(worker: Worker, cell: Cell) -> list[dict]:
    try:
        return worker.call(study, cell, timeout=TIMEOUT)
    except WorkerFailed as failure:
        return [_row(cell, failure.reason)]


def _summarise(rows: list[dict]) -> bool:
    """Print the figures of each cell and all errors; whether there are none that count."""
    titles = ("backend", "dtype", "all finite up to", "worst error there", "largest input")
    table = Table(Column("kernel", no_wrap=True), *titles)
    of = pd.DataFrame(rows, columns=COLUMNS).query("error == ''")
    for key, group in of.groupby(["kernel", "backend", "dtype"], sort=False):
        whole = group[group.finite == 1]
        numbers = (whole.scale.max(), whole.relative_error.max(), group.largest.iloc[0])
        table.add_row(*key, *(f"{x:.3g}" for x in numbers))
    console.print(table)
    return say_failed(rows, "was not studied")
