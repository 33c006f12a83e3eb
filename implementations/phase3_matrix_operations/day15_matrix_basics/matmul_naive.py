"""Day 15: each element of a product is a row times a column, wherever their strides lead."""

import torch

from implementations.common.check import (
    MAX_ELEMENTS,
    MAX_GRID_X,
    check_at_most,
    check_inner,
    check_same,
    check_tensor,
)
from implementations.common.rules import Contraction
from implementations.common.spec import KernelSpec, Work, generator

DTYPES = (torch.float32,)
BLOCK_M, BLOCK_N = 8, 32  # of C, in every backend: an element for each thread of a block


def matmul_naive(a, b):
    """The product a @ b, multiplied and summed in float32 (IEEE, no TF32).

    a: (M, K), b: (K, N), float32, of any strides: transposed, sliced and expanded views too; with
    at most 2147483647 tiles of 8 x 32 elements in the product. Returns (M, N) of the same dtype,
    contiguous; zeros where K is 0.
    Raises TypeError for another dtype, ValueError for another shape or device.
    """
    return a @ b


def check(a, b):
    check_tensor("a", a, ndim=2, dtypes=DTYPES, strided=True)
    check_tensor("b", b, ndim=2, dtypes=DTYPES, strided=True)
    check_same(("a", "b"), a, b, "dtype", "device")
    check_inner(("a", "b"), a, b)
    M, N = a.shape[0], b.shape[1]
    tiles = -(-M // BLOCK_M) * -(-N // BLOCK_N)
    check_at_most("the product", f"tiles of {BLOCK_M} x {BLOCK_N}", tiles, MAX_GRID_X)


def make_inputs(dtype, device, seed, M, N, K, transposed=False, step=1, windows=False):
    """transposed: views of (K, M) and (N, K). step: every step-th row and column of larger ones.
    windows: each row lies one element beyond the one before, as of a sliding window."""
    g = generator(device, seed)

    def matrix(rows, cols):
        if transposed:
            return torch.randn(cols, rows, dtype=dtype, device=device, generator=g).T
        if windows:
            line = torch.randn(rows + cols, dtype=dtype, device=device, generator=g)
            return line.as_strided((rows, cols), (1, 1))
        x = torch.randn(rows * step, cols * step, dtype=dtype, device=device, generator=g)
        return x[::step, ::step]

    return matrix(M, K), matrix(K, N)


def work(dtype, M, N, K, **layout):
    return Work((M * K + K * N + M * N) * dtype.itemsize, flops=2 * M * N * K, limit="matmul")


def size(M, N, K, **layout):
    return {"M": M, "N": N, "K": K} | layout


CHECK = (  # M, N, K
    *((0, 8, 8), (3, 0, 5), (3, 5, 0), (1, 1, 1), (8, 32, 16), (9, 33, 17)),
    *((7, 31, 5), (23, 67, 101), (1, 100, 9), (50, 1, 33)),
)
VIEWS = (
    size(13, 37, 11, transposed=True),
    size(10, 41, 7, step=2),
    size(11, 35, 19, windows=True),
)

SPEC = KernelSpec(
    name="matmul_naive",
    day=15,
    title="Naive matmul",
    reference=matmul_naive,
    make_inputs=make_inputs,
    work=work,
    check_sizes=(*(size(*s) for s in CHECK), *VIEWS),
    bench_sizes=tuple(size(n, n, n) for n in (512, 1024, 2048, 4096)),
    headline=size(4096, 4096, 4096),
    huge_sizes=(size(2**28 + 3, 1, 9), size(1, 2**28 + 3, 9)),  # tall: a; wide: b
    limits={
        "M": size(BLOCK_M * MAX_GRID_X, 1, 1),
        "N": size(1, BLOCK_N * MAX_GRID_X, 1),
        "K": size(1, 1, MAX_ELEMENTS),
    },
    dtypes=DTYPES,
    agreement=Contraction("K"),
    baselines={"cublas": torch.mm},  # in IEEE fp32: torch leaves TF32 off for matrix products
    machine_code=(),
    sources=("CUDA C++ Programming Guide: matrix multiplication without shared memory",),
    ladder="matmul",
)
