"""Day 13: softmax takes one launch, each row staying on chip between its one read and one write."""

import torch

from implementations.common.baselines import compiled
from implementations.common.check import MAX_GRID_X, check_at_most, check_tensor
from implementations.common.rules import Composite
from implementations.common.spec import SCALES, KernelSpec, Work, generator

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MAX_M = MAX_GRID_X  # a block has one row at least, and rows are counted in 32 bits
MAX_N = 32768  # elements of a row that one block holds in its registers


def softmax_fused(x):
    """exp(x - max) / sum(exp(x - max)) over each row.

    x: (M, N), M ≤ 2147483647, N ≤ 32768, float32, float16 or bfloat16, contiguous. Returns (M, N)
    of the same dtype; the exponentials and their sum are float32. A row with NaN or +inf, or all
    -inf, gives NaN.
    Raises TypeError for another dtype, ValueError for another shape, stride or device.
    """
    return torch.softmax(x, dim=-1)


def check(x):
    check_tensor("x", x, ndim=2, dtypes=DTYPES)
    M, N = x.shape
    check_at_most("x", "rows", M, MAX_M)
    check_at_most("x", "columns", N, MAX_N, "softmax_online takes longer rows")


def make_inputs(dtype, device, seed, M, N):
    g = generator(device, seed)
    x = 2 * torch.randn(M, N, device=device, generator=g)
    # two rows of three so far from zero that exp under- or overflows: no max, no result
    far = 100_000 if dtype == torch.float32 else 120  # beyond float16: a max held in it shows
    x += far * (torch.arange(M, device=device)[:, None] % 3 - 1)
    if N > 0:
        x[::3, -1] += 8  # an outlier, where a dropped tail shows most
    return (x.to(dtype),)


def work(dtype, M, N):
    return Work(bytes=2 * M * N * dtype.itemsize, flops=5 * M * N)


CHECK = (  # M, N
    *((0, 8), (3, 0), (1, 1), (37, 7), (5, 257), (3, 1023), (4, 1536)),
    *((9, 1024), (2, 2056), (2, 8191), (1, 32768)),
)

SPEC = KernelSpec(
    name="softmax_fused",
    day=13,
    title="Fused softmax",
    reference=softmax_fused,
    make_inputs=make_inputs,
    work=work,
    check_sizes=tuple({"M": M, "N": N} for M, N in CHECK),
    bench_sizes=tuple({"M": 2**27 // N, "N": N} for N in (256, 1024, 4096, 8192, 16384, 32768)),
    other_sizes=tuple({"M": 2**27 // N, "N": N} for N in (8192, 32768)),
    headline={"M": 16384, "N": 8192},
    huge_sizes=({"M": 2**20, "N": 1}, {"M": 2**26 + 1, "N": 33}, {"M": 2**16 + 64, "N": 32_760}),
    limits={"M": {"M": MAX_M, "N": 1}, "N": {"M": 1, "N": MAX_N}},
    dtypes=DTYPES,
    agreement=Composite(),
    baselines={"torch": softmax_fused, "torch.compile": compiled(softmax_fused)},
    sources=(
        "Triton tutorial 02: fused softmax",
        "Milakov and Gimelshein, Online normalizer calculation for softmax, 2018, section 2",
    ),
    scales=SCALES,
    ladder="softmax",
)
