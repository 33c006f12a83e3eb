"""Every kernel in every backend, dtype and check size agrees, touching only its outputs."""

from dataclasses import replace

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
    if reason := registry.missing(backend):  # which may put a tier in place
        pytest.skip(reason)
    smaller = replace(device.properties(), shared_bytes=99 * 1024)  # of a GeForce: two stages
    monkeypatch.setattr(device, "describe", lambda device: smaller)
    check(Cell("matmul_tensor_core", backend, "float16", "M=40,N=136,K=328"))


def test_stages():
    """As many as fit in a block's shared memory: 227 KB of an H100, 163 of an A100."""
    for arch, stages in (("sm_90a", 4), ("sm_80", 3)):
        target = offline.TARGETS[arch].properties
        assert (target.stages(4, 48 * 1024), target.stages(2, 48 * 1024)) == (stages, 2)
