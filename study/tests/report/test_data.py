"""The data of a machine: looked up, checked when read, and never silently out of date."""

import math
import shutil
from dataclasses import replace

import pandas as pd
import pytest

from implementations.common import registry
from implementations.common.check import dtype_name
from study.agree import stability
from study.bench import store
from study.bench.cells import size_text
from study.report.data import COLUMNS, PUBLISHED, Data, headline
from study.report.estimates import State, all_of
from study.speed import counters
from study.tests import made_up_data

HOLDS, UNDECIDED, NO_DATA = State.HOLDS, State.UNDECIDED, State.NO_DATA
STREAM, PRODUCT = made_up_data.stream(), made_up_data.product()


@pytest.fixture(scope="module")
def folder(made_up, tmp_path_factory):
    """A data folder that lacks nothing."""
    path = tmp_path_factory.mktemp("data")
    shutil.copytree(made_up, path, dirs_exist_ok=True)
    return path


def test_made_up_data_is_found_again(folder):
    data = Data.load(folder)
    assert data.stale == []
    assert all_of(*(data.of_limit(STREAM, b) >= 0.9 for b in registry.BACKENDS)) == HOLDS
    ratio = data.ratio(PRODUCT, "numba", to="cupy")
    assert ratio.low < 0.6 / 0.62 < ratio.high < ratio.low + 0.03
    assert data.tokens(STREAM, "cupy", to="triton").value == 560 / 220
    assert data.margin(made_up_data.exact(), "numba").value == 0
    assert data.ceiling(PRODUCT) == "matmul"
    assert data.clock(PRODUCT, "triton").value == 0.75
    assert data.speed(PRODUCT, "triton").endswith(" TFLOP/s")


def test_launch_bound_cell_and_failed_cell_allow_no_conclusion(tmp_path):
    made_up_data.write(tmp_path, {(STREAM, "numba"): "killed by SIGSEGV"})
    data = Data.load(tmp_path)
    short = (data.timings.verdict == "launch-bound") & (data.timings.backend == "triton")
    row = data.timings[short].iloc[0]
    ratio = data.ratio(row.kernel, "triton", dtype=row["dtype"], size=row["size"])
    assert ratio.note == "launch-bound" and (ratio >= 0.1) == UNDECIDED
    assert str(data.of_limit(STREAM, "numba")) == "failed"
    assert data.speed(STREAM, "numba") == "failed"
    assert (data.ratio(STREAM, "triton", to="numba") >= 0.1) == NO_DATA
    assert (data.ratio(STREAM, "triton") >= 1) == HOLDS


@pytest.mark.parametrize("name", ["timings.csv", "agreement.csv", "samples.parquet"])
def test_table_without_a_column_is_named(made_up, tmp_path, name):
    shutil.copytree(made_up, tmp_path, dirs_exist_ok=True)
    path = tmp_path / PUBLISHED / name
    store.write(path, store.read(path).drop(columns="source_hash"))
    with pytest.raises(store.DamagedData, match=rf"{name} must have the column\(s\) source_hash"):
        Data.load(tmp_path)


@pytest.mark.parametrize("table", ["agreement", "timings", "complexity", "radon", "mutants"])
def test_changed_source_is_stale(folder, table):
    data = Data.load(folder)
    rows = getattr(data, table)
    one = (rows.kernel == STREAM) & (rows.backend == "numba")
    rows.loc[one, "source_hash"] = "123456789012"
    assert data.stale == [f"{table}.csv: {STREAM}-numba"]


def test_vanished_kernel_is_stale(folder):
    data = Data.load(folder)
    gone = data.agreement.head(1).assign(kernel="no_such_kernel")
    object.__setattr__(data, "agreement", pd.concat([data.agreement, gone]))
    assert data.stale == ["agreement.csv: no_such_kernel-triton"]


def test_variants_of_a_cell_are_not_the_cell(folder):
    data = Data.load(folder)
    for cell in data.timings[data.timings.variant != ""].itertuples():
        row = data.cell(cell.kernel, cell.backend, cell.dtype, cell.size)
        assert row.variant == "" and row.device_us_p50 != cell.device_us_p50
    timed = data.timings[(data.timings.kernel == STREAM) & (data.timings.variant == "")]
    warm = timed.assign(variant="warm", device_us_p50=1.0)
    object.__setattr__(data, "timings", pd.concat([timed, warm]))
    assert data.cell(STREAM, "triton").device_us_p50 > 1


def test_machine_code_is_that_of_the_cell_asked_for(folder):
    data, (dtype, size) = Data.load(folder), headline(STREAM)
    one = data.codegen[(data.codegen.kernel == STREAM) & (data.codegen.backend == "cupy")]
    other = one.assign(dtype="float16", sizes="N=2 N=3", registers=99)
    data = replace(data, codegen=pd.concat([data.codegen, other]))
    assert data.machine_code(STREAM, "cupy", "registers").value == 32
    assert data.machine_code(STREAM, "cupy", "registers", dtype, size).value == 32
    assert data.machine_code(STREAM, "cupy", "registers", "float16", "N=3").value == 99
    assert str(data.machine_code(STREAM, "cupy", "registers", "float16", "N=4")) == "not compiled"


def test_one_kernel_beside_another(folder, tmp_path):
    data = Data.load(folder)
    same = data.faster_than(STREAM, "triton", STREAM)
    assert 0.9 < same.low < same.value == 1 < same.high < 1.1
    assert str(data.faster_than(STREAM, "triton", PRODUCT)) == "not measured"  # of that size
    rows = data.timings[(data.timings.kernel == STREAM) & (data.timings.backend == "triton")]
    times = [f"device_us_{p}" for p in ("p20", "p50", "p80")]
    slow = rows.assign(kernel="slow", **(2 * rows[times]))
    data = replace(data, timings=pd.concat([data.timings, slow]))
    doubled = data.faster_than(STREAM, "triton", "slow", *headline(STREAM))
    assert 1.9 < doubled.low < doubled.value == 2 < doubled.high < 2.1
    made_up_data.write(tmp_path, {(STREAM, "numba"): "no memory"})
    assert str(Data.load(tmp_path).faster_than(STREAM, "numba", STREAM)) == "failed"


def test_bytes_of_the_model_over_the_copy(folder):
    data = Data.load(folder)
    kernel = next(k for k in registry.kernels() if registry.spec(k).traffic)
    share = data.of_traffic(kernel, "triton")
    assert 0.95 < share.low <= share.value <= share.high < 1.03
    gone = data.timings[data.timings.kernel != kernel]
    assert str(replace(data, timings=gone).of_traffic(kernel, "triton")) == "not measured"


@pytest.mark.parametrize("kernel", [k for k in registry.kernels() if registry.spec(k).workspace])
def test_workspace_is_that_of_the_machine(folder, kernel):
    data, spec = Data.load(folder), registry.spec(kernel)
    for size in spec.bench_sizes:
        declared = spec.workspace(made_up_data.GPU, spec.dtypes[0], **size)
        assert data.workspace(kernel, size_text(size)).value == declared / 1e6
    assert data.workspace(kernel).value == data.workspace(kernel, headline(kernel)[1]).value
    assert str(replace(data, environment={}).workspace(kernel)) == "not measured"


# What was cut short -------------------------------------------------------------------------------


@pytest.fixture
def home(folder, tmp_path):
    """The machine's folder of a copy of the data."""
    return shutil.copytree(folder, tmp_path / "data") / PUBLISHED


def test_derived_table_without_some_of_its_rows_is_named(home):
    path = home / "timings.csv"
    table = store.read(path)
    store.write(path, table.head(len(table) // 2))
    lost = len(table) - len(table) // 2
    said = rf"timings\.csv lacks {lost} of {len(table)} cells of samples\.parquet; `study measure`"
    with pytest.raises(store.DamagedData, match=said):
        Data.load(home.parent)


def test_derived_table_of_other_sources_is_named(home):
    path = home / "timings.csv"
    table = store.read(path)
    store.write(path, table.assign(source_hash=table.source_hash.where(table.index > 0, "old")))
    with pytest.raises(store.DamagedData, match=rf"timings\.csv lacks 1 of {len(table)} cells"):
        Data.load(home.parent)


def test_samples_that_were_cut_short_are_named(home):
    path = home / "samples.parquet"
    table = store.read(path)
    store.write(path, table[table.kernel != STREAM])
    with pytest.raises(store.DamagedData, match=r"timings\.csv has \d+ of \d+ cells that samples"):
        Data.load(home.parent)


def test_samples_of_a_kernel_that_is_gone_do_no_harm(home):
    path = home / "samples.parquet"
    table = store.read(path)
    gone = table[table.kernel == STREAM].assign(kernel="no_such_kernel")
    store.write(path, pd.concat([table, gone]))
    assert Data.load(home.parent).timings.kernel.nunique() > 2


def test_samples_without_a_derived_table_are_no_damage(home):
    (home / "timings.csv").unlink()  # the first run on a machine was ended by force
    assert Data.load(home.parent).timings.empty
    with pytest.raises(RuntimeError, match=r"timings\.csv must hold timings, it has none"):
        Data.timed(home.parent)


@pytest.mark.parametrize(
    "name", ["timings.csv", "agreement.csv", "stability.csv", "../complexity.csv", "../mutants.csv"]
)
def test_row_with_half_of_its_fields_is_named(home, name):
    path = home / name
    *lines, last = path.read_text().splitlines()
    path.write_text("\n".join((*lines, last[: last.index(",") + len(",triton")], "")))
    said = rf"{path.name} must have kernel, .* in every row; 1 of \d+ lack some, .* row \d+"
    with pytest.raises(store.DamagedData, match=said):
        Data.load(home.parent)


def test_columns_are_those_of_the_files():
    assert set(COLUMNS["stability"]) <= set(stability.COLUMNS)
    assert set(COLUMNS["counters"]) == set(counters.COLUMNS)


def test_rows_come_in_the_order_of_the_registry(home):
    whole = Data.load(home.parent)
    backends = [*registry.BACKENDS, *registry.spec(STREAM).baselines]
    of_one = whole.timings[(whole.timings.kernel == STREAM)]
    assert list(of_one.backend.head(len(backends))) == backends
    known = [kernel for kernel in whole.timings.kernel.unique() if not kernel.startswith("_")]
    assert known == list(registry.kernels())
    for path in (*home.glob("*.csv"), *home.parent.glob("*.csv")):
        store.write(path, store.read(path).sample(frac=1, random_state=0))
    shuffled = Data.load(home.parent)
    for name in set(COLUMNS) - {"samples"}:
        one, other = getattr(whole, name), getattr(shuffled, name)
        pd.testing.assert_frame_equal(*(t.reset_index(drop=True) for t in (one, other)))


def test_what_a_search_gained_and_how_flat_its_optimum_is(folder):
    kernel = next(k for k in registry.kernels() if registry.spec(k).tuning)
    size, data = size_text(registry.spec(kernel).headline), Data.load(folder)
    us = [20.0, 10.0, 10.5, 10.6, math.nan]
    rows = data.tuning[(data.tuning.backend == "cupy") & (data.tuning["size"] == size)].head(5)
    rows = rows.assign(device_us_p50=us, default=[True, *[False] * 4])
    found = replace(data, tuning=rows)
    assert found.gained(kernel, "cupy", size).value == 2
    assert found.nearly_best(kernel, "cupy", size).value == 2
    assert str(found.gained(kernel, "numba", size)) == "not measured"
    assert str(found.nearly_best(kernel, "numba", size)) == "not measured"
    assert str(replace(data, tuning=rows.iloc[1:]).gained(kernel, "cupy", size)) == "failed"


@pytest.mark.parametrize("kernel", registry.kernels())
def test_headline_is_timed(kernel):
    spec = registry.spec(kernel)
    assert spec.headline in spec.bench_sizes
    assert headline(kernel)[0] == dtype_name(spec.dtypes[0])
