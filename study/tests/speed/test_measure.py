"""The schedule of measurements, without a GPU: what is timed, kept, resumed, told when it fails."""

import os
import signal
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from implementations.common import registry
from implementations.common.check import dtype_name
from study.bench import entries, store, worker
from study.bench.cells import TIMED, select, size_text
from study.bench.entries import groups, reference, work
from study.bench.worker import WorkerFailed
from study.speed import measure, ratios, record, rounds
from study.speed.record import Record
from study.tests import chosen

KERNEL = chosen.small()
SELECTION = select(KERNEL, "triton,numba")
ROUNDS = 4
SPEC = registry.spec(KERNEL)
TWO = next(size for size in SPEC.bench_sizes if size != SPEC.headline), SPEC.headline
SPEC = replace(SPEC, bench_sizes=TWO, dtypes=SPEC.dtypes[:1], warm=False)
GROUPS = 2
ENTRIES = {"triton", "numba", *SPEC.baselines}


def time_group(group, process, rounds):
    """Stands for the GPU: every entry takes 100 µs, the empty kernel 1."""
    rows = [
        record.sample(
            entry, round=i, device_us=1.0 if entry.kernel == "_floor" else 100.0, calls=10
        )
        for i in range(rounds)
        for entry in group.entries
    ]
    return rows, {}


def check_group(group):
    times = {"graph_us": 100.0, "cupti_us": 99.0, "event_us": 101.0}
    return [record.check(entry, times) for entry in group.entries], {}


def crash_on_numba(group, process, rounds):
    for entry in group.entries:
        worker.say(str(entry))
        if entry.backend == "numba":
            os.kill(os.getpid(), signal.SIGSEGV)
    return time_group(group, process, rounds)


class Child:
    """A worker without a process of its own; `broken` fails whenever it is handed over."""

    alive = True
    broken = {}  # backend → reason

    def __init__(self, preload):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def call(self, function, of, *args, timeout):
        for group in of if isinstance(of, tuple) else (of,):
            for entry in group.entries:
                if reason := self.broken.get(entry.backend):
                    raise WorkerFailed(reason, str(entry))
        calls.append((function.__name__, of, *args))
        return function(of, *args)


calls = []


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    calls.clear()
    monkeypatch.setattr(Child, "broken", {})
    monkeypatch.setattr(registry, "spec", {KERNEL: SPEC}.__getitem__)
    monkeypatch.setattr(registry, "missing", lambda backend: None)
    monkeypatch.setattr(measure, "Worker", Child)
    monkeypatch.setattr(measure, "_workers_at_once", lambda: 4)
    monkeypatch.setattr(measure, "compile_groups", lambda of: None)
    monkeypatch.setattr(measure, "time_group", time_group)
    monkeypatch.setattr(measure, "check_group", check_group)


def run(folder, selection=SELECTION, processes=3, rounds=ROUNDS, fresh=False):
    """Measure; the groups and processes that were timed, and the timings."""
    calls.clear()
    with Record(folder) as kept:
        tasks = measure.plan(kept, selection, processes, rounds, fresh)
        measure.measure(kept, tasks, rounds)
    timed = [(str(group), process) for name, group, process, _ in timed_calls()]
    return timed, store.read(folder / "timings.csv")


def timed_calls():
    return [call for call in calls if call[0].startswith("time_group")]


def test_every_group_is_timed_in_every_process_and_checked_once(tmp_path):
    timed, timings = run(tmp_path)
    assert len(timed) == len(set(timed)) == 3 * GROUPS
    assert sum(name == "check_group" for name, *_ in calls) == GROUPS
    samples = store.read(tmp_path / "samples.parquet")
    assert (samples.groupby([*TIMED, "cell"]).size() == 3 * ROUNDS).all()
    ours = timings[timings["kernel"] == KERNEL]
    assert set(ours["backend"]) == ENTRIES
    assert len(ours) == len(ENTRIES) * GROUPS and set(ours["cupti_us"]) == {99}
    limits = timings[timings["kernel"].str.startswith("_")]
    assert set(limits["backend"]) == {"copy", "read", "write", "empty"}
    checks = store.read(tmp_path / "protocol.csv").set_index("check")
    assert list(checks["cells"]) == [1, 1]  # of the headline
    planted = samples[samples["variant"] != ""][TIMED].drop_duplicates()
    key = [KERNEL, "triton", dtype_name(SPEC.dtypes[0]), size_text(SPEC.headline)]
    assert planted.to_numpy().tolist() == [[*key, "again"], [*key, "slower"]]


ENDING = {"again": "#2", "slower": "+5%", "warm": ", warm"}


def as_before(table):
    """A table in the form of before, when a backend's name ended in the variant."""
    endings = table["variant"].map(ENDING).fillna("")
    return table.assign(backend=table["backend"] + endings).drop(columns="variant")


@pytest.fixture
def before(tmp_path, monkeypatch):
    """A folder with every variant, in the form of before, and what was measured in the present."""
    warm = replace(SPEC, warm=True)
    monkeypatch.setattr(entries, "WARM_BYTES", 2**40)
    monkeypatch.setattr(registry, "spec", {KERNEL: warm}.__getitem__)
    run(tmp_path)
    names = "samples.parquet", "crosschecks.csv", "timings.csv"
    tables = {name: store.read(tmp_path / name) for name in names}
    assert set(tables["samples.parquet"]["variant"]) == {"", *ENDING}
    for name, table in tables.items():
        old = as_before(table)
        (old.to_parquet if name.endswith("parquet") else old.to_csv)(tmp_path / name, index=False)
    return tmp_path, tables


def test_data_of_before_are_read_as_those_of_now(before):
    folder, tables = before
    assert {"triton#2", "triton+5%", "numba, warm"} <= set(
        pd.read_parquet(folder / "samples.parquet")["backend"]
    )
    read = {name: store.read(folder / name) for name in tables}
    for name, table in tables.items():
        pd.testing.assert_frame_equal(read[name], table)
    derived = [
        ratios.derive(of["samples.parquet"], of["crosschecks.csv"], work, reference)
        for of in (read, tables)
    ]
    pd.testing.assert_frame_equal(*derived)
    assert (derived[0]["variant"] == "warm").any()


def test_nothing_measured_before_is_lost_or_measured_again(before, monkeypatch):
    folder, tables = before
    samples = tables["samples.parquet"]
    assert run(folder)[0] == []
    group = next(groups(SELECTION))
    with Record(folder) as kept:
        rows, _ = time_group(group, 3, ROUNDS)
        kept.save(kept.add_samples, group, 3, rows)
    written = store.read(folder / "samples.parquet")
    pd.testing.assert_frame_equal(written[: len(samples)], samples)
    assert len(written) == len(samples) + len(rows)
    assert list(written["variant"][len(samples) :]) == [row["variant"] for row in rows]
    pd.testing.assert_frame_equal(store.read(folder / "crosschecks.csv"), tables["crosschecks.csv"])


def test_every_entry_is_called_once_to_compile(monkeypatch):
    called = []
    for name in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(rounds.Inputs, "of", lambda inputs, entry: (entry,))
    monkeypatch.setattr(rounds, "function", lambda entry: called.append)
    of = tuple(groups(SELECTION))
    rounds.compile_groups(of)
    assert called == [entry for group in of for entry in group.entries]


def test_what_is_measured_is_not_measured_again(tmp_path):
    run(tmp_path)
    assert run(tmp_path)[0] == []
    assert len(run(tmp_path, fresh=True)[0]) == 3 * GROUPS
    assert run(tmp_path, processes=4)[0] == [
        (g, 3) for g, p in run(tmp_path, fresh=True)[0][:GROUPS]
    ]
    assert len(run(tmp_path, rounds=ROUNDS + 1)[0]) == 3 * GROUPS


def test_interrupted_run_resumes(tmp_path, monkeypatch):
    def interrupted(group, process, rounds):
        if len(timed_calls()) == 4:
            raise KeyboardInterrupt
        return time_group(group, process, rounds)

    interrupted.__name__ = "time_group"
    monkeypatch.setattr(measure, "time_group", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    done = store.read(tmp_path / "samples.parquet")[["cell", "process"]].drop_duplicates()
    done = set(done.itertuples(index=False, name=None))
    assert len(done) == 3

    monkeypatch.setattr(measure, "time_group", time_group)
    timed, _ = run(tmp_path)
    assert len(timed) == 3 * GROUPS - 3 and not done & set(timed)


def test_changed_source_is_measured_again_with_all_that_was_there(tmp_path, monkeypatch):
    run(tmp_path)
    before = record.source_hash
    monkeypatch.setattr(
        record, "source_hash", lambda e: "new" if e.backend == "numba" else before(e)
    )
    timed, timings = run(tmp_path, select(KERNEL, "numba"))
    assert len(timed) == 3 * GROUPS
    assert {e.backend for e in timed_calls()[0][1].entries} >= ENTRIES
    numba = timings[timings["backend"] == "numba"]
    assert set(numba["source_hash"]) == {"new"} and set(numba["samples"]) == {3 * ROUNDS}


def test_failure_costs_its_own_entries_only(tmp_path, monkeypatch):
    monkeypatch.setattr(Child, "broken", {"numba": "killed by SIGSEGV"})
    timed, timings = run(tmp_path)
    assert len(timed) == 3 * GROUPS
    numba = timings["backend"] == "numba"
    assert set(timings.loc[numba, "error"]) == {"killed by SIGSEGV"} and numba.sum() == GROUPS
    assert timings.loc[~numba, "error"].isna().all()
    assert run(tmp_path)[0] == []  # a failure is a result, until its source changes


def test_size_that_does_not_fit_is_a_row(tmp_path, monkeypatch):
    monkeypatch.setattr(Child, "broken", {"copy": "OutOfMemoryError: CUDA out of memory"})
    timed, timings = run(tmp_path)
    ours = timings[timings["kernel"] == KERNEL]
    assert timed == [] and len(ours) == len(ENTRIES) * GROUPS
    assert set(ours["error"]) == {"unavailable: this size does not fit the GPU's memory"}


def test_outputs_that_change_are_an_error(tmp_path, monkeypatch):
    def other_bits(group, process, rounds):
        rows, _ = time_group(group, process, rounds)
        return rows, {e: "other bits" for e in group.entries if e.backend == "triton"}

    monkeypatch.setattr(measure, "time_group", other_bits)
    _, timings = run(tmp_path)
    triton = timings[timings["backend"] == "triton"]
    assert set(triton["error"]) == {"other bits"} and set(triton["samples"]) == {0}


def test_backend_that_cannot_run_here_is_a_row_until_it_can(tmp_path):
    with Record(tmp_path) as kept:
        measure._untried(kept, SELECTION, {"numba": "package numba is not installed"})
        kept.save()
    timings = store.read(tmp_path / "timings.csv")
    assert len(timings) == GROUPS
    assert set(timings["error"]) == {"unavailable: package numba is not installed"}
    with Record(tmp_path) as kept:
        measure._untried(kept, SELECTION, {})
        assert kept.samples.empty


def test_worker_that_crashes_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "time_group", crash_on_numba)
    group = next(groups(SELECTION))
    with Record(tmp_path) as kept, worker.Worker() as child:
        rows, errors = measure._call(kept, child, group, crash_on_numba, 0, ROUNDS)
        assert child.generation == 2
    assert {e.backend: text for e, text in errors.items()} == {"numba": "killed by SIGSEGV"}
    assert {row["backend"] for row in rows} == {e.backend for e in group.entries} - {"numba"}


@pytest.mark.parametrize("name", ["samples.parquet", "timings.csv", "crosschecks.csv"])
def test_damaged_file_is_refused_and_left(tmp_path, name):
    (tmp_path / name).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(store.DamagedData, match=name):
        Record(tmp_path)
    assert (tmp_path / name).read_bytes() == b"\xff\xfe\x00"


def test_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    run(tmp_path)
    before = (tmp_path / "samples.parquet").read_bytes()

    def full(table, path, **_):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", full)
    with pytest.raises(OSError, match="No space left on device"):
        run(tmp_path, fresh=True)
    assert (tmp_path / "samples.parquet").read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def test_without_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "DEVICE", "cpu")
    with pytest.raises(RuntimeError, match="measure needs a CUDA device, and torch finds none"):
        measure.run(SELECTION, processes=3, rounds=20, fresh=False, data=tmp_path)
    assert not list(tmp_path.iterdir())


def test_run_tells_what_failed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measure, "DEVICE", "cuda")
    monkeypatch.setattr(measure.torch.cuda, "get_device_name", lambda: "Some GPU")
    monkeypatch.setattr(measure.environment, "save", lambda path: None)

    def ran(**broken):
        monkeypatch.setattr(Child, "broken", broken)
        return measure.run(SELECTION, processes=1, rounds=ROUNDS, fresh=True, data=tmp_path)

    assert ran()
    assert np.isfinite(store.read(tmp_path / "some-gpu" / "timings.csv")["speed"]).all()
    assert not ran(numba="no answer within 120 s")
    assert "has no speed: no answer within 120 s" in capsys.readouterr().out
