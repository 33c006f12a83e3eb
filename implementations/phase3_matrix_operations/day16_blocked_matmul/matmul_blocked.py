"""Day 16: tiles are multiplied on chip, and a thread keeps a tile of the product in registers."""

import torch

from implementations.common.check import MAX_SIDE, check_product
from implementations.common.rules import Contraction
from implementations.common.spec import KernelSpec, Work, generator

DTYPES = (torch.float32,)


def matmul_blocked(a, b):
    """The product a @ b, multiplied and summed in float32 (IEEE, no TF32).

    a: (M, K), b: (K, N), float32, contiguous, M, N and K ≤ 2147482624. Returns (M, N) of the same
    dtype; zeros where K is 0.
    Raises TypeError for another dtype, ValueError for another shape, stride or device.
    """
    return a @ b


def check(a, b):
    check_product(a, b, DTYPES, M=MAX_SIDE, N=MAX_SIDE, K=MAX_SIDE)


def make_inputs(dtype, device, seed, M, N, K):
    g = generator(device, seed)
    a = torch.randn(M, K, device=device, generator=g)
    b = torch.randn(K, N, device=device, generator=g)
    return a.to(dtype), b.to(dtype)


def work(dtype, M, N, K):
    return Work((M * K + K * N + M * N) * dtype.itemsize, flops=2 * M * N * K, limit="matmul")


def size(M, N, K):
    return {"M": M, "N": N, "K": K}


CHECK = (  # M, N, K
    *((0, 8, 8), (3, 0, 5), (3, 5, 0), (1, 1, 1), (5, 8, 12), (128, 128, 16), (129, 129, 5)),
    *((127, 132, 20), (132, 136, 8), (16, 8, 148), (3, 5, 83), (1, 140, 17), (140, 1, 9)),
    (9, 6, 8),
)

SPEC = KernelSpec(
    name="matmul_blocked",
    day=16,
    title="Blocked matmul",
    reference=matmul_blocked,
    make_inputs=make_inputs,
    work=work,
    check_sizes=tuple(size(*s) for s in CHECK),
    bench_sizes=tuple(size(n, n, n) for n in (512, 1024, 2048, 4096, 8192)),
    headline=size(4096, 4096, 4096),
    huge_sizes=(size(2**28 + 3, 1, 9), size(1, 2**28 + 4, 8)),  # tall: a; wide, of packs: b
    limits={
        "M": size(MAX_SIDE, 1, 1),
        "N": size(1, MAX_SIDE, 1),
        "K": size(1, 1, MAX_SIDE),
    },
    dtypes=DTYPES,
    agreement=Contraction("K"),
    machine_code=("wide loads",),
    baselines={"cublas": torch.mm},  # in IEEE fp32: torch leaves TF32 off for matrix products
    sources=(
        "Boehm, How to optimize a CUDA matmul kernel for cuBLAS-like performance, 2022",
        "NVIDIA, CUTLASS: efficient GEMM in CUDA, hierarchical tiling and software pipelining",
    ),
    ladder="matmul",
)
