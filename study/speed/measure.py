"""Times the kernels among their baselines and ceilings, in fresh processes, saving as it goes."""

import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from rich.table import Table

from implementations import DEVICE
from implementations.common import registry
from implementations.common.check import dtype_name
from implementations.common.spec import Work
from study.agree.verify import seed
from study.bench import environment, store, worker
from study.bench.cells import Cell, Selection, parse_size, size_text
from study.bench.fingerprint import fingerprint
from study.bench.progress import console, progress
from study.bench.worker import PACKAGES, Worker, WorkerFailed
from study.speed import ceilings, ratios, timing
from study.speed.ratios import CHECKED, KEY, SLOWER, TWICE, WARM

ENTERED_TWICE = "triton"  # the backend that also tests the protocol
UNAVAILABLE = "unavailable: "  # what an error begins with that is not the kernel's fault
WARM_BYTES = 2**28  # of more nothing is left in the L2 of any GPU when the next call begins
# of load in a cross-check: clocks fall slowly where arithmetic is the limit, and they rise slowly
# for the first of a group, after its inputs were made
CHECK_US, FIRST_CHECK_US = {"GB/s": 20_000, "TFLOP/s": 150_000}, 150_000
EVENT_CALLS, PROFILED_CALLS = (4, 20), (4, 100)  # as many as the load, at least and at most
UNTRIED = -1  # the process of a row whose backend cannot run here

COMPILE_TIMEOUT, TIMEOUT = 300, 120  # seconds for all cells of a worker, for one
MEMORY_PER_WORKER = 3 * 2**30  # bytes: a context, and the inputs of one cell
GROUPS_PER_WORKER = 8  # at most: the worker that compiles longest is waited for


@dataclass(frozen=True)
class Group:
    """What is timed in the same rounds: all entries of one kernel, dtype and size.

    entries: the implementations, baselines, ceilings and the floor, each as a cell.
    """

    kernel: str
    dtype: str
    size: str
    entries: tuple[Cell, ...]

    def __str__(self):
        return f"{self.kernel}-{self.dtype}-{self.size}"

    def without(self, entries) -> "Group":
        return replace(self, entries=tuple(e for e in self.entries if e not in entries))


@dataclass(frozen=True)
class Task:
    """What one worker does: some groups of one kernel to time, and then to cross-check."""

    process: int
    timed: tuple[Group, ...]
    checked: tuple[Group, ...]

    def __str__(self):
        group = (self.timed or self.checked)[0]
        return f"{group.kernel}, process {self.process}"


class Record:
    """What is measured on one machine, and the files that hold it.

    Raises DamagedData where a file cannot be read. What is measured is saved in the background, so
    that the GPU does not cool down meanwhile; what that raises is raised at the next call. What
    follows from it, timings.csv and protocol.csv, is written at the end.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.samples = store.read(folder / "samples.parquet")
        self.checks = store.read(folder / "crosschecks.csv")
        for name in ("timings.csv", "protocol.csv"):
            store.read(folder / name)  # a damaged file is refused, not overwritten
        self.failed: dict[Cell, str] = {}  # in this run
        self._pool, self._saving = ThreadPoolExecutor(1), None

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        with self._pool:
            if self._saving and kind in (None, KeyboardInterrupt):
                self._saving.result()
                store.write(self.folder / "timings.csv", self.timings())
                store.write(self.folder / "protocol.csv", ratios.protocol(self.samples))

    def backends(self, group: Group) -> set[str]:
        """The backends that were ever timed in a group."""
        if self.samples.empty:
            return set()
        cell = self.samples["cell"] == str(group)
        return set(self.samples.loc[cell & (self.samples["process"] != UNTRIED), "backend"])

    def has_samples(self, group: Group, process: int, rounds: int) -> bool:
        """Whether each entry of the group has its rounds, or an error, from its present source."""
        if self.samples.empty:
            return False
        rows = self.samples
        rows = rows[(rows["cell"] == str(group)) & (rows["process"] == process)]
        found = {
            key: len(entry) >= rounds or entry["error"].iloc[0] != ""
            for key, entry in rows.groupby([*KEY, "source_hash"])
        }
        return all(found.get((*asdict(e).values(), source_hash(e))) for e in group.entries)

    def has_checks(self, group: Group) -> bool:
        """Whether each entry of the group was cross-checked from its present source."""
        if self.checks.empty:
            return False
        found = set(self.checks[[*KEY, "source_hash"]].itertuples(index=False, name=None))
        return all((*asdict(e).values(), source_hash(e)) in found for e in checked(group).entries)

    def add_samples(self, group: Group, process: int, rows: list[dict]) -> None:
        """Replace the rows of a group and process."""
        if not self.samples.empty:
            old = (self.samples["cell"] == str(group)) & (self.samples["process"] == process)
            self.samples = self.samples[~old]
        rows = [{"cell": str(group), "process": process, **row} for row in rows]
        self.samples = _joined(self.samples, rows)

    def add_checks(self, rows: list[dict]) -> None:
        """Replace the rows of these cells."""
        self.checks = _joined(self.checks, rows)
        if not self.checks.empty:
            self.checks = self.checks.drop_duplicates(KEY, keep="last")

    def timings(self) -> pd.DataFrame:
        """The table of timings.csv; kernels that are no longer there are left out."""
        samples = self.samples
        if not samples.empty:
            kernels = samples["kernel"]
            known = kernels.isin(registry.kernels()) | kernels.str.startswith("_")
            samples = samples[known]
        return ratios.derive(samples, self.checks, work, reference)

    def save(self, add: Callable = lambda: None, *args) -> None:
        """`add(*args)`, then write what was measured, once that of the last call is written."""
        if self._saving:
            self._saving.result()
        self._saving = self._pool.submit(self._write, add, args)

    def _write(self, add, args):
        add(*args)
        store.write(self.folder / "samples.parquet", self.samples)
        if not self.checks.empty:
            store.write(self.folder / "crosschecks.csv", self.checks)


def _joined(table: pd.DataFrame, rows: list[dict]) -> pd.DataFrame:
    tables = [t for t in (table, pd.DataFrame(rows)) if not t.empty]
    return pd.concat(tables, ignore_index=True) if tables else table


@cache
def source_hash(entry: Cell) -> str:
    """The hash of what an entry runs."""
    if entry.kernel.startswith("_"):
        return ceilings.source_hash()
    return fingerprint(entry.kernel, _original(entry.backend))


def _original(backend: str) -> str:
    return backend.removesuffix(TWICE).removesuffix(SLOWER).removesuffix(WARM)


@cache
def work(kernel: str, backend: str, dtype: str, size: str) -> Work:
    """The work of one call of any entry."""
    if kernel.startswith("_"):
        return ceilings.work(Cell(kernel, backend, dtype, size))
    return registry.spec(kernel).work(getattr(torch, dtype), **parse_size(size))


def reference(kernel: str) -> str:
    """The name of a kernel's main baseline, "" where it has none."""
    return next(iter(registry.spec(kernel).baselines), "")


def groups(selection: Selection) -> Iterator[Group]:
    """What is timed for a selection.

    At the headline also what tests the protocol: the same kernel again, and, since it takes twenty
    calls a replay, in the first dtype only, that with a planted slowdown; there the bandwidths too.
    """
    for kernel in selection.kernels:
        spec = registry.spec(kernel)
        for dtype in map(dtype_name, spec.dtypes):
            for size in spec.timed_sizes(getattr(torch, dtype)):
                yield _group(kernel, dtype, size_text(size), selection.backends)


def _group(kernel: str, dtype: str, size: str, backends) -> Group:
    spec, sizes = registry.spec(kernel), parse_size(size)
    headline = sizes == spec.headline
    first = headline and dtype == dtype_name(spec.dtypes[0])
    names = [*backends, *spec.baselines]
    if ENTERED_TWICE in backends:
        names += [ENTERED_TWICE + TWICE] * headline + [ENTERED_TWICE + SLOWER] * first
    done = work(kernel, "", dtype, size)
    if spec.warm and done.bytes <= WARM_BYTES:
        names += [backend + WARM for backend in backends]
    limits = [ceilings.ceiling(done, dtype, sizes)]
    if first and done.limit != "matmul":
        limits += [ceilings.bandwidth(kind, done.bytes) for kind in ceilings.BANDWIDTHS]
    entries = (Cell(kernel, name, dtype, size) for name in names)
    return Group(kernel, dtype, size, (*entries, *dict.fromkeys(limits), ceilings.FLOOR))


def checked(group: Group) -> Group:
    """The entries that get a verdict, and are cross-checked for it: of the kernel itself, and not
    those that test the protocol or stay in the L2."""
    return group.without(
        [e for e in group.entries if e.kernel != group.kernel or e.backend != _original(e.backend)]
    )


def run(selection: Selection, *, processes: int, rounds: int, fresh: bool, data: Path) -> bool:
    """Time a selection on the GPU; what is already measured from the same sources is kept.

    processes: fresh processes each cell is timed in. rounds: interleaved rounds in each. fresh:
    time again what is already measured. Returns whether all went well; a backend that cannot run
    here counts against it only where it was selected by name. Raises RuntimeError without a GPU,
    DamagedData where a file of the machine's folder cannot be read; both before any work.
    """
    if DEVICE != "cuda":
        raise RuntimeError(
            "measure needs a CUDA device, and torch finds none; "
            "verify, complexity and report run without one"
        )
    folder = data / store.machine_name(torch.cuda.get_device_name())
    missing = {b: reason for b in selection.backends if (reason := registry.missing(b))}
    for backend, reason in missing.items():
        console.print(f"{backend} cannot run here: {reason}")
    with Record(folder) as record:  # an interruption leaves it saved
        environment.save(folder / "environment.json")
        _untried(record, selection, missing)
        able = tuple(b for b in selection.backends if b not in missing)
        tasks = plan(record, replace(selection, backends=able), processes, rounds, fresh)
        measure(record, tasks, rounds)
        record.save()
    return _summarise(record, selection) and not (selection.by_name and missing)


def _untried(record: Record, selection: Selection, missing: dict[str, str]) -> None:
    """Give the cells of backends that cannot run here a row that says so, and drop older ones."""
    for group in groups(selection):
        entries = [e for e in group.entries if e.backend in missing]
        rows = [_failure(e, UNAVAILABLE + missing[e.backend]) for e in entries]
        record.add_samples(group, UNTRIED, rows)


def plan(
    record: Record, selection: Selection, processes: int, rounds: int, fresh: bool
) -> list[Task]:
    """What is left to do, by workers for one kernel and process; processes one after another."""
    of_kernel: dict[str, list[Group]] = {}
    for group in groups(selection):
        # what was timed there before is timed again: only samples of the same rounds are compared
        backends = record.backends(group) | set(selection.backends)
        names = tuple(b for b in registry.BACKENDS if b in backends and not registry.missing(b))
        whole = _group(group.kernel, group.dtype, group.size, names)
        of_kernel.setdefault(group.kernel, []).append(whole)
    parts = []
    for found in of_kernel.values():
        count = math.ceil(len(found) / GROUPS_PER_WORKER)
        parts += [found[i::count] for i in range(count)]
    tasks = [
        Task(
            process,
            tuple(g for g in found if fresh or not record.has_samples(g, process, rounds)),
            tuple(g for g in found if process == 0 and (fresh or not record.has_checks(g))),
        )
        for process in range(processes)
        for found in parts
    ]
    return [task for task in tasks if task.timed or task.checked]


def measure(record: Record, tasks: list[Task], rounds: int) -> None:
    """Do the tasks: as many workers as the machine bears compile at once, then time in turn."""
    total = sum(len(task.timed) + len(task.checked) for task in tasks)
    if not total:
        return
    at_once = _workers_at_once()
    for i in range(0, len(tasks), at_once):
        batch = tasks[i : i + at_once]
        with ExitStack() as stack:
            pool = stack.enter_context(ThreadPoolExecutor(len(batch)))
            # left before the pool, so that an interruption ends the calls it waits for
            workers = [stack.enter_context(Worker(preload=PACKAGES)) for _ in batch]
            _compile(pool, workers, batch)
            size = sum(len(task.timed) + len(task.checked) for task in batch)
            with progress("measure", size) as step:
                for child, task in zip(workers, batch, strict=True):
                    with child:  # its memory is free for the next
                        _do(record, child, task, rounds, step)


def _workers_at_once() -> int:
    """Two a core, since compilers wait now and then, where the GPU's memory allows."""
    memory = torch.cuda.get_device_properties().total_memory
    return max(1, min(2 * (os.cpu_count() or 1), memory // MEMORY_PER_WORKER))


def _compile(pool, workers, batch) -> None:
    """Compile in all workers at once. What fails here is left to fail, and be told, when timed."""
    waiting = {}

    def submit(child, task, of):
        future = pool.submit(child.call, compile_groups, of, timeout=COMPILE_TIMEOUT)
        waiting[future] = child, task, of

    with progress("compile", len(batch)) as step:
        for child, task in zip(workers, batch, strict=True):
            submit(child, task, tuple(dict.fromkeys((*task.timed, *task.checked))))
        while waiting:
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                child, task, of = waiting.pop(future)
                try:
                    future.result()
                except WorkerFailed as failure:
                    rest = tuple(g.without([_named(g, failure.item)]) for g in of)
                    if rest != of:
                        submit(child, task, rest)
                        continue
                step(str(task))


def _named(group: Group, item: str | None) -> Cell | None:
    """The entry that a worker said it had in hand."""
    return next((e for e in group.entries if str(e) == item), None)


def _do(record: Record, child: Worker, task: Task, rounds: int, step) -> None:
    for group in task.timed:
        step(f"{group}, process {task.process}")
        rows, errors = _call(record, child, group, time_group, task.process, rounds)
        rows = [row for row in rows if Cell(*(row[name] for name in KEY)) not in errors]
        rows += [_failure(entry, error) for entry, error in errors.items()]
        record.save(record.add_samples, group, task.process, rows)
    for group in task.checked:
        step(f"{group}, cross-check")
        rows, errors = _call(record, child, checked(group), check_group)
        rows += [_check(entry, dict.fromkeys(CHECKED, float("nan"))) for entry in errors]
        record.save(record.add_checks, rows)


def _call(record: Record, child: Worker, group: Group, function, *args):
    """`function(group, *args)` in the child, again without each entry that breaks it.

    Returns its rows, and why entries have none.
    """
    errors = {e: record.failed[e] for e in group.entries if e in record.failed}
    while (rest := group.without(errors)).entries:
        try:
            rows, more = child.call(function, rest, *args, timeout=TIMEOUT)
            return rows, errors | more
        except WorkerFailed as failure:
            entry, reason = _named(rest, failure.item), failure.reason
            if reason.startswith("OutOfMemoryError"):
                reason, entry = f"{UNAVAILABLE}this size does not fit the GPU's memory", None
            if entry is None:  # not the fault of one
                return [], errors | dict.fromkeys(rest.entries, reason)
            errors[entry] = record.failed[entry] = reason
    return [], errors


def _failure(entry: Cell, error: str) -> dict:
    """The row of an entry without a time."""
    return {
        **asdict(entry),
        "round": -1,
        "position": -1,
        "device_us": float("nan"),
        "calls": 0,
        "sm_clock_mhz": 0,
        "temperature_c": 0,
        "throttle": "",
        "error": error,
        "source_hash": source_hash(entry),
    }


def _check(entry: Cell, times: dict[str, float]) -> dict:
    """A row of crosschecks.csv."""
    return asdict(entry) | times | {"source_hash": source_hash(entry)}


def _summarise(record: Record, selection: Selection) -> bool:
    """Print the headline cells and all errors; whether there are none that count."""
    timings = record.timings()
    timings = timings[timings["kernel"].isin(selection.kernels)]
    table = Table(
        *("kernel", "dtype", "backend", "speed", "to the baseline", "of the ceiling", "verdict")
    )
    for row in timings.itertuples():
        if parse_size(row.size) == registry.spec(row.kernel).headline and not row.error:
            table.add_row(
                row.kernel,
                row.dtype,
                row.backend,
                f"{row.speed:,.4g} {row.unit}",
                f"{row.ratio:.3f} ({row.ratio_low:.3f} to {row.ratio_high:.3f})",
                f"{row.of_ceiling:.3f}",
                row.verdict,
            )
    console.print(table)
    failed = timings[timings["error"] != ""]
    for row in failed.itertuples():
        cell = Cell(row.kernel, row.backend, row.dtype, row.size)
        console.print(f"{cell} has no speed: {row.error}", markup=False, soft_wrap=True)
    return bool(len(timings)) and failed["error"].str.startswith(UNAVAILABLE).all()


class Inputs:
    """Arguments for the entries of one group; the implementations of its kernel share theirs."""

    def __init__(self, group: Group):
        self.group, self._made = group, {}

    def of(self, entry: Cell) -> tuple:
        """The arguments of one call."""
        if entry.kernel.startswith("_"):
            return ceilings.inputs(entry)
        return self._shared("inputs", lambda: self._make(entry))

    def sets_of(self, entry: Cell) -> list[tuple]:
        """The arguments of calls that rotate."""
        if entry == ceilings.FLOOR:
            return [()]
        count = self._shared("count", self._count)
        if entry.kernel.startswith("_"):
            return timing.input_sets(ceilings.inputs(entry), count)
        sets = self._shared("sets", lambda: timing.input_sets(self.of(entry), count))
        return sets[:1] if entry.backend.endswith(WARM) else sets

    def _shared(self, name, make):
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def _make(self, entry):
        spec = registry.spec(entry.kernel)
        return spec.make_inputs(entry.torch_dtype, "cuda", seed(entry), **entry.sizes)

    def _count(self):
        group = self.group
        return timing.set_count(work(group.kernel, "", group.dtype, group.size).bytes)


def function(entry: Cell):
    """What is called for an entry. Raises Unavailable."""
    if entry.kernel.startswith("_"):
        if entry.backend != "matmul" and (reason := registry.missing("cupy")):
            raise registry.Unavailable(f"it is written in CUDA C++: {reason}")
        return ceilings.FUNCTIONS[entry.backend]
    backend = _original(entry.backend)
    baselines = registry.spec(entry.kernel).baselines
    return baselines[backend] if backend in baselines else registry.load(entry.kernel, backend)


def compile_groups(of: tuple[Group, ...]) -> None:
    """Call every entry once, so that all is compiled before the first is timed."""
    for group in of:
        inputs = Inputs(group)
        for entry in group.entries:
            worker.say(str(entry))
            # many do this at once: what does not fit now may fit when it is timed
            with suppress(registry.Unavailable, torch.OutOfMemoryError):
                function(entry)(*inputs.of(entry))
                torch.cuda.synchronize()
        del inputs
        torch.cuda.empty_cache()


def time_group(group: Group, process: int, rounds: int) -> tuple[list[dict], dict[Cell, str]]:
    """Time a group in this process: its samples, and why entries have none."""
    sensor = environment.Sensor()
    captured, timers, rows = {}, {}, []
    with _measured(group) as (ready, errors):
        for entry, call, sets in ready:
            captured[entry] = timing.Captured(call, sets, entry.backend.endswith(SLOWER))
            timers[entry] = _announced(entry, captured[entry])
        timing.warm_up(timers)
        for i, measured in enumerate(timing.interleave(timers, rounds, seed=process)):
            state = asdict(sensor.state())
            rows += [
                {
                    **asdict(entry),
                    "round": i,
                    "position": position,
                    "device_us": us,
                    "calls": captured[entry].calls,
                    **state,
                    "error": "",
                    "source_hash": source_hash(entry),
                }
                for position, (entry, us) in enumerate(measured)
            ]
        for entry, graph in captured.items():
            if not graph.repeats():
                errors[entry] = "the timed calls gave other bits than one more call"
    return rows, errors


def check_group(group: Group) -> tuple[list[dict], dict[Cell, str]]:
    """Time each entry by three instruments: rows of crosschecks.csv, and errors."""
    load = CHECK_US[work(group.kernel, "", group.dtype, group.size).unit]
    times, profiled = {}, []
    with _measured(group) as (ready, errors):
        for entry, call, sets in ready:
            graph_us = timing.graph_us(call, sets, load if times else FIRST_CHECK_US)
            event_us = timing.event_us(call, sets, int(np.clip(load / graph_us, *EVENT_CALLS)))
            times[entry] = {"graph_us": graph_us, "event_us": event_us}
            profiled.append((call, sets, int(np.clip(load / graph_us, *PROFILED_CALLS))))
        # last, since a launch takes longer from then on
        for entry, us in zip(times, timing.cupti_us(profiled), strict=True):
            times[entry]["cupti_us"] = us
    return [_check(entry, of) for entry, of in times.items()], errors


@contextmanager
def _measured(group: Group) -> Iterator[tuple[Iterator, dict[Cell, str]]]:
    """Yields, in a stream that can capture, the entries that can run, each with what is called and
    its arguments as they are come to; and why the others cannot, known once all were come to."""
    torch.cuda.empty_cache()  # the memory of the group before
    inputs, errors = Inputs(group), {}

    def ready():
        for entry in group.entries:
            worker.say(str(entry))
            try:
                call, sets = function(entry), inputs.sets_of(entry)
                call(*sets[0])  # who lacks the dtype says so here, before a capture
            except registry.Unavailable as reason:
                errors[entry] = f"{UNAVAILABLE}{reason}"
                continue
            yield entry, call, sets

    with torch.cuda.stream(torch.cuda.Stream()):
        yield ready(), errors


def _announced(entry, timer):
    """The timer, which first says what it times."""

    def call():
        worker.say(str(entry))
        return timer()

    return call
