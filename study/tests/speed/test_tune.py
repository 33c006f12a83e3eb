"""The search for the fastest configuration, and what a kernel takes of what it found."""

import math
from collections import Counter
from typing import NamedTuple

import pandas as pd
import pytest
import torch

from implementations import TORCH_DEVICE
from implementations.common import device, registry
from implementations.common.tuning import Tuning
from implementations.tiers.compile import TARGETS
from study.agree import agreement
from study.bench import store
from study.bench.cells import select
from study.bench.fingerprint import code_fingerprint
from study.bench.worker import WorkerFailed
from study.speed import cost_model, tune

TUNED = [kernel for kernel in registry.kernels() if registry.spec(kernel).tuning]
KERNEL = TUNED[0]
GPU = TARGETS["sm_90a"].properties
DEFAULT = registry.spec(KERNEL).tuning.default(GPU)
FEW = 4  # configurations of a space that are tried here: a GPU tries all before it times them


class Sides(NamedTuple):
    BLOCK: int
    warps: int


SPACE = tuple(Sides(block, warps) for block in (64, 128) for warps in (4, 8))
ROWS = """gpu,backend,M,N,BLOCK,warps
Some GPU,triton,512,512,64,4
Some GPU,triton,8192,512,128,8
Some GPU,numba,512,512,64,8
Other GPU,triton,512,512,128,4
"""


@pytest.fixture
def tuning(tmp_path, monkeypatch):
    monkeypatch.setattr(device, "named", lambda device: "Some GPU")
    monkeypatch.setattr(device, "describe", lambda device: GPU)
    (tmp_path / "winners.csv").write_text(ROWS)
    return Tuning(SPACE, lambda properties: Sides(64, 4), tmp_path / "winners.csv")


# --- what a configuration should take -------------------------------------------------------------


def test_the_larger_of_two_paths_bounds_a_step_and_a_part_of_a_wave_a_whole_one():
    class Tiles(NamedTuple):
        BLOCK_M: int = 128
        BLOCK_N: int = 256
        BLOCK_K: int = 64
        num_warps: int = 8
        warp: tuple = (64, 64)

    def clocks(M, N=256, K=64, **tiles):
        return cost_model.clocks(Tiles(**tiles), M, N, K, multiprocessors=4)

    step = ((128 + 256) * 64 * 2 + 8 * (64 + 64) * 64 * 2) / cost_model.SHARED_BYTES
    assert clocks(1) == clocks(128) == clocks(4 * 128) == step
    assert clocks(4 * 128 + 1) == 2 * step and clocks(128, K=129) == 3 * step
    # 5 bytes of shared memory to one of the L2: the latter bounds where it gives less than a fifth
    many = cost_model.clocks(Tiles(), 128, 256, 64, multiprocessors=1000)
    assert many == (128 + 256) * 64 * 2 * 1000 / cost_model.L2_BYTES > step


# --- what a host takes --------------------------------------------------------------------------


def test_the_nearest_size_of_this_gpu_and_backend_counts(tuning):
    def choice(M, N, backend="triton"):
        return tuning.choice(backend, torch.device("cpu"), M=M, N=N)

    assert choice(500, 600) == choice(1, 1) == choice(2000, 512) == Sides(64, 4)
    assert choice(2100, 512) == choice(8192, 8192) == choice(2**40, 512) == Sides(128, 8)
    assert choice(8192, 8192, "numba") == Sides(64, 8)
    assert choice(0, 512) == Sides(64, 4)


def test_a_gpu_that_was_not_searched_takes_the_default(tuning, monkeypatch):
    monkeypatch.setattr(device, "named", lambda device: "New GPU")
    assert tuning.choice("triton", torch.device("cpu"), M=8192, N=512) == Sides(64, 4)
    tuning.winners.unlink()
    monkeypatch.setattr(device, "named", lambda device: "Some GPU")
    assert tuning.choice("numba", torch.device("cpu"), M=8192, N=512) == Sides(64, 4)


def test_one_can_be_asked_for(tuning):
    with pytest.raises(KeyError), tuning.only(Sides(128, 4)):
        assert tuning.choice("triton", torch.device("cpu"), M=512, N=512) == Sides(128, 4)
        raise KeyError
    assert tuning.choice("triton", torch.device("cpu"), M=512, N=512) == Sides(64, 4)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kernel", TUNED)
def test_the_default_is_searched_too(kernel, target):
    tuning = registry.spec(kernel).tuning
    assert tuning.default(TARGETS[target].properties) in tuning.space


@pytest.mark.parametrize("kernel", TUNED)
def test_winners_were_searched(kernel):
    spec = registry.spec(kernel)
    for row in spec.tuning.read():
        assert spec.tuning.of(row) in spec.tuning.space
        assert {name: row[name] for name in spec.headline} in spec.bench_sizes


@pytest.mark.parametrize("backend", registry.BACKENDS)
@pytest.mark.parametrize("kernel", TUNED)
def test_configurations_agree(kernel, backend):
    if reason := registry.missing(backend):
        pytest.skip(reason)
    spec, host = registry.spec(kernel), registry.load(kernel, backend)
    tuning, dtype = spec.tuning, spec.dtypes[0]
    winners = {tuning.of(row) for row in tuning.read() if row["backend"] == backend}
    by_flops = sorted(spec.check_sizes, key=lambda size: spec.work(dtype, **size).flops)
    size = by_flops[2 * len(by_flops) // 3]
    inputs = spec.make_inputs(dtype, TORCH_DEVICE, 0, **size)
    for configuration in {*tuning.space[:: len(tuning.space) // FEW], *winners}:
        with tuning.only(configuration):
            assert not agreement.judge(spec, size, inputs, host(*inputs)).error, configuration


# --- the search ---------------------------------------------------------------------------------


@pytest.fixture
def search(monkeypatch, tmp_path):
    """Runs the command as on a GPU: by `us`, a function of a cell and a configuration, times are
    made up, and what it raises is raised."""
    monkeypatch.setattr(tune, "DEVICE", "cuda")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Some GPU")
    monkeypatch.setattr(device, "named", lambda device: "Some GPU")
    monkeypatch.setattr(tune.os, "cpu_count", lambda: 3)
    tuning = registry.spec(KERNEL).tuning
    monkeypatch.setattr(tuning, "winners", tmp_path / "winners.csv")
    monkeypatch.setattr(tuning, "space", (*tuning.space[: FEW - 1], DEFAULT))
    monkeypatch.setattr(device, "describe", lambda device: GPU)
    calls = Counter()

    def run(us, backends=None):
        def call(self, function, cell, configuration, timeout):
            calls[function.__name__, cell.backend] += 1
            if function is tune.prepare:
                us(cell, configuration)
                return {"registers": 128, "spilled_bytes": 0, "shared_bytes": 1024}
            return us(cell, configuration) + calls[function.__name__, cell.backend] % 3 / 100

        monkeypatch.setattr(tune.Worker, "call", call)
        return tune.run(select(KERNEL, backends), data=tmp_path / "data")

    run.calls, run.tuning = calls, tuning
    run.table = lambda: store.read(tmp_path / "data" / "some-gpu" / "tuning.csv")
    return run


def flat(cell, configuration):
    """The same for all, but for the last of the space, which is a little faster."""
    return 10.0 - (configuration == registry.spec(KERNEL).tuning.space[-1])


def test_all_are_tried_equally_and_kept(search):
    assert search(flat)
    space, sizes = search.tuning.space, registry.spec(KERNEL).bench_sizes
    table = search.table()
    assert len(table) == 3 * len(space) * len(sizes)
    assert not table.duplicated(["backend", "size", *space[0]._fields]).any()
    assert set(search.calls.values()) == {len(space), tune.ROUNDS * len(sizes) * len(space)}
    assert (table.registers == 128).all() and table.device_us_p50.between(9, 10.03).all()
    assert (table.device_us_least <= table.device_us_p50).all()
    assert (table.predicted_clocks > 0).all()
    assert table.default.sum() == 3 * len(sizes)
    hashes = {code_fingerprint(KERNEL, backend) for backend in registry.BACKENDS}
    assert set(table.source_hash) == hashes


def test_the_fastest_are_taken_from_then_on(search):
    assert search(flat)
    rows = list(search.tuning.read())
    assert len(rows) == 3 * len(registry.spec(KERNEL).bench_sizes)
    assert {search.tuning.of(row) for row in rows} == {search.tuning.space[-1]}
    fresh = Tuning(search.tuning.space, search.tuning.default, search.tuning.winners)
    size = registry.spec(KERNEL).headline
    assert fresh.choice("cupy", torch.device("cpu"), **size) == fresh.space[-1]


def test_another_search_replaces_those_of_its_gpu_and_backends_only(search):
    assert search(flat)
    assert search(lambda cell, configuration: -flat(cell, configuration), "numba")
    of = {row["backend"]: search.tuning.of(row) for row in search.tuning.read()}
    assert of["triton"] == of["cupy"] == search.tuning.space[-1] != of["numba"]


def test_what_does_not_run_has_its_reason_and_no_time(search):
    def us(cell, configuration):
        if configuration == search.tuning.space[-1]:
            raise WorkerFailed("too much shared memory", None)
        return flat(cell, configuration)

    assert search(us)
    table = search.table()
    failed = table[table.error.notna()]
    assert set(failed.error) == {"too much shared memory"} and failed.device_us_p50.isna().all()
    assert len(failed) == 3 * len(registry.spec(KERNEL).bench_sizes)
    assert search.tuning.space[-1] not in {search.tuning.of(row) for row in search.tuning.read()}


def test_a_backend_of_which_none_runs_fails_the_command(search):
    def us(cell, configuration):
        if cell.backend == "numba":
            raise WorkerFailed("no driver", None)
        return flat(cell, configuration)

    assert not search(us)
    assert {row["backend"] for row in search.tuning.read()} == {"triton", "cupy"}


def test_without_a_gpu_or_a_tuned_kernel_it_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tune, "DEVICE", "cpu")
    with pytest.raises(RuntimeError, match="needs a CUDA device"):
        tune.run(select(KERNEL), data=tmp_path)
    monkeypatch.setattr(tune, "DEVICE", "cuda")
    other = next(k for k in registry.kernels() if k not in TUNED)
    with pytest.raises(RuntimeError, match=f"those that are: {KERNEL}"):
        tune.run(select(other), data=tmp_path)


def test_without_a_backend_it_is_refused(search, monkeypatch):
    monkeypatch.setattr(registry, "missing", lambda backend: "it is not installed")
    with pytest.raises(RuntimeError, match="needs a backend"):
        search(flat)
    assert not search.tuning.winners.exists()


def test_of_equal_medians_the_first_wins():
    rows = pd.DataFrame(
        [("numba", "M=1", 2.0, 1), ("numba", "M=1", 2.0, 2), ("numba", "M=1", math.nan, 3)],
        columns=["backend", "size", "device_us_p50", "place"],
    )
    assert list(tune.winners(rows).place) == [1]
