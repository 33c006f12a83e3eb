"""Every kernel in every backend, dtype and check size agrees, touching only its outputs."""

import pytest

from implementations.common import registry
from study import verify
from study.cells import select

CELLS = list(select().cells("check"))


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_agrees(cell):
    if reason := registry.missing(cell.backend):
        pytest.skip(reason)
    row = verify.check(cell)
    if row["status"] == "unavailable":
        pytest.skip(row["error"])
    assert (row["status"], row["error"]) == ("agrees", "")
