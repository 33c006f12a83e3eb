"""Day 9: a matrix is multiplied by a row and a column added, by accesses of 128 bits."""

import torch

from implementations.common.baselines import compiled
from implementations.common.check import (
    MAX_ELEMENTS,
    MAX_GRID_YZ,
    check_at_most,
    check_same,
    check_tensor,
)
from implementations.common.rules import Unary
from implementations.common.spec import KernelSpec, Work, generator

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MAX_M = MAX_GRID_YZ * 32  # a block along y takes at least 32 rows


def broadcast_fma(x, row, col):
    """x * row + col[:, None] by a fused multiplication and addition: the product is not rounded.

    A float32 result is rounded once, one of 16 bits to float32 and then again.
    x: (M, N), M ≤ 2097120; row: (N,); col: (M,); float32, float16 or bfloat16, contiguous. Returns
    (M, N) of the same dtype.
    Raises TypeError for another dtype, ValueError for another shape, stride or device.
    """
    return x * row + col[:, None]


def check(x, row, col):
    check_tensor("x", x, ndim=2, dtypes=DTYPES)
    M, N = x.shape
    check_at_most("x", "rows", M, MAX_M, "axis y of a grid ends there")
    for name, vector, side, length in (("row", row, "column", N), ("col", col, "row", M)):
        check_tensor(name, vector, ndim=1, dtypes=DTYPES)
        check_same(("x", name), x, vector, "dtype", "device")
        if len(vector) != length:
            raise ValueError(
                f"{name} must have an element for each {side} of x, {length}, got {len(vector)}"
            )


def make_inputs(dtype, device, seed, M, N):
    g = generator(device, seed)
    shapes = ((M, N), (N,), (M,))  # sums near zero are common: a product rounded apart shows
    return tuple(torch.randn(s, dtype=dtype, device=device, generator=g) for s in shapes)


def work(dtype, M, N):
    return Work(bytes=(2 * M * N + M + N) * dtype.itemsize, flops=2 * M * N)


def expression(x, row, col):
    return torch.addcmul(col[:, None], x, row)


CHECK = (  # M, N
    *((0, 8), (3, 0), (1, 1), (5, 7), (1029, 1), (67, 16), (31, 32), (33, 35)),
    *((33, 136), (3, 520), (2, 1032)),
)
BENCH = ((4096, 4096), (2**20, 256), (256, 2**20), (16384, 16384))

SPEC = KernelSpec(
    name="broadcast_fma",
    day=9,
    title="A row and a column broadcast",
    reference=broadcast_fma,
    make_inputs=make_inputs,
    work=work,
    check_sizes=tuple({"M": M, "N": N} for M, N in CHECK),
    bench_sizes=tuple({"M": M, "N": N} for M, N in BENCH),
    headline={"M": 16384, "N": 16384},
    huge_sizes=(
        *({"M": 1, "N": 2**20}, {"M": 2**20, "N": 1}),
        *({"M": MAX_M, "N": 1032}, {"M": 33, "N": 2**26 + 1}),
    ),
    limits={"M": {"M": MAX_M, "N": 1}, "N": {"M": 1, "N": MAX_ELEMENTS}},
    dtypes=DTYPES,
    agreement=Unary(ulp=0.5),  # one fused multiplication and addition
    baselines={"torch": expression, "torch.compile": compiled(expression)},
    refused={
        "row too short": lambda x, row, col: (x, row[:-1].clone(), col),
        "col too short": lambda x, row, col: (x, row, col[:-1].clone()),
    },
    sources=("Luitjens, CUDA Pro Tip: Increase Performance with Vectorized Memory Access, 2013",),
)
