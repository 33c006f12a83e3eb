"""Day 20: K is divided among programs, so that small products of long rows fill the GPU."""

import torch

from implementations.common.check import check_at_most, check_same, check_tensor
from implementations.common.rules import Contraction
from implementations.common.spec import KernelSpec, Work, generator

DTYPES = (torch.float16, torch.bfloat16)
MOST = 2**31 - 1024  # of M, N and K: what is a few tiles beyond still has an index of 32 bits


def matmul_split_k(a, b):
    """The product a @ b, accumulated in float32 and rounded once.

    a: (M, K), b: (K, N), float16 or bfloat16, contiguous; M, N and K at most 2147482624.
    Returns (M, N) of the same dtype; zeros where K is 0.
    Raises TypeError for another dtype, ValueError for another shape, stride or device.
    """
    return a @ b


def check(a, b):
    check_tensor("a", a, ndim=2, dtypes=DTYPES)
    check_tensor("b", b, ndim=2, dtypes=DTYPES)
    check_same(("a", "b"), a, b, "dtype", "device")
    if a.shape[1] != b.shape[0]:
        raise ValueError(
            f"a's columns must equal b's rows, got shapes {tuple(a.shape)} and {tuple(b.shape)}"
        )
    (M, K), N = a.shape, b.shape[1]
    check_at_most("a", "rows", M, MOST)
    check_at_most("a", "columns", K, MOST)
    check_at_most("b", "columns", N, MOST)


def make_inputs(dtype, device, seed, M, N, K):
    g = generator(device, seed)
    a = torch.randn(M, K, device=device, generator=g)
    b = torch.randn(K, N, device=device, generator=g)
    return a.to(dtype), b.to(dtype)


def work(dtype, M, N, K):
    return Work((M * K + K * N + M * N) * dtype.itemsize, flops=2 * M * N * K, limit="matmul")


def size(M, N, K):
    return {"M": M, "N": N, "K": K}


CHECK = (  # M, N, K; with two multiprocessors only small tiles have slices, up to 4
    *((0, 8, 8), (3, 5, 0), (1, 1, 1), (64, 64, 64), (16, 8, 200), (33, 70, 129), (40, 48, 712)),
    *((40, 136, 328), (72, 40, 136), (72, 65, 66), (129, 136, 136), (72, 72, 136), (72, 129, 65)),
    (136, 130, 65),
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
    limits={"M": size(MOST, 1, 1), "N": size(1, MOST, 1), "K": size(1, 1, MOST)},
    headline=size(128, 128, 65536),
    dtypes=DTYPES,
    agreement=Contraction("K"),
    machine_code=("wide loads", "wide stores", "tensor cores"),
    baselines={"cublas": torch.mm},
    sources=("NVIDIA, CUTLASS: efficient GEMM in CUDA, parallelized reductions",),
)
