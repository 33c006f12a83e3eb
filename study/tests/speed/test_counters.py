"""What is made of ncu's output, and what a machine without it, or a child that fails, costs."""

import json
import math
import sys
import time
from contextlib import nullcontext

import pandas as pd
import pytest
import torch

from implementations.common import registry
from study.bench import store
from study.bench.cells import KEY, Cell, select
from study.report.data import Data, headline
from study.report.estimates import State
from study.report.prose import Prose
from study.speed import counters
from study.speed.counters import METRICS, UNAVAILABLE
from study.tests import chosen, made_up_data

LAUNCH = (
    '"{id}","4242","python3.12","127.0.0.1","{kernel}","1","7","(256, 1, 1)","(8, 1, 1)","0","9.0"'
)
HEADER = (
    '"ID","Process ID","Process Name","Host Name","Kernel Name","Context","Stream","Block Size",'
    '"Grid Size","Device","CC"'
)
KERNEL, OTHER = chosen.small(), made_up_data.product()
DTYPE, SIZE = headline(KERNEL)
BASELINES = {kernel: list(registry.spec(kernel).baselines) for kernel in (KERNEL, OTHER)}
READ = 2147480000  # 2³¹ in a file of six digits


def printed(launches, duration="ns"):
    """The log of ncu: launches are a kernel and its METRICS each, as text."""
    units = ["byte", "byte", "byte", "sector", "", "sector", "", "%", "%", "%", duration]
    names = sorted(METRICS.values())  # ncu sorts the columns, whatever order they are asked for in
    order = [list(METRICS.values()).index(name) for name in names]
    lines = [
        "==PROF== Connected to process 4242 (/usr/bin/python3.12)",
        '==PROF== Profiling "empty_kernel" - 0: 0%....50%....100% - 3 passes',
        ",".join([HEADER, *(f'"{name}"' for name in names)]),
        ",".join(['""'] * 11 + [f'"{units[i]}"' for i in order]),
    ]
    for i, (kernel, values) in enumerate(launches):
        row = LAUNCH.format(id=i, kernel=kernel)
        lines.append(",".join([row, *(f'"{values[at]}"' for at in order)]))
    return "\n".join([*lines, "==PROF== Disconnected from process 4242", ""])


EMPTY = ("void empty_kernel<0>()", ["0"] * 10 + ["1,024"])
ADD = (
    "void vector_add_kernel<float>(const T1 *, const T1 *, T1 *, long)",
    ["2,147,483,648", "1,073,741,824", "3,221,225,472", "67,108,864", "4,194,304", "33,554,432"]
    + ["2,097,152", "0.5", "87.25", "40", "1,100,000"],
)
FIRST = ("max_kernel", ["3,000", "1,000", "4,000", "96", "8", "0", "0", "20", "50", "10", "3,000"])
SECOND = (
    "sum_kernel",
    ["1,000", "2,000", "12,000", "32", "8", "64", "4", "60", "90", "30", "1,000"],
)

NCU = f"""#!{sys.executable} -SI
# Stands for ncu: prints what plan.json says, or fails as it says.
import json, pathlib, subprocess, sys
options, report, cells = sys.argv[1:-2], sys.argv[-2], json.loads(sys.argv[-1])
plan = json.loads(pathlib.Path(__file__).with_name("plan.json").read_text())
log = pathlib.Path(options[options.index("--log-file") + 1])
log.write_text(plan["log"][str(len(cells))])
errors = [plan["errors"].get(backend, "") for kernel, backend, *_ in cells]
kinds = [plan["kinds"].get(kernel) for kernel, *_ in cells] + [plan["probe"]]
print("the child says something")
if kinds[0] == "crashes":
    pathlib.Path(report).write_text(json.dumps(errors[:1]))
    print("RuntimeError: illegal memory access")
    sys.exit(9)
if kinds[0] == "hangs":
    subprocess.run(["sleep", "60"])
if kinds[0] == "is refused":
    log.write_text("==ERROR== ERR_NVGPUCTRPERM - The user does not have permission.\\n")
    sys.exit(1)
pathlib.Path(report).write_text(json.dumps(errors))
"""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Makes this a machine with a GPU and a stand-in for ncu; then counts, with what goes wrong."""
    monkeypatch.setattr(counters, "DEVICE", "cuda")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    program = tmp_path / "bin" / "ncu"
    program.parent.mkdir()
    program.write_text(NCU)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")

    def count(kernels=KERNEL, backends="triton,numba", errors={}, probe="", **kinds):  # noqa: B006
        logs = {n: printed([EMPTY, *[ADD, EMPTY] * n]) for n in range(10)}
        plan = {"log": logs, "errors": errors, "kinds": kinds, "probe": probe}
        (program.parent / "plan.json").write_text(json.dumps(plan))
        return counters.run(select(kernels, backends), data=tmp_path)

    return count


@pytest.fixture
def path(tmp_path):
    return tmp_path / "nvidia-h200" / "counters.csv"


def test_launches_are_read_in_bytes_fractions_and_microseconds():
    found = counters.parse(printed([EMPTY, ADD, EMPTY]))
    assert list(found["kernel"].str.contains("empty_kernel")) == [True, False, True]
    row = found.iloc[1]
    assert (row["dram_read_bytes"], row["dram_write_bytes"]) == (2**31, 2**30)
    assert (row["load_sectors"], row["store_requests"]) == (2**26, 2**21)
    assert row["l2_hit_rate"] == 0.005 and row["occupancy"] == 0.8725
    assert row["issue_rate"] == 0.4 and row["duration_us"] == 1100


@pytest.mark.parametrize(("unit", "us"), [("nsecond", 1), ("ns", 1), ("us", 1e3), ("second", 1e9)])
def test_any_unit_of_time(unit, us):
    launch = (ADD[0], [*ADD[1][:-1], "1,000"])
    assert counters.parse(printed([launch], duration=unit))["duration_us"].iloc[0] == us


@pytest.mark.parametrize("log", ["", "==ERROR== Unknown Error on device 0.\n"])
def test_log_without_launches(log):
    assert counters.parse(log).empty


def test_figures_of_a_call_of_several_launches():
    found = counters.figures(counters.parse(printed([FIRST, SECOND])))
    assert found["launches"] == 2
    assert (found["dram_read_bytes"], found["dram_write_bytes"]) == (4000, 3000)
    assert found["load_sectors_per_request"] == 128 / 16
    assert found["store_sectors_per_request"] == 16
    assert found["l2_hit_rate"] == pytest.approx((0.2 * 4 + 0.6 * 12) / 16)  # by bytes
    assert found["occupancy"] == pytest.approx((0.5 * 3 + 0.9 * 1) / 4)  # by duration
    assert found["issue_rate"] == pytest.approx((0.1 * 3 + 0.3 * 1) / 4)
    assert found["duration_us"] == pytest.approx(4)


def test_what_ncu_has_no_value_for_is_no_number():
    without = (FIRST[0], ["n/a", *FIRST[1][1:]])
    found = counters.figures(counters.parse(printed([without, SECOND])))
    assert math.isnan(found["dram_read_bytes"]) and found["dram_write_bytes"] == 3000
    only_first = counters.figures(counters.parse(printed([FIRST])))
    assert math.isnan(only_first["store_sectors_per_request"])  # no request


def test_cells_of_a_kernel():
    of = counters.cells(KERNEL, ("triton", "numba"))
    assert [cell.backend for cell in of] == ["triton", "numba", *BASELINES[KERNEL]]
    assert {(cell.dtype, cell.size) for cell in of} == {(DTYPE, SIZE)}


def test_other_sizes_are_counted_where_the_spec_says_so(new_kernel):
    spec = new_kernel / "double_it.py"
    counted = '    counted=({"N": 512}, {"N": 1024}),\n    baselines={},'
    spec.write_text(spec.read_text().replace("    baselines={},", counted))
    of = counters.cells("double_it", ("eager",))
    assert [cell.size for cell in of] == ["N=1024", "N=512"]


def test_launches_go_to_the_cell_they_stand_behind(machine, path, tmp_path):
    of = counters.cells(KERNEL, ("triton", "numba"))
    program = tmp_path / "bin" / "ncu"
    assert machine()
    plan = json.loads((program.parent / "plan.json").read_text())
    plan["log"]["3"] = printed([EMPTY, FIRST, SECOND, EMPTY, EMPTY, ADD, EMPTY])
    (program.parent / "plan.json").write_text(json.dumps(plan))
    triton, numba, torch_ = counters.collect(str(program), of)
    assert (triton["launches"], triton["dram_read_bytes"]) == (2, 4000)
    assert numba["error"] == f"{UNAVAILABLE}it launches no kernel"
    assert torch_["dram_read_bytes"] == 2**31 and torch_["error"] == ""


def test_rows_replace_their_own_and_no_others(machine, path):
    assert machine(f"{KERNEL},{OTHER}", "triton,numba")
    before = store.read(path)
    assert list(before.columns) == counters.COLUMNS
    count = 2 + len(BASELINES[KERNEL]) + 2 + len(BASELINES[OTHER])
    assert len(before) == count and before["error"].isna().all()
    assert set(before["dram_read_bytes"]) == {READ}
    store.write(path, before.assign(source_hash="old"))
    assert machine(KERNEL, "numba")
    after = store.read(path).set_index(["kernel", "backend"])
    old = after["source_hash"] == "old"
    assert set(after.index[~old]) == {(KERNEL, name) for name in ("numba", *BASELINES[KERNEL])}
    assert old.sum() == count - 1 - len(BASELINES[KERNEL]) and set(after["dram_read_bytes"]) == {
        READ
    }


def test_cell_that_cannot_run_is_a_row(machine, path, capsys):
    assert machine(errors={"numba": f"{UNAVAILABLE}package numba is not installed"})
    assert not machine(errors={"numba": "ValueError: no such shape"})
    assert "was not counted: ValueError: no such shape" in capsys.readouterr().out
    rows = store.read(path).set_index("backend")
    assert rows.loc["numba", "error"] == "ValueError: no such shape"
    assert rows[list(counters.FIGURES)].loc["numba"].isna().all()
    assert rows.loc["triton", "launches"] == 1


def test_crash_costs_its_kernel_only_and_names_the_cell(machine, path):
    assert not machine(f"{KERNEL},{OTHER}", **{KERNEL: "crashes"})
    rows = store.read(path)
    error = rows.loc[rows["kernel"] == KERNEL, "error"]
    assert len(error) == 2 + len(BASELINES[KERNEL]) and set(error) == {
        f"{KERNEL}-numba-{DTYPE}-{SIZE}: ncu exited with code 9; "
        "RuntimeError: illegal memory access"
    }
    assert rows.loc[rows["kernel"] == OTHER, "error"].isna().all()


def test_hang_costs_its_kernel_only(machine, path, monkeypatch):
    monkeypatch.setattr(counters, "TIMEOUT", 1)
    begun = time.monotonic()
    assert not machine(**{KERNEL: "hangs"})
    assert time.monotonic() - begun < 5  # what it started is ended as well
    error = store.read(path)["error"]
    assert set(error) == {f"{KERNEL}-triton-{DTYPE}-{SIZE}: no answer within 1 s"}


def test_what_ncu_may_not_do_is_said_before_any_work(machine, path):
    machine()
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="ncu cannot count here: .*; ERR_NVGPUCTRPERM - The us"):
        machine(probe="is refused")
    assert path.read_bytes() == before


def test_damaged_file_is_refused_and_left(machine, path):
    path.parent.mkdir()
    path.write_bytes(b'"\xff')
    with pytest.raises(store.DamagedData, match=r"counters\.csv is damaged"):
        machine()
    assert path.read_bytes() == b'"\xff'


def test_without_a_gpu_or_without_ncu(tmp_path, monkeypatch):
    monkeypatch.setattr(counters, "DEVICE", "cpu")
    with pytest.raises(RuntimeError, match="counters needs a CUDA device, and torch finds none"):
        counters.run(select(KERNEL), data=tmp_path)
    monkeypatch.setattr(counters, "DEVICE", "cuda")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="counters needs ncu, of Nsight Compute, and there is"):
        counters.run(select(KERNEL), data=tmp_path)
    assert not list(tmp_path.iterdir())


def test_child_calls_twice_and_has_the_second_profiled(new_kernel, tmp_path, monkeypatch):
    done = []
    profiling = nullcontext()
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda.profiler, "profile", lambda: done.append("on") or profiling)
    monkeypatch.setattr(counters.ceilings, "empty", lambda: done.append("empty"))

    def function(cell):
        if cell.backend == "absent":
            raise registry.Unavailable("absent: it is not installed")

        def call(*inputs):
            done.append(cell.backend)
            if cell.backend == "large":
                raise torch.OutOfMemoryError("CUDA out of memory")
            if cell.backend == "wrong":
                raise ValueError("no such shape")

        return call

    monkeypatch.setattr(counters.entries, "function", function)
    names = ("triton", "absent", "large", "wrong", "numba")
    of = [("double_it", name, "float32", "N=5") for name in names]
    counters.main(str(tmp_path / "report"), json.dumps(of))
    separate = ["on", "empty"]
    assert done == [
        *(*separate, "triton", "on", "triton"),
        *separate,
        *(*separate, "large"),
        *(*separate, "wrong"),
        *(*separate, "numba", "on", "numba"),
        *separate,
    ]
    assert json.loads((tmp_path / "report").read_text()) == [
        "",
        f"{UNAVAILABLE}absent: it is not installed",
        f"{UNAVAILABLE}this size does not fit the GPU's memory",
        "ValueError: no such shape",
        "",
    ]


def test_the_report_may_quote_it(machine, path, tmp_path):
    assert not machine(errors={"numba": "ValueError: no such shape"})
    data = Data.load(tmp_path)
    assert data.stale == []
    read = data.counter(KERNEL, "triton", "dram_read_bytes")
    assert read.value == read.low == read.high == READ and (read >= 2e9) is State.HOLDS
    assert str(data.counter(KERNEL, BASELINES[KERNEL][0], "occupancy")) == "87.2 %"
    assert str(data.counter(KERNEL, "numba", "occupancy")) == "failed"
    assert str(data.counter(KERNEL, "cupy", "occupancy")) == "not measured"
    with pytest.raises(KeyError):
        data.counter(KERNEL, "cupy", "bandwidth")
    text = tmp_path / "text.md"
    text.write_text(f'{{{{ counter("{KERNEL}", "triton", "launches", "{DTYPE}", "{SIZE}") }}}}')
    assert Prose(data).render(text) == "1"

    table = store.read(path)
    store.write(path, table.assign(source_hash="old"))
    assert f"counters.csv: {KERNEL}-triton" in Data.load(tmp_path).stale


def test_no_counters_is_no_error(tmp_path):
    data = Data.load(tmp_path)
    assert list(data.counters.columns) == counters.COLUMNS and data.counters.empty
    assert math.isnan(data.counter(KERNEL, "triton", "l2_hit_rate").value)


def test_key_of_a_row():
    row = counters._row(Cell(KERNEL, "triton", DTYPE, SIZE), "some error", {})
    assert list(row) == counters.COLUMNS and list(pd.Series(row)[KEY])[1] == "triton"
