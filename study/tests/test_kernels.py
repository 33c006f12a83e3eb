"""Every kernel in every backend, dtype and check size agrees, touching only its outputs."""

import pytest

from implementations.common import device, registry
from study import verify
from study.cells import Cell, select

CELLS = list(select().cells("check"))


def check(cell):
    if reason := registry.missing(cell.backend):
        pytest.skip(reason)
    row = verify.check(cell)
    if row["status"] == "unavailable":
        pytest.skip(row["error"])
    assert (row["status"], row["error"]) == ("agrees", "")


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_agrees(cell):
    check(cell)


@pytest.mark.parametrize(("stages", "kilobytes"), [(2, 99), (3, 163)])  # of a GeForce, of an A100
@pytest.mark.parametrize("backend", ["cupy", "numba"])
def test_matmul_agrees_in_less_shared_memory(monkeypatch, backend, stages, kilobytes):
    monkeypatch.setattr(device, "shared_bytes", lambda: kilobytes * 1024)
    assert device.stages(4, 48 * 1024) == stages
    check(Cell("matmul_tensor_core", backend, "float16", "M=40,N=136,K=328"))
