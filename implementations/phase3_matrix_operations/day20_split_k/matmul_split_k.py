"""Day 20: K is divided among programs, so that small products of long rows fill the GPU."""

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


def matmul_split_k(a, b):
    """The product a @ b, accumulated in float32 and rounded once.

    a: (M, K), b: (K, N), float16 or bfloat16, contiguous; M, N and K at most 2147482624.
    Returns (M, N) of the same dtype; zeros where K is 0.
    Raises TypeError for another dtype, ValueError for another shape, stride or device.
    """
    return a @ b


def check(a, b):
    check_product(a, b, DTYPES, M=MAX_SIDE, N=MAX_SIDE, K=MAX_SIDE)


CHECK = (  # M, N, K; with two multiprocessors only small tiles have slices, up to 4
    *((0, 8, 8), (3, 5, 0), (1, 1, 1), (64, 64, 64), (16, 8, 200), (33, 70, 129), (40, 48, 712)),
    *((40, 136, 328), (72, 40, 136), (72, 65, 66), (129, 136, 136), (72, 72, 136), (72, 129, 65)),
    *((136, 130, 65), (16, 8, 9), (16, 9, 8)),
)
HUGE = (  # tall, wide and deep: each has an operand of more than 2³¹ elements
    *((2**23 + 131, 264, 264), (136, 2**24 + 264, 136), (128, 8, 22_500_008)),
)
BENCH = (
    *((128, 128, 65536), (256, 256, 32768), (512, 512, 16384), (64, 64, 262144)),
    (4096, 4096, 4096),
)

SPEC = KernelSpec(
    name="matmul_split_k",
    day=20,
    title="Split-K matmul",
    reference=matmul_split_k,
    make_inputs=make_inputs,
    work=work,
    check_sizes=tuple(size(*s) for s in CHECK),
    bench_sizes=tuple(size(*s) for s in BENCH),
    huge_sizes=tuple(size(*s) for s in HUGE),
    limits={"M": size(MAX_SIDE, 1, 1), "N": size(1, MAX_SIDE, 1), "K": size(1, 1, MAX_SIDE)},
    headline=size(128, 128, 65536),
    dtypes=DTYPES,
    agreement=Contraction("K"),
    machine_code=("wide loads", "wide stores", "tensor cores"),
    baselines={"cublas": torch.mm},
    sources=("NVIDIA, CUTLASS: efficient GEMM in CUDA, parallelized reductions",),
)
