"""Day 18: the tiles of C are walked in groups, so that those in flight share A and B in the L2."""

import torch

from implementations.common.check import check_at_most, check_same, check_tensor
from implementations.common.rules import Contraction
from implementations.common.spec import KernelSpec, Work, generator

DTYPES = (torch.float16, torch.bfloat16)
MOST = 2**31 - 1024  # of M, N and K: what is a few tiles beyond still has an index of 32 bits


def matmul_grouped_order(a, b):
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


CHECK = (  # M, N, K; the last has a group of tiles and one row more: does any tile stay as it was?
    *((0, 8, 8), (3, 5, 0), (1, 1, 1), (64, 64, 64), (257, 257, 65), (255, 264, 72)),
    *((16, 8, 200), (300, 1, 129), (40, 136, 328), (2049, 264, 0)),
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
    limits={"M": size(MOST, 1, 1), "N": size(1, MOST, 1), "K": size(1, 1, MOST)},
    headline=size(4096, 4096, 4096),
    dtypes=DTYPES,
    agreement=Contraction("K"),
    machine_code=("wide loads", "wide stores", "tensor cores"),
    baselines={"cublas": torch.mm},
    sources=("Triton tutorial 03: matrix multiplication, L2 cache optimizations",),
)
