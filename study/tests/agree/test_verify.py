"""The checks around a call, and the command that makes them all."""

import dataclasses
import math

import pandas as pd
import pytest
import torch

from implementations import DEVICE
from implementations.common import registry
from study.agree import verify
from study.agree.agreement import Judgement
from study.bench import store
from study.bench.cells import KEY, Cell, seed, select, size_text
from study.bench.fingerprint import fingerprint, spec_fingerprint
from study.tests import chosen

KERNEL = chosen.small()
SPEC = registry.spec(KERNEL)
BY_WORK = sorted(SPEC.check_sizes, key=lambda size: SPEC.work(SPEC.dtypes[0], **size).bytes)
RAGGED = next(s for s in BY_WORK[len(BY_WORK) // 2 :] if any(n % 2 for n in s.values()))
EACH = len(SPEC.dtypes) * len(SPEC.check_sizes)  # cells of a backend
ALL = len(registry.BACKENDS) * EACH


@pytest.mark.parametrize(
    ("host", "check", "error"),
    [
        (
            "out = x.new_empty(x.shape)\nout[:-1] = 2 * x[:-1]\nreturn out",
            "values",
            "output 0: 1 of 5 ",
        ),
        ("return 2 * x", "allocation", "output 0 must be allocated by torch.empty or a relative"),
        (
            "return torch.empty_like(x).copy_(x.mul_(2))",
            "inputs changed",
            "it changed input 0",
        ),
        (
            "x.as_strided((1,), (1,), x.storage_offset() + 5).fill_(1)\n"
            "return torch.add(x, x, out=torch.empty_like(x))",
            "guard zones",
            "it wrote outside input 0",
        ),
        (
            "out = torch.empty_like(x)\n"
            "out.as_strided((6,), (1,), out.storage_offset() - 1).fill_(1)\n"
            "return torch.add(x, x, out=out)",
            "guard zones",
            "it wrote outside its tensor of shape (5,)",
        ),
        (
            "out = torch.add(x, x, out=torch.empty_like(x))\nout[0] += torch.rand(())\nreturn out",
            "runs differ",
            "run 2 differs from run 1",
        ),
        (
            "if not hasattr(double_it, 'space'):\n    double_it.space = torch.empty(9)\n"
            "return torch.add(x, x, out=torch.empty_like(x))",
            "allocation",
            "it keeps a tensor for later calls",
        ),
        (
            "x = x.masked_fill(x.isnan(), 0)\nreturn torch.add(x, x, out=torch.empty_like(x))",
            "non-finite values",
            "of inputs that are not all finite: output 0: 1 of 5 elements are wrong",
        ),
    ],
    ids=[
        *("NaN left", "not allocated", "input", "after input", "before output", "random"),
        *("kept", "NaN dropped"),
    ],
)
def test_what_a_kernel_must_not_do(new_kernel, host, check, error):
    body = "".join(f"    {line}\n" for line in host.splitlines())
    text = "import torch\n\n\ndef double_it(x):\n" + body
    (new_kernel / "double_it_eager.py").write_text(text)
    (cell,) = select("double_it", "eager").cells("check")
    row = verify.check(cell)
    assert (row["status"], row["check"]) == ("disagrees", check)
    assert error in row["error"]
    assert row["deterministic"] == ("run 2" not in row["error"])


def test_a_row_carries_what_it_was_judged_by(new_kernel):
    host = "import torch\n\n\ndef double_it(x):\n    return torch.add(x, x, out=x.new_empty(5))\n"
    (new_kernel / "double_it_eager.py").write_text(host)
    (cell,) = select("double_it", "eager").cells("check")
    row = verify.check(cell)
    assert (row["status"], row["check"], row["rule"]) == ("agrees", "", "exact")
    assert row["source_hash"] == fingerprint("double_it", "eager")
    assert row["spec_hash"] == spec_fingerprint("double_it")


@pytest.mark.parametrize(
    "like", [torch.empty(3, 5), torch.empty(5, 3).T, torch.empty(()), torch.empty(0)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64])
def test_guarded_tensor(like, dtype):
    place = verify.guarded(like.to(dtype), verify.FENCE)
    x = place.tensor
    assert (x.shape, x.stride(), x.dtype) == (like.shape, like.stride(), dtype)
    assert x.data_ptr() % 256 == 0
    assert (x.isnan() if dtype.is_floating_point else x == -1).all()
    x.fill_(1)
    assert place.intact()
    assert place.holds(x)
    place.zones[0][-1] = 0
    assert not place.intact()


def test_seed_is_the_same_everywhere():
    cells = [Cell("double_it", backend, "float16", "N=5") for backend in ("triton", "numba")]
    assert [seed(cell) for cell in cells] == [1155987771, 1155987771]


def test_run_in_a_worker(tmp_path, capsys):
    assert verify.run(select(KERNEL, "triton"), large=False, cover=False, data=tmp_path)
    assert f"{EACH} of {EACH}" in capsys.readouterr().out
    assert bool(list(tmp_path.iterdir())) == (DEVICE == "cuda")


AGREES = ("agrees", "", Judgement(margin=0.5, rms=1e-8, error=""), True)
DISAGREES = ("disagrees", "output 0: [3] is wrong", Judgement(math.inf, 1, ""), True)
FAILED = ("failed", "killed by SIGSEGV")
UNAVAILABLE = ("unavailable", "needs compute capability 9.0, this is 8.6")


BITS = {"float32": 32, "float16": 16, "bfloat16": 16}


@pytest.fixture
def verify_all(monkeypatch, tmp_path):
    """`verify.run` with the outcome of each cell given by its bits instead of by running it."""

    def run(outcomes, backends=None, large=False, cover=False):
        monkeypatch.setattr(
            verify, "_call", lambda _, cell: verify._row(cell, *outcomes[BITS[cell.dtype]])
        )
        return verify.run(select(KERNEL, backends), large=large, cover=cover, data=tmp_path)

    monkeypatch.setattr(registry, "missing", lambda backend: None)
    return run


@pytest.mark.parametrize(
    ("half", "agree"),
    [(AGREES, True), (UNAVAILABLE, True), (DISAGREES, False), (FAILED, False)],
    ids=lambda outcome: outcome[0] if isinstance(outcome, tuple) else "",
)
def test_run_says_what_is_wrong(verify_all, capsys, half, agree):
    assert verify_all({32: AGREES, 16: half}) == agree
    said = capsys.readouterr().out
    line = f"{KERNEL}-numba-float16-{size_text(RAGGED)} {half[0]}: {half[1]}\n"
    assert (line in said) == (not agree)


def test_nothing_verified_is_no_success(verify_all):
    assert not verify_all({32: UNAVAILABLE, 16: UNAVAILABLE})


def test_missing_backend_counts_only_where_asked_for(verify_all, monkeypatch, capsys):
    reasons = {"numba": "package numba is not installed"}
    monkeypatch.setattr(registry, "missing", reasons.get)
    outcomes = {32: AGREES, 16: AGREES}
    assert verify_all(outcomes)
    assert capsys.readouterr().out.count("numba cannot run here: package numba") == 1
    assert not verify_all(outcomes, backends="numba,triton")


@pytest.fixture
def saved(monkeypatch, tmp_path):
    """As on a GPU: a function that reads the rows saved so far, by cell."""
    monkeypatch.setattr(verify, "DEVICE", "cuda")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Test GPU 9")
    return lambda: pd.read_csv(tmp_path / "test-gpu-9" / "agreement.csv").set_index(KEY)


def test_rows_are_replaced_cell_by_cell(verify_all, saved):
    verify_all({32: AGREES, 16: FAILED}, large=True)
    rows = saved()
    headline = size_text(SPEC.headline)
    large = len(SPEC.dtypes) + len(SPEC.huge_sizes)
    assert len(rows) == ALL + len(registry.BACKENDS) * large
    assert rows.loc[(KERNEL, "cupy", "float16", headline), "error"] == "killed by SIGSEGV"

    verify_all({32: AGREES, 16: AGREES}, backends="cupy")
    again = saved()
    assert len(again) == len(rows)
    changed = again["status"] != rows["status"].reindex(again.index)
    assert {key[1:3] for key in again[changed].index} == {
        ("cupy", "float16"),
        ("cupy", "bfloat16"),
    }
    columns = "rule margin rms deterministic status check error source_hash spec_hash"
    assert list(again.columns) == columns.split()


def test_rows_of_before_the_columns_check_and_spec_hash_are_kept(verify_all, saved, tmp_path):
    verify_all({32: AGREES, 16: AGREES})
    path = tmp_path / "test-gpu-9" / "agreement.csv"
    store.write(path, store.read(path).drop(columns=["check", "spec_hash"]))
    verify_all({32: AGREES, 16: DISAGREES}, backends="cupy")
    rows = saved()
    assert len(rows) == ALL
    assert rows["spec_hash"].notna().sum() == EACH
    assert rows.xs("cupy", level="backend")["spec_hash"].notna().all()


def test_a_covering_choice_is_verified_where_it_is_asked_for(verify_all, monkeypatch, capsys):
    asked = []

    def two(selection, codegen):
        asked.append((selection, codegen.empty))
        return list(selection.cells("check"))[:2]

    monkeypatch.setattr(verify, "covering", two)
    assert verify_all({32: AGREES, 16: AGREES}, backends="numba", cover=True)
    assert asked == [(select(KERNEL, "numba"), True)]
    assert f"2 of {EACH} cells launch every variant" in capsys.readouterr().out
    assert verify_all({32: AGREES, 16: AGREES}, backends="numba")
    assert len(asked) == 1 and f"{EACH} of {EACH}" in capsys.readouterr().out


@pytest.mark.parametrize("done", [1, ALL // 2])
def test_interrupted_run_keeps_its_rows(verify_all, done, saved, monkeypatch, tmp_path):
    calls = iter([AGREES] * done)

    def call(worker, cell):
        if (outcome := next(calls, None)) is None:
            raise KeyboardInterrupt
        return verify._row(cell, *outcome)

    monkeypatch.setattr(verify, "_call", call)
    monkeypatch.setattr(verify, "WORKERS", 1)  # of several each may have a cell in hand
    with pytest.raises(KeyboardInterrupt):
        verify.run(select(KERNEL), large=False, cover=False, data=tmp_path)
    assert list(saved()["status"]) == ["agrees"] * done


def test_damaged_file_is_refused_before_any_work(verify_all, saved, tmp_path):
    path = tmp_path / "test-gpu-9" / "agreement.csv"
    path.parent.mkdir()
    path.write_bytes(b'"kernel,\xff')
    with pytest.raises(store.DamagedData, match="agreement.csv is damaged"):
        verify_all({})
    assert path.read_bytes() == b'"kernel,\xff'


@pytest.mark.skipif(DEVICE != "cpu", reason="the sanitizers watch the CPU tier")
def test_sanitizers_find_nothing_and_say_what_fails(capsys, monkeypatch):
    if reason := registry.missing("cupy"):
        pytest.skip(reason)
    few = dataclasses.replace(SPEC, check_sizes=(RAGGED,))
    monkeypatch.setattr(registry, "spec", lambda kernel: few)
    assert verify.sanitize(select(KERNEL))
    assert capsys.readouterr().out.count(f"{(n := len(SPEC.dtypes))} of {n}") == 2

    monkeypatch.setattr(verify, "_call", lambda _, cell: verify._row(cell, *FAILED))
    assert not verify.sanitize(select(KERNEL))
    said = capsys.readouterr().out
    assert f"{KERNEL}-cupy, thread-float32-{size_text(RAGGED)} failed: killed by" in said
