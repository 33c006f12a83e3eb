"""Day 26: the GELU by the error function, of which CUDA's library has the accurate half."""

import math

import torch
import torch.nn.functional as F

from implementations.common.baselines import compiled
from implementations.common.check import MAX_ELEMENTS, check_tensor
from implementations.common.rules import Function
from implementations.common.spec import KernelSpec, Work, generator

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def gelu_erf(x):
    """x Φ(x) = x (1 + erf(x / √2)) / 2, element by element; Φ: the normal distribution's function.

    Below zero 1 + erf cancels, so it is erfc(-x / √2). Of -inf it is NaN, as 0 times infinity is.
    x: any shape, float32, float16 or bfloat16, contiguous. Returns the same shape and dtype.
    Raises TypeError for another dtype, ValueError for another stride or device.
    """
    z = x.double()
    return (0.5 * z * torch.special.erfc(-z * math.sqrt(0.5))).to(x.dtype)


def check(x):
    check_tensor("x", x, ndim=None, dtypes=DTYPES)


def make_inputs(dtype, device, seed, N):
    g = generator(device, seed)
    x = 3 * torch.randn(N, dtype=torch.float32, device=device, generator=g)
    x[::3].uniform_(-14.5, 0, generator=g)  # to where float32 has no more of Φ
    x[1::7] *= 10 ** (6 * x[1::7])  # tiny and huge
    x[8::17] *= 0  # of either sign
    return (x.to(dtype),)


def work(dtype, N):
    return Work(bytes=2 * N * dtype.itemsize, flops=N)


SPEC = KernelSpec(
    name="gelu_erf",
    day=26,
    title="GELU",
    reference=gelu_erf,
    make_inputs=make_inputs,
    work=work,
    check_sizes=tuple({"N": n} for n in (0, 1, 7, 255, 1024, 1025, 4099, 10_007)),
    bench_sizes=tuple({"N": n} for n in (2**20, 2**22, 2**24, 2**26, 2**28)),
    headline={"N": 2**28},
    dtypes=DTYPES,
    # Φ is documented within 5 ulp, up to 10 of a product below a power of two, which is rounded;
    # where Φ is subnormal, half of its last place is multiplied by up to 14
    agreement=Function(ulp=18),
    baselines={"torch": F.gelu, "torch.compile": compiled(F.gelu)},
    huge_sizes=({"N": 2**31 + 4099},),
    limits={"N": {"N": MAX_ELEMENTS}},
    sources=(
        "Hendrycks and Gimpel, Gaussian error linear units, 2016",
        "CUDA Programming Guide, Mathematical Functions: accuracy in ulp",
    ),
)
