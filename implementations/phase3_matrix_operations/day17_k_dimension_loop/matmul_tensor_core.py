"""Day 17: the K loop runs on tensor cores, software-pipelined, and sums in fp32."""

import torch

from implementations.common.check import MAX_GRID_YZ, check_product
from implementations.common.rules import Contraction
from implementations.common.spec import KernelSpec
from implementations.phase3_matrix_operations.day16_blocked_matmul.matmul_blocked import (
    make_inputs,
    size,
    work,
)

DTYPES = (torch.float16, torch.bfloat16)
MAX_M, MAX_N = MAX_GRID_YZ * 128, MAX_GRID_YZ * 256  # a tile of C a block, along y M or N
MAX_K = (2**31 - 1) // 96  # a thread's rows of a tile of A, up to 96 apart: times K in 32 bits


def matmul_tensor_core(a, b):
    """The product a @ b, accumulated in float32 and rounded once.

    a: (M, K), b: (K, N), M ≤ 8388480, N ≤ 16776960, K ≤ 22369621, float16 or bfloat16, contiguous.
    Returns (M, N) of the same dtype; zeros where K is 0.
    Raises TypeError for another dtype, ValueError for another shape, stride or device.
    """
    return a @ b


def check(a, b):
    check_product(a, b, DTYPES, M=MAX_M, N=MAX_N, K=MAX_K)


CHECK = (  # M, N, K
    *((0, 8, 8), (3, 5, 0), (1, 1, 1), (64, 64, 64), (256, 256, 64), (257, 257, 65)),
    *((255, 264, 72), (16, 8, 200), (1, 300, 33), (300, 1, 129), (40, 136, 328)),
    *((16, 8, 9), (16, 9, 8)),
)

SPEC = KernelSpec(
    name="matmul_tensor_core",
    day=17,
    title="Tensor-core matmul",
    reference=matmul_tensor_core,
    make_inputs=make_inputs,
    work=work,
    check_sizes=tuple(size(*s) for s in CHECK),
    bench_sizes=tuple(size(n, n, n) for n in (512, 1024, 2048, 4096, 8192)),
    headline=size(4096, 4096, 4096),
    huge_sizes=(size(MAX_M, 264, 264), size(136, MAX_N, 136)),  # tall: a and c; wide: b and c
    limits={"M": size(MAX_M, 1, 1), "N": size(1, MAX_N, 1), "K": size(1, 1, MAX_K)},
    counted=tuple(size(n, n, n) for n in (2048, 4096, 8192)),
    dtypes=DTYPES,
    agreement=Contraction("K"),
    machine_code=("wide loads", "wide stores", "tensor cores"),
    baselines={"cublas": torch.mm},
    sources=(
        "Triton tutorial 03: matrix multiplication",
        "NVIDIA, CUTLASS: efficient GEMM in CUDA, hierarchical tiling and software pipelining",
    ),
    ladder="matmul",
)
