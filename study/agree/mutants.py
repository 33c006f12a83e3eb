"""Checks the checks: every mutant of every kernel must be rejected by `verify.check`.

A mutant (`study.agree.faults`) is tried on the CPU tier, whatever the machine: its files, in a
temporary folder, come first on `implementations.__path__`, so that they shadow the kernel's own,
while spec, inputs and hash stay the kernel's. It is tried cell by cell, small ones first, until one
rejects it. The kernel itself must agree there under the same conditions, or the rejection proves
nothing. What no cell rejects is tried again under stricter conditions: a sanitizer, other orders of
threads, a GPU of more multiprocessors or without clusters.

Status of a mutant:
    killed      rejected, by the check of `verify` named or by what it raised (RAISED, below)
    survived    accepted everywhere: a check, a size or an input is missing
    equivalent  accepted everywhere, and `equivalent_mutants.csv` says why it is not wrong
    not built   no kernel at all: refused by the compiler, or in Python by what stands in for it
    too large   it needs more elements than a CPU has room for, which a GPU checks: of `huge_sizes`,
                where the spec has some, or of others, if `equivalent_mutants.csv` says of which
"""

import importlib
import os
import re
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from itertools import compress
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
from rich.table import Column, Table

import implementations
from implementations.common import registry
from implementations.common.check import dtype_name
from implementations.tiers.cpu import CAPABILITY, MULTIPROCESSORS
from study.agree import verify
from study.agree.faults import BEYOND, OPERATORS, Mutant, mutants
from study.bench import store
from study.bench.cells import Cell, Selection, size_text
from study.bench.fingerprint import fingerprint
from study.bench.progress import console, progress
from study.bench.worker import Worker, WorkerFailed, workers

EQUIVALENT = Path(__file__).with_name("equivalent_mutants.csv")  # written by hand
KEY = ["kernel", "backend", "operator", "before", "after", "nth"]  # of a mutant
SAVE_EVERY = 60  # seconds
ON_CPU = {"STUDY_DEVICE": "cpu", "OMP_NUM_THREADS": "1"}  # a worker a core

Conditions = dict[str, str]  # environment variables

STRICTER: dict[tuple[str, str], tuple[Conditions, ...]] = {
    **{(operator, "cupy"): ({"STUDY_SANITIZE": "address"},) for operator in OPERATORS},
    ("barrier missing", "cupy"): ({"STUDY_SANITIZE": "thread"},),
    ("barrier missing", "numba"): tuple({"STUDY_THREAD_SEED": str(s)} for s in range(2, 6)),
}

# What a host asks of the GPU → one that answers otherwise.
OTHER_GPUS: dict[str, Conditions] = {
    r"\.(multiprocessors\b|programs\()": {MULTIPROCESSORS: "16"},
    r"\.clusters\(\)|\bhas_wgmma\(": {CAPABILITY: "8.0"},
}

# What a raised error says → what it is called; the first that fits. Anything else that is raised is
# the refusal of a compiler, or of Python where a compiler would have refused.
NOT_BUILT = "not built"
TOO_LARGE = "too large"
NEEDS_HUGE = "needs more than 2^31 elements: `huge_sizes`"
RAISED = (
    ("AddressSanitizer|lie in no tensor", "addresses"),
    ("ThreadSanitizer", "races"),
    ("deadlock|takes no part|must be in the mask|never comes|does not follow", "deadlock"),
    ("must be added in|must have begun|must follow the|must stand|must stay as", "order"),
    ("no answer within", "time limit"),
    ("terminated abruptly|killed by|exited with", "crash"),
    ("out of bounds|could not broadcast input array", "indices"),
    ("multiples? of", "alignment"),
    ("a (grid|block) must have", "launch"),
    ("ZeroDivisionError|OverflowError", "arithmetic"),
)


# --- in a worker ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What `verify.check` gave: three columns of its row; "failed" where it raised an error."""

    status: str
    check: str
    error: str

    @property
    def rejected_by(self) -> str:
        """The check that failed, else which of RAISED or NOT_BUILT; "" where it agreed."""
        if self.status == "agrees" or self.check:
            return self.check
        return next((by for text, by in RAISED if re.search(text, self.error)), NOT_BUILT)


def attempt(cell: Cell, root: Path | None, conditions: Conditions) -> Outcome:
    """The outcome of `verify.check`, with the files below `root` in place of the kernel's own.

    It runs in a fork of the worker: what a wrong kernel destroys there is nobody else's.
    """
    import torch._dynamo  # noqa: F401  (torch would import it in each fork, for a second or more)

    # which imports its packages, here and not in each fork
    registry.missing(registry.spec(cell.kernel).backend_of(cell.backend))
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        return pool.submit(_attempt, cell, root, conditions).result()


def _attempt(cell: Cell, root: Path | None, conditions: Conditions) -> Outcome:
    os.environ.update(conditions)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the last words of a wrong kernel are no news
    if root:
        os.environ["XDG_CACHE_HOME"] = str(root.parent)  # mutants are compiled to be thrown away
        implementations.__path__.insert(0, str(root))
        importlib.invalidate_caches()
    try:
        row = verify.check(cell)
    except Exception as error:
        return Outcome("failed", "", f"{type(error).__name__}: {error}")
    return Outcome(row["status"], row["check"], row["error"])


# --- one mutant -----------------------------------------------------------------------------------


def attempts(mutant: Mutant, known: dict[tuple, tuple]) -> list[tuple[Cell, Conditions]]:
    """Where a mutant is tried, its modes too, in order: what killed it last time, then small cells
    first.

    known: by a mutant's key, dtype, size and conditions of what killed it.
    """
    spec, cells = registry.spec(mutant.kernel), []
    modes = [name for name, backend in spec.modes.items() if backend == mutant.backend]
    for place, dtype in enumerate(spec.dtypes):
        for size in spec.check_sizes:
            work = spec.work(dtype, **size).bytes
            for name in (mutant.backend, *modes):
                cell = Cell(mutant.kernel, name, dtype_name(dtype), size_text(size))
                cells.append((place, not work, work, cell))
    cells = [cell for *_, cell in sorted(cells, key=lambda entry: entry[:3])]
    conditions = [{}, *STRICTER.get((mutant.operator, mutant.backend), ())]
    others = other_gpus(mutant.kernel, mutant.backend)
    conditions += [each | gpu for gpu in others for each in conditions]
    found = [(cell, each) for each in conditions for cell in cells]
    last = known.get(mutant.key)
    return sorted(found, key=lambda a: (a[0].dtype, a[0].size, _text(a[1])) != last)


@cache
def other_gpus(kernel: str, backend: str) -> tuple[Conditions, ...]:
    """The OTHER_GPUS on which an implementation launches otherwise."""
    texts = [path.read_text() for path in registry.files(kernel, backend)]
    asks = [any(re.search(pattern, text) for text in texts) for pattern in OTHER_GPUS]
    return tuple(compress(OTHER_GPUS.values(), asks))


def _text(conditions: Conditions) -> str:
    return " ".join(f"{name}={value}" for name, value in conditions.items())


def write(mutant: Mutant, root: Path) -> None:
    """The implementation with the fault, below `root` as it lies below `implementations`."""
    folder = registry.folders()[mutant.kernel]
    at = root / folder.parent.name / folder.name
    at.mkdir(parents=True)
    for path in registry.files(mutant.kernel, mutant.backend):
        text = mutant.content if path.name == mutant.file else path.read_text()
        (at / path.name).write_text(text)


class Trials:
    """Tries mutants in workers; remembers where the kernels themselves agree.

    known, listed: by a mutant's key, what killed it last time, and why it is equivalent.
    """

    def __init__(self, folder: Path, known: dict[tuple, tuple], listed: dict[tuple, str]):
        self.folder, self.known, self.listed = folder, known, listed
        self.agrees: set[tuple] = set()

    def __call__(self, worker: Worker, mutant: Mutant) -> dict:
        """The row of mutants.csv. RuntimeError where the kernel itself is rejected."""
        begun = time.monotonic()
        row = {name: value for name, value in asdict(mutant).items() if name != "content"}
        row |= {"status": "survived", "by": "", "dtype": "", "size": "", "conditions": ""}
        tries = []
        if mutant.operator not in BEYOND:
            root = Path(tempfile.mkdtemp(dir=self.folder))
            write(mutant, root)
            tries = attempts(mutant, self.known)
        for cell, conditions in tries:
            if by := self.tried(worker, cell, root, conditions).rejected_by:
                built = by != NOT_BUILT
                row |= {"status": "killed", "by": by} if built else {"status": NOT_BUILT}
                row |= {"dtype": cell.dtype, "size": cell.size, "conditions": _text(conditions)}
                self.control(worker, cell, conditions)
                break
        reason = self.listed.get(mutant.key, "")
        if row["status"] == "survived" and reason:
            row["status"] = by_the_list(reason)
        elif mutant.operator in BEYOND and registry.spec(mutant.kernel).huge_sizes:
            row["status"], reason = TOO_LARGE, NEEDS_HUGE
        row |= {"reason": reason, "seconds": round(time.monotonic() - begun, 2)}
        return row | {"source_hash": fingerprint(mutant.kernel, mutant.backend)}

    def tried(self, worker, cell, root, conditions) -> Outcome:
        limit = verify.TIMEOUT if worker.alive else verify.FIRST_TIMEOUT
        try:
            outcome = worker.call(attempt, cell, root, conditions, timeout=limit)
        except WorkerFailed as failure:
            return Outcome("failed", "", failure.reason)
        if outcome.status == "unavailable":
            raise RuntimeError(f"{cell} cannot run here: {outcome.error}")
        return outcome

    def control(self, worker, cell, conditions) -> None:
        """The kernel itself must agree where a mutant of it was rejected."""
        key = cell, _text(conditions)
        if key not in self.agrees:
            outcome = self.tried(worker, cell, None, conditions)
            if outcome.status != "agrees":
                raise RuntimeError(
                    f"{cell} must agree before its mutants can be judged: {outcome.error}"
                )
            self.agrees.add(key)


# --- all of them ----------------------------------------------------------------------------------


def _key(row: dict) -> tuple:
    return tuple(row[name] for name in KEY)


def listed() -> dict[tuple, str]:
    """By the key of a mutant that is not wrong, the reason why."""
    table = pd.read_csv(EQUIVALENT)
    return {_key(row): row["reason"] for row in table.to_dict("records")}


def by_the_list(reason: str) -> str:
    """The status of what was accepted everywhere, for a reason of `equivalent_mutants.csv`."""
    return TOO_LARGE if reason.startswith(TOO_LARGE) else "equivalent"


def is_listed(row: dict) -> bool:
    """Whether its status comes from `equivalent_mutants.csv`."""
    return row["status"] in ("equivalent", TOO_LARGE) and row["reason"] != NEEDS_HUGE


def known(table: pd.DataFrame) -> dict[tuple, tuple]:
    """By the key of a mutant in mutants.csv: dtype, size and conditions of what killed it."""
    if table.empty:
        return {}
    table = table.astype({"conditions": object}).fillna({"conditions": ""})
    rows = table[table["status"] == "killed"].to_dict("records")
    return {_key(row): (row["dtype"], row["size"], row["conditions"]) for row in rows}


def tried(table: pd.DataFrame, reasons: dict[tuple, str]) -> dict[tuple, dict]:
    """By the key of a mutant in mutants.csv: its row, where it need not be tried again, as its
    source is the present one, and if it survived it is listed since."""
    return {
        _key(row): row
        for row in table.astype(object).fillna("").to_dict("records")
        if (row["status"] != "survived" or _key(row) in reasons)
        and row["source_hash"] == _fingerprint(row["kernel"], row["backend"])
    }


@cache
def _fingerprint(kernel: str, backend: str) -> str:
    return fingerprint(kernel, backend) if kernel in registry.kernels() else ""


def run(selection: Selection, *, fresh: bool = False, data: Path) -> bool:
    """Try all mutants of a selection; print what killed them; keep the rows in data/mutants.csv.

    fresh: try again what did not survive in the present source. An implementation's rows are saved
    every SAVE_EVERY seconds, at its last mutant and at an interruption; what is left is tried next
    time. Returns whether none survived, no entry of equivalent_mutants.csv is wrong, and no backend
    is missing that was selected by name.
    """
    path, reasons, rows = data / "mutants.csv", listed(), []
    before = store.read(path)
    done = {} if fresh else tried(before, reasons)
    with (
        tempfile.TemporaryDirectory() as folder,
        workers(len(os.sched_getaffinity(0)), ON_CPU) as each,
    ):
        trials = Trials(Path(folder), known(before), reasons)

        def row_of(worker: Worker, mutant: Mutant) -> dict:
            reason = reasons.get(mutant.key, "")
            row = done.get(mutant.key)
            if row and row["status"] == "survived":
                row |= {"status": by_the_list(reason)}
            if row is None or bool(reason) != is_listed(row):
                return trials(worker, mutant)
            kept = NEEDS_HUGE if row["reason"] == NEEDS_HUGE else reason
            return row | {"line": mutant.line, "reason": kept}

        missing = dict(zip(selection.backends, each(_missing, selection.backends), strict=True))
        present = [backend for backend in selection.backends if not missing[backend]]
        made = {(k, b): mutants(k, b) for k in selection.kernels for b in present}
        with progress("mutants", sum(map(len, made.values()))) as step:
            for (kernel, backend), of_one in made.items():
                one, new, saved = Selection((kernel,), (backend,)), [], time.monotonic()
                try:
                    for mutant, row in zip(of_one, each(row_of, of_one), strict=True):
                        step(f"{kernel} {backend} {mutant.operator}, line {mutant.line}")
                        new.append(row)
                        if time.monotonic() - saved >= SAVE_EVERY:
                            store.replace(path, one, new + _left(before, of_one, new))
                            saved = time.monotonic()
                finally:  # at an interruption too
                    rows += new
                    store.replace(path, one, new + _left(before, of_one, new))
    for backend, reason in missing.items():
        if reason:
            console.print(f"{backend} cannot run here: {reason}")
    wrong = _wrong(rows, [key for key in reasons if key[:2] in made])
    _summarise(rows, wrong)
    return bool(rows) and not wrong and not (selection.by_name and any(missing.values()))


def _left(before: pd.DataFrame, of_one: list[Mutant], new: list[dict]) -> list[dict]:
    """The rows that there were of the mutants of an implementation that have no new one."""
    left = {mutant.key for mutant in of_one} - {*map(_key, new)}
    return [row for row in before.to_dict("records") if _key(row) in left] if left else []


def _missing(worker: Worker, backend: str) -> str | None:
    return worker.call(registry.missing, backend, timeout=verify.FIRST_TIMEOUT)


def _wrong(rows: list[dict], entries: list[tuple]) -> list[str]:
    """What must not be: survivors, and entries of equivalent_mutants.csv that are wrong."""
    found = []
    for row in rows:
        if row["status"] == "survived":
            what = "survived"
        elif row["status"] == "killed" and row["reason"]:
            what = f"is listed as equivalent, but killed by {row['by']}"
        else:
            continue
        place = f"{row['file']}:{row['line']} {row['operator']}"
        found.append(f"{place} {what}\n  - {row['before']}\n  + {row['after']}")
    keys = {_key(row) for row in rows}
    return found + [
        f"{EQUIVALENT.name} lists what is no mutant: {key}" for key in entries if key not in keys
    ]


def _summarise(rows: list[dict], wrong: list[str]) -> None:
    table = Table(Column("kernel", no_wrap=True), "operator", "killed", "neither", "by")
    groups = {}
    for row in rows:
        groups.setdefault((row["kernel"], row["operator"]), []).append(row)
    for (kernel, operator), group in groups.items():
        status = Counter(row["status"] for row in group)
        by = Counter(row["by"] for row in group if row["status"] == "killed")
        killed = f"{status['killed']} of {status['killed'] + status['survived']}"
        neither = (f"{status[s]} {s}" for s in ("equivalent", NOT_BUILT, TOO_LARGE) if status[s])
        checks = (f"{check} {count}" for check, count in by.most_common())
        table.add_row(kernel, operator, killed, ", ".join(neither), ", ".join(checks))
    console.print(table)
    for text in wrong:
        console.print(text, markup=False, soft_wrap=True)
