"""Day 12: softmax of each row follows its plain formula, and overflows where it need not."""

import torch

from implementations.common.baselines import compiled
from implementations.common.check import MAX_ELEMENTS, MAX_GRID_X, check_at_most, check_tensor
from implementations.common.rules import Composite
from implementations.common.spec import SCALES, KernelSpec, Work, generator

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MAX_M = MAX_GRID_X  # a block has one row at least
UNDER_WAY = 4 * 132  # rows, of 512 threads each, that an H100 works on at once
L2 = 50e6  # bytes, of an H100


def softmax_naive(x):
    """exp(x) / sum(exp(x)) over each row, with nothing against overflow.

    x: (M, N), M ≤ 2147483647, float32, float16 or bfloat16, contiguous. Returns (M, N) of the same
    dtype; the exponentials, their sum and its reciprocal are float32. Where the sum or the
    reciprocal exceeds 3.4e38, a row holds NaN, and zeros or infinities: as soon as an element
    exceeds 88.7, or none exceeds -105. torch.softmax has no such limits.
    Raises TypeError for another dtype, ValueError for another shape, stride or device.
    """
    p = torch.exp(x.to(torch.promote_types(x.dtype, torch.float32)))
    return (p / p.sum(dim=-1, keepdim=True)).to(x.dtype)


def check(x):
    check_tensor("x", x, ndim=2, dtypes=DTYPES)
    check_at_most("x", "rows", x.shape[0], MAX_M)


def make_inputs(dtype, device, seed, M, N):
    x = torch.randn(M, N, dtype=dtype, device=device, generator=generator(device, seed))
    x /= 2  # small: the error of a fast exponential grows with its argument
    if N > 0:
        x[::3, -1] += 3  # an outlier, where a dropped tail shows most
    return (x,)


def work(dtype, M, N):
    return Work(bytes=2 * M * N * dtype.itemsize, flops=5 * M * N)


def traffic(dtype, M, N):
    """Two reads and a write; the second read comes from the L2 if the rows under way fit there."""
    passes = 2 if UNDER_WAY * N * dtype.itemsize <= L2 else 3
    return passes * M * N * dtype.itemsize


def torch_softmax(x):
    return torch.softmax(x, dim=-1)


CHECK = ((0, 8), (3, 0), (1, 1), (37, 7), (70, 24), (5, 257), (3, 1024), (2, 8200))  # M, N

SPEC = KernelSpec(
    name="softmax_naive",
    day=12,
    title="Softmax without the maximum",
    reference=softmax_naive,
    make_inputs=make_inputs,
    work=work,
    traffic=traffic,
    check_sizes=tuple({"M": M, "N": N} for M, N in CHECK),
    bench_sizes=tuple({"M": 2**27 // N, "N": N} for N in (1024, 8192, 32768)),
    headline={"M": 16384, "N": 8192},
    huge_sizes=(
        *({"M": 1, "N": 2**20}, {"M": 2**20, "N": 1}),
        *({"M": 2**26 + 1, "N": 33}, {"M": 1, "N": 2**31 + 8}),
    ),
    limits={"M": {"M": MAX_M, "N": 1}, "N": {"M": 1, "N": MAX_ELEMENTS}},
    dtypes=DTYPES,
    agreement=Composite(),
    baselines={"torch": torch_softmax, "torch.compile": compiled(torch_softmax)},
    sources=("Milakov and Gimelshein, Online normalizer calculation for softmax, 2018, section 2",),
    scales=SCALES,
    ladder="softmax",
)
