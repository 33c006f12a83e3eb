"""Day 20: K is divided among programs, so that small products of long rows fill the GPU."""

import torch

from implementations.common.check import MAX_SIDE, check_product
from implementations.common.rules import Contraction
from implementations.common.spec import KernelSpec
from implementations.phase3_matrix_operations.day16_blocked_matmul import matmul_blocked as day_16

DTYPES = (torch.float16, torch.bfloat16)


def matmul_split_k(a, b, in_turn=False):
    """The product a @ b, accumulated in float32 and rounded once.

    a: (M, K), b: (K, N), float16 or bfloat16, contiguous; M, N and K at most 2147482624.
    in_turn: how the products of slices of K are added, always in the order of the slices: True by
    the programs that make them, one after another; False by a second kernel.
    Returns (M, N) of the same dtype; zeros where K is 0.
    Raises TypeError for another dtype or what is no bool, ValueError for another shape, stride or
    device.
    """
    return a @ b


def check(a, b, in_turn):
    check_product(a, b, DTYPES, M=MAX_SIDE, N=MAX_SIDE, K=MAX_SIDE)
    if not isinstance(in_turn, bool):
        raise TypeError(f"in_turn must be a bool, got {type(in_turn).__name__}")


def make_inputs(dtype, device, seed, M, N, K, in_turn=False):
    return *day_16.make_inputs(dtype, device, seed, M, N, K), in_turn


def work(dtype, M, N, K, in_turn=False):
    return day_16.work(dtype, M, N, K)


def cublas(a, b, in_turn):
    return torch.mm(a, b)


def arrival(a, b, in_turn):
    """The same in CUDA C++, but for the order of the sum: slices are added as they arrive."""
    from implementations.phase3_matrix_operations.day20_split_k.matmul_split_k_arrival_cupy import (
        matmul_split_k_arrival,
    )

    return matmul_split_k_arrival(a, b)


def size(M, N, K, in_turn=False):
    return day_16.size(M, N, K) | ({"in_turn": True} if in_turn else {})


CHECK = (  # M, N, K; with two multiprocessors only small tiles have slices, up to 4
    *((0, 8, 8), (3, 5, 0), (1, 1, 1), (64, 64, 64), (16, 8, 200), (33, 70, 129), (40, 48, 712)),
    *((40, 136, 328), (72, 40, 136), (72, 65, 66), (129, 136, 136), (72, 72, 136), (72, 129, 65)),
    *((136, 130, 65), (16, 8, 9), (16, 9, 8)),
    *((33, 70, 129, True), (40, 48, 712, True), (64, 48, 712, True), (129, 136, 8, True)),
)
MORE = ((264, 136, 4104), (264, 136, 4104, True))  # large tiles that have slices
HUGE = (  # tall, wide and deep: each has an operand of more than 2³¹ elements
    *((2**23 + 131, 264, 264), (136, 2**24 + 264, 136), (128, 8, 22_500_008)),
    (128, 8, 22_500_008, True),
)
SLICED = ((128, 128, 65536), (256, 256, 32768), (512, 512, 16384), (64, 64, 262144))
BENCH = (*SLICED, (4096, 4096, 4096), *((*s, True) for s in SLICED))

SPEC = KernelSpec(
    name="matmul_split_k",
    day=20,
    title="Split-K matmul",
    reference=matmul_split_k,
    make_inputs=make_inputs,
    work=work,
    check_sizes=tuple(size(*s) for s in CHECK),
    bench_sizes=tuple(size(*s) for s in BENCH),
    more_sizes=tuple(size(*s) for s in MORE),
    huge_sizes=tuple(size(*s) for s in HUGE),
    limits={"M": size(MAX_SIDE, 1, 1), "N": size(1, MAX_SIDE, 1), "K": size(1, 1, MAX_SIDE)},
    headline=size(128, 128, 65536),
    dtypes=DTYPES,
    agreement=Contraction("K"),
    refused={"in_turn": lambda a, b, in_turn: (a, b, int(in_turn))},
    machine_code=("wide loads", "wide stores", "tensor cores"),
    baselines={"cublas": cublas, "arrival": arrival},
    random_baselines=("arrival",),
    modes={"arrival": "cupy"},
    sources=("NVIDIA, CUTLASS: efficient GEMM in CUDA, parallelized reductions",),
)
