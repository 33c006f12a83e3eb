"""Host time, without a GPU: what is timed, by which clock, and the rows that are kept."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves

from implementations import TORCH_DEVICE
from implementations.common import registry
from study.bench import fingerprint, store
from study.bench.cells import select, size_text
from study.bench.entries import UNAVAILABLE, reference
from study.bench.worker import WorkerFailed
from study.speed import dispatch

KERNEL, OTHER = registry.kernels()[:2]
SELECTION = select(KERNEL, "triton,numba")
LAUNCHED = [("_launch", "triton"), ("_launch", "numba")]
CALLED = [(KERNEL, name) for name in ("triton", "numba", reference(KERNEL))]


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only in calls, of 5 µs, and while the GPU is waited for."""
    clock = SimpleNamespace(now=0, waited=[], called=0)

    def call(us=5):
        clock.called += 1
        clock.now += int(1e3 * us)

    def synchronize():
        clock.waited.append(clock.called)
        clock.now += 10**9

    clock.call = call
    monkeypatch.setattr(dispatch.time, "perf_counter_ns", lambda: clock.now)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    return clock


def test_a_call_is_timed_and_not_what_it_is_waited_for(clock):
    times = dispatch.host_us(clock.call, ())
    assert len(times) == clock.called == 1000 and set(times) == {5}
    assert clock.waited == list(range(0, 1001, 50))  # the queue never fills


def test_a_row_has_the_quantiles_of_the_calls_after_the_first(clock, monkeypatch):
    cell = dispatch.cells(KERNEL, ["triton"])[0]
    first, times = [1e6] * 50, [*range(1, 1001)]
    us = iter(first + times)
    monkeypatch.setattr(dispatch, "_prepared", lambda cell: (lambda: clock.call(next(us)), ()))
    row = dispatch.time_cell(cell)
    assert list(row) == dispatch.COLUMNS
    assert row["host_us_p50"] == pytest.approx(np.median(times))
    assert (row["host_us_p20"], row["host_us_p80"]) == pytest.approx((200.8, 800.2))
    assert (row["calls"], row["error"]) == (1000, "")
    assert row["source_hash"] == fingerprint.fingerprint(KERNEL, "triton")


@pytest.mark.parametrize("kernel", registry.kernels())
def test_the_smallest_size_has_something_to_do(kernel):
    spec = registry.spec(kernel)
    size = dispatch.smallest(spec)
    inputs = spec.make_inputs(spec.dtypes[0], "cpu", 0, **size)
    every = tree_leaves((inputs, spec.reference(*inputs)))
    tensors = [x for x in every if isinstance(x, torch.Tensor)]
    assert tensors and all(x.numel() for x in tensors)


def test_every_backend_has_a_launch():
    assert set(dispatch.LAUNCHES) == set(registry.BACKENDS)
    assert len({dispatch.source_hash(c) for c in dispatch.launches(registry.BACKENDS)}) == 3


@pytest.mark.parametrize(
    ("backend", "file", "name"),
    [("cupy", "cuda_cpp.py", "CudaSource"), ("numba", "numba_cuda.py", "launch")],
)
def test_the_fingerprint_of_a_launch_is_of_its_launcher(backend, file, name, monkeypatch):
    (cell,) = dispatch.launches([backend])
    known, parse = dispatch.source_hash(cell), fingerprint.parse

    def changed(path):
        found = parse(path)
        if path != Path(registry.__file__).with_name(file):
            return found
        other = [
            replace(d, text=f"{d.text} changed") if name in d.names else d
            for d in found.definitions
        ]
        return replace(found, definitions=tuple(other))

    monkeypatch.setattr(fingerprint, "parse", changed)
    assert dispatch.source_hash(cell) != known


@pytest.mark.parametrize("backend", registry.BACKENDS)
def test_a_launch_changes_nothing(backend):
    if reason := registry.missing(backend):
        pytest.skip(reason)
    x, y = torch.rand(2, 40, device=TORCH_DEVICE)
    before = x.clone(), y.clone()
    dispatch.LAUNCHES[backend]()(x, y)
    assert torch.equal(x, before[0]) and torch.equal(y, before[1])


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """As on a GPU, each cell timed by a stand-in; returns a function that runs the command."""
    monkeypatch.setattr(dispatch, "DEVICE", "cuda")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    timed = []

    def call(failing, self, function, cell, timeout):
        timed.append((cell.kernel, cell.backend))
        error = failing.get(cell.backend, "")
        if error and not error.startswith(UNAVAILABLE):
            raise WorkerFailed(error, None)
        return dispatch._row(cell, error, *(() if error else (4.5, 5.0, 6.0, 1000)))

    def run(selection=SELECTION, **failing):
        timed.clear()
        monkeypatch.setattr(dispatch.Worker, "call", lambda *a, **k: call(failing, *a, **k))
        return dispatch.run(selection, data=tmp_path), timed

    return run


@pytest.fixture
def path(tmp_path):
    return tmp_path / "some-gpu" / "dispatch.csv"


def test_kernels_baselines_and_launches_are_timed_once(machine, path):
    assert machine() == (True, LAUNCHED + CALLED)
    table = store.read(path)
    assert list(table.columns) == dispatch.COLUMNS
    found = list(table[["kernel", "backend"]].itertuples(index=False, name=None))
    assert sorted(found) == sorted(LAUNCHED + CALLED)
    size = size_text(dispatch.smallest(registry.spec(KERNEL)))
    assert set(table["size"]) == {size, "arrays=2"}
    assert set(table["host_us_p50"]) == {5} and table["error"].isna().all()


def test_rows_replace_their_own_and_no_others(machine, path):
    machine(select(f"{KERNEL},{OTHER}"))
    before = store.read(path)
    store.write(path, before.assign(source_hash="old"))
    machine(select(OTHER, "numba"))
    after = store.read(path)
    assert len(after) == len(before) == 3 + 2 * 4
    new = after[after["source_hash"] != "old"]
    assert set(new[["kernel", "backend"]].itertuples(index=False, name=None)) == {
        ("_launch", "numba"),
        (OTHER, "numba"),
        (OTHER, reference(OTHER)),
    }


def test_what_failed_is_a_row_and_said(machine, path, capsys):
    ok, _ = machine(numba="killed by SIGSEGV")
    assert not ok
    said = capsys.readouterr().out
    (cell,) = (c for c in dispatch.cells(KERNEL, SELECTION.backends) if c.backend == "numba")
    assert f"{cell} was not timed: killed by SIGSEGV" in said
    assert "_launch-numba-float32-arrays=2 was not timed: killed by SIGSEGV" in said
    rows = store.read(path).set_index("backend")
    assert set(rows.loc["numba", "error"]) == {"killed by SIGSEGV"}
    assert rows.loc["numba", "host_us_p50"].isna().all() and set(rows.loc["numba", "calls"]) == {0}
    assert machine(numba=f"{UNAVAILABLE}package numba is not installed")[0]


def test_a_backend_that_cannot_run_here_is_unavailable(monkeypatch):
    monkeypatch.setattr(registry, "missing", lambda backend: f"package {backend} is not installed")
    for cell in (*dispatch.launches(["numba"]), *dispatch.cells(KERNEL, ["numba"])[:1]):
        row = dispatch.time_cell(cell)
        assert row["error"] == f"{UNAVAILABLE}numba: package numba is not installed"


def test_damaged_file_is_refused_before_any_work(machine, path):
    path.parent.mkdir()
    path.write_bytes(b'"\xff')
    with pytest.raises(store.DamagedData, match=r"dispatch\.csv is damaged"):
        machine()
    assert path.read_bytes() == b'"\xff'


def test_without_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(dispatch, "DEVICE", "cpu")
    with pytest.raises(RuntimeError, match="dispatch needs a CUDA device, and torch finds none"):
        dispatch.run(SELECTION, data=tmp_path)
    assert not list(tmp_path.iterdir())
