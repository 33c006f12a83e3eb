"""Day 2: every step-th element of a vector is copied: loads, stores and their addresses."""

import torch

from implementations.common.check import MAX_ELEMENTS, check_int, check_tensor, shown
from implementations.common.rules import Exact
from implementations.common.spec import KernelSpec, Work, generator

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
FETCH = 64  # bytes: two sectors, the least that an H100 reads from memory at once
SPARE = 5  # elements of x beyond the last that is copied


def strided_copy(x, start, step, n):
    """y[i] = x[start + i * step] for i from 0 to n - 1.

    x: (N,), float32, float16 or bfloat16, contiguous. start, step, n: ints, start and n at least 0,
    step at least 1, the last element within x. Returns (n,) of the same dtype.
    Raises TypeError for another dtype or type, ValueError for another shape, stride, device or
    number.
    """
    return x[start : start + n * step : step].clone(memory_format=torch.contiguous_format)


def check(x, start, step, n):
    check_tensor("x", x, ndim=1, dtypes=DTYPES)
    for name, number in (("start", start), ("step", step), ("n", n)):
        check_int(name, number)
    N = x.numel()
    if not 0 <= start <= N:
        raise ValueError(f"start must be from 0 to the length of x, {N}, got {shown(start)}")
    if not 1 <= step < 2**63:
        raise ValueError(f"step must be at least 1 and fit 64 bits, got {shown(step)}")
    if n < 0:
        raise ValueError(f"n must be at least 0, got {shown(n)}")
    last = start + (n - 1) * step
    if n > 0 and last >= N:
        raise ValueError(
            f"start + (n - 1) * step must be less than the length of x, {N}, got {shown(last)}"
        )


def make_inputs(dtype, device, seed, start, step, n):
    N = start + max(n - 1, 0) * step + 1 + SPARE
    x = torch.randn(N, dtype=dtype, device=device, generator=generator(device, seed))
    return x, start, step, n


def work(dtype, start, step, n):
    return Work(bytes=2 * n * dtype.itemsize, flops=0)


def traffic(dtype, start, step, n):
    """Whole fetches come from memory: of each, only every step-th element is used."""
    return n * (min(step * dtype.itemsize, FETCH) + dtype.itemsize)


def size(start, step, n):
    return {"start": start, "step": step, "n": n}


CHECK = (  # start, step, n
    *((0, 1, 0), (3, 2, 0), (0, 1, 1), (5, 7, 1), (2, 3, 7), (0, 1, 1024), (1, 2, 2047)),
    *((4, 1, 2049), (0, 32, 256), (16, 16, 1040), (11, 5, 4099), (0, 1, 10_007)),
)
BENCH = tuple(size(0, step, 2**26) for step in (1, 2, 3, 4, 8, 16, 32))

SPEC = KernelSpec(
    name="strided_copy",
    day=2,
    title="Strided copy",
    reference=strided_copy,
    make_inputs=make_inputs,
    work=work,
    traffic=traffic,
    counted=BENCH,
    check_sizes=tuple(size(*s) for s in CHECK),
    bench_sizes=BENCH,
    headline=size(0, 1, 2**26),
    huge_sizes=(size(3, 2**20 + 1, 2051),),  # i and step are small, their product is not
    limits={
        "start": size(MAX_ELEMENTS - 1 - SPARE, 1, 1),
        "step": size(0, 2**63 - 1, 1),
        "n": size(0, 1, MAX_ELEMENTS - SPARE),
    },
    dtypes=DTYPES,
    agreement=Exact(),
    baselines={"torch": strided_copy},
    refused={
        "negative start": lambda x, start, step, n: (x, -1, step, n),
        "start beyond the end": lambda x, start, step, n: (x, len(x) + 1, step, 0),
        "step 0": lambda x, start, step, n: (x, start, 0, n),
        "step beyond 64 bits": lambda x, start, step, n: (x, start, 2**63, 1),
        "negative n": lambda x, start, step, n: (x, start, step, -1),
        "last element beyond the end": lambda x, start, step, n: (x, len(x) - n + 1, 1, n),
        "float step": lambda x, start, step, n: (x, start, float(step), n),
        "bool n": lambda x, start, step, n: (x, start, step, True),
    },
    machine_code=(),
    sources=("CUDA C++ Best Practices Guide: strided accesses",),
)
