"""What `study status` finds missing or stale."""

import pandas as pd
import pytest

from implementations.common import registry
from study import status
from study.bench import store
from study.bench.cells import select
from study.bench.fingerprint import fingerprint
from study.speed.measure import groups

SELECTION = select("vector_add", "triton,numba")
NAMES = (*SELECTION.backends, "torch")


def rows(cells):
    return [
        {
            "kernel": c.kernel,
            "backend": c.backend,
            "dtype": c.dtype,
            "size": c.size,
            "source_hash": fingerprint(c.kernel, c.backend),
        }
        for c in cells
        if c.backend in NAMES
    ]


@pytest.fixture
def complete(tmp_path):
    """A data folder that lacks nothing of SELECTION."""
    timed = [cell for group in groups(SELECTION) for cell in group.entries]
    headline = [c for c in timed if c.sizes == registry.spec("vector_add").headline]
    checked = [*SELECTION.cells("check"), *headline]
    store.write(tmp_path / "some-gpu" / "timings.csv", pd.DataFrame(rows(timed)))
    store.write(tmp_path / "some-gpu" / "agreement.csv", pd.DataFrame(rows(checked)))
    counted = pd.DataFrame(rows(checked)).drop_duplicates("backend").drop(columns=["dtype", "size"])
    store.write(tmp_path / "complexity.csv", counted)
    store.write(tmp_path / "codegen.csv", pd.DataFrame(rows(checked)))
    store.write(tmp_path / "mutants.csv", counted)
    return tmp_path


def test_complete(complete, capsys):
    assert status.run(SELECTION, data=complete)
    assert "nothing is missing, nothing is stale" in capsys.readouterr().out


def test_only_the_selection_counts(complete):
    assert not status.run(select("vector_add"), data=complete)
    assert not status.run(select("vector_add,softmax_fused", "triton,numba"), data=complete)


@pytest.mark.parametrize("name", ["some-gpu/timings.csv", "some-gpu/agreement.csv"])
def test_missing_cell(complete, name, capsys):
    table = store.read(complete / name)
    store.write(complete / name, table[table["backend"] != "numba"])
    assert not status.run(SELECTION, data=complete)
    said = capsys.readouterr().out.splitlines()
    found = [line for line in said if "numba" in line]
    assert len(found) == 1 and name in found[0] and "triton" not in "".join(said)


@pytest.mark.parametrize("name", ["complexity.csv", "codegen.csv", "mutants.csv"])
def test_missing_file(complete, name, capsys):
    (complete / name).unlink()
    assert not status.run(SELECTION, data=complete)
    assert name in capsys.readouterr().out


def test_stale_machine_code(complete):
    table = store.read(complete / "codegen.csv")
    store.write(complete / "codegen.csv", table.assign(source_hash="123456789012"))
    assert not status.run(SELECTION, data=complete)


def test_stale_cell(complete):
    path = complete / "some-gpu" / "timings.csv"
    table = store.read(path)
    table.loc[table["backend"] == "torch", "source_hash"] = "123456789012"
    store.write(path, table)
    assert not status.run(SELECTION, data=complete)
    cells = [c for g in groups(SELECTION) for c in g.entries if c.backend == "torch"]
    assert status.compare(cells, store.read(path)) == (7, 0, 7)
    assert status.compare(cells, table[table["size"] != "N=1048576"]) == (7, 1, 6)


def test_no_machine(tmp_path, capsys):
    assert not status.run(SELECTION, data=tmp_path)
    assert "no machine" in capsys.readouterr().out


def test_damaged_table_is_named(complete):
    (complete / "some-gpu" / "timings.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(store.DamagedData, match=r"timings\.csv is damaged"):
        status.run(SELECTION, data=complete)
