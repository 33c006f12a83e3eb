"""What tests share: made-up data, their report, and a kernel and a backend that are made up too."""

import importlib
import os
import sys

# A process a core: the threads of several would only wait for each other. Read by what is imported.
os.environ["OMP_NUM_THREADS"] = "1"

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
def once(tmp_path_factory, worker_id):
    """once(name, write): the path of what `write` makes at the one it is given, in whichever worker
    of a run of the suite comes first. To be copied or read, not changed."""
    base = tmp_path_factory.getbasetemp()
    base = base if worker_id == "master" else base.parent

    def made(name, write):
        path = base / name
        with FileLock(f"{path}.lock"):
            if not path.exists():
                write(path.with_suffix(".part"))
                path.with_suffix(".part").rename(path)
        return path

    return made


@pytest.fixture(scope="session")
def made_up(once):
    """A data folder that nobody measured and that lacks nothing."""
    from study.tests import made_up_data

    return once("made-up", made_up_data.write)


@pytest.fixture(scope="session")
def built(once, made_up):
    """The report of it, as if it were the checkout's: beside a README."""
    from study.report import build
    from study.tests import made_up_data

    def write(folder):
        out = folder / "report"
        out.mkdir(parents=True)
        (folder / "README.md").write_text(made_up_data.README)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(build, "REPORT", out)
            patch.setattr(build, "README", folder / "README.md")
            assert build.run(made_up, out, made_up_data.text(folder / "text"))

    return once("built", write) / "report"


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
