"""What of a selection is not in data/ yet, or was measured from a source that has changed since."""

from collections.abc import Callable, Iterator
from dataclasses import astuple
from itertools import groupby
from pathlib import Path

import pandas as pd
from rich.table import Table

from implementations.common import registry
from study.agree import stability, training
from study.agree.faults import mutants
from study.bench import store
from study.bench.cells import AGAIN, SLOWER, TIMED, Cell, Selection
from study.bench.entries import groups
from study.bench.fingerprint import fingerprint, spec_fingerprint
from study.bench.progress import console
from study.report.data import Data, fingerprint_of
from study.speed import counters, tune

MEASURED = ("agreement", "timings")  # the tables of a machine


def run(selection: Selection, *, data: Path) -> bool:
    """Print the missing and stale cells of each machine in `data`; whether there are none.

    A machine is a folder with agreement.csv or timings.csv. Raises DamagedData for a table that
    was cut short, or is not derived from the samples beside it.
    """
    machines = sorted({path.parent for path in data.glob("*/*.csv") if path.stem in MEASURED})
    for folder in machines:
        Data.load(data, folder.name)
    table = Table("data", "kernel", "backend", "cells", "missing", "stale")
    for path, wanted in _wanted(selection, data, machines):
        found = store.read(path)
        if not found.empty:
            if path.parent == data:  # of a whole implementation, whatever its dtypes and sizes
                found = found.assign(dtype="", size="", variant="")
            if "spec_hash" in found:  # judged by another spec it is as stale as of another source
                found = found[found["kernel"].isin(registry.kernels())]
                same = found["spec_hash"] == found["kernel"].map(spec_fingerprint)
                found = found.assign(source_hash=found["source_hash"].where(same, ""))
        found = found.reindex(columns=[*TIMED, "source_hash"], fill_value="")
        for (kernel, backend), cells in groupby(
            sorted(wanted, key=_implementation), key=_implementation
        ):
            judged = tried if path.stem == "mutants" else compare
            total, missing, stale = judged(list(cells), found, fingerprint_of(path.stem))
            if missing or stale:
                name = str(path.relative_to(data))
                table.add_row(name, kernel, backend, *map(str, (total, missing, stale)))
    if table.row_count:
        console.print(table)
    if not machines:
        console.print(f"no machine is in {data} yet: `study run` on one with a GPU adds it")
    elif not table.row_count:
        console.print("nothing is missing, nothing is stale")
    return bool(machines) and not table.row_count


def compare(
    cells: list[Cell], found: pd.DataFrame, of_source: Callable[[str, str], str] = fingerprint
) -> tuple[int, int, int]:
    """The number of `cells`, all of one implementation, and of those missing and stale in `found`.

    found: columns TIMED and source_hash, which is what `of_source` makes of an implementation.
    """
    kernel, backend = _implementation(cells[0])
    present = {tuple(key): text for *key, text in found.itertuples(index=False)}
    hashes = [present.get(astuple(cell)) for cell in cells]
    missing = hashes.count(None)
    current = hashes.count(of_source(kernel, backend))
    return len(cells), missing, len(cells) - missing - current


def tried(
    cells: list[Cell], found: pd.DataFrame, of_source: Callable[[str, str], str]
) -> tuple[int, int, int]:
    """The number of faults that an implementation, which `cells` are all of, can have; and of those
    not tried, and tried in another source. As `compare`."""
    kernel, backend = _implementation(cells[0])
    hashes = found.loc[(found["kernel"] == kernel) & (found["backend"] == backend), "source_hash"]
    total, current = len(mutants(kernel, backend)), sum(hashes == of_source(kernel, backend))
    return total, max(0, total - len(hashes)), len(hashes) - current


def _wanted(
    selection: Selection, data: Path, machines: list[Path]
) -> Iterator[tuple[Path, list[Cell]]]:
    """The tables, and the cells that belong in each."""
    checked = [*selection.cells("check"), *selection.cells("large")]
    timed = [
        cell
        for group in groups(selection)
        for cell in group.entries
        if cell.kernel == group.kernel
        and cell.variant not in (AGAIN, SLOWER)  # they test the protocol, which has its own table
        and cell.backend in (*selection.backends, *registry.spec(group.kernel).baselines)
    ]
    studied = [c for k in selection.kernels for c in stability.cells(k, selection.backends)]
    trained = [c for k in selection.kernels for c in training.cells(k, selection.backends)]
    counted = [c for k in selection.kernels for c in counters.cells(k, selection.backends)]
    tuned = [c for c in selection.cells("bench") if tune.searches(c)]
    for folder in machines:
        yield folder / "agreement.csv", checked
        yield folder / "timings.csv", timed
        yield folder / "stability.csv", studied
        yield folder / "training.csv", trained
        if (folder / "counters.csv").exists():  # not everyone may count
            yield folder / "counters.csv", counted
        if (folder / "tuning.csv").exists():  # a search is asked for
            yield folder / "tuning.csv", tuned
    # read, not run: no dtype, no size
    implementations = list({Cell(cell.kernel, cell.backend, "", "") for cell in checked})
    for name in ("codegen.csv", "complexity.csv", "mutants.csv"):
        yield data / name, implementations


def _implementation(cell: Cell) -> tuple[str, str]:
    return cell.kernel, cell.backend
