"""Day 10: the largest of all elements of a vector is found by a tree of fixed shape."""

import torch

from implementations.common.baselines import by_cupy, compiled
from implementations.common.check import MAX_ELEMENTS, check_tensor
from implementations.common.rules import Exact
from implementations.common.spec import KernelSpec, Work, generator

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def vector_max(x):
    """The largest element of x; NaN where one is.

    x: (N,), N ≥ 1, float32, float16 or bfloat16, contiguous. Returns a tensor of no dimensions and
    the same dtype.
    Raises TypeError for another dtype, ValueError for another shape, stride or device.
    """
    return torch.max(x)


def check(x):
    check_tensor("x", x, ndim=1, dtypes=DTYPES)
    if x.numel() == 0:
        raise ValueError(f"x must have at least 1 element, got shape {tuple(x.shape)}")


def make_inputs(dtype, device, seed, N):
    x = torch.randn(N, dtype=dtype, device=device, generator=generator(device, seed))
    x.abs_().add_(1).neg_()  # none above -1, so that 0 is no neutral element
    place = (0, N // 2, N - 1)[N % 3]  # by turns where a block, a tail or a step may get lost
    x[place] = -0.7  # the largest; float32 holds more of its digits than float16
    if N % 11 == 7:
        x[N // 3] = torch.nan
    return (x,)


def work(dtype, N):
    return Work(bytes=(N + 1) * dtype.itemsize, flops=N, limit="read")


SPEC = KernelSpec(
    name="vector_max",
    day=10,
    title="Maximum of a vector",
    reference=vector_max,
    make_inputs=make_inputs,
    work=work,
    # on the CPU tier two programs take 4096 float32 or 8192 16-bit elements each in turn
    check_sizes=tuple({"N": n} for n in (1, 7, 255, 4096, 4099, 8195, 16_384, 20_477, 20_480)),
    bench_sizes=tuple({"N": 2**e} for e in (18, 22, 25, 28, 30)),  # 1 MB to 4 GB of float32
    headline={"N": 2**28},
    dtypes=DTYPES,
    agreement=Exact(),
    baselines={"torch": vector_max, "torch.compile": compiled(vector_max), "CuPy": by_cupy("max")},
    huge_sizes=({"N": 2**31 + 4099},),
    limits={"N": {"N": MAX_ELEMENTS}},
    refused={"no element": lambda x: (x[:0].clone(),)},
    machine_code=("wide loads",),
    sources=("Harris, Optimizing Parallel Reduction in CUDA, NVIDIA, 2007",),
)
