"""Kernels whose constants are searched: the space, and what of it a host takes for a problem."""

import csv
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from implementations.common.device import Properties, model, properties


class Tuning:
    """The configurations of a kernel, one of which its host takes for each problem.

    space: all that are searched, of one NamedTuple. default: what to take on a GPU that was not
    searched, by its properties. winners: a CSV file that `study tune` writes: by model of GPU,
    backend and size the fastest configuration.
    """

    def __init__(
        self,
        space: tuple[NamedTuple, ...],
        default: Callable[[Properties], NamedTuple],
        winners: Path,
    ):
        self.space, self.default, self.winners = space, default, winners
        self._only = None
        self._found: dict[tuple, NamedTuple] = {}

    def choice(self, backend: str, device: torch.device, **size: int) -> NamedTuple:
        """What was fastest on this model of GPU at the size searched that is nearest to `size`: by
        the sum of the logarithms of their dimensions' ratios."""
        if self._only:
            return self._only
        key = backend, device, *size.values()
        if key not in self._found:
            gpu = model(device)
            known = [w for w in self.read() if (w["gpu"], w["backend"]) == (gpu, backend)]

            def distance(winner: dict) -> float:
                return sum(abs(math.log(n / winner[name])) for name, n in size.items() if n)

            found = min(known, key=distance, default=None)
            self._found[key] = self.of(found) if found else self.default(properties(device))
        return self._found[key]

    def read(self) -> Iterator[dict]:
        """The rows of `winners`, numbers as ints."""
        if self.winners.exists():
            with self.winners.open(newline="") as file:
                for row in csv.DictReader(file):
                    yield {k: int(v) if v.isdigit() else v for k, v in row.items()}

    def of(self, row: dict) -> NamedTuple:
        """The configuration in a row that has a column for each of its fields."""
        kind = type(self.space[0])
        return kind(**{name: row[name] for name in kind._fields})

    @contextmanager
    def only(self, configuration: NamedTuple) -> Iterator[None]:
        """Have hosts take this configuration, whatever the problem, in all threads."""
        self._only = configuration
        try:
            yield
        finally:
            self._only = None
