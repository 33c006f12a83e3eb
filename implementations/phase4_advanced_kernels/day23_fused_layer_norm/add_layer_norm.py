"""Day 23: a residual is added and the sum normalised in one launch, the sum staying on chip."""

import torch

from implementations.common.baselines import compiled
from implementations.common.check import MAX_ELEMENTS, check_same, check_tensor
from implementations.common.rules import Composite, Exact, InverseRoot, Reduction
from implementations.common.spec import KernelSpec, Work, generator
from implementations.phase4_advanced_kernels.day22_layer_normalization.layer_norm import (
    CHECK,
    REFUSED_EPS,
    check_eps,
    check_of_columns,
    layer_norm,
)

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# How far from zero some rows lie, and the step of the numbers that x and residual consist of: with
# the digits that the dtype has, most sums are exact.
FAR = {torch.float32: 10_000, torch.float16: 96, torch.bfloat16: 8}
STEP = {torch.float32: 2**-9, torch.float16: 2**-4, torch.bfloat16: 2**-3}


def add_layer_norm(x, residual, w, b, eps):
    """s = x + residual, rounded to the dtype of x; then y, mean and rstd of `layer_norm` of s.

    x, residual: (M, N), N ≥ 1, float32, float16 or bfloat16, contiguous. w, b: (N,), of the dtype
    of x, as residual is. eps: an int or a float, at least 0. Returns y and s (M, N) of the dtype of
    x, mean and rstd (M,) float32. What Day 22 says of rows that are not finite holds for s.
    Raises TypeError for another dtype or type, ValueError for another shape, stride, device or eps.
    """
    s = x + residual
    y, mean, rstd = layer_norm(s, w, b, eps)
    return y, s, mean, rstd


def check(x, residual, w, b, eps):
    """Refuse what add_layer_norm does not take; eps rounded to float32."""
    check_tensor("x", x, ndim=2, dtypes=DTYPES)
    check_tensor("residual", residual, ndim=2, dtypes=DTYPES)
    check_same(("x", "residual"), x, residual, "shape", "dtype", "device")
    for name, parameter in (("w", w), ("b", b)):
        check_of_columns(name, parameter, x)
    return check_eps(eps)


def make_inputs(dtype, device, seed, M, N):
    g = generator(device, seed)
    x, residual = (torch.randn(M, N, device=device, generator=g).clamp_(-4, 4) for _ in range(2))
    x[::2, :1] += 3  # outliers: in what gives the shift
    x[1::4, -1:] -= 3  # and where a dropped tail shows most
    # two rows of three so far from zero that s - mean is little of s, and s² lost beside mean²
    x += FAR[dtype] * (torch.arange(M, device=device)[:, None] % 3 - 1)
    # The oracle knows no dtype to round s to: were it rounded everywhere, no error of y would show.
    x, residual = (STEP[dtype] * (t / STEP[dtype]).round() for t in (x, residual))
    residual[1::3, 4::97] /= 5000  # here it is, by less than shows in y
    x[1::3, 4::97] /= 3000
    x[5::64], residual[5::64] = 0.25, -0.125  # a variance of zero
    w, b = (torch.randn(N, device=device, generator=g) for _ in range(2))
    eps = 0 if N == 16 else 1e-5  # the row above then gives NaN
    return x.to(dtype), residual.to(dtype), (1 + w / 2).to(dtype), b.to(dtype), eps


def magnitude(x, residual, w, b, eps):
    """Of the mean; the rules of the other outputs ask for none."""
    return None, None, (x + residual).mean(1), None


def work(dtype, M, N):
    return Work(bytes=(4 * M + 2) * N * dtype.itemsize + 8 * M, flops=9 * M * N)


def two_launches(x, residual, w, b, eps):
    s = x + residual
    y, mean, rstd = torch.native_layer_norm(s, [len(w)], w, b, eps)
    return y, s, mean, rstd


BENCH = (64, 256, 1024, 4096, 8192, 16384, 32768, 65536, 262144)  # N

SPEC = KernelSpec(
    name="add_layer_norm",
    day=23,
    title="Residual and layer norm",
    reference=add_layer_norm,
    make_inputs=make_inputs,
    work=work,
    check_sizes=tuple({"M": M, "N": N} for M, N in CHECK),
    bench_sizes=tuple({"M": 2**27 // N, "N": N} for N in BENCH),
    other_sizes=tuple({"M": 2**27 // N, "N": N} for N in (64, 8192, 32768, 262144)),
    headline={"M": 16384, "N": 8192},
    huge_sizes=(
        *({"M": 1, "N": 2**20}, {"M": 2**20, "N": 1}),
        *({"M": 2**26 + 1, "N": 33}, {"M": 2**16 + 3, "N": 32_776}, {"M": 2, "N": 2**30 + 8}),
    ),
    limits={"M": {"M": MAX_ELEMENTS, "N": 1}, "N": {"M": 1, "N": MAX_ELEMENTS}},
    dtypes=DTYPES,
    agreement=(Composite(), Exact(), Reduction("N"), InverseRoot("N")),
    magnitude=magnitude,
    baselines={"torch": two_launches, "torch.compile": compiled(two_launches)},
    refused=REFUSED_EPS,
    sources=("Chan, Golub and LeVeque, Algorithms for Computing the Sample Variance, 1983",),
)
