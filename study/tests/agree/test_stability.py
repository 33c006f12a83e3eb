"""What the stability study finds in softmaxes that are right, that overflow, and that are wrong."""

import math
import shutil

import pytest
import torch

from implementations import DEVICE, TORCH_DEVICE
from implementations.common import registry
from implementations.common.check import dtype_name
from study import status
from study.agree import stability
from study.bench import store
from study.bench.cells import TIMED, select
from study.bench.entries import UNAVAILABLE
from study.bench.worker import WorkerFailed
from study.report import figures
from study.report.data import Data, bound_by
from study.report.document import document
from study.report.estimates import State
from study.report.prose import Prose
from study.tests import chosen, made_up_data

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
SCALES = (0.1, 10, 30, 100, 10_000)
FIRST, OTHER = made_up_data.scaled()[:2]
TYPES = len(registry.spec(FIRST).dtypes)
QUICK = next(k for k in bound_by("GB/s") if registry.spec(k).scales)  # reads its rows once


def right(x):
    return torch.softmax(x, dim=-1)


def naive(x):
    p = torch.exp(x.float())
    return (p / p.sum(-1, keepdim=True)).to(x.dtype)


def wrong(x):
    return right(x) * 0.5


def halved_beyond_50(x):
    return torch.where(x.amax(-1, keepdim=True) > 50, wrong(x), right(x))


def one_infinity(x):
    y = right(x)
    y[3, 5] = math.inf
    return y


def found(softmax, dtype, scale):
    (figures,) = stability.by_scale(softmax, dtype, (scale,))
    return figures["finite"], figures["relative_error"]


@DTYPES
@pytest.mark.parametrize("scale", SCALES)
def test_right_softmax_stays_right(dtype, scale):
    finite, error = found(right, dtype, scale)
    assert finite == 1 and error <= 8 * torch.finfo(dtype).eps


@DTYPES
def test_naive_softmax_overflows(dtype):
    assert found(naive, dtype, 10)[0] == 1
    finite, error = found(naive, dtype, 30)
    assert 0.2 < finite < 0.8 and error <= 30 * torch.finfo(dtype).eps  # in the finite rows
    finite, error = found(naive, dtype, 100)
    assert finite == 0 and math.isnan(error)


def test_scales_are_kept_apart():
    together = stability.by_scale(naive, torch.float32, SCALES)
    assert [row["scale"] for row in together] == list(SCALES)
    assert [(row["finite"], row["relative_error"]) for row in together[:3]] == [
        found(naive, torch.float32, scale) for scale in SCALES[:3]
    ]


@DTYPES
def test_wrong_softmax_is_finite_and_far_off(dtype):
    finite, error = found(wrong, dtype, 1)
    assert finite == 1 and error == pytest.approx(0.5, rel=0.01)


def test_infinity_makes_its_row_and_no_other_not_finite():
    finite, error = found(one_infinity, torch.float32, 1)
    assert finite == 1 - 1 / stability.SIZE["M"] and error < 1e-6


@DTYPES
@pytest.mark.parametrize(
    ("softmax", "bears"),
    [
        (right, lambda dtype: torch.finfo(dtype).max),
        (naive, {torch.float32: 88.7228, torch.float16: 88.6875, torch.bfloat16: 88.5}.get),
        (halved_beyond_50, lambda dtype: 50),
        (wrong, lambda dtype: math.nan),
        (lambda x: x * math.nan, lambda dtype: math.nan),
    ],
    ids=["right", "naive", "halved", "wrong", "NaN"],
)
def test_largest_input(softmax, dtype, bears):
    assert stability.largest(softmax, dtype) == pytest.approx(bears(dtype), rel=1e-6, nan_ok=True)


def test_largest_is_a_number_of_the_dtype_and_the_next_is_too_large():
    largest = torch.tensor(stability.largest(naive, torch.float32))
    assert torch.exp(largest).isfinite()
    assert torch.exp(torch.nextafter(largest, torch.tensor(math.inf))).isinf()


def test_cells_are_every_dtype_in_the_backends_and_the_baseline(new_kernel):
    cells = stability.cells(FIRST, ("numba",))
    assert [(cell.dtype, cell.backend) for cell in cells] == [
        (dtype_name(dtype), backend)
        for dtype in registry.spec(FIRST).dtypes
        for backend in ("numba", "torch")
    ]
    assert stability.cells("double_it", ("numba",)) == []  # its spec has no scales


def test_run_in_a_worker(tmp_path, capsys):
    assert stability.run(select(f"{chosen.small()},{QUICK}", "triton"), data=tmp_path)
    said = capsys.readouterr().out
    cells = 2 * len(registry.spec(QUICK).dtypes)  # with the baseline
    assert f"stability: {cells} of {cells}" in said
    assert "not studied" not in said
    assert bool(list(tmp_path.iterdir())) == (DEVICE == "cuda")


@pytest.mark.parametrize("kernel", chosen.softmaxes(overflow=True))
@pytest.mark.parametrize("backend", registry.BACKENDS)
def test_naive_kernel_overflows_where_its_docstring_says(kernel, backend):
    if reason := registry.missing(backend):
        pytest.skip(reason)
    rows = torch.tensor([88.7, 88.8, -86, -105])[:, None].repeat(1, 8)
    rows[:2, 1:] = 0
    y = registry.load(kernel, backend)(rows.to(TORCH_DEVICE)).cpu()
    assert y[0].tolist() == pytest.approx([1] + 7 * [0], abs=1e-5)
    assert y[1, 0].isnan() and (y[1, 1:] == 0).all()
    assert y[2].tolist() == pytest.approx(8 * [1 / 8]) and y[3].isnan().all()


@pytest.mark.parametrize("kernel", chosen.softmaxes(overflow=False))
@pytest.mark.parametrize("backend", registry.BACKENDS)
def test_rows_that_have_no_softmax_are_nan_and_no_others(kernel, backend):
    if reason := registry.missing(backend):
        pytest.skip(reason)
    x = torch.randn(6, 8)
    x[0, 3], x[1, 3], x[2], x[3, 3] = math.nan, math.inf, -math.inf, -math.inf
    y = registry.load(kernel, backend)(x.to(TORCH_DEVICE)).cpu()
    torch.testing.assert_close(y, right(x), equal_nan=True)


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """As on a GPU, each cell studied by a stand-in; returns a function that runs the study."""
    monkeypatch.setattr(stability, "DEVICE", "cuda")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")

    def study(kernels=FIRST, backends=None, failing={}):  # noqa: B006
        def call(self, function, cell, timeout):
            error = failing.get(cell.backend, "")
            if error and not error.startswith(UNAVAILABLE):
                raise WorkerFailed(error, None)
            one = {"finite": 1.0, "relative_error": 1e-7, "largest": 88.5}
            rows = [{"scale": 1, **one}, {"scale": 100, **one, "finite": 0.25}]
            return [stability._row(cell, error, **({} if error else row)) for row in rows]

        monkeypatch.setattr(stability.Worker, "call", call)
        return stability.run(select(kernels, backends), data=tmp_path)

    return study


@pytest.fixture
def path(tmp_path):
    return tmp_path / "nvidia-h200" / "stability.csv"


def test_rows_replace_their_own_and_no_others(machine, path):
    assert machine(f"{FIRST},{OTHER}", "triton,numba")
    before = store.read(path)
    assert list(before.columns) == stability.COLUMNS
    types = TYPES + len(registry.spec(OTHER).dtypes)
    assert len(before) == types * 3 * 2 and before["error"].isna().all()
    store.write(path, before.assign(source_hash="old"))
    assert machine(FIRST, "numba")
    after = store.read(path)
    new = after[after["source_hash"] != "old"]
    assert len(after) == len(before)
    assert set(new["kernel"]) == {FIRST} and set(new["backend"]) == {"numba", "torch"}


def test_failing_cell_is_a_row_and_said(machine, path, capsys):
    assert not machine(failing={"numba": "killed by SIGSEGV"})
    assert f"{FIRST}-numba-float16-M=64,N=512 was not studied: killed by SIGSEGV" in (
        capsys.readouterr().out
    )
    rows = store.read(path).set_index("backend")
    assert set(rows.loc["numba", "error"]) == {"killed by SIGSEGV"}
    assert rows.loc["numba", "largest"].isna().all() and (rows.loc["cupy", "largest"] == 88.5).all()
    assert machine(failing={"numba": f"{UNAVAILABLE}package numba is not installed"})


def test_damaged_file_is_refused_before_any_work(machine, path):
    path.parent.mkdir()
    path.write_bytes(b'"\xff')
    with pytest.raises(store.DamagedData, match=r"stability\.csv is damaged"):
        machine()
    assert path.read_bytes() == b'"\xff'


def test_nothing_can_be_run_where_kernels_are_only_compiled(monkeypatch, tmp_path):
    monkeypatch.setattr(stability, "DEVICE", "compile")
    with pytest.raises(RuntimeError, match="must run the kernels, got STUDY_DEVICE=compile"):
        stability.run(select(FIRST), data=tmp_path)


def test_the_report_may_quote_it(machine, path, tmp_path):
    machine(failing={"numba": "killed by SIGSEGV"})
    data = Data.load(tmp_path)
    assert data.stale == []
    assert data.finite(FIRST, "cupy").value == 0.25  # the least
    assert data.finite(FIRST, "cupy", "float16", 1).value == 1
    assert str(data.finite(FIRST, "torch", scale=100)) == "25.0 %"
    assert (data.largest(FIRST, "triton") >= 88.5) is State.HOLDS
    assert str(data.largest(FIRST, "triton", "bfloat16")) == "88.5"
    assert str(data.largest(FIRST, "numba")) == "failed"
    assert str(data.finite(FIRST, "numba", scale=1)) == "failed"
    for unknown in (
        data.finite(FIRST, "cupy", scale=7),
        data.largest(OTHER, "cupy"),
        Data.load(tmp_path / "nothing").finite(FIRST, "cupy"),
    ):
        assert str(unknown) == "not measured" and (unknown >= 0) is State.NO_DATA
    text = tmp_path / "text.md"
    text.write_text(f'{{{{ most(finite, "{FIRST}", ("triton", "cupy"), scale=100) }}}}')
    assert Prose(data).render(text) == "25.0 %"

    store.write(path, store.read(path).assign(source_hash="old"))
    assert f"stability.csv: {FIRST}-triton" in Data.load(tmp_path).stale


def test_status_knows_what_is_missing_and_stale(machine, path, tmp_path):
    selection = select(f"{chosen.small()},{FIRST}")
    cells = dict(status._wanted(selection, tmp_path, [path.parent]))[path]
    assert len(cells) == TYPES * (len(registry.BACKENDS) + 1)

    def found():
        rows = store.read(path).reindex(columns=[*TIMED, "source_hash"], fill_value="")
        return status.compare([cell for cell in cells if cell.backend == "numba"], rows)

    assert found() == (TYPES, TYPES, 0)
    machine()
    assert found() == (TYPES, 0, 0)
    store.write(path, store.read(path).assign(source_hash="old"))
    assert found() == (TYPES, 0, TYPES)


@pytest.fixture(scope="module")
def data(made_up, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    shutil.copytree(made_up, folder, dirs_exist_ok=True)
    return Data.load(folder)


def test_figure_marks_what_is_not_finite(data):
    kernels = [k for k in registry.kernels() if registry.spec(k).scales]
    axes = figures.stability(data).axes
    assert len(axes) == 3 * len(kernels)
    for i, ax in enumerate(axes):
        crosses = [line for line in ax.lines if line.get_marker() == "x"]
        at = [x for line in crosses for x in line.get_xdata()]
        naive = kernels[i // 3] == FIRST
        assert at == ([100, 300, 1000, 3000, 10_000] if naive else [])


def test_report_shows_figure_and_table_once(data):
    text = document(data, Prose(data))
    assert text.count("](figures/stability.svg)") == 1
    section = text.partition(f"## Day {registry.spec(FIRST).day}: ")[2].partition("\n## ")[0]
    assert "](figures/stability.svg)" in section
    assert f"| `{FIRST}` | float16 | 88.5 | 88.5 | 88.5 | 88.5 |" in section
    assert f"| `{OTHER}` | float16 | 65504 |" in section
