"""Day 1: one number is stored into every element: the smallest complete kernel."""

import math

import torch

from implementations.common.check import MAX_ELEMENTS, check_number, check_tensor
from implementations.common.rules import Exact
from implementations.common.spec import KernelSpec, Work, generator

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def fill(like, value):
    """A tensor of the shape and dtype of `like`, every element `value`, rounded once.

    like: any shape, float32, float16 or bfloat16, contiguous; it is not read. value: an int or a
    float within the range of that dtype, or an infinity or NaN.
    Raises TypeError for another dtype or type, ValueError for another stride, device or range.
    """
    return torch.full_like(like, float(value))


def check(like, value):
    """Refuse what fill does not take; the value rounded to the dtype of `like`."""
    check_tensor("like", like, ndim=None, dtypes=DTYPES)
    return check_number("value", value, like.dtype)


# A third is rounded in every dtype, 1e-5 and 1e-40 are subnormal in some. The first is timed.
VALUES = (-1 / 3, math.inf, -0.0, 1e-5, 7, 1e-40)


def make_inputs(dtype, device, seed, N):
    shape = (2, N // 2) if N % 2 == 0 else (N,)
    like = torch.randn(shape, dtype=dtype, device=device, generator=generator(device, seed))
    return like, VALUES[0 if N > 2**20 else N % len(VALUES)]


def work(dtype, N):
    return Work(bytes=N * dtype.itemsize, flops=0, limit="write")


SPEC = KernelSpec(
    name="fill",
    day=1,
    title="Fill",
    reference=fill,
    make_inputs=make_inputs,
    work=work,
    check_sizes=tuple({"N": n} for n in (0, 1, 7, 15, 4096, 4097, 10_007, 16_388)),
    bench_sizes=tuple({"N": n} for n in (2**22, 2**25, 2**28)),
    headline={"N": 2**28},
    huge_sizes=({"N": 2**31 + 4099},),
    limits={"N": {"N": MAX_ELEMENTS}},
    dtypes=DTYPES,
    agreement=Exact(),
    baselines={"torch": torch.full_like},
    refused={
        "bool value": lambda like, value: (like, True),
        "text value": lambda like, value: (like, "1"),
        "value out of range": lambda like, value: (like, 1e39),
    },
    machine_code=("wide stores",),
)
