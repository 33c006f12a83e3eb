"""A kernel and a backend that the project does not have."""

import importlib
import sys

import pytest
from filelock import FileLock

import implementations
from implementations.common import registry
from implementations.common.registry import Backend

SPEC = '''
"""Day 99: a number doubled."""

import torch

from implementations.common.rules import Exact
from implementations.common.spec import KernelSpec, Work, generator


def double_it(x):
    """2 x, element by element."""
    return 2 * x


def make_inputs(dtype, device, seed, N):
    return (torch.randn(N, dtype=dtype, device=device, generator=generator(device, seed)),)


SPEC = KernelSpec(
    name="double_it",
    day=99,
    title="Doubling",
    reference=double_it,
    make_inputs=make_inputs,
    work=lambda dtype, N: Work(2 * N * dtype.itemsize, N),
    check_sizes=({"N": 5},),
    bench_sizes=({"N": 1024},),
    headline={"N": 1024},
    dtypes=(torch.float32,),
    agreement=Exact(),
    baselines={},
)
'''


@pytest.fixture(scope="session")
def made_up(tmp_path_factory, worker_id):
    """A data folder that nobody measured and that lacks nothing; it is written once a run of the
    suite, by whichever worker comes first. To be copied, not changed."""
    from study.tests import made_up_data

    base = tmp_path_factory.getbasetemp()
    path = (base if worker_id == "master" else base.parent) / "made-up"
    with FileLock(f"{path}.lock"):
        if not path.exists():
            made_up_data.write(path.with_suffix(".part"))
            path.with_suffix(".part").rename(path)
    return path


@pytest.fixture
def new_kernel(tmp_path, monkeypatch):
    """A folder outside the tree with the new kernel `double_it`, and a new backend, `eager`."""
    path = tmp_path / "phase9_tests" / "day99_doubling"
    path.mkdir(parents=True)
    monkeypatch.setattr(implementations, "__path__", [*implementations.__path__, str(tmp_path)])
    monkeypatch.setitem(registry.BACKENDS, "eager", Backend("PyTorch", ("torch",)))
    (path / "double_it.py").write_text(SPEC)
    importlib.invalidate_caches()
    yield path
    for name in [name for name in sys.modules if ".phase9_tests" in name]:
        del sys.modules[name]
