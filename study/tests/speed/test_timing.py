"""The parts of the timing protocol that need no GPU."""

import math
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from implementations.common.spec import Work
from study.bench.cells import WARM, Cell, select
from study.bench.entries import BANDWIDTHS, FLOOR, bandwidth, ceiling, groups, work
from study.speed import ceilings, timing
from study.speed.rounds import Inputs
from study.tests import chosen


def test_interleaved_rounds_hold_each_once_in_random_order():
    timers = {name: lambda name=name: ord(name) for name in "abcdef"}
    rounds = list(timing.interleave(timers, 200, seed=1))
    assert len(rounds) == 200
    assert all(sorted(keys) == list("abcdef") for keys in ([k for k, _ in r] for r in rounds))
    assert all(us == ord(key) for r in rounds for key, us in r)
    first = Counter(r[0][0] for r in rounds)
    assert len(first) == 6 and max(first.values()) < 60
    assert rounds == list(timing.interleave(timers, 200, seed=1))
    assert rounds != list(timing.interleave(timers, 200, seed=2))


class Clock:
    """Time that passes only as timers run."""

    def __init__(self, monkeypatch, speeds):
        self.now, self.speeds = 0.0, iter(speeds)
        monkeypatch.setattr(timing.time, "monotonic", lambda: self.now)

    def timer(self):
        self.now += 0.05
        return next(self.speeds)


def test_warm_up_ends_when_two_windows_agree(monkeypatch):
    slow, settled = [2.0, 1.8, 1.6, 1.5, 1.4, 1.3, 1.2, 1.1, 1.05], [1.0] * 100
    clock = Clock(monkeypatch, [*slow, *settled])
    timing.warm_up({"a": clock.timer})
    assert 0.45 < clock.now < 1


def test_warm_up_lasts_150_ms_and_at_most_3_s(monkeypatch):
    clock = Clock(monkeypatch, [1.0] * 100)
    timing.warm_up({"a": clock.timer})
    assert 0.15 <= clock.now < 0.3
    clock = Clock(monkeypatch, [1.1**i for i in range(1000)])
    timing.warm_up({"a": clock.timer})
    assert 3 <= clock.now < 3.2


def test_number_of_input_sets(monkeypatch):
    class Gpu:
        L2_cache_size = 50

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: Gpu)
    assert timing.set_count(7) == 22  # 154 bytes, three times 50
    assert timing.set_count(149) == 2
    assert timing.set_count(150) == 1
    assert timing.set_count(0) == 150
    Gpu.L2_cache_size = 50_000
    assert timing.set_count(7) == timing.MOST_SETS


def test_input_sets_are_equal_and_apart():
    inputs = (torch.randn(4), 3)
    sets = timing.input_sets(inputs, 3)
    assert len(sets) == 3 and all(torch.equal(x, inputs[0]) and n == 3 for x, n in sets)
    assert len({x.data_ptr() for x, _ in sets}) == 3


def test_repeats_compares_every_bit():
    captured = object.__new__(timing.Captured)
    nan = torch.tensor([float("nan"), 0.0])
    captured.function, captured.sets = torch.clone, [(nan,)]
    captured.outputs = [nan.clone(), nan.clone()]
    sync, torch.cuda.synchronize = torch.cuda.synchronize, lambda: None
    try:
        assert captured.repeats()
        captured.outputs[1][1] = -0.0
        assert not captured.repeats()
    finally:
        torch.cuda.synchronize = sync


def test_profiled_calls_are_told_apart(monkeypatch):
    """Two kernels a call and none; three calls of 10 + 1 µs, of which the last two count."""

    def event(at, launch):
        name, us = launch
        span = SimpleNamespace(start=at, elapsed_us=lambda: us)
        on = torch.autograd.DeviceType.CUDA
        return SimpleNamespace(name=name, time_range=span, device_type=on, is_user_annotation=False)

    def two(us):
        launched.extend([("sum", us), ("add", 1)])

    launched, us = [], [(500,), (10,), (12,)]
    events = lambda: [event(*x) for x in reversed(list(enumerate(launched)))]  # noqa: E731
    profile = nullcontext(SimpleNamespace(events=events))  # in no order
    monkeypatch.setattr(torch.profiler, "profile", lambda activities: profile)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    sleep = lambda cycles: launched.append((f"void {timing.SLEEP}(long)", 2))  # noqa: E731
    monkeypatch.setattr(torch.cuda, "_sleep", sleep)
    found = timing.cupti_us([(two, us, 3), (lambda: None, [()], 20), (two, us[1:], 2)])
    assert found[0] == 12 and math.isnan(found[1]) and found[2] == 13


def bytes_and_flops(cell):
    done = work(*cell.key.values())
    return done.bytes, done.flops


@pytest.mark.parametrize("count", [12, 32, 4096, 3 * 2**28])
def test_bandwidth_ceilings_move_as_many_bytes(count):
    copy = bandwidth("copy", count)
    moved, _ = bytes_and_flops(copy)
    assert count <= moved < count + 32
    if count <= 4096:
        (x,) = ceilings.inputs(copy, "cpu")
        assert 2 * x.nbytes == moved
        (x,) = ceilings.inputs(bandwidth("read", count), "cpu")
        assert x.nbytes == moved


def test_matmul_ceiling():
    size = {"M": 64, "N": 32, "K": 16}
    done = Work(0, flops=2 * 64 * 32 * 16, limit="matmul")
    cell = ceiling(done, "float16", size | {"split": 4})
    assert cell == Cell("_ceiling", "matmul", "float16", "M=64,N=32,K=16")
    assert bytes_and_flops(cell) == (2 * (64 * 16 + 16 * 32 + 64 * 32), done.flops)
    a, b = ceilings.inputs(cell, "cpu")
    assert torch.mm(a, b).shape == (64, 32)
    attention = ceiling(Work(0, 10**12, "matmul"), "float16", {"B": 4, "H": 16})
    assert abs(bytes_and_flops(attention)[1] / 10**12 - 1) < 0.1


def test_each_limit_is_of_one_kind():
    limits = {
        cell: work(*cell.key.values()) for cell in (FLOOR, *map(bandwidth, BANDWIDTHS, [64] * 3))
    }
    assert [done.limit for done in limits.values()] == ["copy", *BANDWIDTHS]
    assert [done.bytes for done in limits.values()] == [0, 64, 64, 64]


def test_implementations_share_their_inputs(monkeypatch):
    kernel = chosen.small()
    group = next(groups(select(kernel)))
    monkeypatch.setattr(
        Inputs, "_make", lambda self, entry: (torch.randn(4), torch.randn(4)), raising=True
    )
    monkeypatch.setattr(timing, "set_count", lambda set_bytes: 2)
    inputs = Inputs(group)
    sets = [inputs.sets_of(e) for e in group.entries if e.kernel == kernel]
    assert all(s is sets[0] for s in sets) and len(sets[0]) == 2
    warm = replace(group.entries[0], variant=WARM)
    assert inputs.sets_of(warm) == sets[0][:1]
    assert inputs.sets_of(FLOOR) == [()]
