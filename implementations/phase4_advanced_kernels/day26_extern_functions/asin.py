"""Day 26: an inverse sine, element by element, that CUDA's library computes."""

import torch

from implementations.common.baselines import compiled
from implementations.common.check import MAX_ELEMENTS, check_tensor
from implementations.common.rules import Function
from implementations.common.spec import KernelSpec, Work, generator

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def asin(x):
    """The angle from -π/2 to π/2 whose sine is x, element by element; NaN beyond 1.

    x: any shape, float32, float16 or bfloat16, contiguous. Returns the same shape and dtype.
    Raises TypeError for another dtype, ValueError for another stride or device.
    """
    return torch.asin(x.double()).to(x.dtype)


def check(x):
    check_tensor("x", x, ndim=None, dtypes=DTYPES)


def make_inputs(dtype, device, seed, N):
    g = generator(device, seed)
    x = 2 * torch.rand(N, dtype=torch.float32, device=device, generator=g) - 1
    x[::5] = torch.empty_like(x[::5]).normal_(generator=g) * 10 ** (8 * x[::5])  # tiny, beyond 1
    x[3::11] = torch.sign(x[3::11])
    x[4::11] = 1 - x[4::11] ** 8  # near 1, where the slope is infinite
    x[7::13] *= torch.finfo(dtype).tiny  # subnormal
    x[8::17] *= 0  # of either sign
    return (x.to(dtype),)


def work(dtype, N):
    return Work(bytes=2 * N * dtype.itemsize, flops=N)


SPEC = KernelSpec(
    name="asin",
    day=26,
    title="Inverse sine",
    reference=asin,
    make_inputs=make_inputs,
    work=work,
    check_sizes=tuple({"N": n} for n in (0, 1, 7, 255, 1024, 1025, 4099, 10_007)),
    bench_sizes=tuple({"N": n} for n in (2**20, 2**22, 2**24, 2**26, 2**28)),
    headline={"N": 2**28},
    dtypes=DTYPES,
    agreement=Function(ulp=4),  # CUDA's table says 2, older ones 4
    baselines={"torch": torch.asin, "torch.compile": compiled(torch.asin)},
    huge_sizes=({"N": 2**31 + 4099},),
    limits={"N": {"N": MAX_ELEMENTS}},
    sources=(
        "Triton tutorial 07: libdevice",
        "CUDA Programming Guide, Mathematical Functions: accuracy in ulp",
    ),
)
