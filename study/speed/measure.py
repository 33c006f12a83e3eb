"""Times the kernels among their baselines and ceilings, in fresh processes, saving as it goes."""

import math
import os
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.table import Table

from implementations import DEVICE
from implementations.common import registry
from study.bench import entries, environment, store
from study.bench.cells import TIMED, Cell, Selection, parse_size
from study.bench.entries import UNAVAILABLE, Group, checked, groups
from study.bench.progress import console, progress
from study.bench.worker import PACKAGES, Worker, WorkerFailed
from study.speed.ratios import CHECKED
from study.speed.record import UNTRIED, Record, check, sample
from study.speed.rounds import check_group, compile_groups, time_group

COMPILE_TIMEOUT, TIMEOUT = 300, 120  # seconds for all cells of a worker, for one
MEMORY_PER_WORKER = 3 * 2**30  # bytes: a context, and the inputs of one cell
GROUPS_PER_WORKER = 8  # at most: the worker that compiles longest is waited for


@dataclass(frozen=True)
class Task:
    """What one worker does: some groups of one kernel to time, and then to cross-check."""

    process: int
    timed: tuple[Group, ...]
    checked: tuple[Group, ...]

    def __str__(self):
        group = (self.timed or self.checked)[0]
        return f"{group.kernel}, process {self.process}"


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
        found = [e for e in group.entries if e.backend in missing]
        rows = [sample(e, error=UNAVAILABLE + missing[e.backend]) for e in found]
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
        whole = entries.group(group.kernel, group.dtype, group.size, names)
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
        rows = [row for row in rows if Cell(*(row[name] for name in TIMED)) not in errors]
        rows += [sample(entry, error=error) for entry, error in errors.items()]
        record.save(record.add_samples, group, task.process, rows)
    for group in task.checked:
        step(f"{group}, cross-check")
        rows, errors = _call(record, child, checked(group), check_group)
        rows += [check(entry, dict.fromkeys(CHECKED, float("nan"))) for entry in errors]
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
                f"{row.backend} {row.variant}".strip(),
                f"{row.speed:,.4g} {row.unit}",
                f"{row.ratio:.3f} ({row.ratio_low:.3f} to {row.ratio_high:.3f})",
                f"{row.of_ceiling:.3f}",
                row.verdict,
            )
    console.print(table)
    failed = timings[timings["error"] != ""]
    for row in failed.itertuples():
        cell = Cell(*(getattr(row, name) for name in TIMED))
        console.print(f"{cell} has no speed: {row.error}", markup=False, soft_wrap=True)
    return bool(len(timings)) and failed["error"].str.startswith(UNAVAILABLE).all()
