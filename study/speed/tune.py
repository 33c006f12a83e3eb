"""Searches the configurations of tuned kernels: all of the space, at every bench size.

Each configuration gets the same time of the GPU at each size, in every backend: ROUNDS times
LOAD_US, spread over rounds in each of which all configurations of all backends are timed in random
order. Before that it must agree with the oracle at all check sizes.

A row of tuning.csv is a configuration at a size, in the first dtype:
    a column for each field of the configuration
    default             whether a GPU takes it that was not searched
    predicted_clocks    by the cost model
    device_us_p50       the median over the rounds; device_us_least, device_us_most
    registers, spilled_bytes, shared_bytes   of the kernel that a call launches last
    error               why it has no time
The fastest of each GPU, backend and size stand in the table of winners beside the kernel.
"""

import math
import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from rich.table import Column, Table

from implementations import DEVICE
from implementations.common import driver, registry
from implementations.common.check import dtype_name
from implementations.common.device import model, properties
from study.agree import agreement
from study.bench import store
from study.bench.cells import Cell, Selection, parse_size, seed, size_text
from study.bench.fingerprint import code_fingerprint
from study.bench.progress import console, progress
from study.bench.worker import PACKAGES, Worker, WorkerFailed
from study.speed import timing
from study.speed.cost_model import clocks

ROUNDS, LOAD_US = 3, 10_000
PREPARE_TIMEOUT, TIMEOUT = 300, 60  # seconds for all configurations of a worker, for one
RESOURCES = ("registers", "spilled_bytes", "shared_bytes")
TIMES = ("device_us_p50", "device_us_least", "device_us_most")


def searches(cell: Cell) -> bool:
    """Whether a cell is one of those whose configurations are searched."""
    spec = registry.spec(cell.kernel)
    return spec.tuning is not None and cell.torch_dtype == spec.dtypes[0]


# --- in a worker ----------------------------------------------------------------------------------


def prepare(cell: Cell, configuration: NamedTuple) -> dict[str, int]:
    """Compile a configuration, and see that it agrees at all check sizes: its RESOURCES.

    Raises RuntimeError where it disagrees; what it raises itself is passed on.
    """
    spec, host = registry.spec(cell.kernel), registry.load(cell.kernel, cell.backend)
    with spec.tuning.only(configuration), _launched() as found:
        for size in spec.check_sizes:
            inputs = spec.make_inputs(cell.torch_dtype, "cuda", seed(cell), **size)
            if error := agreement.judge(spec, size, inputs, host(*inputs)).error:
                raise RuntimeError(f"at {size_text(size)} {error}")
        host(*spec.make_inputs(cell.torch_dtype, "cuda", seed(cell), **cell.sizes))
        torch.cuda.synchronize()
        return found[-1]


def time_once(cell: Cell, configuration: NamedTuple) -> float:
    """The µs of a call."""
    spec, host = registry.spec(cell.kernel), registry.load(cell.kernel, cell.backend)
    count = timing.set_count(spec.work(cell.torch_dtype, **cell.sizes).bytes)
    with spec.tuning.only(configuration), torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda.empty_cache()  # of the last graph's memory, which none can free that is captured
        inputs = spec.make_inputs(cell.torch_dtype, "cuda", seed(cell), **cell.sizes)
        return timing.graph_us(host, timing.input_sets(inputs, count), LOAD_US)


@contextmanager
def _launched() -> Iterator[list[dict[str, int]]]:
    """The RESOURCES of what is launched meanwhile, a launch an element."""
    from triton.runtime import JITFunction

    found, launch, run = [], driver.Function.launch, JITFunction.run

    def launched(self, grid, block, values, shared_bytes, device):
        found.append(_resources(self.handle, shared_bytes))
        return launch(self, grid, block, values, shared_bytes, device)

    def launched_by_triton(self, *args, **kwargs):
        compiled = run(self, *args, **kwargs)
        figures = compiled.n_regs, 4 * compiled.n_spills, compiled.metadata.shared
        found.append(dict(zip(RESOURCES, figures, strict=True)))
        return compiled

    driver.Function.launch, JITFunction.run = launched, launched_by_triton
    try:
        yield found
    finally:
        driver.Function.launch, JITFunction.run = launch, run


def _resources(handle, dynamic_bytes: int) -> dict[str, int]:
    from cuda.bindings.driver import (
        CUfunction_attribute,
        CUkernel,
        cuFuncGetAttribute,
        cuKernelGetFunction,
    )

    names = ("NUM_REGS", "LOCAL_SIZE_BYTES", "SHARED_SIZE_BYTES")
    asked = [getattr(CUfunction_attribute, f"CU_FUNC_ATTRIBUTE_{name}") for name in names]
    error, _ = cuFuncGetAttribute(asked[0], handle)
    if error:  # Numba's kernels are of a library: a launch takes these as well, this does not
        _, handle = cuKernelGetFunction(CUkernel(int(handle)))
    registers, local, static = (cuFuncGetAttribute(each, handle)[1] for each in asked)
    return dict(zip(RESOURCES, (registers, local, static + dynamic_bytes), strict=True))


# --- the search -----------------------------------------------------------------------------------


@dataclass
class Candidate:
    """A configuration of one backend, and what is found of it. us: by size, a time a round."""

    kernel: str
    backend: str
    configuration: NamedTuple
    resources: dict[str, int] = field(default_factory=dict)
    us: dict[str, list[float]] = field(default_factory=dict)
    error: str = ""

    def cell(self, size: str) -> Cell:
        dtype = registry.spec(self.kernel).dtypes[0]
        return Cell(self.kernel, self.backend, dtype_name(dtype), size)

    def __str__(self):
        return f"{self.kernel} {self.backend} {size_text(self.configuration._asdict())}"

    def rows(self) -> Iterator[dict]:
        """A row of tuning.csv at each size."""
        spec, gpu = registry.spec(self.kernel), properties()
        for sizes in spec.bench_sizes:
            size = size_text(sizes)
            us = self.us.get(size) or [math.nan]
            times = dict(zip(TIMES, (np.median(us), min(us), max(us)), strict=True))
            yield {
                **self.cell(size).key,
                **self.configuration._asdict(),
                "default": self.configuration == spec.tuning.default(gpu),
                "predicted_clocks": clocks(
                    self.configuration, **sizes, multiprocessors=gpu.multiprocessors
                ),
                **(dict.fromkeys(TIMES, math.nan) if self.error else times),
                **{name: self.resources.get(name, math.nan) for name in RESOURCES},
                "error": self.error,
            }


def run(selection: Selection, *, data: Path) -> bool:
    """Search the tuned kernels of a selection on this GPU; keep all in data/<machine>/tuning.csv,
    and the fastest in the kernels' own tables.

    Returns whether every backend found a configuration for each size. Raises RuntimeError without a
    GPU or a backend, or where no selected kernel is tuned, DamagedData where the file cannot be
    read.
    """
    if DEVICE != "cuda":
        raise RuntimeError("tune needs a CUDA device, and torch finds none")
    tuned = [k for k in selection.kernels if registry.spec(k).tuning]
    if not tuned:
        every = ", ".join(k for k in registry.kernels() if registry.spec(k).tuning)
        raise RuntimeError(f"none of these kernels is tuned; those that are: {every}")
    path = data / store.machine_name(torch.cuda.get_device_name()) / "tuning.csv"
    store.read(path)  # a damaged file is refused before any work
    able = []
    for backend in selection.backends:
        if reason := registry.missing(backend):
            console.print(f"{backend} cannot run here: {reason}")
        else:
            able.append(backend)
    if not able:
        raise RuntimeError("tune needs a backend that can run here")
    complete = len(able) == len(selection.backends) or not selection.by_name
    for kernel in tuned:
        candidates = [
            Candidate(kernel, backend, configuration)
            for backend in able
            for configuration in registry.spec(kernel).tuning.space
        ]
        search(candidates)
        hashes = {backend: code_fingerprint(kernel, backend) for backend in able}
        rows = [
            row | {"source_hash": hashes[candidate.backend]}
            for candidate in candidates
            for row in candidate.rows()
        ]
        store.replace(path, Selection((kernel,), tuple(able)), rows)
        found = winners(pd.DataFrame(rows))
        keep(kernel, model(), found)
        _summarise(kernel, found, candidates)
        complete &= len(found) == len(able) * len(registry.spec(kernel).bench_sizes)
    return complete


def search(candidates: list[Candidate]) -> None:
    """Prepare the candidates, in as many workers as the machine has cores, then time them in turn:
    each in the worker that has compiled it."""
    count = min(os.cpu_count() or 1, len(candidates))
    sizes = [size_text(size) for size in registry.spec(candidates[0].kernel).bench_sizes]
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(count))
        each = [stack.enter_context(Worker(preload=PACKAGES)) for _ in range(count)]
        shares = [(child, candidates[i::count]) for i, child in enumerate(each)]
        with progress("compile", len(candidates)) as step:

            def prepare_all(share):
                child, own = share
                for candidate in own:
                    _prepare(child, candidate, sizes[0])
                    step(str(candidate))

            list(pool.map(prepare_all, shares))
        turns = [
            (child, candidate) for child, own in shares for candidate in own if not candidate.error
        ]
        with progress("tune", ROUNDS * len(sizes) * len(turns)) as step:
            for nth in range(ROUNDS):
                for size in sizes:
                    for child, candidate in random.Random(nth).sample(turns, len(turns)):
                        step(f"{candidate}, {size}")
                        _time(child, candidate, size)


def _prepare(child: Worker, candidate: Candidate, size: str) -> None:
    try:
        candidate.resources = child.call(
            prepare, candidate.cell(size), candidate.configuration, timeout=PREPARE_TIMEOUT
        )
    except WorkerFailed as failure:
        candidate.error = failure.reason


def _time(child: Worker, candidate: Candidate, size: str) -> None:
    """One more time of a candidate at a size. After an error it has none, nor is it timed again."""
    if candidate.error:
        return
    try:
        us = child.call(time_once, candidate.cell(size), candidate.configuration, timeout=TIMEOUT)
        candidate.us.setdefault(size, []).append(us)
    except WorkerFailed as failure:
        candidate.error = failure.reason


def winners(rows: pd.DataFrame) -> pd.DataFrame:
    """The row with the least median of each backend and size."""
    timed = rows[rows[TIMES[0]].notna()]
    return timed.loc[timed.groupby(["backend", "size"], sort=False)[TIMES[0]].idxmin()]


def keep(kernel: str, gpu: str, found: pd.DataFrame) -> None:
    """Put winners in the kernel's table, in place of those of the same GPU and backends."""
    tuning = registry.spec(kernel).tuning
    new = [
        {"gpu": gpu, "backend": row["backend"]} | parse_size(row["size"]) | tuning.of(row)._asdict()
        for row in found.to_dict("records")
    ]
    replaced = {(row["gpu"], row["backend"]) for row in new}
    old = [row for row in tuning.read() if (row["gpu"], row["backend"]) not in replaced]
    place = list(registry.BACKENDS).index
    rows = sorted([*old, *new], key=lambda row: (row["gpu"], place(row["backend"])))
    store.write(tuning.winners, pd.DataFrame(rows))


def _summarise(kernel: str, found: pd.DataFrame, candidates: list[Candidate]) -> None:
    table = Table(Column("kernel", no_wrap=True), "backend", "size", "µs", "configuration")
    tuning = registry.spec(kernel).tuning
    for row in found.to_dict("records"):
        text = size_text(tuning.of(row)._asdict())
        table.add_row(kernel, row["backend"], row["size"], f"{row[TIMES[0]]:.4g}", text)
    console.print(table)
    failed = [candidate for candidate in candidates if candidate.error]
    console.print(f"{len(failed)} of {len(candidates)} configurations do not run")
