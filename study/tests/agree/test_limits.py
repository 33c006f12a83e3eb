"""The largest sizes: to the limits that the specs state launches fit a GPU, beyond all refuse.

Nothing of such a size is stored: inputs are views of one small file that repeats, outputs are
memory that is never touched, and launches are noted instead of run, or run for the last block only.
"""

import ctypes
import math
import mmap
import re
from dataclasses import replace

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only
from triton.runtime import interpreter

from implementations import DEVICE
from implementations.common import cuda_cpp, device, numba_cuda, registry
from implementations.common.check import dtype_name
from implementations.tiers.compile import TARGETS
from implementations.tiers.cpu import PROPERTIES, numba_fibers
from implementations.tiers.cpu import cuda_cpp as cuda_on_cpu
from study.agree.agreement import as_tuple, compare, expected
from study.bench.cells import size_text
from study.tests import noted
from study.tests.agree.test_bad_input import hosts, problem, refusal

pytestmark = pytest.mark.skipif(
    DEVICE != "cpu", reason="a GPU has no memory that takes no room: the huge sizes run there"
)

GRID = (2**31 - 1, 65_535, 65_535)  # blocks along x, y and z at most, of every GPU since 2012
ANY = 2**70  # of a dimension without a limit
KEPT = 3  # of a size that is cut down to its end
PERIOD = 769 * mmap.PAGESIZE  # bytes: no power of two, so that an index that wraps finds others
NORESERVE = 0x4000  # MAP_NORESERVE, which Python 3.11 does not name

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]


def untouched(like):
    """A tensor as `like`, of zeros that take memory only where they are written to."""
    size = max(like.numel() * like.element_size(), 1)
    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE)
    bytes = torch.frombuffer(memory, dtype=torch.uint8)
    return bytes[: like.numel() * like.element_size()].view(like.dtype).view(like.shape)


def repeating(like, file):
    """A tensor as `like`, whose bytes are those of `file`, again and again; not to be written."""
    x = untouched(like)
    size = x.numel() * x.element_size()
    for at in range(0, size, PERIOD):
        length = min(PERIOD, size - at)
        place = libc.mmap(
            x.data_ptr() + at,
            length,
            mmap.PROT_READ,
            mmap.MAP_SHARED | 0x10,  # MAP_FIXED
            file.fileno(),
            0,
        )
        assert place == x.data_ptr() + at, f"mmap failed with error {ctypes.get_errno()}"
    return x


class Untouched(TorchFunctionMode):
    """While active, what gives tensors that are empty or zero gives `untouched` ones.

    bytes: of all that they gave.
    """

    bytes = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (torch.empty, torch.empty_like, torch.Tensor.new_zeros):
            x = untouched(function(*args, **(kwargs or {}) | {"device": "meta"}))
            self.bytes += x.numel() * x.element_size()
            return x
        return function(*args, **(kwargs or {}))


def of_size(kernel, dtype, size, make=untouched):
    """The kernel's inputs, with tensors by `make`."""
    with FakeTensorMode():
        inputs = registry.spec(kernel).make_inputs(dtype, "cpu", 0, **size)
    return tree_map_only(torch.Tensor, make, inputs)


def has_huge_tensor(kernel, size):
    """Whether an input has more elements than 32 bits count."""
    inputs = of_size(kernel, registry.spec(kernel).dtypes[-1], size, make=lambda x: x)
    return any(isinstance(x, torch.Tensor) and x.numel() > 2**31 for x in inputs)


def dimensions(kernel):
    """Its dimensions: what is an int in its sizes, and no flag."""
    return [name for name, value in registry.spec(kernel).headline.items() if type(value) is int]


limits = pytest.mark.parametrize(
    ("kernel", "dimension"),
    [
        pytest.param(kernel, dimension, id=f"{kernel}-{dimension}")
        for kernel in registry.kernels()
        for dimension in dimensions(kernel)
        if dimension in registry.spec(kernel).limits
    ],
)


@pytest.fixture
def launches():
    """All launches, which are noted and not run."""
    with noted.launches() as found:
        yield found


@pytest.mark.parametrize("target", TARGETS)
@limits
def test_to_the_limit_launches_fit(kernel, dimension, target, launches, monkeypatch):
    monkeypatch.setattr(device, "describe", lambda device: TARGETS[target].properties)
    spec = registry.spec(kernel)
    size = spec.limits[dimension]
    for dtype in spec.dtypes:
        for odd in (0, 1):  # one less may have no packs of 16 bytes, and so more blocks
            inputs = of_size(kernel, dtype, size | {dimension: size[dimension] - odd})
            for host in hosts(kernel).values():
                launches.clear()
                try:
                    with Untouched():
                        host(*inputs)
                except ValueError:
                    assert odd, "a limit must be taken itself"
                    continue
                assert launches
                for grid, *_ in launches:
                    assert all(1 <= n <= most for n, most in zip(grid, GRID, strict=False))


@limits
def test_beyond_the_limit_all_refuse_with_one_sentence(kernel, dimension, launches):
    spec = registry.spec(kernel)
    size = spec.limits[dimension]
    for dtype in spec.dtypes:
        inputs = of_size(kernel, dtype, size | {dimension: size[dimension] + 1})
        ((kind, text),) = {refusal(host, inputs) for host in hosts(kernel).values()}
        assert kind is ValueError
        assert re.search(r" must .*\d.*, got \d", text)
    assert not launches


@pytest.mark.parametrize(
    ("kernel", "dimension"),
    [
        pytest.param(kernel, dimension, id=f"{kernel}-{dimension}")
        for kernel in registry.kernels()
        for dimension in dimensions(kernel)
        if dimension not in registry.spec(kernel).limits
    ],
)
def test_a_dimension_without_a_limit_may_be_any_int(kernel, dimension, launches):
    spec, size, _ = problem(kernel)
    inputs = of_size(kernel, spec.dtypes[0], size | {dimension: ANY})
    for host in hosts(kernel).values():
        launches.clear()
        host(*inputs)
        assert launches


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kernel", [k for k in registry.kernels() if registry.spec(k).workspace])
def test_the_workspace_is_as_declared(kernel, target, launches, monkeypatch):
    monkeypatch.setattr(device, "describe", lambda device: TARGETS[target].properties)
    spec = registry.spec(kernel)
    for size in spec.bench_sizes:
        inputs = of_size(kernel, spec.dtypes[0], size)
        for host in hosts(kernel).values():
            with Untouched() as allocated:
                outputs = as_tuple(host(*inputs))
            beside = allocated.bytes - sum(y.numel() * y.element_size() for y in outputs)
            assert beside == spec.workspace(TARGETS[target].properties, spec.dtypes[0], **size)


@pytest.mark.parametrize("kernel", registry.kernels())
def test_a_huge_size_is_beyond_32_bits_or_a_limit(kernel):
    spec = registry.spec(kernel)
    assert any(
        has_huge_tensor(kernel, size)
        or any(size[name] == limit[name] for name, limit in spec.limits.items())
        for size in spec.huge_sizes
    )


# --- indices ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    """By dtype, a file of PERIOD bytes that hold random numbers."""
    folder, files = tmp_path_factory.mktemp("numbers"), {}
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        x = torch.randn(PERIOD // dtype.itemsize, generator=torch.Generator().manual_seed(0))
        path = folder / dtype_name(dtype)
        path.write_bytes(x.to(dtype).view(torch.uint8).numpy().tobytes())
        files[dtype] = path.open("rb")
    yield lambda like: repeating(like, files[like.dtype])
    for file in files.values():
        file.close()


def cut(kernel, inputs, dimension, size):
    """The inputs of a smaller problem: of tensors the last KEPT along `dimension`."""
    dtype = registry.spec(kernel).dtypes[-1]
    smaller = of_size(kernel, dtype, size | {dimension: KEPT}, make=lambda x: x)

    def end(x, less):
        if x.ndim != less.ndim:  # a vector, folded where it can be
            return x.flatten()[x.numel() - less.numel() :].view(less.shape)
        return x[tuple(slice(N - n, None) for N, n in zip(x.shape, less.shape, strict=True))]

    pairs = zip(inputs, smaller, strict=True)
    return [end(x, y).contiguous() if isinstance(x, torch.Tensor) else x for x, y in pairs]


def last(outputs):
    return [y.flatten()[-1:].double() for y in as_tuple(outputs)]


def is_local(kernel, dimension):
    """Whether the last element of an output is the same without all but the ends of inputs."""
    spec = registry.spec(kernel)
    size = max(spec.check_sizes, key=lambda size: size[dimension])
    inputs = [
        torch.randn_like(x) if isinstance(x, torch.Tensor) else x
        for x in spec.make_inputs(torch.float32, "cpu", 0, **size)
    ]
    if size[dimension] <= KEPT or not any(isinstance(x, torch.Tensor) for x in inputs):
        return False
    both = (inputs, cut(kernel, inputs, dimension, size))
    whole, end = (last(spec.reference(*given)) for given in both)
    return all(
        torch.allclose(a, b, rtol=1e-4, equal_nan=True) for a, b in zip(whole, end, strict=True)
    )


def huge_and_local():
    """Each huge size of a kernel whose longest dimension the last block need not know: it computes
    the last element from the ends of its inputs."""
    for kernel in registry.kernels():
        for size in registry.spec(kernel).huge_sizes:
            dimension = max(dimensions(kernel), key=size.get)
            if math.prod(size[name] for name in dimensions(kernel)) > 2**31 and is_local(
                kernel, dimension
            ):
                yield pytest.param(kernel, dimension, size, id=f"{kernel}-{size_text(size)}")


class FixedGrid(Exception):
    """The grid does not grow with the size, and the last block need not be at the end."""


@pytest.fixture
def last_block(monkeypatch, tmp_path):
    """A function that has every launch run its last block only, or instead the first. A grid that
    does not grow raises FixedGrid."""
    for backend in registry.BACKENDS:
        registry.missing(backend)
    # without clusters: their blocks would be the last together
    few = replace(PROPERTIES, capability=(8, 0))
    monkeypatch.setattr(device, "describe", lambda device: few)
    last = [True]
    run_cuda, run_numba = cuda_cpp.run, numba_cuda.run
    run_triton, Cluster = interpreter.InterpretedFunction.run, numba_fibers.Cluster

    def end(grid):
        if max(grid) == few.multiprocessors:
            raise FixedGrid
        return [n - 1 if last[0] else 0 for n in (*grid, 1, 1)[:3]]

    def cuda(kernel, name, grid, block, args, shared_bytes):
        text = kernel.path.read_text()
        for axis, first in zip("xyz", end(grid), strict=True):
            text = text.replace(f"blockIdx.{axis}", f"(blockIdx.{axis} + {first}u)")
        path = tmp_path / kernel.path.name
        path.write_text(text)
        run_cuda(cuda_cpp.Kernel(path, kernel.name), name, (1,), block, args, shared_bytes)

    def numba(kernel, grid, block, args, shared_bytes):
        at = numba_fibers.Dim3(*end(grid))
        with monkeypatch.context() as patch:
            patch.setattr(numba_fibers, "Cluster", lambda f, a, _, *rest: Cluster(f, a, at, *rest))
            run_numba(kernel, (1,), block, args, shared_bytes)

    def triton(self, *args, grid, warmup, **kwargs):
        at = tuple(end(grid))
        with monkeypatch.context() as patch:
            name = "set_grid_idx"
            patch.setattr(
                interpreter.InterpreterBuilder, name, lambda b, *_: setattr(b, "grid_idx", at)
            )
            run_triton(self, *args, grid=(1,), warmup=warmup, **kwargs)

    for module in (cuda_cpp, cuda_on_cpu):  # which puts its own in place whenever it compiles
        monkeypatch.setattr(module, "run", cuda)
    monkeypatch.setattr(numba_cuda, "run", numba)
    monkeypatch.setattr(interpreter.InterpretedFunction, "run", triton)

    def choose(is_last):
        last[0] = is_last

    return choose


@pytest.mark.parametrize("backend", registry.BACKENDS)
@pytest.mark.parametrize(("kernel", "dimension", "size"), [*huge_and_local()])
def test_the_last_block_of_a_huge_size_is_right(
    kernel, dimension, size, backend, numbers, last_block
):
    spec = registry.spec(kernel)
    if reason := registry.missing(backend):
        pytest.skip(reason)
    inputs = of_size(kernel, spec.dtypes[-1], size, make=numbers)
    less = cut(kernel, inputs, dimension, size)
    wanted = expected(spec, size | {dimension: KEPT}, tuple(less))

    def error(is_last):
        last_block(is_last)
        with Untouched():
            outputs = as_tuple(registry.load(kernel, backend)(*inputs))
        for want, y in zip(wanted, outputs, strict=True):
            value, bound = (z if z is None else z.flatten()[-1:] for z in (want.value, want.bound))
            of_last = replace(want, value=value, bound=bound, rms=math.inf)
            if found := compare(of_last, y.flatten()[-1:]).error:
                return found
        return ""

    try:  # what fills no pack may be the first block's
        assert "" in map(error, (True, False))
    except FixedGrid:
        pytest.skip("its grid has a fixed size: blocks go on to the end in turn")


def sparse():
    """Each huge size of a tensor of which few elements are read: it runs as a whole."""
    for kernel in registry.kernels():
        spec = registry.spec(kernel)
        for size in spec.huge_sizes:
            few = spec.work(spec.dtypes[-1], **size).bytes < 2**20
            if few and has_huge_tensor(kernel, size):
                yield pytest.param(kernel, size, id=f"{kernel}-{size_text(size)}")


@pytest.mark.parametrize("backend", registry.BACKENDS)
@pytest.mark.parametrize(("kernel", "size"), [*sparse()])
def test_few_elements_of_a_huge_size_are_right(kernel, size, backend, numbers):
    spec = registry.spec(kernel)
    if reason := registry.missing(backend):
        pytest.skip(reason)
    inputs = of_size(kernel, spec.dtypes[-1], size, make=numbers)
    outputs = registry.load(kernel, backend)(*inputs)
    assert torch.equal(outputs, spec.reference(*inputs))
