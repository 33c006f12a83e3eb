"""Day 10: all elements of a vector are summed by a tree of fixed shape."""

import torch

from implementations.common.baselines import by_cupy, compiled
from implementations.common.check import MAX_ELEMENTS, check_tensor
from implementations.common.rules import Reduction
from implementations.common.spec import KernelSpec, Work, generator

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def vector_sum(x):
    """The sum of all elements of x; 0 where there are none.

    x: (N,), float32, float16 or bfloat16, contiguous. Returns a float32 of no dimensions, the same
    bits from every run on one GPU; all sums are float32.
    Raises TypeError for another dtype, ValueError for another shape, stride or device.
    """
    return torch.sum(x, dtype=torch.promote_types(x.dtype, torch.float32))


def check(x):
    check_tensor("x", x, ndim=1, dtypes=DTYPES)


def make_inputs(dtype, device, seed, N):
    x = torch.randn(N, dtype=dtype, device=device, generator=generator(device, seed))
    # far from a mean of zero, so that what is lost shows; a sum of few is beyond float16, and so
    # are, in the wider dtypes, some elements: what is held in float16 on its way shows
    x.add_(1).mul_(2**11 if dtype == torch.float16 else 2**15)
    x[:1] = x[-1:] = 2**15  # a lost first or last element shows even among many
    return (x,)


def work(dtype, N):
    return Work(bytes=N * dtype.itemsize + 4, flops=N, limit="read")


SPEC = KernelSpec(
    name="vector_sum",
    day=10,
    title="Sum of a vector",
    reference=vector_sum,
    make_inputs=make_inputs,
    work=work,
    # on the CPU tier two programs take 4096 float32 or 8192 16-bit elements each in turn
    check_sizes=tuple({"N": n} for n in (0, 1, 7, 255, 4096, 4099, 8193, 16_384, 20_477)),
    bench_sizes=tuple({"N": 2**e} for e in (18, 22, 25, 28, 30)),  # 1 MB to 4 GB of float32
    headline={"N": 2**28},
    dtypes=DTYPES,
    agreement=Reduction("N"),
    baselines={
        "torch": vector_sum,
        "torch.compile": compiled(vector_sum),
        "CuPy": by_cupy("sum", dtype="float32"),
    },
    huge_sizes=({"N": 2**31 + 4099},),
    limits={"N": {"N": MAX_ELEMENTS}},
    machine_code=("wide loads",),
    sources=("Harris, Optimizing Parallel Reduction in CUDA, NVIDIA, 2007",),
)
