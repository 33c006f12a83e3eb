"""What `study status` finds missing or stale."""

from dataclasses import asdict

import pandas as pd
import pytest

from study import status
from study.agree.faults import mutants
from study.bench import store
from study.bench.cells import AGAIN, SLOWER, TIMED, Cell, select
from study.bench.entries import groups
from study.bench.fingerprint import fingerprint, spec_fingerprint
from study.report.data import COLUMNS, bound_by

KERNEL, OTHER = bound_by("GB/s")[:2]
SELECTION = select(KERNEL, "triton,numba")
NAMES = (*SELECTION.backends, "torch")


def table(name, cells):
    """A table of data/ that has a row for each of the cells, and no figures."""
    rows = [
        asdict(c)
        | {"status": "agrees", "source_hash": fingerprint(c.kernel, c.backend)}
        | {"spec_hash": spec_fingerprint(c.kernel)}
        for c in cells
        if c.backend in NAMES
    ]
    return pd.DataFrame(rows).reindex(columns=COLUMNS[name])


@pytest.fixture
def complete(tmp_path):
    """A data folder that lacks nothing of SELECTION."""
    timed = [cell for group in groups(SELECTION) for cell in group.entries]
    derived = [cell for cell in timed if cell.variant not in (AGAIN, SLOWER)]
    checked = [*SELECTION.cells("check"), *SELECTION.cells("large")]
    home = tmp_path / "some-gpu"
    store.write(home / "samples.parquet", table("samples", timed))
    store.write(home / "timings.csv", table("timings", derived))
    store.write(home / "agreement.csv", table("agreement", checked))
    faults = [Cell(KERNEL, b, "", "") for b in SELECTION.backends for _ in mutants(KERNEL, b)]
    store.write(tmp_path / "mutants.csv", table("mutants", faults))
    for name in ("complexity", "codegen"):
        store.write(tmp_path / f"{name}.csv", table(name, checked))
    return tmp_path


def test_complete(complete, capsys):
    assert status.run(SELECTION, data=complete)
    assert "nothing is missing, nothing is stale" in capsys.readouterr().out


def test_only_the_selection_counts(complete):
    assert not status.run(select(KERNEL), data=complete)
    assert not status.run(select(f"{KERNEL},{OTHER}", "triton,numba"), data=complete)


@pytest.mark.parametrize("names", [["timings.csv", "samples.parquet"], ["agreement.csv"]])
def test_missing_cell(complete, names, capsys):
    for name in names:
        path = complete / "some-gpu" / name
        found = store.read(path)
        store.write(path, found[found["backend"] != "numba"])
    assert not status.run(SELECTION, data=complete)
    said = capsys.readouterr().out.splitlines()
    found = [line for line in said if "numba" in line]
    assert len(found) == 1 and f"some-gpu/{names[0]}" in found[0] and "triton" not in "".join(said)


def test_derived_table_that_was_cut_short_is_named(complete):
    path = complete / "some-gpu" / "timings.csv"
    found = store.read(path)
    store.write(path, found[found["backend"] != "numba"])
    with pytest.raises(store.DamagedData, match=r"timings\.csv lacks \d+ of \d+ cells of samples"):
        status.run(SELECTION, data=complete)


def test_fault_that_was_not_tried(complete, capsys):
    path = complete / "mutants.csv"
    store.write(path, store.read(path).iloc[1:])
    assert not status.run(SELECTION, data=complete)
    assert "mutants.csv" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["complexity.csv", "codegen.csv", "mutants.csv"])
def test_missing_file(complete, name, capsys):
    (complete / name).unlink()
    assert not status.run(SELECTION, data=complete)
    assert name in capsys.readouterr().out


def test_no_mutant_is_missing_where_no_fault_can_be_planted(tmp_path, capsys):
    store.write(tmp_path / "mutants.csv", table("mutants", SELECTION.cells("check")))
    status.run(select(f"{KERNEL},flash_attention,{OTHER}"), data=tmp_path)
    mutants = [x for x in capsys.readouterr().out.splitlines() if "mutants" in x]
    assert mutants and not any("flash_attention" in line for line in mutants)


def test_stale_machine_code(complete):
    table = store.read(complete / "codegen.csv")
    store.write(complete / "codegen.csv", table.assign(source_hash="123456789012"))
    assert not status.run(SELECTION, data=complete)


def test_stale_cell(complete):
    for name in ("timings.csv", "samples.parquet"):
        path = complete / "some-gpu" / name
        found = store.read(path)
        hashes = found["source_hash"].mask(found["backend"] == "torch", "123456789012")
        store.write(path, found.assign(source_hash=hashes))
    assert not status.run(SELECTION, data=complete)
    cells = [c for g in groups(SELECTION) for c in g.entries if c.backend == "torch"]
    timed = store.read(complete / "some-gpu" / "timings.csv")[[*TIMED, "source_hash"]]
    assert status.compare(cells, timed) == (len(cells), 0, len(cells))
    lacking = timed[timed["size"] != cells[0].size]
    lost = sum(cell.size == cells[0].size for cell in cells)
    assert lost and status.compare(cells, lacking) == (len(cells), lost, len(cells) - lost)


def test_cells_judged_by_another_spec_are_stale(complete, capsys):
    path = complete / "some-gpu" / "agreement.csv"
    found = store.read(path)
    store.write(path, found.assign(spec_hash="123456789012"))
    assert not status.run(SELECTION, data=complete)
    assert "agreement.csv" in capsys.readouterr().out


def test_no_machine(tmp_path, capsys):
    assert not status.run(SELECTION, data=tmp_path)
    assert "no machine" in capsys.readouterr().out


def test_damaged_table_is_named(complete):
    (complete / "some-gpu" / "timings.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(store.DamagedData, match=r"timings\.csv is damaged"):
        status.run(SELECTION, data=complete)
