"""Day 14: softmax takes rows of any length, whose parts are merged by their maxima and sums."""

import torch

from implementations.common.baselines import compiled
from implementations.common.check import MAX_GRID_X, check_at_most, check_tensor
from implementations.common.rules import Composite
from implementations.common.spec import SCALES, KernelSpec, Work, generator

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MAX_M = MAX_GRID_X  # a block has one row at least, and rows are counted in 32 bits
MAX_N = 2**33  # in Triton a program holds m and l of all of a row's tiles of 32768


def softmax_online(x):
    """exp(x - max) / sum(exp(x - max)) over each row.

    x: (M, N), M ≤ 2147483647, N ≤ 8589934592, float32, float16 or bfloat16, contiguous. Returns
    (M, N) of the same dtype; the exponentials and their sum are float32. A row with NaN or +inf, or
    all -inf, gives NaN.

    With m the maximum of some elements and l the sum of their exp(x - m), two parts of a row are
    merged by m = max(m1, m2), l = l1·exp(m1 - m) + l2·exp(m2 - m), in any order and grouping.
    Raises TypeError for another dtype, ValueError for another shape, stride or device.
    """
    return torch.softmax(x, dim=-1)


def check(x):
    check_tensor("x", x, ndim=2, dtypes=DTYPES)
    M, N = x.shape
    check_at_most("x", "rows", M, MAX_M)
    check_at_most("x", "columns", N, MAX_N)


def make_inputs(dtype, device, seed, M, N):
    g = generator(device, seed)
    x = 2 * torch.randn(M, N, device=device, generator=g)
    # two rows of three so far from zero that exp under- or overflows: no max, no result
    far = 100_000 if dtype == torch.float32 else 120  # beyond float16: a max held in it shows
    x += far * (torch.arange(M, device=device)[:, None] % 3 - 1)
    if N > 0:
        x[::3, -1] += 8  # an outlier, where a dropped tail shows most
    x[::2, N // 16 : N // 4] = -torch.inf  # parts without a finite maximum to subtract
    x[2::64] = -torch.inf  # all of a row: NaN
    return (x.to(dtype),)


def work(dtype, M, N):
    return Work(bytes=2 * M * N * dtype.itemsize, flops=5 * M * N)


CHECK = (  # M, N; from 32,769 on a row takes a cluster or a loop, from 262,145 on both
    *((0, 8), (3, 0), (1, 1), (37, 7), (67, 16), (5, 257), (3, 1023), (4, 1536)),
    *((2, 8191), (1, 32768), (2, 32776), (3, 66005), (1, 262160)),
)
BENCH = (16, 64, 256, 1024, 4096, 8192, 16384, 32768, 65536, 131072, 262144)  # N

SPEC = KernelSpec(
    name="softmax_online",
    day=14,
    title="Softmax of any length",
    reference=softmax_online,
    make_inputs=make_inputs,
    work=work,
    check_sizes=tuple({"M": M, "N": N} for M, N in CHECK),
    bench_sizes=(*({"M": 2**27 // N, "N": N} for N in BENCH), {"M": 1, "N": 262144}),
    other_sizes=tuple({"M": 2**27 // N, "N": N} for N in (16, 8192, 32768, 262144)),
    headline={"M": 16384, "N": 8192},
    huge_sizes=(
        *({"M": 1, "N": 2**20}, {"M": 2**20, "N": 1}),
        *({"M": 2**26 + 1, "N": 33}, {"M": 2**16 + 3, "N": 32_776}, {"M": 2, "N": 2**30 + 8}),
    ),
    limits={"M": {"M": MAX_M, "N": 1}, "N": {"M": 1, "N": MAX_N}},
    dtypes=DTYPES,
    agreement=Composite(),
    baselines={"torch": softmax_online, "torch.compile": compiled(softmax_online)},
    sources=(
        "Milakov and Gimelshein, Online normalizer calculation for softmax, 2018, section 3",
        "CUDA C++ Programming Guide, thread block clusters and distributed shared memory",
    ),
    scales=SCALES,
    ladder="softmax",
)
