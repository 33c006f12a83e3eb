"""Every kernel in every backend, mode, dtype and check size agrees, touching only its outputs.

On a CPU, which takes its time, a backend has each size in one dtype, by turns: the next backend has
it in the next. `study verify` has them all but the modes, and data/ only what it has found on a
GPU.
"""

from dataclasses import replace
from itertools import product

import pytest
import torch

from implementations import DEVICE, TORCH_DEVICE
from implementations.common import cuda_cpp, device, registry
from implementations.common.check import dtype_name
from implementations.tiers import compile as offline
from implementations.tiers.cpu import told
from study.agree import verify
from study.agree.agreement import as_tuple
from study.bench.cells import Cell, size_text
from study.tests import chosen, noted


def cells():
    for kernel in registry.kernels():
        dtypes, sizes = registry.spec(kernel).dtypes, registry.spec(kernel).check_sizes
        backends = (*registry.BACKENDS, *registry.spec(kernel).modes)
        for (i, size), (j, backend) in product(enumerate(sizes), enumerate(backends)):
            for dtype in dtypes if DEVICE == "cuda" else [dtypes[(i + j) % len(dtypes)]]:
                yield Cell(kernel, backend, dtype_name(dtype), size_text(size))


def check(cell):
    if reason := registry.missing(registry.spec(cell.kernel).backend_of(cell.backend)):
        pytest.skip(reason)
    row = verify.check(cell)
    if row["status"] == "unavailable":
        pytest.skip(row["error"])
    assert (row["status"], row["error"]) == ("agrees", "")


@pytest.mark.parametrize("cell", cells(), ids=str)
def test_agrees(cell):
    check(cell)


@pytest.mark.skipif(DEVICE != "cpu", reason="a GPU adds as the kernel says; there its runs differ")
@pytest.mark.parametrize(
    ("kernel", "mode"), [(k, m) for k in registry.kernels() for m in registry.spec(k).modes]
)
def test_adding_as_blocks_arrive_is_refused_where_bits_must_be_the_same(monkeypatch, kernel, mode):
    spec = registry.spec(kernel)
    if reason := registry.missing(spec.modes[mode]):
        pytest.skip(reason)
    size = max(spec.check_sizes, key=lambda size: spec.work(spec.dtypes[0], **size).flops)
    monkeypatch.setenv("STUDY_SAME_BITS", "1")
    with pytest.raises(RuntimeError, match="floats must be added in an order"):
        verify.check(Cell(kernel, mode, dtype_name(spec.dtypes[0]), size_text(size)))


class Asked(Exception):
    """Whether a host gets fewer stages on a smaller GPU, instead of them."""


def gets_fewer_stages(monkeypatch, host, inputs, smaller):
    """Whether a host does, on a GPU with less shared memory than this one has."""
    stages, here = device.Properties.stages, device.properties()

    def ask(_, *args):
        raise Asked(stages(smaller, *args) < stages(here, *args))

    with monkeypatch.context() as patch, noted.launches():
        patch.setattr(device.Properties, "stages", ask)
        try:
            host(*inputs)
        except Asked as asked:
            return asked.args[0]
    return False


@pytest.mark.parametrize(("kernel", "backend"), chosen.staged())
def test_agrees_in_less_shared_memory(monkeypatch, kernel, backend):
    if reason := registry.missing(backend):  # which may put a tier in place
        pytest.skip(reason)
    smaller = replace(device.properties(), shared_bytes=99 * 1024)  # of a GeForce
    spec, host = registry.spec(kernel), registry.load(kernel, backend)
    dtype = spec.dtypes[0]
    sizes = []
    for size in spec.check_sizes:
        inputs = spec.arguments(dtype, TORCH_DEVICE, 0, **size)
        if gets_fewer_stages(monkeypatch, host, inputs, smaller):
            sizes.append(size)
    if not sizes:
        pytest.skip(f"{kernel} in {backend} has as many stages there at every check size")
    monkeypatch.setattr(device, "describe", lambda device: smaller)
    # whose loop fills stages anew: over K, in attention over the keys
    longest = max(sizes, key=lambda size: size["K" if "K" in size else "N"])
    check(Cell(kernel, backend, dtype_name(dtype), size_text(longest)))


def launched(monkeypatch, host, inputs, gpu):
    """The grids and blocks of what a host launches on some GPU."""
    with monkeypatch.context() as patch, noted.launches() as found:
        patch.setattr(device, "describe", lambda device: gpu)
        host(*inputs)
    return found


@pytest.mark.parametrize(("kernel", "backend", "gpu"), chosen.on_other_gpus(), ids=str)
def test_agrees_on_another_gpu(monkeypatch, kernel, backend, gpu):
    if reason := registry.missing(backend):
        pytest.skip(reason)
    here = device.properties()
    other = replace(here, **told(gpu))
    spec, host = registry.spec(kernel), registry.load(kernel, backend)
    dtype, sizes = spec.dtypes[0], []
    for size in spec.check_sizes:
        inputs = spec.arguments(dtype, TORCH_DEVICE, 0, **size)
        ours, others = (launched(monkeypatch, host, inputs, each) for each in (here, other))
        # on a GPU Triton's launches are not noted, and every size is quick
        if ours != others or DEVICE == "cuda":
            sizes.append(size)
    assert sizes, "no check size is launched otherwise there"
    monkeypatch.setattr(device, "describe", lambda device: other)
    monkeypatch.setattr(cuda_cpp, "properties", lambda device: here)  # what code is compiled for
    for size in sorted(sizes, key=lambda size: spec.work(dtype, **size).flops)[-3:]:
        check(Cell(kernel, backend, dtype_name(dtype), size_text(size)))


@pytest.mark.skipif(DEVICE != "cuda", reason="what a call allocates is measured on a GPU")
@pytest.mark.parametrize("backend", registry.BACKENDS)
@pytest.mark.parametrize("kernel", [k for k in registry.kernels() if registry.spec(k).workspace])
def test_peak_memory_is_the_workspace_that_is_declared(kernel, backend):
    if reason := registry.missing(backend):
        pytest.skip(reason)
    spec, size = registry.spec(kernel), registry.spec(kernel).headline
    inputs = spec.make_inputs(spec.dtypes[0], "cuda", 0, **size)
    host = registry.load(kernel, backend)
    host(*inputs)  # compiles
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    outputs = as_tuple(host(*inputs))
    beside = torch.cuda.max_memory_allocated() - before - sum(y.nbytes for y in outputs)
    # the allocator leaves a rest of less than 1 MB with each tensor
    declared = spec.workspace(device.properties(), spec.dtypes[0], **size)
    assert 0 <= beside - declared < 2**20 * (1 + len(outputs))


def test_stages():
    """As many as fit in a block's shared memory: 227 KB of an H100, 163 of an A100."""
    for arch, stages in (("sm_90a", 4), ("sm_80", 3)):
        target = offline.TARGETS[arch].properties
        assert (target.stages(4, 48 * 1024), target.stages(2, 48 * 1024)) == (stages, 2)
