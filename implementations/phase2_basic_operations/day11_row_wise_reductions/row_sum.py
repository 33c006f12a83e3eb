"""Day 11: each row is summed, along memory: neighbouring threads add up one row together."""

import torch

from implementations.common.baselines import by_cupy, compiled
from implementations.common.check import MAX_ELEMENTS, check_tensor
from implementations.common.rules import Reduction
from implementations.common.spec import KernelSpec, Work, generator

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def row_sum(x):
    """The sum over each row.

    x: (M, N), float32, float16 or bfloat16, contiguous. Returns (M,), float32, as the sums are; of
    rows without elements, zeros.
    Raises TypeError for another dtype, ValueError for another shape, stride or device.
    """
    return x.sum(1, dtype=torch.promote_types(x.dtype, torch.float32))


def check(x):
    check_tensor("x", x, ndim=2, dtypes=DTYPES)


def make_inputs(dtype, device, seed, M, N):
    x = torch.randn(M, N, dtype=dtype, device=device, generator=generator(device, seed))
    x += 1  # what is left out is missing, and does not cancel
    x[:, ::4096] += 64  # outliers, where a part may begin
    x[:, -1:] += 64  # and where a dropped tail shows most
    return (x,)


def work(dtype, M, N):
    return Work(bytes=M * N * dtype.itemsize + 4 * M, flops=M * N, limit="read")


CHECK = (  # M, N
    *((0, 8), (3, 0), (1, 1), (300, 1), (37, 7), (33, 64), (9, 96), (17, 520)),
    *((3, 1023), (5, 2048), (2, 4136), (1, 12_291), (2, 33_000)),
)
BENCH = (  # M, N: square, tall, wide
    *((16_384, 16_384), (2**22, 64), (2**20, 256), (256, 2**20), (1, 2**28)),
)

SPEC = KernelSpec(
    name="row_sum",
    day=11,
    title="Sums of rows",
    reference=row_sum,
    make_inputs=make_inputs,
    work=work,
    check_sizes=tuple({"M": M, "N": N} for M, N in CHECK),
    bench_sizes=tuple({"M": M, "N": N} for M, N in BENCH),
    headline={"M": 16_384, "N": 16_384},
    dtypes=DTYPES,
    agreement=Reduction("N"),
    baselines={
        "torch": row_sum,
        "torch.compile": compiled(row_sum),
        "CuPy": by_cupy("sum", axis=1, dtype="float32"),
    },
    # in the first the last row starts beyond 2^31, and each is divided
    huge_sizes=(
        *({"M": 3, "N": 2**30 + 8}, {"M": 2**26 + 1, "N": 33}),
        *({"M": 1, "N": 2**20}, {"M": 2**20, "N": 1}),
    ),
    limits={"M": {"M": MAX_ELEMENTS, "N": 1}, "N": {"M": 1, "N": MAX_ELEMENTS}},
    machine_code=("wide loads",),
    sources=("Harris, Optimizing Parallel Reduction in CUDA, NVIDIA, 2007",),
)
