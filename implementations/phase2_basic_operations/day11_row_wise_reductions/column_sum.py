"""Day 11: each column is summed, across memory: neighbouring threads add up one column each."""

import torch

from implementations.common.baselines import by_cupy, compiled
from implementations.common.check import MAX_ELEMENTS, check_tensor
from implementations.common.rules import Reduction
from implementations.common.spec import KernelSpec, Work, generator

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def column_sum(x):
    """The sum over each column.

    x: (M, N), float32, float16 or bfloat16, contiguous. Returns (N,), float32, as the sums are; of
    columns without elements, zeros.
    Raises TypeError for another dtype, ValueError for another shape, stride or device.
    """
    return x.sum(0, dtype=torch.promote_types(x.dtype, torch.float32))


def check(x):
    check_tensor("x", x, ndim=2, dtypes=DTYPES)


def make_inputs(dtype, device, seed, M, N):
    x = torch.randn(M, N, dtype=dtype, device=device, generator=generator(device, seed))
    x += 1  # what is left out is missing, and does not cancel
    x[::128] += 64  # outliers, where a part may begin
    x[-1:] += 64  # and where a dropped tail shows most
    return (x,)


def work(dtype, M, N):
    return Work(bytes=M * N * dtype.itemsize + 4 * N, flops=M * N, limit="read")


CHECK = (  # M, N
    *((0, 8), (8, 0), (1, 1), (1, 300), (300, 1), (37, 7), (64, 64), (5, 257), (33, 520)),
    *((1111, 40), (2048, 8), (2100, 3), (2561, 24)),
)
BENCH = (  # M, N: square, tall, wide
    *((16_384, 16_384), (2**20, 256), (2**22, 64), (256, 2**20)),
)

SPEC = KernelSpec(
    name="column_sum",
    day=11,
    title="Sums of columns",
    reference=column_sum,
    make_inputs=make_inputs,
    work=work,
    check_sizes=tuple({"M": M, "N": N} for M, N in CHECK),
    bench_sizes=tuple({"M": M, "N": N} for M, N in BENCH),
    headline={"M": 16_384, "N": 16_384},
    dtypes=DTYPES,
    agreement=Reduction("M"),
    baselines={
        "torch": column_sum,
        "torch.compile": compiled(column_sum),
        "CuPy": by_cupy("sum", axis=0, dtype="float32"),
    },
    huge_sizes=(
        *({"M": 2**21 + 3, "N": 1032}, {"M": 31, "N": 2**26 + 2**23 + 1}),
        *({"M": 1, "N": 2**20}, {"M": 2**20, "N": 1}),
    ),
    limits={"M": {"M": MAX_ELEMENTS, "N": 1}, "N": {"M": 1, "N": MAX_ELEMENTS}},
    machine_code=("wide loads",),
    sources=("Harris, Optimizing Parallel Reduction in CUDA, NVIDIA, 2007",),
)
