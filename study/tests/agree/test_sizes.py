"""The check sizes reach what a kernel makes of its dimensions: asked of each by its launches."""

from itertools import product

import pytest

from implementations import DEVICE
from implementations.common import cuda_cpp, numba_cuda, registry
from study.bench.cells import size_text
from study.tests.agree.test_limits import Untouched, dimensions, of_size

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="launches are noted instead of run")

PACK = 16  # bytes


@pytest.fixture
def variants(monkeypatch):
    """A function of a kernel and a size: the kernels of CUDA C++ and Numba that are launched there,
    each with its template arguments."""
    found = set()
    for backend in ("cupy", "numba"):
        if reason := registry.missing(backend):  # which puts in place what runs launches
            pytest.skip(reason)
    monkeypatch.setattr(cuda_cpp, "run", lambda kernel, name, *rest: found.add(name))
    monkeypatch.setattr(numba_cuda, "run", lambda kernel, *rest: found.add(kernel))

    def of(kernel, dtype, size):
        """None where the size is refused."""
        found.clear()
        inputs = of_size(kernel, dtype, size)
        try:
            with Untouched():
                for backend in ("cupy", "numba"):
                    registry.load(kernel, backend)(*inputs)
        except ValueError:
            return None
        return frozenset(found)

    return of


@pytest.mark.parametrize("kernel", registry.kernels())
def test_each_mixture_of_divisible_and_not_is_checked(kernel, variants):
    """Where one more in any of several dimensions launches another variant, as rows are no whole
    packs then, no dimension may stand for the others."""
    spec = registry.spec(kernel)
    dtype = min(spec.dtypes, key=lambda dtype: dtype.itemsize)
    count = PACK // dtype.itemsize
    names = dimensions(kernel)
    base = spec.headline | {name: 4 * count for name in names}
    usual = variants(kernel, dtype, base)
    more = {name: variants(kernel, dtype, base | {name: base[name] + 1}) for name in names}
    decide = [name for name in names if more[name] not in (usual, None)]
    checked = {
        tuple(size[name] % count == 0 for name in decide)
        for size in spec.check_sizes
        if all(size[name] for name in names)
    }
    wanted = set(product((True, False), repeat=len(decide)))
    lacking = [dict(zip(decide, mix, strict=True)) for mix in wanted - checked]
    assert not lacking, [size_text(mix) for mix in lacking]
