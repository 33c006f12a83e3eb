"""Day 7: a matrix is transposed tile by tile on chip: reads and writes are both coalesced."""

import torch

from implementations.common.check import MAX_ELEMENTS, check_tensor
from implementations.common.rules import Exact
from implementations.common.spec import KernelSpec, Work, generator

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def transpose_tiled(x):
    """The transpose of x.

    x: (M, N), float32, float16 or bfloat16, contiguous. Returns (N, M) of the same dtype,
    contiguous.
    Raises TypeError for another dtype, ValueError for another shape, stride or device.
    """
    return x.T.contiguous()


def check(x):
    check_tensor("x", x, ndim=2, dtypes=DTYPES)


def make_inputs(dtype, device, seed, M, N):
    return (torch.randn(M, N, dtype=dtype, device=device, generator=generator(device, seed)),)


def work(dtype, M, N):
    return Work(bytes=2 * M * N * dtype.itemsize, flops=0)


CHECK = (  # M, N
    *((0, 8), (3, 0), (1, 1), (7, 8), (8, 7), (37, 7), (1, 67), (67, 1), (64, 64)),
    *((8, 200), (200, 8), (72, 136), (136, 72), (65, 130), (130, 65)),
)
LARGE = ({"M": 16384, "N": 16384}, {"M": 160000, "N": 1600}, {"M": 1600, "N": 160000})

SPEC = KernelSpec(
    name="transpose_tiled",
    day=7,
    title="Transpose, tiled",
    reference=transpose_tiled,
    make_inputs=make_inputs,
    work=work,
    check_sizes=tuple({"M": M, "N": N} for M, N in CHECK),
    bench_sizes=({"M": 4096, "N": 4096}, *LARGE),
    other_sizes=LARGE,
    headline={"M": 16384, "N": 16384},
    # packs in a square matrix; elements in a tall one and a wide one
    huge_sizes=(
        {"M": 46_352, "N": 46_360},
        {"M": 2**28 + 1, "N": 9},
        {"M": 9, "N": 2**28 + 1},
    ),
    limits={"M": {"M": MAX_ELEMENTS, "N": 1}, "N": {"M": 1, "N": MAX_ELEMENTS}},
    dtypes=DTYPES,
    agreement=Exact(),
    baselines={"torch": transpose_tiled},
    sources=(
        "Ruetsch and Micikevicius, Optimizing matrix transpose in CUDA, 2009",
        "Harris, An efficient matrix transpose in CUDA C/C++, 2013",
    ),
)
