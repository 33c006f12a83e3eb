"""Day 22: layer normalisation reads a row once, and takes its variance about a mean on chip."""

import torch

from implementations.common.baselines import compiled
from implementations.common.check import MAX_ELEMENTS, check_number, check_same, check_tensor
from implementations.common.rules import Composite, InverseRoot, Reduction
from implementations.common.spec import KernelSpec, Work, generator

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# How far from zero some rows lie, whose deviation is about 1: 10,000, or what the dtype resolves.
FAR = {torch.float32: 10_000, torch.float16: 1000, torch.bfloat16: 100}


def layer_norm(x, w, b, eps):
    """y = (x - mean) * rstd * w + b over each row, rstd = 1 / sqrt(variance + eps).

    x: (M, N), N ≥ 1, float32, float16 or bfloat16, contiguous. w, b: (N,), of the dtype of x. eps:
    an int or a float, at least 0. Returns y (M, N) of the dtype of x, mean and rstd (M,) float32,
    as all arithmetic is; here each is rounded once from float64. The variance is the mean squared
    deviation, without Bessel's correction. A row with NaN or an infinity gives NaN in all three;
    so does y, if eps is 0, of a row whose elements are equal: rstd is infinite.

    With any shift near the mean, d = x - shift, s1 the sum of d and s2 that of d²: the mean is
    shift + s1/N, the variance s2/N - (s1/N)². The kernels take the mean itself as it is rounded, or
    that of the part of a long row which they read first.
    Raises TypeError for another dtype or type, ValueError for another shape, stride, device or eps.
    """
    y, mean, rstd = torch.native_layer_norm(x.double(), [len(w)], w.double(), b.double(), eps)
    mean = mean.masked_fill_(
        rstd.isnan(), torch.nan
    )  # where torch's depends on an infinity's place
    wide = torch.promote_types(x.dtype, torch.float32)
    return y.to(x.dtype), mean.view(-1).to(wide), rstd.view(-1).to(wide)


def check(x, w, b, eps):
    """Refuse what layer_norm does not take; eps rounded to float32."""
    check_tensor("x", x, ndim=2, dtypes=DTYPES)
    for name, parameter in (("w", w), ("b", b)):
        check_of_columns(name, parameter, x)
    return check_eps(eps)


def check_of_columns(name: str, parameter, x) -> None:
    """Require a vector that has an element for each column of `x`, one at least, and its dtype."""
    check_tensor(name, parameter, ndim=1, dtypes=DTYPES)
    check_same(("x", name), x, parameter, "dtype", "device")
    N = x.shape[1]
    if N == 0:
        raise ValueError(f"x must have at least 1 column, got shape {tuple(x.shape)}")
    if len(parameter) != N:
        raise ValueError(
            f"{name} must have an element for each of x's {N} columns, got {len(parameter)}"
        )


def check_eps(eps) -> float:
    """Require a number that is not negative, within float32; rounded to it."""
    rounded = check_number("eps", eps, torch.float32)
    if not rounded >= 0:  # NaN is not either
        raise ValueError(f"eps must be at least 0, got {eps}")
    return rounded


def make_inputs(dtype, device, seed, M, N):
    g = generator(device, seed)
    x = torch.randn(M, N, device=device, generator=g)
    x[4::48] /= 1000  # variances below eps
    x[::2, :1] += 50  # outliers: in what gives the shift
    x[1::4, -1:] -= 50  # and where a dropped tail shows most
    # two rows of three so far from zero that x - mean is little of x, and x² lost beside mean²
    x += FAR[dtype] * (torch.arange(M, device=device)[:, None] % 3 - 1)
    x[5::64] = 0.3  # a variance of zero
    w, b = (torch.randn(N, device=device, generator=g) for _ in range(2))
    eps = 0 if N == 16 else 1e-5  # the row above then gives NaN
    return x.to(dtype), (1 + w / 2).to(dtype), b.to(dtype), eps


def magnitude(x, w, b, eps):
    """Of the mean; the rules of the other outputs ask for none."""
    return None, x.mean(1), None


def work(dtype, M, N):
    return Work(bytes=2 * (M + 1) * N * dtype.itemsize + 8 * M, flops=8 * M * N)


def refused_eps(eps):
    """What makes of right arguments such as have this eps."""
    return lambda *args: (*args[:-1], eps)


REFUSED_EPS = {
    "negative eps": refused_eps(-1e-5),
    "eps NaN": refused_eps(float("nan")),
    "bool eps": refused_eps(True),
    "text as eps": refused_eps("1e-5"),
    "eps beyond float32": refused_eps(1e39),
}

CHECK = (  # M, N; from 32,769 on a row takes a cluster or a loop, from 262,145 on both
    *((0, 8), (1, 1), (67, 7), (70, 16), (9, 64), (5, 257), (3, 1023), (4, 1536)),
    *((2, 8191), (2, 16_392), (1, 32768), (1, 262160), (2, 32776), (2, 33_001)),
)
BENCH = (64, 256, 1024, 4096, 8192, 16384, 32768, 65536, 262144)  # N

SPEC = KernelSpec(
    name="layer_norm",
    day=22,
    title="Layer normalisation",
    reference=layer_norm,
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
    agreement=(Composite(), Reduction("N"), InverseRoot("N")),
    magnitude=magnitude,
    baselines={
        "torch": lambda x, w, b, eps: torch.native_layer_norm(x, [len(w)], w, b, eps),
        "torch.compile": compiled(
            lambda x, w, b, eps: torch.native_layer_norm(x, [len(w)], w, b, eps)
        ),
    },
    refused=REFUSED_EPS,
    sources=(
        "Ba, Kiros and Hinton, Layer Normalization, 2016",
        "Chan, Golub and LeVeque, Algorithms for Computing the Sample Variance, Am. Stat. 37, 1983",
    ),
)
