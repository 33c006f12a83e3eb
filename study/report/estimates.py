"""Numbers with their intervals, what they say about a bound, and how they are written."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from implementations.common import registry


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


def number(x: float) -> str:
    """Three significant digits or all before the point: 2,936; 88.4; 0.0123. Empty for NaN."""
    if math.isnan(x):
        return ""
    return f"{x:,.0f}" if abs(x) >= 100 else f"{x:.3g}"


def quantity(x: float, unit: str = "") -> str:
    """Three significant digits before a decimal prefix: 4.29 GB."""
    for prefix in ("", "k", "M", "G"):
        if float(f"{x:.3g}") < 1000:
            return f"{x:.3g} {prefix}{unit}".strip()
        x /= 1000
    return f"{number(x)} T{unit}"


def gigabytes(bytes: Estimate) -> str:
    """A number of bytes as a text has it, 4.29 GB; without data, why there are none."""
    return f"{number(bytes.value / 1e9)} GB" if bytes.value > 0 else str(bytes)


def microseconds(x: float) -> str:
    """Four significant digits or all before the point. Empty for NaN."""
    if math.isnan(x):
        return ""
    return f"{x:,.0f}" if x >= 999.5 else f"{x:#.4g}"
