"""Day 6: in a stack of matrices rows are scaled and columns shifted, on a grid of three axes."""

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
MAX_B = MAX_GRID_YZ  # one matrix a block along z
MAX_M = MAX_GRID_YZ * 32  # 32 rows a block along y


def affine_3d(x, row_scale, col_bias):
    """x * row_scale[:, None] + col_bias for each matrix of x, rounded once.

    x: (B, M, N), B ≤ 65535, M ≤ 2097120; row_scale: (M,); col_bias: (N,); float32, float16 or
    bfloat16, contiguous. Returns (B, M, N) of the same dtype.
    Raises TypeError for another dtype, ValueError for another shape, stride or device.
    """
    return x * row_scale[:, None] + col_bias


def check(x, row_scale, col_bias):
    check_tensor("x", x, ndim=3, dtypes=DTYPES)
    B, M, N = x.shape
    check_at_most("x", "matrices", B, MAX_B, "axis z of a grid ends there")
    check_at_most("x", "rows", M, MAX_M, "axis y of a grid ends there")
    for name, vector, side, length in (
        ("row_scale", row_scale, "row", M),
        ("col_bias", col_bias, "column", N),
    ):
        check_tensor(name, vector, ndim=1, dtypes=DTYPES)
        check_same(("x", name), x, vector, "dtype", "device")
        if len(vector) != length:
            raise ValueError(
                f"{name} must have an element for each {side} of x, {length}, got {len(vector)}"
            )


def make_inputs(dtype, device, seed, B, M, N):
    g = generator(device, seed)
    shapes = ((B, M, N), (M,), (N,))  # sums near zero are common: a product rounded apart shows
    return tuple(torch.randn(s, dtype=dtype, device=device, generator=g) for s in shapes)


def work(dtype, B, M, N):
    return Work(bytes=(2 * B * M * N + M + N) * dtype.itemsize, flops=2 * B * M * N)


def expression(x, row_scale, col_bias):
    return torch.addcmul(col_bias, x, row_scale[:, None])


CHECK = (  # B, M, N
    *((0, 3, 8), (2, 0, 8), (2, 3, 0), (1, 1, 1), (2, 5, 7)),
    *((1, 31, 32), (2, 33, 35), (1, 33, 136), (1, 3, 520), (5, 2, 24)),
)

SPEC = KernelSpec(
    name="affine_3d",
    day=6,
    title="Rows scaled, columns shifted",
    reference=affine_3d,
    make_inputs=make_inputs,
    work=work,
    check_sizes=tuple({"B": B, "M": M, "N": N} for B, M, N in CHECK),
    bench_sizes=(
        {"B": 8, "M": 1024, "N": 1024},
        {"B": 16, "M": 2048, "N": 2048},
        {"B": 64, "M": 2048, "N": 2048},
    ),
    headline={"B": 64, "M": 2048, "N": 2048},
    # many matrices, many rows and long rows, of which the last starts beyond 2^31
    huge_sizes=(
        {"B": MAX_B, "M": 33, "N": 1000},
        {"B": 1, "M": MAX_M, "N": 1032},
        {"B": 3, "M": 11, "N": 2**26 + 1},
    ),
    limits={
        "B": {"B": MAX_B, "M": 1, "N": 1},
        "M": {"B": 1, "M": MAX_M, "N": 1},
        "N": {"B": 1, "M": 1, "N": MAX_ELEMENTS},
    },
    dtypes=DTYPES,
    agreement=Unary(ulp=0.5),  # one fused multiplication and addition
    baselines={"torch": expression, "torch.compile": compiled(expression)},
    refused={
        "row_scale too short": lambda x, row_scale, col_bias: (x, row_scale[:-1].clone(), col_bias),
        "col_bias too short": lambda x, row_scale, col_bias: (x, row_scale, col_bias[:-1].clone()),
    },
    sources=(
        "CUDA C++ Programming Guide: thread hierarchy; compute capabilities, technical specs",
    ),
)
