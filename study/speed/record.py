"""What was measured on one machine: the files that hold it, and the form of their rows."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, astuple
from functools import cache
from pathlib import Path

import pandas as pd

from implementations.common import registry
from study.bench import store
from study.bench.cells import TIMED, Cell
from study.bench.entries import Group, checked, reference, work
from study.bench.fingerprint import fingerprint
from study.speed import ceilings, ratios

UNTRIED = -1  # the process of a row whose backend cannot run here


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
            for key, entry in rows.groupby([*TIMED, "source_hash"])
        }
        return all(found.get((*astuple(e), source_hash(e))) for e in group.entries)

    def has_checks(self, group: Group) -> bool:
        """Whether each entry of the group was cross-checked from its present source."""
        if self.checks.empty:
            return False
        found = set(self.checks[[*TIMED, "source_hash"]].itertuples(index=False, name=None))
        return all((*astuple(e), source_hash(e)) in found for e in checked(group).entries)

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
            self.checks = self.checks.drop_duplicates(TIMED, keep="last")

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
    """The fingerprint of what an entry runs."""
    if entry.kernel.startswith("_"):
        return ceilings.source_hash()
    return fingerprint(entry.kernel, entry.backend)


def sample(entry: Cell, **found) -> dict:
    """A row of samples.parquet, without the rounds that it belongs to; an entry that has no time
    has an `error`."""
    nothing = {
        "round": -1,
        "position": -1,
        "device_us": float("nan"),
        "calls": 0,
        "sm_clock_mhz": 0,
        "temperature_c": 0,
        "throttle": "",
        "error": "",
    }
    return asdict(entry) | nothing | found | {"source_hash": source_hash(entry)}


def check(entry: Cell, times: dict[str, float]) -> dict:
    """A row of crosschecks.csv."""
    return asdict(entry) | times | {"source_hash": source_hash(entry)}
