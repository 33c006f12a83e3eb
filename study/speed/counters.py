"""What the hardware counted of one call of each kernel, by ncu: bytes, sectors, hits and warps.

A row of counters.csv is a cell; its figures are of all `launches` of one call:
    dram_read_bytes, dram_write_bytes, l2_bytes   moved by the memory and by the L2. What is left in
                        the L2 when a kernel ends (at most its size) was not written to the memory
    load_sectors_per_request, store_sectors_per_request   of 32 bytes, of global memory, where a
                        request is a warp's: 4 where its threads move 4 bytes each, side by side,
                        16 where they move 16. Nothing where there are none: the tensor memory
                        accelerator's copies, and those of cp.async, are not counted here
    l2_hit_rate         a fraction of the sectors that the L2 was asked for
    occupancy           warps on a multiprocessor while it is busy, a fraction of the most it holds
    issue_rate          of a busy multiprocessor's clocks, those in which a scheduler issues an
                        instruction, a fraction; nothing in rows from before it was counted
    duration_us         the sum of the launches', at whatever clock the GPU has then: not a timing
    error               why there are no figures
Caches are emptied before each launch, as nothing of the inputs is in them when a timed call begins;
so in a call of several launches none finds in the L2 what the one before it left. Copies and fills
by the driver are no launches.
"""

import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import pandas as pd
import torch
from rich.table import Column, Table

from implementations import DEVICE, TORCH_DEVICE
from implementations.common import registry
from implementations.common.check import dtype_name
from study.bench import entries, store
from study.bench.cells import KEY, Cell, Selection, seed, size_text
from study.bench.entries import UNAVAILABLE
from study.bench.fingerprint import fingerprint
from study.bench.progress import console, progress, say_failed
from study.bench.worker import LONGEST_REASON, WorkerFailed
from study.speed import ceilings

TIMEOUT = 600  # seconds for all cells of a kernel, compilation and the replays of ncu included
OPTIONS = (
    *("--csv", "--page", "raw", "--print-units", "base"),
    *("--profile-from-start", "off", "--target-processes", "all"),
    *("--cache-control", "all", "--clock-control", "none"),
)
ENVIRONMENT = {
    "LC_ALL": "C",  # numbers with a point, no comma
    "TORCHINDUCTOR_COMPILE_THREADS": "1",  # ncu would watch a pool of compilers
}
SEPARATOR = "empty_kernel"  # launched before each cell, and after the last
METRICS = {
    "dram_read_bytes": "dram__bytes_read.sum",
    "dram_write_bytes": "dram__bytes_write.sum",
    "l2_bytes": "lts__t_bytes.sum",
    "load_sectors": "l1tex__t_sectors_pipe_lsu_mem_global_op_ld.sum",
    "load_requests": "l1tex__t_requests_pipe_lsu_mem_global_op_ld.sum",
    "store_sectors": "l1tex__t_sectors_pipe_lsu_mem_global_op_st.sum",
    "store_requests": "l1tex__t_requests_pipe_lsu_mem_global_op_st.sum",
    "l2_hit_rate": "lts__t_sector_hit_rate.pct",
    "occupancy": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "issue_rate": "sm__inst_issued.avg.pct_of_peak_sustained_active",
    "duration_us": "gpu__time_duration.sum",
}
UNITS = {"%": 0.01, "Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9}  # to bytes, fractions and µs
UNITS |= {"ns": 1e-3, "nsecond": 1e-3, "ms": 1e3, "msecond": 1e3, "s": 1e6, "second": 1e6}
FIGURES = (
    *("launches", "dram_read_bytes", "dram_write_bytes", "l2_bytes"),
    *("load_sectors_per_request", "store_sectors_per_request"),
    *("l2_hit_rate", "occupancy", "issue_rate", "duration_us"),
)
COLUMNS = [*KEY, *FIGURES, "error", "source_hash"]


def cells(kernel: str, backends: Iterable[str]) -> list[Cell]:
    """What is counted of a kernel: its headline and its `counted` sizes, in the first dtype, in the
    backends and the baselines."""
    spec = registry.spec(kernel)
    sizes = [spec.headline, *(size for size in spec.counted if size != spec.headline)]
    names = [*backends, *spec.baselines]
    dtype = dtype_name(spec.dtypes[0])
    return [Cell(kernel, name, dtype, size_text(size)) for size in sizes for name in names]


def parse(log: str) -> pd.DataFrame:
    """The launches in what ncu printed: their `kernel` and METRICS in bytes, µs and fractions."""
    lines = [line for line in log.splitlines() if not line.startswith("==")]
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        return pd.DataFrame(columns=["kernel", *METRICS])
    table = pd.read_csv(io.StringIO("\n".join(lines[start:])), dtype=str)
    units, launches = table.iloc[0], table.iloc[1:]
    found = {"kernel": launches["Kernel Name"]}
    for name, metric in METRICS.items():
        text = launches.get(metric, pd.Series("", launches.index)).str.replace(",", "")
        found[name] = pd.to_numeric(text, errors="coerce") * UNITS.get(units.get(metric), 1)
    return pd.DataFrame(found)


def figures(launches: pd.DataFrame) -> dict:
    """The FIGURES of one call, from its launches; NaN where ncu has no value for one of them."""
    total = launches[list(METRICS)].sum(skipna=False)
    weights = {"l2_hit_rate": "l2_bytes", "occupancy": "duration_us", "issue_rate": "duration_us"}
    for name, weight in weights.items():
        weighted = (launches[name] * launches[weight]).sum(skipna=False)
        total[name] = _quotient(weighted, total[weight])
    for kind in ("load", "store"):
        each = _quotient(total[f"{kind}_sectors"], total[f"{kind}_requests"])
        total[f"{kind}_sectors_per_request"] = each
    total["launches"] = len(launches)
    return {name: total[name] for name in FIGURES}


def _quotient(x: float, y: float) -> float:
    return x / y if y else math.nan


def collect(ncu: str, of: list[Cell]) -> list[dict]:
    """The rows of cells that are called by one process under ncu.

    One that cannot run there has an error. Raises WorkerFailed where the process does not end well.
    """
    with tempfile.TemporaryDirectory() as folder:
        log, report = Path(folder, "log"), Path(folder, "report")
        report.write_text("[]")
        child = (
            sys.executable,
            "-m",
            "study.speed.counters",
            report,
            json.dumps([[*cell.key.values()] for cell in of]),
        )
        metrics = ",".join(METRICS.values())
        ended, said = _run([ncu, *OPTIONS, "--metrics", metrics, "--log-file", log, *child])
        printed = log.read_text(errors="replace") if log.exists() else ""
        errors = json.loads(report.read_text())

    launches = parse(printed)
    separates = launches["kernel"].str.contains(SEPARATOR, regex=False)
    if len(errors) < len(of) or separates.sum() != len(of) + 1:
        why = re.findall(r"==ERROR== (.+)", printed + said) + said.strip().splitlines()[-1:]
        in_hand = next(map(str, of[len(errors) :]), None)
        raise WorkerFailed(textwrap.shorten("; ".join([ended, *why]), LONGEST_REASON), in_hand)
    before = separates.cumsum()  # the separators before a launch
    rows = []
    for i, (cell, error) in enumerate(zip(of, errors, strict=True), 1):
        called = launches[(before == i) & ~separates]
        why = error or (f"{UNAVAILABLE}it launches no kernel" if called.empty else "")
        rows.append(_row(cell, why, {} if why else figures(called)))
    return rows


def _row(cell: Cell, error: str, found: dict) -> dict:
    stamp = {"error": error, "source_hash": fingerprint(cell.kernel, cell.backend)}
    return cell.key | dict.fromkeys(FIGURES, math.nan) | found | stamp


def _run(command: list) -> tuple[str, str]:
    """How a command ended, within TIMEOUT or not, and what it said; no process of it is left."""
    process = subprocess.Popen(
        command,
        env=os.environ | ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    with process:
        try:
            said, _ = process.communicate(timeout=TIMEOUT)
            return f"ncu exited with code {process.returncode}", said
        except subprocess.TimeoutExpired:
            return f"no answer within {TIMEOUT} s", ""
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def run(selection: Selection, *, data: Path) -> bool:
    """Count a selection on the GPU; print a summary. Returns whether all that can run here did.

    The rows of a kernel replace those in the machine's counters.csv as it ends, others stay. Raises
    RuntimeError without a GPU, without ncu and where ncu may not read the counters, DamagedData
    where the file cannot be read; all before any work.
    """
    if DEVICE != "cuda":
        raise RuntimeError("counters needs a CUDA device, and torch finds none")
    ncu = shutil.which("ncu")
    if not ncu:
        raise RuntimeError("counters needs ncu, of Nsight Compute, and there is none on the PATH")
    path = data / store.machine_name(torch.cuda.get_device_name()) / "counters.csv"
    store.read(path)  # a damaged file is refused before any work
    try:
        collect(ncu, [])
    except WorkerFailed as failure:
        raise RuntimeError(f"ncu cannot count here: {failure.reason}") from failure

    rows = []
    with progress("count", len(selection.kernels)) as step:
        for kernel in selection.kernels:
            step(kernel)
            of = cells(kernel, selection.backends)
            try:
                found = collect(ncu, of)
            except WorkerFailed as failure:
                found = [_row(cell, str(failure), {}) for cell in of]
            names = tuple({cell.backend for cell in of})
            store.replace(path, Selection((kernel,), names), found)
            rows += found
    return _summarise(rows)


def _summarise(rows: list[dict]) -> bool:
    """Print the figures and all errors; whether there are none that count."""
    titles = ("read, MB", "written, MB", "sectors a load", "a store", "L2 hits", "occupancy")
    table = Table(Column("kernel", no_wrap=True), "size", "backend", *titles)
    for row in rows:
        if not row["error"]:
            moved = (f"{row[name] / 1e6:,.1f}" for name in ("dram_read_bytes", "dram_write_bytes"))
            others = (f"{row[name]:.3g}" for name in FIGURES[4:8])
            table.add_row(row["kernel"], row["size"], row["backend"], *moved, *others)
    console.print(table)
    return say_failed(rows, "was not counted")


def main(report: str, of: str) -> None:
    """In the process under ncu: call the cells, a JSON list of keys; report their errors so far."""
    errors = []
    for key in json.loads(of):
        errors.append(_call(Cell(*key)))
        Path(report).write_text(json.dumps(errors))
    _separate()


def _call(cell: Cell) -> str:
    _separate()
    try:
        function = entries.function(cell)
        spec = registry.spec(cell.kernel)
        inputs = spec.arguments(cell.torch_dtype, TORCH_DEVICE, seed(cell), **cell.sizes)
        function(*inputs)  # compiles
        _profile(function, *inputs)
    except registry.Unavailable as reason:
        return f"{UNAVAILABLE}{reason}"
    except torch.OutOfMemoryError:
        return f"{UNAVAILABLE}this size does not fit the GPU's memory"
    except Exception as error:
        torch.cuda.synchronize()  # a broken context ends the process here, not in the next cell
        return textwrap.shorten(f"{type(error).__name__}: {error}", LONGEST_REASON)
    return ""


def _separate() -> None:
    _profile(ceilings.empty)


def _profile(function, *args) -> None:
    torch.cuda.synchronize()
    torch.cuda.empty_cache()  # what is allocated, ncu saves before it runs a kernel several times
    with torch.cuda.profiler.profile():
        function(*args)
        torch.cuda.synchronize()


if __name__ == "__main__":
    main(*sys.argv[1:])
