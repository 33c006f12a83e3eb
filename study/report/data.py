"""The data of one machine: its tables, read and checked, and what may be looked up in them."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, wraps
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from implementations.common import registry
from implementations.common.check import dtype_name
from implementations.common.device import Properties
from study.bench import store
from study.bench.cells import AGAIN, KEY, SLOWER, TIMED, parse_size, size_text
from study.bench.entries import reference
from study.bench.fingerprint import code_fingerprint, fingerprint, spec_fingerprint
from study.report.estimates import Estimate, microseconds, number
from study.speed import ratios

PUBLISHED = "nvidia-h200"  # the machine whose data the report is about
ARCH = "sm_90a"  # of its machine code

COUNTED = {  # column of counters.csv → how it is shown
    **dict.fromkeys(("launches", "dram_read_bytes", "dram_write_bytes", "l2_bytes"), ",.0f"),
    **dict.fromkeys(("load_sectors_per_request", "store_sectors_per_request"), ".1f"),
    **{"l2_hit_rate": "%", "occupancy": "%", "issue_rate": "%", "duration_us": ",.1f"},
}
COLUMNS = {  # of each table, those that the report uses
    "agreement": [
        *(*KEY, "rule", "margin", "rms", "deterministic", "status", "error"),
        *("source_hash", "spec_hash"),
    ],
    "timings": ratios.COLUMNS,
    "samples": [
        *(*TIMED, "cell", "process", "round"),
        *("device_us", "sm_clock_mhz", "error", "source_hash"),
    ],
    "protocol": ["check", "cells", "found", "rate"],
    "counters": [*KEY, *COUNTED, "error", "source_hash"],
    "stability": [*KEY, "scale", "finite", "relative_error", "largest", "error", "source_hash"],
    "training": [*KEY, "seed", "step", "loss", "error", "source_hash"],
    "dispatch": [*KEY, *(f"host_us_{p}" for p in ("p20", "p50", "p80")), "error", "source_hash"],
    "tuning": [*KEY, "default", "predicted_clocks", "device_us_p50", "error", "source_hash"],
    "complexity": ["kernel", "backend", "scope", "helpers", "tokens", "source_hash"],
    "radon": ["kernel", "backend", "source_hash"],
    "codegen": [*KEY, "sizes", "arch", "variant", "registers", "error", "source_hash"],
    "mutants": [
        *("kernel", "backend", "operator", "file", "before", "after", "status", "by"),
        *("dtype", "size", "conditions", "source_hash"),
    ],
}
# What no row lacks, in the tables that have it. A line that was cut short ends before its hash.
NEEDED = ("kernel", "backend", "status", "source_hash")
NEARLY = 1.05  # times what the fastest takes is nearly as fast
NOT_RANKED = ("launch-bound", "no verdict")
SOURCE = ["kernel", "backend", "source_hash", "spec_hash"]  # what a row measured, and by what
OF_A_MACHINE = (
    *("agreement", "timings", "counters", "dispatch"),
    *("stability", "training", "tuning"),
)
SHARED = ("complexity", "radon", "codegen", "mutants")  # by all machines
OF_A_SOURCE = (*OF_A_MACHINE, *SHARED)


def _once(look_up: Callable) -> Callable:
    """A method of Data, which the texts ask for the same again and again: it looks it up once."""

    @wraps(look_up)
    def remembered(self, *args, **options):
        key = look_up.__name__, args, *sorted(options.items())
        if key not in self._known:
            self._known[key] = look_up(self, *args, **options)
        return self._known[key]

    return remembered


@dataclass(frozen=True)
class Data:
    """The data of one machine, as published in `data/<machine>/`; empty frames where none are."""

    machine: str
    environment: dict
    agreement: pd.DataFrame
    timings: pd.DataFrame
    samples: pd.DataFrame
    protocol: pd.DataFrame
    complexity: pd.DataFrame
    radon: pd.DataFrame
    codegen: pd.DataFrame
    counters: pd.DataFrame
    dispatch: pd.DataFrame
    stability: pd.DataFrame
    training: pd.DataFrame
    tuning: pd.DataFrame
    mutants: pd.DataFrame

    @classmethod
    def load(cls, folder: Path, machine: str = PUBLISHED) -> "Data":
        """Read what there is, in the registry's order whatever that of a file.

        Raises DamagedData for a file that cannot be read, was cut short, or is not derived from
        the samples beside it.
        """
        home = folder / machine
        of_machine = (*OF_A_MACHINE, "protocol")
        tables = {name: _in_order(_table(home / f"{name}.csv")) for name in of_machine}
        tables |= {name: _in_order(_table(folder / f"{name}.csv")) for name in SHARED}
        samples = _table(home / "samples.parquet")
        _must_be_derived(home / "timings.csv", tables["timings"], samples)
        return cls(machine, _environment(home / "environment.json"), samples=samples, **tables)

    @classmethod
    def timed(cls, folder: Path, machine: str = PUBLISHED) -> "Data":
        """The same of a machine that was timed. Raises RuntimeError for any other."""
        data = cls.load(folder, machine)
        if data.timings.empty:
            path = folder / machine / "timings.csv"
            raise RuntimeError(f"{path} must hold timings, it has none: `study measure` adds them")
        return data

    @cached_property
    def stale(self) -> list[str]:
        """The implementations whose rows measured another source than the one on the disk."""
        return [
            f"{name}.csv: {kernel}-{backend}"
            for name in OF_A_SOURCE
            for table in [getattr(self, name)]
            for kernel, backend in table[_stale(name, table)][SOURCE[:2]]
            .drop_duplicates()
            .to_numpy()
        ]

    @_once
    def current(self) -> "Data":
        """The same without the rows that `stale` names."""
        if not self.stale:
            return self
        tables = {name: getattr(self, name) for name in OF_A_SOURCE}
        return replace(
            self, **{name: table[~_stale(name, table)] for name, table in tables.items()}
        )

    def cell(self, kernel: str, backend: str, dtype: str | None = None, size: str | None = None):
        """The row of timings.csv (a Series), by default at the headline dtype and size, or None;
        of the kernel as it is, not of a variant."""
        return self._timed.get(_key(kernel, backend, dtype, size))

    @cached_property
    def unmeasured(self) -> tuple[str, ...]:
        """The kernels that were not timed at their headline in every backend, whatever came out."""
        return tuple(
            kernel
            for kernel in registry.kernels()
            if any(self.cell(kernel, backend) is None for backend in registry.BACKENDS)
        )

    @cached_property
    def _known(self) -> dict[tuple, object]:
        return {}  # what `_once` has looked up

    @cached_property
    def _timed(self) -> dict[tuple, pd.Series]:
        return _by_cell(self.timings[self.timings.variant == ""])

    @cached_property
    def _counted(self) -> dict[tuple, pd.Series]:
        return _by_cell(self.counters)

    def _estimate(self, column: str, style: str, *cell) -> Estimate:
        row = self.cell(*cell)
        if row is None:
            return Estimate()
        if isinstance(row.error, str) and row.error:
            return Estimate(note="failed")
        low, high = row[f"{column}_low"], row[f"{column}_high"]
        note = row.verdict if row.verdict in NOT_RANKED else ""
        return Estimate(row[column], low, high, style, note)

    # The names below are what prose and tests may call.

    def speed(self, kernel: str, backend: str, dtype=None, size=None) -> str:
        """The speed at the median time, with its unit."""
        row = self.cell(kernel, backend, dtype, size)
        if row is None or math.isnan(row.speed):
            return "not measured" if row is None else "failed"
        return f"{number(row.speed)} {row.unit}"

    def of_limit(self, kernel: str, backend: str, dtype=None, size=None) -> Estimate:
        """The speed as a fraction of the ceiling measured in the same rounds."""
        return self._estimate("of_ceiling", "%", kernel, backend, dtype, size)

    @_once
    def ratio(self, kernel: str, backend: str, to=None, dtype=None, size=None) -> Estimate:
        """The speed relative to the main baseline, or to another backend, paired within rounds."""
        ours = self._estimate("ratio", ".3f", kernel, backend, dtype, size)
        if to is None:
            return ours
        theirs = self._estimate("ratio", ".3f", kernel, to, dtype, size)
        pair = [self.cell(kernel, b, dtype, size) for b in (backend, to)]
        if any(row is None for row in pair) or math.isnan((ours / theirs).value):
            return Estimate(note=ours.note or theirs.note)
        rounds = [self._rounds(row) for row in pair]
        found = ratios.intervals(*rounds)
        if found.empty:
            return Estimate()
        return Estimate(*found.iloc[0], ".3f", ours.note or theirs.note)

    @cached_property
    def _by_source(self) -> dict[tuple, pd.DataFrame]:
        return dict(iter(self.samples.groupby([*TIMED, "source_hash"], sort=False)))

    def _rounds(self, row: pd.Series) -> pd.DataFrame:
        return self._by_source.get(tuple(row[[*TIMED, "source_hash"]]), self.samples.iloc[:0])

    @_once
    def clock(self, kernel: str, backend: str, dtype=None, size=None) -> Estimate:
        """The clock in its rounds over the highest: the median, 20 to 80 % of the rounds."""
        row = self.cell(kernel, backend, dtype, size)
        highest = self.environment.get("gpu", {}).get("sm_clock_max_mhz")
        if row is None or highest is None:
            return Estimate()
        rounds = self._rounds(row)
        share = rounds.sm_clock_mhz[rounds.device_us.notna()] / highest
        low, median, high = share.quantile([0.2, 0.5, 0.8])
        return Estimate(median, low, high, "%")

    @_once
    def margin(self, kernel: str, backend: str) -> Estimate:
        """The largest error over its bound, of all dtypes and sizes; at most 1 where all agree."""
        a = self.agreement
        rows = a[(a.kernel == kernel) & (a.backend == backend)]
        if (rows.status == "failed").any():
            return Estimate(note="failed")
        worst = rows.margin.max()
        return Estimate(worst, worst, worst, ".2f")

    @_once
    def count(
        self, kernel: str, backend: str, what="tokens", scope="all", helpers="without"
    ) -> Estimate:
        """A column of complexity.csv."""
        c = self.complexity
        at = (c.kernel == kernel) & (c.backend == backend)
        rows = c[at & (c.scope == scope) & (c.helpers == helpers)]
        value = float(rows[what].iloc[-1]) if len(rows) else math.nan
        return Estimate(value, value, value, ",.0f", "" if len(rows) else "not counted")

    def launched(self, kernel: str, backend: str, dtype=None, size=None) -> pd.DataFrame:
        """The rows of codegen.csv that a cell launches, by default the headline."""
        _, _, dtype, size = _key(kernel, backend, dtype, size)
        c = self.codegen
        here = c[(c.kernel == kernel) & (c.backend == backend) & (c.dtype == dtype)]
        here = here[here.arch == ARCH]
        return here[[size in sizes.split() for sizes in here.sizes]]

    @_once
    def machine_code(self, kernel: str, backend: str, what: str, dtype=None, size=None) -> Estimate:
        """A column of codegen.csv at a cell, the largest of all kernels that it launches."""
        found = self.launched(kernel, backend, dtype, size)
        value = found[what].max() if what in found else math.nan
        note = "not compiled" if math.isnan(value) else ""
        return Estimate(value, value, value, ",.4g", note)

    def counter(self, kernel: str, backend: str, what: str, dtype=None, size=None) -> Estimate:
        """A column of counters.csv: what the hardware counted of one call on cold caches."""
        style, row = COUNTED[what], self._counted.get(_key(kernel, backend, dtype, size))
        if row is None:
            return Estimate()
        note = "failed" if isinstance(row.error, str) and row.error else ""
        if not note and math.isnan(row[what]):
            note = "not counted"
        return Estimate(row[what], row[what], row[what], style, note)

    def moved(self, kernel: str, backend: str, dtype=None, size=None) -> Estimate:
        """The bytes that one call moved to and from the memory, as `counter` has them."""
        ways = (f"dram_{way}_bytes" for way in ("read", "write"))
        read, written = (self.counter(kernel, backend, way, dtype, size) for way in ways)
        both = read.value + written.value
        return Estimate(both, both, both, read.style, read.note)

    def intensity(self, kernel: str, backend: str) -> Estimate:
        """Operations of the mathematics to a byte that was moved, at the headline."""
        spec = registry.spec(kernel)
        flops = spec.work(spec.dtypes[0], **spec.headline).flops
        moved = self.moved(kernel, backend)
        each = flops / moved.value
        return Estimate(each, each, each, ",.3g", moved.note)

    def of_fastest(self, kernel: str, backend: str) -> Estimate:
        """The speed at the headline, in TFLOP/s, over the highest that cuBLAS reached at any size
        of any dtype; of the middle 60 % of the samples."""
        row = self.cell(kernel, backend)
        if row is None or math.isnan(row.speed):
            return Estimate(note="not measured" if row is None else "failed")
        times = (row[f"device_us_{p}"] for p in ("p50", "p80", "p20"))
        return Estimate(*(row.flops / us / 1e6 / self.roof("matmul") for us in times), "%")

    def of_traffic(self, kernel: str, backend: str, dtype=None, size=None) -> Estimate:
        """The bytes that the day's model moves over the time, as a fraction of the fastest copy; of
        the middle 60 % of the samples."""
        _, _, dtype, size = _key(kernel, backend, dtype, size)
        row = self.cell(kernel, backend, dtype, size)
        if row is None or math.isnan(row.speed):
            return Estimate(note="not measured" if row is None else "failed")
        moved = registry.spec(kernel).traffic(getattr(torch, dtype), **parse_size(size))
        times = (row[f"device_us_{p}"] for p in ("p50", "p80", "p20"))
        note = row.verdict if row.verdict in NOT_RANKED else ""
        return Estimate(*(moved / us / 1e3 / self.roof("copy") for us in times), "%", note)

    def faster_than(self, kernel: str, backend: str, other: str, dtype=None, size=None) -> Estimate:
        """The time of another kernel over this one's, both of a backend at a dtype and a size, by
        default this one's headline; of the middle 60 % of the samples, as they share no rounds."""
        _, _, dtype, size = _key(kernel, backend, dtype, size)
        ours, theirs = (self.cell(k, backend, dtype, size) for k in (kernel, other))
        if ours is None or theirs is None or math.isnan(ours.speed + theirs.speed):
            missing = ours is None or theirs is None
            return Estimate(note="not measured" if missing else "failed")
        times = (("p50", "p50"), ("p20", "p80"), ("p80", "p20"))
        quotients = (theirs[f"device_us_{t}"] / ours[f"device_us_{o}"] for t, o in times)
        note = next((x.verdict for x in (ours, theirs) if x.verdict in NOT_RANKED), "")
        return Estimate(*quotients, ".3f", note)

    def workspace(self, kernel: str, size: str | None = None) -> Estimate:
        """The MB that a call of the first dtype allocates beside its outputs on this GPU, as the
        spec declares; the tests hold it against what every backend allocates."""
        if (gpu := self._properties) is None:
            return Estimate()
        spec = registry.spec(kernel)
        at = parse_size(size) if size else spec.headline
        mb = spec.workspace(gpu, spec.dtypes[0], **at) / 1e6
        return Estimate(mb, mb, mb, ",.1f")

    @_once
    def host_us(self, kernel: str, backend: str) -> Estimate:
        """The µs that a call takes on the host until it returns, at the smallest size that it is
        checked at; of "_launch", an empty kernel of two arrays; of the middle 60 % of the calls."""
        d = self.dispatch
        found = d[(d.kernel == kernel) & (d.backend == backend)]
        if found.empty:
            return Estimate()
        row = found.iloc[-1]
        note = "failed" if isinstance(row.error, str) and row.error else ""
        return Estimate(row.host_us_p50, row.host_us_p20, row.host_us_p80, ".1f", note)

    def curves(self, kernel: str, backend: str) -> pd.DataFrame:
        """The losses that training with a kernel gave: a row a step, a column a seed."""
        t = self.training
        rows = t[(t.kernel == kernel) & (t.backend == backend) & t.loss.notna()]
        return rows.pivot(index="step", columns="seed", values="loss")

    def learns_alike(self, kernel: str, backend: str) -> Estimate:
        """The share of the steps at which the mean loss over the seeds lies within what the seeds
        of the main baseline span; 0 to 1."""
        ours, theirs = (self.curves(kernel, b) for b in (backend, reference(kernel)))
        if ours.empty or theirs.empty:
            return Estimate(note="not measured")
        share = ours.mean(axis=1).between(theirs.min(axis=1), theirs.max(axis=1)).mean()
        return Estimate(share, share, share, "%")

    def apart_by_chance(self, kernel: str, backend: str) -> Estimate:
        """Of all ways to deal the curves of a backend and of the main baseline into two hands as
        large as theirs, the share in which the means of the hands lie at least as far apart as
        theirs do, on an average over the steps: the p of an exact permutation test."""
        ours, theirs = (self.curves(kernel, b) for b in (backend, reference(kernel)))
        if ours.empty or theirs.empty:
            return Estimate(note="not measured")
        curves = np.hstack([ours, theirs])
        hands = combinations(range(curves.shape[1]), ours.shape[1])  # ours is the first
        between = [
            curves[:, hand].mean(axis=1) - np.delete(curves, hand, axis=1).mean(axis=1)
            for hand in hands
        ]
        apart = np.abs(between).mean(axis=1)
        share = (apart >= apart[0] * (1 - 1e-9)).mean()
        return Estimate(share, share, share, "%")

    def last_loss(self, kernel: str, backend: str) -> Estimate:
        """The loss at the end of training: the mean over the seeds, and what they span."""
        curves = self.curves(kernel, backend)
        if curves.empty:
            return Estimate(note="not measured")
        last = curves.iloc[-1]
        return Estimate(last.mean(), last.min(), last.max(), ".4f")

    @property
    def _properties(self) -> Properties | None:
        """The GPU as specs are told of it, which size nothing by its shared memory."""
        gpu = self.environment.get("gpu", {})
        if not {"compute_capability", "multiprocessors"} <= gpu.keys():
            return None
        capability = tuple(map(int, gpu["compute_capability"].split(".")))
        return Properties(capability, gpu["multiprocessors"], shared_bytes=0)

    def configurations(self, kernel: str, backend: str, size: str | None = None) -> pd.DataFrame:
        """The rows of tuning.csv that have a time, at a size; by default at the headline."""
        t = self.tuning
        at = (t.kernel == kernel) & (t.backend == backend)
        return t[at & (t["size"] == (size or headline(kernel)[1])) & t.device_us_p50.notna()]

    def gained(self, kernel: str, backend: str, size: str) -> Estimate:
        """The default's time over the fastest configuration's at a size that was searched."""
        found = self.configurations(kernel, backend, size)
        before = found[found.default.astype(bool)].device_us_p50
        if before.empty:
            return Estimate(note="not measured" if found.empty else "failed")
        gain = before.iloc[0] / found.device_us_p50.min()
        return Estimate(gain, gain, gain, ".2f")

    def nearly_best(self, kernel: str, backend: str, size: str) -> Estimate:
        """How many configurations take at most NEARLY times as long as the fastest at a size."""
        us = self.configurations(kernel, backend, size).device_us_p50
        if us.empty:
            return Estimate(note="not measured")
        count = (us <= NEARLY * us.min()).sum()
        return Estimate(count, count, count, ".0f")

    def finite(self, kernel: str, backend: str, dtype=None, scale=None) -> Estimate:
        """The share of rows that come out finite: the least of the dtypes and scales not given."""
        return self._least("finite", "%", kernel, backend, dtype, scale)

    def largest(self, kernel: str, backend: str, dtype=None) -> Estimate:
        """The largest input that comes out finite and right: the least of all dtypes, or of one."""
        return self._least("largest", ".6g", kernel, backend, dtype)

    def _least(self, column: str, style: str, kernel, backend, dtype, scale=None) -> Estimate:
        s = self.stability
        rows = s[(s.kernel == kernel) & (s.backend == backend)]
        rows = rows[rows.dtype == dtype] if dtype else rows
        if rows.error.notna().any():
            return Estimate(note="failed")
        least = rows[(rows.scale == scale) | (scale is None)][column].min()
        return Estimate(least, least, least, style)

    def tokens(self, kernel: str, backend: str, to=None, helpers="without") -> Estimate:
        """Tokens of all scopes, without or with shared helpers, or their ratio to another's."""
        ours = self.count(kernel, backend, helpers=helpers)
        return ours if to is None else ours / self.count(kernel, to, helpers=helpers)

    @_once
    def ceiling(self, kernel: str) -> str:
        """What bounds the kernel at its headline size: the name of the measured ceiling."""
        t = self.timings
        names = t[(t.kernel == kernel) & t.ceiling.notna()].ceiling
        return str(names.iloc[0]) if len(names) else "not measured"

    # Those below only the report's own tables call.

    def time(self, kernel: str, backend: str) -> str:
        """The median µs of a call at the headline."""
        row = self.cell(kernel, backend)
        return "not measured" if row is None else microseconds(row.device_us_p50) or "failed"

    @_once
    def roof(self, ceiling: str, dtype: str | None = None) -> float:
        """The highest speed that a ceiling reached at any size, in GB/s, or TFLOP/s of a dtype."""
        t = self.timings
        found = t[(t.kernel == "_ceiling") & (t.backend == ceiling)]
        return found[(found.dtype == dtype) | (dtype is None)].speed.max()

    @_once
    def ceiling_speed(self, kernel: str) -> float:
        """What that ceiling reached in the rounds of the headline, in the unit of the work."""
        row_of = (self.cell(kernel, backend) for backend in registry.BACKENDS)
        reached = [row.speed / row.of_ceiling for row in row_of if row is not None]
        return pd.Series(reached, dtype=float).median()

    def fault(self, kernel: str) -> dict | None:
        """A row of mutants.csv that the check of values rejected, or else another check; of the
        first backend that has one, and under no stricter conditions than those of the command."""
        m = self.mutants
        found = m[(m.kernel == kernel) & (m.status == "killed") & m.conditions.isna()]
        found = found.sort_values("by", key=lambda by: by != "values", kind="stable")
        return None if found.empty else found.iloc[0].to_dict()


def _table(path: Path) -> pd.DataFrame:
    columns = COLUMNS[path.stem]
    if not path.exists():
        return pd.DataFrame(columns=columns, dtype=object)
    found = store.read(path)
    if missing := [name for name in columns if name not in found]:
        raise store.DamagedData(f"{path} must have the column(s) {', '.join(missing)}")
    if "spec_hash" in found:  # rows of before have none, and are stale unless they are related
        found = found.fillna({"spec_hash": ""})
    needed = [name for name in NEEDED if name in columns]
    lacking = found[found[needed].isna().any(axis=1)]
    if len(lacking):
        raise store.DamagedData(
            f"{path} must have {', '.join(needed)} in every row; {len(lacking)} of {len(found)} "
            f"lack some, the first of them row {lacking.index[0] + 1}"
        )
    return found


def _in_order(table: pd.DataFrame) -> pd.DataFrame:
    """The rows by the registry's order of kernels and backends and the specs' of dtypes and sizes;
    what these do not know comes last, and what they leave open is ordered by the other columns."""
    places = pd.DataFrame(index=table.index)
    if "kernel" in table:
        kernels, of = {}, {}
        for at, kernel in enumerate(registry.kernels()):
            spec = registry.spec(kernel)
            timed = [size for dtype in spec.dtypes for size in spec.timed_sizes(dtype)]
            sizes = map(size_text, (*spec.check_sizes, *spec.more_sizes, *timed, *spec.huge_sizes))
            names = (*map(dtype_name, spec.dtypes), *sizes, *registry.BACKENDS, *spec.baselines)
            kernels[kernel] = at
            of[kernel] = {name: at for at, name in enumerate(dict.fromkeys(names))}
        places["kernel"] = table.kernel.map(kernels).astype(float)
        for column in ("dtype", "size", "backend"):
            if column in table:
                cells = zip(table.kernel, table[column], strict=True)
                places[column] = [of.get(kernel, {}).get(name, math.inf) for kernel, name in cells]
    places = pd.concat([places.add_prefix("place of "), table], axis=1)
    return table.loc[places.sort_values(list(places)).index]


def _must_be_derived(path: Path, timings: pd.DataFrame, samples: pd.DataFrame) -> None:
    """Raises DamagedData where `timings`, of the file `path`, are not those of the samples' cells:
    of each, at its latest source, a row."""
    if not path.exists():  # a first run that was ended by force: nothing was derived yet
        return
    latest = samples.groupby(TIMED, as_index=False).source_hash.last()
    latest = latest[~latest.variant.isin((AGAIN, SLOWER))]
    known = latest.kernel.isin(registry.kernels()) | latest.kernel.str.startswith("_")
    identity = [*TIMED, "source_hash"]
    measured, wanted, found = (
        set(table[identity].itertuples(index=False, name=None))
        for table in (latest, latest[known], timings)
    )
    for lacking, of, what, where in (
        (wanted - found, wanted, "lacks", "cells of samples.parquet"),
        (found - measured, found, "has", "cells that samples.parquet lacks"),
    ):
        if lacking:
            raise store.DamagedData(
                f"{path} {what} {len(lacking)} of {len(of)} {where}; "
                "`study measure` derives it again"
            )


def _environment(path: Path) -> dict:
    try:
        return json.loads(path.read_text()) if path.exists() else {}
    except ValueError as error:
        raise store.DamagedData(f"{path} is damaged and was left untouched: {error}") from error


def fingerprint_of(table: str) -> Callable[[str, str], str]:
    """What makes the source_hash of a table's rows, of a kernel and a backend."""
    return code_fingerprint if table == "tuning" else fingerprint


def _stale(name: str, table: pd.DataFrame) -> pd.Series:
    """Which rows measured another source than that on the disk, or were judged by another spec."""
    of_source = fingerprint_of(name)
    columns = [name for name in SOURCE if name in table]
    known = registry.kernels()

    def old(kernel: str, backend: str, *hashes: str) -> bool:
        if kernel.startswith("_"):  # ceilings and the floor measure no source
            return False
        if kernel not in known:
            return True
        if backend not in registry.BACKENDS and backend not in registry.spec(kernel).baselines:
            return True
        now = of_source(kernel, backend), spec_fingerprint(kernel)
        return hashes != now[: len(hashes)]

    rows = [*zip(*(table[name] for name in columns), strict=True)]
    found = {row: old(*row) for row in dict.fromkeys(rows)}
    return pd.Series([found[row] for row in rows], table.index, dtype=bool)


def _by_cell(table: pd.DataFrame) -> dict[tuple, pd.Series]:
    """The last row of each cell."""
    return {tuple(row[KEY]): row for _, row in table.iterrows()}


def _key(kernel: str, backend: str, dtype: str | None, size: str | None) -> tuple:
    """A cell, by default at the headline dtype and size."""
    return kernel, backend, dtype or headline(kernel)[0], size or headline(kernel)[1]


def headline(kernel: str) -> tuple[str, str]:
    """The dtype and size that the first table shows."""
    spec = registry.spec(kernel)
    return dtype_name(spec.dtypes[0]), size_text(spec.headline)


def rungs(ladder: str) -> tuple[list[str], list[str]]:
    """The kernels of a ladder in the order of the days; of these the last of each headline dtype,
    whose baselines stand for it."""
    kernels = [k for k in registry.kernels() if registry.spec(k).ladder == ladder]
    return kernels, [*{headline(kernel)[0]: kernel for kernel in kernels}.values()]


def bound_by(unit: str) -> tuple[str, ...]:
    """The kernels whose speed is stated in `unit`, "GB/s" or "TFLOP/s", and which by their design
    move the compulsory bytes and no more at their headline size."""
    found = []
    for kernel in registry.kernels():
        spec = registry.spec(kernel)
        work = spec.work(spec.dtypes[0], **spec.headline)
        moved = spec.traffic(spec.dtypes[0], **spec.headline) if spec.traffic else work.bytes
        if work.unit == unit and moved == work.bytes:
            found.append(kernel)
    return tuple(found)
