"""What the report may say: numbers from data/ with their intervals, and claims tested on them.

A claim stands in report/text/ as a name, a test and a sentence:

    {% call claim("softmax_at_the_limit", "least(of_limit, 'softmax_fused') >= 0.94") %}
    All three run at the limit of the memory, the slowest at {{ least(of_limit, "softmax_fused") }}.
    {% endcall %}

`Prose` renders such texts and gathers their claims, on the data of any machine.
"""

import json
import math
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property
from pathlib import Path

import jinja2
import pandas as pd

from implementations.common import registry
from implementations.common.check import dtype_name
from study.agree import stability
from study.bench import store
from study.bench.cells import size_text
from study.bench.fingerprint import fingerprint
from study.speed import counters, ratios
from study.speed.ratios import KEY, WARM

TEXT = Path(__file__).parents[1] / "report" / "text"
PUBLISHED = "nvidia-h100-80gb-hbm3"  # the machine whose data the report is about
ARCH = "sm_90a"  # of its machine code

COLUMNS = {
    "agreement": [*KEY, "rule", "margin", "rms", "deterministic", "status", "error", "source_hash"],
    "timings": ratios.COLUMNS,
    "complexity": ["kernel", "backend", "scope", "helpers", "tokens", "source_hash"],
    "samples": [
        *(*KEY, "cell", "process", "round", "device_us", "sm_clock_mhz", "error", "source_hash")
    ],
    "protocol": ["check", "cells", "found", "rate"],
    "radon": ["kernel", "backend", "source_hash"],
    "codegen": [*KEY, "sizes", "arch", "variant", "registers", "error", "source_hash"],
    "counters": counters.COLUMNS,
    "stability": stability.COLUMNS,
}
NOT_RANKED = ("launch-bound", "no verdict")
SOURCE = ["kernel", "backend", "source_hash"]  # of a row: what it measured
OF_A_SOURCE = (
    *("agreement", "timings", "counters", "stability"),  # of a machine
    *("complexity", "radon", "codegen"),
)


class State(Enum):
    """What the data say about a claim."""

    FALSE = "does not hold"
    NO_DATA = "no data"
    UNDECIDED = "undecided"
    HOLDS = "holds"

    def __bool__(self):
        raise TypeError(f"a claim can be {self.value!r}: combine tests by all_of(), not by `and`")


@dataclass(frozen=True)
class Estimate:
    """A number and its interval; NaN where there are no data, and then `note` says why.

    style: "%" shows a fraction as a percentage, ".3f" and the like are formats.
    A `note` on a number (e.g. "launch-bound") forbids conclusions: every comparison is undecided.
    """

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    style: str = ".3f"
    note: str = ""

    def __str__(self):
        if math.isnan(self.value):
            return self.note or "not measured"
        text = self._show(self.value) + (" %" if self.style == "%" else "")
        if self.low < self.high:
            text += f" ({self._show(self.low)}–{self._show(self.high)})"
        return f"{text} [{self.note}]" if self.note else text

    def _show(self, x: float) -> str:
        return f"{100 * x:.1f}" if self.style == "%" else f"{x:{self.style}}"

    def __ge__(self, bound: float) -> State:
        if isinstance(bound, Estimate):
            return NotImplemented  # two estimates are compared by their ratio
        return self._compare(self.low >= bound, self.high < bound)

    def __le__(self, bound: float) -> State:
        if isinstance(bound, Estimate):
            return NotImplemented
        return self._compare(self.high <= bound, self.low > bound)

    def _compare(self, surely: bool, surely_not: bool) -> State:
        if math.isnan(self.value):
            return State.NO_DATA
        if self.note or not (surely or surely_not):
            return State.UNDECIDED
        return State.HOLDS if surely else State.FALSE

    def __truediv__(self, other: "Estimate") -> "Estimate":
        """The quotient, its interval the widest that both intervals allow."""
        values = (self.value / other.value, self.low / other.high, self.high / other.low)
        return Estimate(*values, ".2f", self.note or other.note)


def all_of(*states: State) -> State:
    """False where one is, else unknown where one is, else true."""
    return min(states, key=list(State).index)


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
    stability: pd.DataFrame

    @classmethod
    def load(cls, folder: Path, machine: str = PUBLISHED) -> "Data":
        """Read what there is. Raises DamagedData for a file that cannot be read."""
        home = folder / machine

        def table(path: Path) -> pd.DataFrame:
            if not path.exists():
                return pd.DataFrame(columns=COLUMNS[path.stem], dtype=object)
            found = store.read(path)
            if missing := [name for name in COLUMNS[path.stem] if name not in found]:
                raise store.DamagedData(f"{path} must have the column(s) {', '.join(missing)}")
            return found

        return cls(
            machine,
            _environment(home / "environment.json"),
            table(home / "agreement.csv"),
            table(home / "timings.csv"),
            table(home / "samples.parquet"),
            table(home / "protocol.csv"),
            table(folder / "complexity.csv"),
            table(folder / "radon.csv"),
            table(folder / "codegen.csv"),
            table(home / "counters.csv"),
            table(home / "stability.csv"),
        )

    @cached_property
    def stale(self) -> list[str]:
        """The implementations whose rows measured another source than the one on the disk."""
        return [
            f"{name}.csv: {kernel}-{backend}"
            for name in OF_A_SOURCE
            for kernel, backend, _ in _stale(getattr(self, name))
        ]

    def current(self) -> "Data":
        """The same without the rows that `stale` names."""
        kept = {}
        for name in OF_A_SOURCE:
            table = getattr(self, name)
            old = pd.MultiIndex.from_tuples(_stale(table), names=SOURCE)
            kept[name] = table[~pd.MultiIndex.from_frame(table[SOURCE]).isin(old)]
        return replace(self, **kept)

    def cell(self, kernel: str, backend: str, dtype: str | None = None, size: str | None = None):
        """The row of timings.csv (a Series), by default at the headline dtype and size, or None."""
        return self._timed.get(_key(kernel, backend, dtype, size))

    @cached_property
    def _timed(self) -> dict[tuple, pd.Series]:
        return _by_cell(self.timings)

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
        return dict(iter(self.samples.groupby([*KEY, "source_hash"], sort=False)))

    def _rounds(self, row: pd.Series) -> pd.DataFrame:
        return self._by_source.get(tuple(row[[*KEY, "source_hash"]]), self.samples.iloc[:0])

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

    def margin(self, kernel: str, backend: str) -> Estimate:
        """The largest error over its bound, of all dtypes and sizes; at most 1 where all agree."""
        a = self.agreement
        rows = a[(a.kernel == kernel) & (a.backend == backend)]
        if (rows.status == "failed").any():
            return Estimate(note="failed")
        worst = rows.margin.max()
        return Estimate(worst, worst, worst, ".2f")

    def count(
        self, kernel: str, backend: str, what="tokens", scope="all", helpers="without"
    ) -> Estimate:
        """A column of complexity.csv."""
        c = self.complexity
        at = (c.kernel == kernel) & (c.backend == backend)
        rows = c[at & (c.scope == scope) & (c.helpers == helpers)]
        value = float(rows[what].iloc[-1]) if len(rows) else math.nan
        return Estimate(value, value, value, ",.0f", "" if len(rows) else "not counted")

    def launched(self, kernel: str, backend: str) -> pd.DataFrame:
        """The rows of codegen.csv that the headline cell launches."""
        dtype, size = headline(kernel)
        c = self.codegen
        here = c[(c.kernel == kernel) & (c.backend == backend) & (c.dtype == dtype)]
        here = here[here.arch == ARCH]
        return here[[size in sizes.split() for sizes in here.sizes]]

    def machine_code(self, kernel: str, backend: str, what: str) -> Estimate:
        """A column of codegen.csv at the headline, the largest of all kernels that it launches."""
        found = self.launched(kernel, backend)
        value = found[what].max() if what in found else math.nan
        note = "not compiled" if math.isnan(value) else ""
        return Estimate(value, value, value, ",.4g", note)

    def counter(self, kernel: str, backend: str, what: str, dtype=None, size=None) -> Estimate:
        """A column of counters.csv: what the hardware counted of one call on cold caches."""
        style, row = counters.FIGURES[what], self._counted.get(_key(kernel, backend, dtype, size))
        if row is None:
            return Estimate()
        note = "failed" if isinstance(row.error, str) and row.error else ""
        return Estimate(row[what], row[what], row[what], style, note)

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

    def tokens(self, kernel: str, backend: str, to=None) -> Estimate:
        """Tokens of all scopes without shared helpers, or their ratio to another backend's."""
        ours = self.count(kernel, backend)
        return ours if to is None else ours / self.count(kernel, to)

    def ceiling(self, kernel: str) -> str:
        """What bounds the kernel at its headline size: the name of the measured ceiling."""
        t = self.timings
        names = t[(t.kernel == kernel) & t.ceiling.notna()].ceiling
        return str(names.iloc[0]) if len(names) else "not measured"


def _environment(path: Path) -> dict:
    try:
        return json.loads(path.read_text()) if path.exists() else {}
    except ValueError as error:
        raise store.DamagedData(f"{path} is damaged and was left untouched: {error}") from error


def _stale(table: pd.DataFrame) -> list[tuple[str, str, str]]:
    """The kernels, backends and hashes of which the source on the disk is another."""
    found = []
    for kernel, backend, measured in table[SOURCE].drop_duplicates().itertuples(index=False):
        if kernel.startswith("_"):  # ceilings and the floor measure no source
            continue
        known = kernel in registry.kernels()
        if not known or measured != fingerprint(kernel, backend.removesuffix(WARM)):
            found.append((kernel, backend, measured))
    return found


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


def number(x: float) -> str:
    """Three significant digits or all before the point: 2,936; 88.4; 0.0123. Empty for NaN."""
    if math.isnan(x):
        return ""
    return f"{x:,.0f}" if abs(x) >= 100 else f"{x:.3g}"


def gather(summary: Callable[[Sequence[float]], float]) -> Callable:
    """A function that summarises a measure over kernels and backends (None: all of them).

    The summary of the lows and highs is its interval; no data where one cell has none.
    """

    def summarise(measure, kernels=None, backends=None, **options) -> Estimate:
        kernels = registry.kernels() if kernels is None else kernels
        backends = registry.BACKENDS if backends is None else backends
        kernels = (kernels,) if isinstance(kernels, str) else kernels
        backends = (backends,) if isinstance(backends, str) else backends
        found = [measure(k, b, **options) for k in kernels for b in backends]
        empty = next((e for e in found if math.isnan(e.value)), None if found else Estimate())
        if empty:
            return empty
        values, lows, highs = ([getattr(e, at) for e in found] for at in ("value", "low", "high"))
        note = next((e.note for e in found if e.note), "")
        style = found[0].style
        return Estimate(summary(values), summary(lows), summary(highs), style, note)

    return summarise


@dataclass(frozen=True)
class Claim:
    """A sentence of the report, and what the data say about it. where: the text it stands in."""

    name: str
    test: str
    sentence: str
    state: State
    where: str


class Prose:
    """Renders the texts of report/text/ (Markdown with Jinja2) on one machine's data.

    claims: those of the texts rendered so far, by name.
    """

    MARK = {State.HOLDS: "✓", State.FALSE: "✗", State.UNDECIDED: "?", State.NO_DATA: "–"}

    def __init__(self, data: Data):
        self.claims: dict[str, Claim] = {}
        self._where = ""
        self.environment = jinja2.Environment(undefined=jinja2.StrictUndefined, lstrip_blocks=True)
        methods = (
            "speed",
            "of_limit",
            "ratio",
            "clock",
            "margin",
            "count",
            "tokens",
            "ceiling",
            "machine_code",
            "counter",
            "finite",
            "largest",
        )
        self.environment.globals = {
            **{name: getattr(data, name) for name in methods},
            **{"least": gather(min), "most": gather(max), "median": gather(statistics.median)},
            "all_of": all_of,
            "memory_bound": bound_by("GB/s"),
            "compute_bound": bound_by("TFLOP/s"),
            "kernels": registry.kernels(),
            "phase": lambda n: tuple(k for k in registry.kernels() if registry.phase(k) == n),
            "title": {name: backend.title for name, backend in registry.BACKENDS.items()},
            "machine": data.machine,
            "claim": self._claim,
        }

    def render(self, path: Path) -> str:
        """The text of one file as Markdown. Raises RuntimeError naming the file that is wrong."""
        self._where = path.name
        try:
            return self.environment.from_string(path.read_text()).render().strip()
        except Exception as error:  # the text's own expressions may raise anything
            raise RuntimeError(f"{path}: {error}") from error

    def _claim(self, name: str, test: str, caller: Callable[[], str]) -> str:
        if name in self.claims:
            raise ValueError(f"the claim {name!r} stands twice")
        state = self.environment.compile_expression(test, undefined_to_none=False)()
        if not isinstance(state, State):
            raise TypeError(f"the test of {name!r} must compare estimates, got {state!r}")
        sentence = caller().strip()
        self.claims[name] = Claim(name, test, sentence, state, self._where)
        mark = self.MARK[state] + ("" if state is State.HOLDS else f" {state.value}")
        title = f"{state.value}: {test}".replace('"', "'")
        return f'{sentence}\N{NO-BREAK SPACE}[{mark}](#claims "{title}")'


def typed_numbers(text: str) -> list[str]:
    """The numbers typed into prose, which may come stale unnoticed.

    Not counted: what is in an expression, a claim's test or a code span (definitions, e.g.
    `N ≤ 32768`), digits within a name (fp16, H100, L2), the numbers of a list, and days.
    """
    text = re.sub(r"{%.*?%}|{#.*?#}|```.*?```|`[^`\n]+`", " ", text, flags=re.DOTALL)
    literal = re.findall(r"{{\s*([^}A-Za-z]*?\d[^}A-Za-z]*?)\s*}}", text)
    text = re.sub(r"{{.*?}}|\]\([^)]*\)|[Dd]ays? \d+|^ *\d+\. ", " ", text, flags=re.DOTALL | re.M)
    return literal + re.findall(r"(?<!\w)(?<!\w[.-])\d(?:[\d.,]*\d)?", text)
