"""Day 7: a matrix is transposed element by element: reads are coalesced, writes scattered."""

import torch

from implementations.common.check import MAX_GRID_X, MAX_GRID_YZ, check_at_most, check_tensor
from implementations.common.rules import Exact
from implementations.common.spec import KernelSpec, Work, generator

SECTOR = 32  # bytes: the least that is written at once
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MAX_M = MAX_GRID_X  # one row a block along x
MAX_N = MAX_GRID_YZ * 256  # 256 columns a block along y


def transpose_naive(x):
    """The transpose of x.

    x: (M, N), M ≤ 2147483647, N ≤ 16776960, float32, float16 or bfloat16, contiguous. Returns
    (N, M) of the same dtype, contiguous.
    Raises TypeError for another dtype, ValueError for another shape, stride or device.
    """
    return x.T.contiguous()


def check(x):
    check_tensor("x", x, ndim=2, dtypes=DTYPES)
    M, N = x.shape
    check_at_most("x", "rows", M, MAX_M, "transpose_tiled takes more")
    check_at_most("x", "columns", N, MAX_N, "transpose_tiled takes longer rows")


def make_inputs(dtype, device, seed, M, N):
    return (torch.randn(M, N, dtype=dtype, device=device, generator=generator(device, seed)),)


def work(dtype, M, N):
    return Work(bytes=2 * M * N * dtype.itemsize, flops=0)


def traffic(dtype, M, N):
    """Each store is a sector of its own, on its way to the L2 and, nearly so, to memory."""
    return M * N * (dtype.itemsize + SECTOR)


CHECK = ((0, 8), (3, 0), (1, 1), (33, 7), (5, 256), (1, 257), (40, 1), (9, 523))  # M, N

SPEC = KernelSpec(
    name="transpose_naive",
    day=7,
    title="Transpose, naive",
    reference=transpose_naive,
    make_inputs=make_inputs,
    work=work,
    traffic=traffic,
    check_sizes=tuple({"M": M, "N": N} for M, N in CHECK),
    bench_sizes=({"M": 4096, "N": 4096}, {"M": 16384, "N": 16384}),
    headline={"M": 16384, "N": 16384},
    huge_sizes=({"M": 2**21 + 3, "N": 1032}, {"M": 129, "N": MAX_N}),  # tall and wide
    limits={"M": {"M": MAX_M, "N": 1}, "N": {"M": 1, "N": MAX_N}},
    dtypes=DTYPES,
    agreement=Exact(),
    baselines={"torch": transpose_naive},
    machine_code=(),
    sources=("Harris, An efficient matrix transpose in CUDA C/C++, 2013",),
)
