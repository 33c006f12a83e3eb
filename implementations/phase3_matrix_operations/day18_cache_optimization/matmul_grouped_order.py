"""Day 18: the tiles of C are walked in groups, so that those in flight share A and B in the L2."""

import torch

from implementations.common.check import MAX_SIDE, check_product
from implementations.common.rules import Contraction
from implementations.common.spec import KernelSpec
from implementations.phase3_matrix_operations.day16_blocked_matmul.matmul_blocked import (
    make_inputs,
    size,
    work,
)

DTYPES = (torch.float16, torch.bfloat16)


def matmul_grouped_order(a, b):
    """The product a @ b, accumulated in float32 and rounded once.

    a: (M, K), b: (K, N), float16 or bfloat16, contiguous; M, N and K at most 2147482624.
    Returns (M, N) of the same dtype; zeros where K is 0.
    Raises TypeError for another dtype, ValueError for another shape, stride or device.
    """
    return a @ b


def check(a, b):
    check_product(a, b, DTYPES, M=MAX_SIDE, N=MAX_SIDE, K=MAX_SIDE)


CHECK = (  # M, N, K; the last has a group of tiles and one row more: does any tile stay as it was?
    *((0, 8, 8), (3, 5, 0), (1, 1, 1), (64, 64, 64), (257, 257, 65), (255, 264, 72)),
    *((16, 8, 9), (16, 9, 8), (16, 8, 200), (300, 1, 129), (40, 136, 328), (2049, 264, 0)),
)
HUGE = (  # tall, wide and deep: each has an operand of more than 2³¹ elements
    *((2**23 + 131, 264, 264), (136, 2**24 + 264, 136), (128, 8, 22_500_008)),
)
BENCH = (
    *((n, n, n) for n in (512, 1024, 2048, 4096, 8192, 16384)),
    *((16384, 1024, 4096), (1024, 16384, 4096)),
)

SPEC = KernelSpec(
    name="matmul_grouped_order",
    day=18,
    title="Matmul in L2-aware order",
    reference=matmul_grouped_order,
    make_inputs=make_inputs,
    work=work,
    check_sizes=tuple(size(*s) for s in CHECK),
    bench_sizes=tuple(size(*s) for s in BENCH),
    huge_sizes=tuple(size(*s) for s in HUGE),
    limits={"M": size(MAX_SIDE, 1, 1), "N": size(1, MAX_SIDE, 1), "K": size(1, 1, MAX_SIDE)},
    headline=size(4096, 4096, 4096),
    counted=tuple(size(n, n, n) for n in (2048, 4096, 8192)),
    dtypes=DTYPES,
    agreement=Contraction("K"),
    machine_code=("wide loads", "wide stores", "tensor cores"),
    baselines={"cublas": torch.mm},
    sources=("Triton tutorial 03: matrix multiplication, L2 cache optimizations",),
    ladder="matmul",
)
