"""What a worker does with a group: compile it, time it in interleaved rounds, cross-check it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict

import numpy as np
import torch

from implementations.common import registry
from study.bench import entries, environment, worker
from study.bench.cells import SLOWER, WARM, Cell, seed
from study.bench.entries import FLOOR, UNAVAILABLE, Group
from study.speed import ceilings, timing
from study.speed.record import check, sample

# of load in a cross-check: clocks fall slowly where arithmetic is the limit, and they rise slowly
# for the first of a group, after its inputs were made
CHECK_US, FIRST_CHECK_US = {"GB/s": 20_000, "TFLOP/s": 150_000}, 150_000
EVENT_CALLS, PROFILED_CALLS = (4, 20), (4, 100)  # as many as the load, at least and at most


def function(entry: Cell) -> Callable:
    """What is called for any entry. Raises Unavailable."""
    return (ceilings if entry.kernel.startswith("_") else entries).function(entry)


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
        if entry == FLOOR:
            return [()]
        count = self._shared("count", lambda: timing.set_count(self.group.work.bytes))
        if entry.kernel.startswith("_"):
            return timing.input_sets(ceilings.inputs(entry), count)
        sets = self._shared("sets", lambda: timing.input_sets(self.of(entry), count))
        return sets[:1] if entry.variant == WARM else sets

    def _shared(self, name, make):
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def _make(self, entry):
        spec = registry.spec(entry.kernel)
        return spec.arguments(entry.torch_dtype, "cuda", seed(entry), **entry.sizes)


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
            captured[entry] = timing.Captured(call, sets, entry.variant == SLOWER)
            timers[entry] = _announced(entry, captured[entry])
        timing.warm_up(timers)
        for i, measured in enumerate(timing.interleave(timers, rounds, seed=process)):
            state = asdict(sensor.state())
            for position, (entry, us) in enumerate(measured):
                place = {"round": i, "position": position}
                calls = captured[entry].calls
                rows.append(sample(entry, **place, device_us=us, calls=calls, **state))
        for entry, graph in captured.items():
            if not (_is_random(entry) or graph.repeats()):
                errors[entry] = "the timed calls gave other bits than one more call"
    return rows, errors


def _is_random(entry: Cell) -> bool:
    """Whether it is a baseline that draws random numbers of its own."""
    of = registry.kernels()
    return entry.kernel in of and entry.backend in registry.spec(entry.kernel).random_baselines


def check_group(group: Group) -> tuple[list[dict], dict[Cell, str]]:
    """Time each entry by three instruments: rows of crosschecks.csv, and errors."""
    load = CHECK_US[group.work.unit]
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
    return [check(entry, of) for entry, of in times.items()], errors


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
