"""Every kernel in every backend, dtype and check size agrees, touching only its outputs."""

import pytest

from implementations.common import device, registry
from implementations.tiers import compile as offline
from study.agree import verify
from study.bench.cells import Cell, select

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


@pytest.mark.parametrize("backend", ["cupy", "numba"])
def test_matmul_agrees_in_less_shared_memory(monkeypatch, backend):
    monkeypatch.setattr(device, "shared_bytes", lambda: 99 * 1024)  # of a GeForce: two stages
    check(Cell("matmul_tensor_core", backend, "float16", "M=40,N=136,K=328"))


def test_stages(monkeypatch):
    """As many as fit in a block's shared memory: 227 KB of an H100, 163 of an A100."""
    monkeypatch.setattr(device, "DEVICE", "compile")
    monkeypatch.setattr(device, "shared_bytes", device.shared_bytes.__wrapped__)
    for arch, stages in (("sm_90a", 4), ("sm_80", 3)):
        monkeypatch.setattr(offline, "TARGET", offline.TARGETS[arch])
        assert (device.stages(4, 48 * 1024), device.stages(2, 48 * 1024)) == (stages, 2)
