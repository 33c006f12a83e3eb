"""Day 8: two vectors are added, element by element, at the bandwidth limit."""

import torch

from implementations.common.check import MAX_ELEMENTS, check_same, check_tensor
from implementations.common.rules import Exact
from implementations.common.spec import KernelSpec, Work, generator

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def vector_add(x, y):
    """The sum x + y, element by element, each rounded once.

    x, y: (N,), float32, float16 or bfloat16, contiguous. Returns (N,) of the same dtype.
    Raises TypeError for another dtype, ValueError for another shape, stride or device.
    """
    return x + y


def check(x, y):
    check_tensor("x", x, ndim=1, dtypes=DTYPES)
    check_tensor("y", y, ndim=1, dtypes=DTYPES)
    check_same(("x", "y"), x, y, "shape", "dtype", "device")


def make_inputs(dtype, device, seed, N):
    g = generator(device, seed)
    x, y = (torch.randn(N, dtype=dtype, device=device, generator=g) for _ in range(2))
    y[::7] *= 1000  # exponents far apart: the smaller operand is rounded away
    return x, y


def work(dtype, N):
    return Work(bytes=3 * N * dtype.itemsize, flops=N)


SPEC = KernelSpec(
    name="vector_add",
    day=8,
    title="Vector addition",
    reference=vector_add,
    make_inputs=make_inputs,
    work=work,
    check_sizes=tuple({"N": n} for n in (0, 1, 7, 255, 1024, 1025, 4099, 10_007)),
    bench_sizes=tuple({"N": n} for n in (2**20, 2**22, 2**24, 2**26, 2**28)),
    headline={"N": 2**28},
    dtypes=DTYPES,
    agreement=Exact(),
    baselines={"torch": torch.add},
    huge_sizes=({"N": 2**31 + 4099},),
    limits={"N": {"N": MAX_ELEMENTS}},
    sources=("Triton tutorial 01: vector addition",),
)
