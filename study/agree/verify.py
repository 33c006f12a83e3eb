"""Checks every implementation against the oracle, and that it touches nothing but its outputs."""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event, Lock

import pandas as pd
import torch
from rich.table import Column, Table
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from implementations import DEVICE, TORCH_DEVICE
from implementations.common import registry
from implementations.tiers.cpu.cuda_cpp import SANITIZERS
from study.agree import agreement, non_finite
from study.agree.covering import covering
from study.bench import store
from study.bench.cells import KEY, Cell, Selection, seed
from study.bench.fingerprint import fingerprint, spec_fingerprint
from study.bench.progress import console, progress
from study.bench.worker import PACKAGES, Worker, WorkerFailed, workers

RUNS = 3 if DEVICE == "cuda" else 2  # on the CPU the second takes the threads in another order
GUARD = 2**20  # bytes before and after each tensor: more than a tile overshoots
ALIGNMENT = 256  # bytes, what the CUDA allocator gives
NAN = 0xFF  # every byte of it: NaN in the float dtypes, -1 in the integers
FENCE = 0xA5  # around outputs: no NaN, or a NaN copied from out of bounds would go unseen
WORKERS = 12  # at most: more would fill a GPU's memory
FIRST_TIMEOUT, TIMEOUT = 300, 120  # seconds for a child's first cell (imports), for any other

ALLOCATIONS = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
NOT_JUDGED = agreement.Judgement(margin=math.nan, rms=math.nan, error="")


@dataclass(frozen=True)
class Guarded:
    """A tensor and the zones of bytes before and after it."""

    tensor: torch.Tensor
    inside: torch.Tensor
    zones: tuple[torch.Tensor, torch.Tensor]
    fence: int  # each byte of the zones

    def intact(self) -> bool:
        """Whether nothing was written into the zones."""
        return all(bool((zone == self.fence).all()) for zone in self.zones)

    def holds(self, x: torch.Tensor) -> bool:
        """Whether `x` lies here; an empty tensor lies anywhere."""
        return x.numel() == 0 or 0 <= x.data_ptr() - self.inside.data_ptr() < self.inside.numel()


def guarded(like: torch.Tensor, fence: int) -> Guarded:
    """A tensor of NaN between guard zones, with the shape, strides, dtype and device of `like`."""
    last = sum((n - 1) * stride for n, stride in zip(like.shape, like.stride(), strict=True))
    count = (last + 1) * like.element_size() if like.numel() else 0
    buffer = torch.full((2 * GUARD + count,), fence, dtype=torch.uint8, device=like.device)
    start = GUARD - (buffer.data_ptr() + GUARD) % ALIGNMENT
    before, inside, after = buffer.tensor_split([start, start + count])
    tensor = inside.fill_(NAN).view(like.dtype).as_strided(like.shape, like.stride())
    return Guarded(tensor, inside, (before, after), fence)


class GuardedAllocations(TorchDispatchMode):
    """While active, what `torch.empty` and its relatives give is full of NaN and guarded."""

    def __init__(self):
        super().__init__()
        self.made: list[Guarded] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function.overloadpacket.__name__ not in ALLOCATIONS:
            return result
        self.made.append(guarded(result, FENCE))
        return self.made[-1].tensor


def check(cell: Cell) -> dict:
    """Verify one cell; its row of agreement.csv, in which `check` names the first that failed:
    "guard zones", "inputs changed", "allocation", "runs differ", "values" or "non-finite values".

    The kernel runs `RUNS` times on guarded inputs. It agrees if its outputs do, if they lie in
    memory it allocated by `torch.empty` or a relative, if each run allocates as much, if the runs
    are bit-identical, and if the inputs and all guard zones stay as they were; then once on inputs
    that hold NaN and infinities. A mode that gives other bits at each call runs once. On the CPU
    tier only the first dtype runs again and on these: in the others threads wait for each other in
    the same places. What the kernel raises is passed on.
    """
    try:
        host = registry.load(cell.kernel, cell.backend)
        return _check(cell, registry.spec(cell.kernel).called(host))
    except registry.Unavailable as error:
        return _row(cell, "unavailable", str(error))
    except torch.OutOfMemoryError:
        return _row(cell, "unavailable", "the check does not fit this GPU's memory")
    finally:
        if DEVICE == "cuda":
            torch.cuda.empty_cache()  # for the checks beside it


def _check(cell: Cell, host) -> dict:
    spec = registry.spec(cell.kernel)
    inputs = spec.arguments(cell.torch_dtype, TORCH_DEVICE, seed(cell), **cell.sizes)
    leaves, tree = tree_flatten(inputs)  # an input may be a list of tensors
    placed = {}
    for i, x in enumerate(leaves):
        if isinstance(x, torch.Tensor):
            placed[i] = guarded(x, NAN)
            leaves[i] = placed[i].tensor.copy_(x)
    inputs = tree_unflatten(leaves, tree)
    before = {i: place.inside.clone() for i, place in placed.items()}

    failed = {}  # what is wrong → the check that says so; the runs repeat it
    first, deterministic, count = None, True, 0
    once = DEVICE == "cpu" and cell.torch_dtype != spec.dtypes[0]
    same_bits = cell.backend not in spec.random_baselines
    for run in range(RUNS if same_bits and not once else 1):
        # for the CPU tier: blocks never arrive otherwise there, but threads in orders by the seed
        told = {"STUDY_SAME_BITS": "1"} if same_bits else {}
        told |= {"STUDY_THREAD_SEED": str(run)} if run else {}
        with GuardedAllocations() as allocations, _environment(told):
            outputs = host(*inputs)
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        made = sum(place.tensor.numel() > 0 for place in allocations.made)
        if made < count:
            failed["it keeps a tensor for later calls, as one in another stream"] = "allocation"
        count = made
        for i, place in placed.items():
            if not place.intact():
                failed[f"it wrote outside input {i}"] = "guard zones"
        for place in allocations.made:
            if not place.intact():
                shape = tuple(place.tensor.shape)
                failed[f"it wrote outside its tensor of shape {shape}"] = "guard zones"
        for i, place in placed.items():
            if not torch.equal(place.inside, before[i]):
                failed[f"it changed input {i}"] = "inputs changed"
        tensors = [y for y in agreement.as_tuple(outputs) if isinstance(y, torch.Tensor)]
        for i, y in enumerate(tensors):
            if not any(place.holds(y) for place in allocations.made):
                failed[f"output {i} must be allocated by torch.empty or a relative"] = "allocation"
        bits = [y.reshape(-1).view(torch.uint8) for y in tensors]
        first = bits if run == 0 else first
        if not all(map(torch.equal, first, bits)):
            deterministic = False
            failed[f"run {run + 1} differs from run 1"] = "runs differ"

    first = before = bits = tensors = None  # a huge size leaves no room for them beside the oracle
    judged = agreement.judge(spec, cell.sizes, inputs, outputs)
    if judged.error:
        failed[judged.error] = "values"
    if not failed and cell.sizes in spec.check_sizes and not once:
        inputs = non_finite.planted(cell, tuple(inputs))
        outputs = host(*inputs)
        if error := agreement.judge(spec, cell.sizes, inputs, outputs, each=True).error:
            failed[f"of inputs that are not all finite: {error}"] = "non-finite values"
    status, failure = ("disagrees", next(iter(failed.values()))) if failed else ("agrees", "")
    return _row(cell, status, "; ".join(failed), judged, deterministic, failure)


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Variables of the environment, which tiers read at a launch, for a while."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _row(
    cell: Cell, status: str, error="", judged=NOT_JUDGED, deterministic=False, check=""
) -> dict:
    return cell.key | {
        "rule": agreement.rule_name(registry.spec(cell.kernel)),
        "margin": judged.margin,
        "rms": judged.rms,
        "deterministic": deterministic,
        "status": status,
        "check": check,
        "error": error,
        "source_hash": fingerprint(cell.kernel, cell.backend),
        "spec_hash": spec_fingerprint(cell.kernel),
    }


def run(selection: Selection, *, large: bool, cover: bool, data: Path) -> bool:
    """Verify a selection, each cell in a worker; print a summary. On a GPU, save agreement.csv.

    large: on a GPU, also check the headline and the huge sizes. cover: of the check sizes, as many
    as launch every variant, by data/codegen.csv. Returns whether all agree; a backend that cannot
    run here counts against it only where it was selected by name.
    """
    if DEVICE == "compile":
        raise RuntimeError("verify must run the kernels, got STUDY_DEVICE=compile")
    if DEVICE == "cuda":
        path = data / store.machine_name(torch.cuda.get_device_name()) / "agreement.csv"
        store.read(path)  # a damaged file is refused before any work
    missing = {backend: registry.missing(backend) for backend in selection.backends}
    for backend, reason in missing.items():
        if reason:
            console.print(f"{backend} cannot run here: {reason}")

    cells = list(selection.cells("check"))
    if cover:
        chosen = covering(selection, store.read(data / "codegen.csv"))
        console.print(f"{len(chosen)} of {len(cells)} cells launch every variant")
        cells = chosen
    alone = list(selection.cells("large")) if large and DEVICE == "cuda" else []
    order = {cell: i for i, cell in enumerate([*cells, *alone])}
    rows = []
    with progress("verify", len(order)) as step:
        try:
            for _ in _verify(cells, alone, missing, step, rows):
                if DEVICE == "cuda":
                    _save(path, rows[:])  # others append to it meanwhile
        finally:
            if DEVICE == "cuda" and rows:
                _save(path, rows)

    rows.sort(key=lambda row: order[Cell(*(row[name] for name in KEY))])
    _summarise(rows)
    status = {row["status"] for row in rows}
    return (
        "agrees" in status
        and not status & {"disagrees", "failed"}
        and not (selection.by_name and any(missing.values()))
    )


def sanitize(selection: Selection) -> bool:
    """Run the CUDA kernels under AddressSanitizer, then ThreadSanitizer; print what they find.

    On the CPU tier, at the check sizes; nothing is saved. Returns whether all agree and nothing was
    found: no access outside a tensor, no race on shared memory. Raises RuntimeError on a GPU, where
    compute-sanitizer does this.
    """
    if DEVICE != "cpu":
        raise RuntimeError(f"--sanitize must run on the CPU (STUDY_DEVICE=cpu), got {DEVICE}")
    if reason := registry.missing("cupy"):
        raise RuntimeError(f"cupy cannot run here: {reason}")
    cells = list(replace(selection, backends=("cupy",)).cells("check"))
    rows = []
    with progress("sanitize", len(SANITIZERS) * len(cells)) as step:
        for sanitizer in SANITIZERS:
            with Worker({"STUDY_SANITIZE": sanitizer}) as worker:
                for cell in cells:
                    step(f"{cell}, {sanitizer}")
                    rows.append(_call(worker, cell) | {"backend": f"cupy, {sanitizer}"})
    _summarise(rows)
    return all(row["status"] == "agrees" for row in rows)


def _verify(cells: list[Cell], alone: list[Cell], missing, step, rows) -> Iterator[None]:
    """Append the rows of cells to `rows`, several in parallel; yields as they end.

    alone: cells of which one runs at a time, as it may take all of the memory.
    """
    lock, stopped = Lock(), Event()
    parts = {}  # on a GPU a worker keeps what is compiled, and so has an implementation to itself
    for cell in (*cells, *alone):
        key = (cell.kernel, cell.backend) if DEVICE == "cuda" else cell
        parts.setdefault(key, []).append(cell)
    alone = set(alone)

    def verify(worker: Worker, part: list[Cell]) -> None:
        for cell in part:
            with lock if cell in alone else nullcontext():
                if stopped.is_set():
                    return
                step(str(cell))
                reason = missing[cell.backend]
                row = _row(cell, "unavailable", reason) if reason else _call(worker, cell)
                if not stopped.is_set():  # else what failed was the worker
                    rows.append(row)

    with workers_here(len(parts)) as each:
        try:
            yield from each(verify, parts.values())
        finally:
            stopped.set()  # before the workers are gone


def workers_here(items: int) -> AbstractContextManager[Callable]:
    """As many workers as can run so many items at once."""
    count = min(WORKERS, os.cpu_count() or 1, items) or 1
    if DEVICE == "cuda":
        return workers(count, preload=PACKAGES)
    return workers(count, {"OMP_NUM_THREADS": "1"})  # a worker a core


def _call(worker: Worker, cell: Cell) -> dict:
    try:
        return worker.call(check, cell, timeout=TIMEOUT if worker.alive else FIRST_TIMEOUT)
    except WorkerFailed as failure:
        return _row(cell, "failed", failure.reason)


def _save(path: Path, rows: list[dict]) -> None:
    """Replace the rows of these cells, keep the others."""
    tables = [table for table in (store.read(path), pd.DataFrame(rows)) if not table.empty]
    table = pd.concat(tables).drop_duplicates(KEY, keep="last")
    store.write(path, store.ordered(table, KEY))  # whichever worker was done first


def _summarise(rows: list[dict]) -> None:
    table = Table(Column("kernel", no_wrap=True), "backend", "agree", "worst margin", "not checked")
    for (kernel, backend), group in pd.DataFrame(rows).groupby(["kernel", "backend"], sort=False):
        status, margin = group["status"], group["margin"].max()
        checked = group[status != "unavailable"]
        reasons = group.loc[status == "unavailable", "error"].unique()
        table.add_row(
            kernel,
            backend,
            f"{(status == 'agrees').sum()} of {len(checked)}" if len(checked) else "",
            "" if math.isnan(margin) else f"{margin:.3g}",
            "; ".join(reasons),
        )
    console.print(table)
    for row in rows:
        if row["status"] in ("disagrees", "failed"):
            cell = Cell(*(row[name] for name in KEY))
            console.print(f"{cell} {row['status']}: {row['error']}", markup=False, soft_wrap=True)
