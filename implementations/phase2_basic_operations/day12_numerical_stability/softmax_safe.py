"""Day 12: softmax subtracts each row's maximum, and takes a launch for each of its three steps."""

import torch

from implementations.common.baselines import compiled
from implementations.common.check import MAX_GRID_X, check_at_most, check_tensor
from implementations.common.rules import Composite
from implementations.common.spec import SCALES, KernelSpec, Work, generator

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MAX_M = MAX_GRID_X  # a block has one row at least
MAX_N = 2**20  # a block sums a row in float32, one element after another in each of its threads


def softmax_safe(x):
    """exp(x - max) / sum(exp(x - max)) over each row: maximum, sum and quotient in turn.

    x: (M, N), M ≤ 2147483647, N ≤ 1048576, float32, float16 or bfloat16, contiguous. Returns (M, N)
    of the same dtype; the exponentials and their sum are float32. A row with NaN or +inf, or all
    -inf, gives NaN.
    Raises TypeError for another dtype, ValueError for another shape, stride or device.
    """
    return torch.softmax(x, dim=-1)


def check(x):
    check_tensor("x", x, ndim=2, dtypes=DTYPES)
    check_at_most("x", "rows", x.shape[0], MAX_M)
    check_at_most("x", "columns", x.shape[1], MAX_N)


def make_inputs(dtype, device, seed, M, N):
    g = generator(device, seed)
    x = 2 * torch.randn(M, N, device=device, generator=g)
    # two rows of three so far from zero that exp under- or overflows: no max, no result
    far = 100_000 if dtype == torch.float32 else 120  # beyond float16: a max held in it shows
    x += far * (torch.arange(M, device=device)[:, None] % 3 - 1)
    if N > 0:
        x[::3, -1] += 8  # an outlier, where a dropped tail shows most
        x[1::3, -1] += 200  # without it in the maximum exp overflows
    return (x.to(dtype),)


def work(dtype, M, N):
    return Work(bytes=2 * M * N * dtype.itemsize, flops=5 * M * N)


def traffic(dtype, M, N):
    """Each launch reads the matrix anew, the last one writes it; the statistics are small."""
    return 4 * M * N * dtype.itemsize


CHECK = ((0, 8), (3, 0), (1, 1), (37, 7), (70, 24), (5, 257), (3, 1024), (2, 8200))  # M, N

SPEC = KernelSpec(
    name="softmax_safe",
    day=12,
    title="Softmax in three launches",
    reference=softmax_safe,
    make_inputs=make_inputs,
    work=work,
    traffic=traffic,
    check_sizes=tuple({"M": M, "N": N} for M, N in CHECK),
    bench_sizes=tuple({"M": 2**27 // N, "N": N} for N in (1024, 8192, 32768)),
    headline={"M": 16384, "N": 8192},
    huge_sizes=({"M": 1, "N": 2**20}, {"M": 2**20, "N": 1}, {"M": 2**26 + 1, "N": 33}),
    limits={"M": {"M": MAX_M, "N": 1}, "N": {"M": 1, "N": MAX_N}},
    dtypes=DTYPES,
    agreement=Composite(),
    baselines={"torch": softmax_safe, "torch.compile": compiled(softmax_safe)},
    sources=("Milakov and Gimelshein, Online normalizer calculation for softmax, 2018, section 2",),
    scales=SCALES,
    ladder="softmax",
)
