"""Day 31: one read of a row gives its maximum and its sum of exponentials together."""

from dataclasses import dataclass, replace

import torch

from implementations.common.baselines import compiled
from implementations.common.check import MAX_ELEMENTS, check_at_most, check_tensor
from implementations.common.rules import Exact, Reduction
from implementations.common.spec import KernelSpec, Work, generator

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MAX_N = 2**33  # in Triton a program holds the pairs of all of a row's parts of 64 KB


def softmax_stats(x):
    """m, the maximum of each row, and l, its sum of exp(x - m).

    The logarithm of the sum of exp(x) is m + log(l).
    x: (M, N), N ≤ 8589934592, float32, float16 or bfloat16, contiguous. Returns m and l, (M,),
    float32, as the exponentials and their sum are. Where no finite maximum can be subtracted,
    m + log(l) still holds: a row without elements, or all -inf, has m = -inf and l = 0; one with
    +inf has m = l = +inf; one with NaN has m = l = NaN.

    Two parts of a row are merged by m = max(m1, m2), l = l1·exp(m1 - m) + l2·exp(m2 - m), in any
    order and grouping; an element x is the part with m = x and l = 1.
    Raises TypeError for another dtype, ValueError for another shape, stride or device.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    m = x.amax(1) if x.shape[1] else x.new_full((len(x),), -torch.inf)
    finite = m.clamp(torch.finfo(m.dtype).min, torch.finfo(m.dtype).max)
    return m, (x - finite[:, None]).exp().sum(1)


@dataclass(frozen=True)
class PositiveSum(Reduction):
    """As of a Reduction whose terms are not negative: Σ|x| is ŷ itself."""

    needs_magnitude = False

    def bound(self, oracle):
        return super().bound(replace(oracle, magnitude=oracle.value))


def check(x):
    check_tensor("x", x, ndim=2, dtypes=DTYPES)
    check_at_most("x", "columns", x.shape[1], MAX_N)


def make_inputs(dtype, device, seed, M, N):
    g = generator(device, seed)
    x = torch.randn(M, N, device=device, generator=g)
    row = torch.arange(M, device=device)[:, None]
    # two rows of three so far from zero that exp under- or overflows
    x += (100_000 if dtype == torch.float32 else 120) * (row % 3 - 1)
    # of four rows two rise, so that the maximum changes all along, and one falls
    x += torch.linspace(0, 30, N, device=device) * ((row + 1) % 4 - 1)
    x[:, ::1024] += 8  # outliers, of which each is much of l: where a part may begin
    x[:, -1:] += 8  # and where a dropped tail shows most
    x[::2, N // 16 : N // 4] = -torch.inf  # parts without a finite maximum to subtract
    x[5::64] = -torch.inf  # all of a row
    return (x.to(dtype),)


def work(dtype, M, N):
    return Work(bytes=M * N * dtype.itemsize + 8 * M, flops=4 * M * N, limit="read")


CHECK = (  # M, N; beyond 64 KB, or 4096 elements that are no whole packs, a row has parts
    *((0, 8), (3, 0), (1, 1), (300, 1), (37, 7), (33, 64), (9, 96), (17, 520)),
    *((3, 1023), (5, 2048), (2, 4136), (4, 8208), (9, 16_400), (1, 12_291), (2, 33_008)),
    *((1, 65_541),),
)
BENCH = (  # M, N: square, tall, wide
    *((16_384, 16_384), (2**22, 64), (2**20, 256), (256, 2**20), (1, 2**28)),
)

SPEC = KernelSpec(
    name="softmax_stats",
    day=31,
    title="Maxima and sums of exponentials",
    reference=softmax_stats,
    make_inputs=make_inputs,
    work=work,
    check_sizes=tuple({"M": M, "N": N} for M, N in CHECK),
    bench_sizes=tuple({"M": M, "N": N} for M, N in BENCH),
    headline={"M": 16_384, "N": 16_384},
    dtypes=DTYPES,
    agreement=(Exact(), PositiveSum("N")),
    baselines={
        "torch": lambda x: torch.logsumexp(x.float(), -1),
        "torch.compile": compiled(softmax_stats),
    },
    # in the first the last row starts beyond 2^31, and each is divided
    huge_sizes=(
        *({"M": 3, "N": 2**30 + 8}, {"M": 2**26 + 1, "N": 33}),
        *({"M": 1, "N": 2**20}, {"M": 2**20, "N": 1}),
    ),
    limits={"M": {"M": MAX_ELEMENTS, "N": 1}, "N": {"M": 1, "N": MAX_N}},
    machine_code=("wide loads",),
    sources=("Milakov and Gimelshein, Online normalizer calculation for softmax, 2018",),
)
