"""Device time: calls captured in a CUDA graph that rotate over more data than the L2 holds."""

import copy
import math
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping
from functools import cache

import numpy as np
import torch

from study.agree.agreement import as_tuple

REPLAY_US = 1000  # a replay lasts at least this long
CACHES = 3  # the input sets and their outputs, in units of the L2
MOST_SETS = 1024  # so many calls of the fastest kernel outlast a replay
QUEUE_CYCLES = 400_000  # about 0.2 ms: the GPU sleeps while the host queues what is timed
PLANTED = 20  # one call in so many is added by a planted slowdown: 5 %
WINDOW_S, WARM_S, WARM_AT_MOST_S = 0.05, 0.15, 3.0
SETTLED = 0.01  # two windows agree within this fraction

EVENT_CYCLES = 20_000_000  # about 10 ms: the host queues 20 calls of any backend meanwhile
SLEEP = "spin_kernel"  # what torch.cuda._sleep launches


def set_count(set_bytes: int) -> int:
    """The number of input sets: three times the L2 with their outputs.

    Beyond MOST_SETS no more: then each is used once a replay, before which the L2 is emptied.
    """
    cache = torch.cuda.get_device_properties().L2_cache_size
    return min(math.ceil(CACHES * cache / max(set_bytes, 1)), MOST_SETS)


def input_sets(inputs: tuple, count: int) -> list[tuple]:
    """`inputs` and count - 1 copies of it in memory of their own."""
    return [inputs, *(copy.deepcopy(inputs) for _ in range(count - 1))]


class Captured:
    """One implementation in a CUDA graph: `calls` calls that rotate over `sets`.

    Calling it replays the graph once and gives the device time of a call in µs. slower: capture 5 %
    more calls than are counted. To be made and called in a stream other than the default one. What
    the implementation raises is passed on, then the process must be given up: the stream may still
    be capturing.
    """

    def __init__(self, function: Callable, sets: list[tuple], slower: bool = False):
        self.function, self.sets = function, sets  # their memory must live as long as the graph
        function(*sets[0])  # compiles
        self.begin, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._capture(function, sets, len(sets))
        self.calls = len(sets)
        self()  # uploads the graph
        calls = math.ceil(REPLAY_US / min(self() for _ in range(3)))
        step = math.lcm(len(sets), PLANTED) if slower else len(sets)
        self.calls = step * math.ceil(calls / step)
        extra = self.calls // PLANTED if slower else 0
        if self.calls + extra > len(sets):
            self._capture(function, sets, self.calls + extra)
        self()

    def _capture(self, function, sets, calls):
        # torch.cuda.graph would empty the allocator's cache each time
        self.graph = torch.cuda.CUDAGraph()
        # one output reused by every call would stay in the L2: those of a rotation are kept
        self.outputs = deque(maxlen=len(sets))
        self.graph.capture_begin()
        for i in range(calls):
            self.outputs.append(function(*sets[i % len(sets)]))
        self.graph.capture_end()

    def __call__(self) -> float:
        torch.cuda.synchronize()
        torch.cuda._sleep(QUEUE_CYCLES)
        if len(self.sets) == MOST_SETS:
            _something_else().sum()
        self.begin.record()
        self.graph.replay()
        self.end.record()
        self.end.synchronize()
        return 1e3 * self.begin.elapsed_time(self.end) / self.calls

    def repeats(self) -> bool:
        """Whether what the last replay left in its outputs is bit-identical to one more call's."""
        one_more = _bits(self.function(*self.sets[0]))
        torch.cuda.synchronize()
        return all(
            len(one_more) == len(bits) and all(map(torch.equal, one_more, bits))
            for bits in map(_bits, self.outputs)
        )


@cache
def _something_else() -> torch.Tensor:
    """What leaves nothing of the input sets in the L2 when it is read."""
    count = CACHES * torch.cuda.get_device_properties().L2_cache_size
    return torch.zeros(count // 4, device="cuda")


def _bits(outputs) -> list[torch.Tensor]:
    return [
        y.reshape(-1).view(torch.uint8) for y in as_tuple(outputs) if isinstance(y, torch.Tensor)
    ]


def warm_up(timers: Mapping[Hashable, Callable[[], float]]) -> None:
    """Run all timers in turn until two windows agree within 1 %, for 0.15 to 3 s."""
    begun, previous = time.monotonic(), None
    while True:
        window = _window(timers)
        lasted = time.monotonic() - begun
        settled = previous is not None and abs(window / previous - 1) <= SETTLED
        if lasted >= WARM_AT_MOST_S or lasted >= WARM_S and settled:
            return
        previous = window


def _window(timers) -> float:
    """The mean time of a round."""
    begun, rounds = time.monotonic(), []
    while not rounds or time.monotonic() - begun < WINDOW_S:
        rounds.append(sum(timer() for timer in timers.values()))
    return float(np.mean(rounds))


def interleave(
    timers: Mapping[Hashable, Callable[[], float]], rounds: int, seed: int
) -> Iterator[list[tuple[Hashable, float]]]:
    """Call each timer once a round in random order; yields a round's (key, time) in that order."""
    rng = np.random.default_rng(seed)
    keys = list(timers)
    for _ in range(rounds):
        yield [(keys[i], timers[keys[i]]()) for i in rng.permutation(len(keys))]


def graph_us(function: Callable, sets: list[tuple], load_us: float) -> float:
    """The time of one call in µs by replays of a captured graph, as in the rounds.

    load_us: how long to keep the GPU busy, until it has its sustained clocks, for alone a kernel
    may run at others than among others; the median of the second half counts.
    """
    timer = Captured(function, sets)
    times = [timer() for _ in range(max(4, int(load_us / 2 / (timer() * timer.calls))))]
    return float(np.median(times[len(times) // 2 :]))


def event_us(function: Callable, sets: list[tuple], calls: int) -> float:
    """The time of one call in µs by events around calls that are queued ahead."""
    _call(function, sets, calls)  # fills the allocator's cache
    torch.cuda.synchronize()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(EVENT_CYCLES)
    begin.record()
    _call(function, sets, calls)
    end.record()
    end.synchronize()
    return 1e3 * begin.elapsed_time(end) / calls


def cupti_us(work: list[tuple[Callable, list[tuple], int]]) -> list[float]:
    """The time of one call of each function in µs as the profiler (CUPTI) has it.

    work: functions, the sets their calls rotate over, and how often each is called; all in one
    session, as it takes long to begin one. The sum of the durations of a call's kernels and copies;
    the median of the second half of the calls; NaN where the profiler sees none.
    """
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for function, sets, calls in work:
            _call(function, sets, calls)
            torch.cuda._sleep(1)
        torch.cuda.synchronize()
    found = [[]]
    for event in sorted(profile.events(), key=lambda event: event.time_range.start):
        if SLEEP in event.name:
            found.append([])
        elif event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation:
            found[-1].append(event.time_range.elapsed_us())
    return [_of_a_call(us, calls) for us, (_, _, calls) in zip(found[:-1], work, strict=True)]


def _of_a_call(durations: list[float], calls: int) -> float:
    launches = len(durations) // calls
    if not launches:
        return math.nan
    of_calls = np.reshape(durations[len(durations) - launches * calls :], (calls, launches)).sum(1)
    return float(np.median(of_calls[calls // 2 :]))


def _call(function, sets, calls):
    outputs = deque(maxlen=len(sets))
    for i in range(calls):
        outputs.append(function(*sets[i % len(sets)]))
