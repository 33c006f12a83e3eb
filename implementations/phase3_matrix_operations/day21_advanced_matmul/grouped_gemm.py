"""Day 21: many products of different shapes in one launch, whose tiles the GPU deals out."""

from functools import cache
from random import Random

import torch

from implementations.common.check import (
    MAX_SIDE,
    check_at_most,
    check_inner,
    check_same,
    check_tensor,
)
from implementations.common.registry import Unavailable
from implementations.common.rules import Contraction
from implementations.common.spec import KernelSpec, Work, generator

DTYPES = (torch.float16, torch.bfloat16)
MAX_PROBLEMS = 2**10


def grouped_gemm(a_list, b_list):
    """The products a_list[i] @ b_list[i], each accumulated in float32 and rounded once.

    a_list, b_list: lists of as many tensors, at most MAX_PROBLEMS, a_list[i]: (M, K), b_list[i]:
    (K, N), each i with sides of its own of up to MAX_SIDE, all contiguous and of one dtype, float16
    or bfloat16.
    Returns the list of (M, N), of the same dtype; zeros where K is 0.
    Raises TypeError for what is no list and for another dtype, ValueError for lists of different
    lengths and for another shape, stride or device.
    """
    return [a @ b for a, b in zip(a_list, b_list, strict=True)]


def check(a_list, b_list):
    for name, given in (("a_list", a_list), ("b_list", b_list)):
        if not isinstance(given, list | tuple):
            raise TypeError(f"{name} must be a list of tensors, got {type(given).__name__}")
    if len(a_list) != len(b_list):
        raise ValueError(
            f"a_list and b_list must have the same length, got {len(a_list)} and {len(b_list)}"
        )
    check_at_most("a_list", "tensors", len(a_list), MAX_PROBLEMS)
    for i, (a, b) in enumerate(zip(a_list, b_list, strict=True)):
        for name, x in ((f"a_list[{i}]", a), (f"b_list[{i}]", b)):
            check_tensor(name, x, ndim=2, dtypes=DTYPES)
            check_same(("a_list[0]", name), a_list[0], x, "dtype", "device")
            check_at_most(name, "rows", x.shape[0], MAX_SIDE)
            check_at_most(name, "columns", x.shape[1], MAX_SIDE)
        check_inner((f"a_list[{i}]", f"b_list[{i}]"), a, b)


@cache
def shapes(problems, M, N, K, mixed):
    """(M, N, K) of each problem: all alike; or, if mixed, each side 4 to 12 of its twelfths, and of
    problems 1, 2 and 3, where there are so many, M, N or K is 0."""
    if not mixed:
        return ((M, N, K),) * problems
    random = Random(0)
    units = [max(1, side // 12) for side in (M, N, K)]
    found = [[unit * random.randint(4, 12) for unit in units] for _ in range(problems)]
    for i, sides in enumerate(found[1:4]):
        sides[i] = 0
    return tuple(map(tuple, found))


def make_inputs(dtype, device, seed, problems, M, N, K, mixed):
    g = generator(device, seed)

    def matrices(shapes):  # one after another, each from a multiple of 16 bytes on
        sizes = [-(-rows * cols // 8) * 8 for rows, cols in shapes]
        parts = torch.randn(sum(sizes), device=device, generator=g).to(dtype).split(sizes)
        return [
            part[: rows * cols].view(rows, cols)
            for part, (rows, cols) in zip(parts, shapes, strict=True)
        ]

    sides = shapes(problems, M, N, K, mixed)
    return matrices([(m, k) for m, _, k in sides]), matrices([(k, n) for _, n, k in sides])


def work(dtype, problems, M, N, K, mixed):
    sides = shapes(problems, M, N, K, mixed)
    elements = sum(m * k + k * n + m * n for m, n, k in sides)
    flops = sum(2 * m * n * k for m, n, k in sides)
    return Work(elements * dtype.itemsize, flops, limit="matmul")


def loop(a_list, b_list):
    """A call of torch.mm for each problem."""
    return [torch.mm(a, b) for a, b in zip(a_list, b_list, strict=True)]


def dense(a_list, b_list):
    """One product of as many operations, of nearly square matrices."""
    half = sum(a.numel() * b.shape[1] for a, b in zip(a_list, b_list, strict=True))
    side = max(128, round(half ** (1 / 3) / 128) * 128)
    shape = max(1, round(half / side**2)), side
    return torch.mm(*_random(shape, a_list[0].dtype, a_list[0].device))


@cache
def _random(shape, dtype, device):
    (rows, side), g = shape, generator(device, 0)
    a = torch.randn(rows, side, device=device, generator=g)
    b = torch.randn(side, side, device=device, generator=g)
    return a.to(dtype), b.to(dtype)


def torch_grouped(a_list, b_list):
    """torch._grouped_mm of the same memory, where the problems are alike and lie side by side."""
    dtype = a_list[0].dtype
    if dtype != torch.bfloat16:
        raise Unavailable("torch._grouped_mm takes bfloat16 alone")
    if len({(a.shape, b.shape) for a, b in zip(a_list, b_list, strict=True)}) > 1:
        raise Unavailable("torch._grouped_mm takes problems of one N and one K")
    return list(torch._grouped_mm(_stacked(a_list), _stacked(b_list)))


def _stacked(matrices):
    """Matrices that lie one after another, as one tensor."""
    first, size = matrices[0], matrices[0].numel()
    places = [x.data_ptr() - first.data_ptr() for x in matrices]
    if places != [i * size * first.element_size() for i in range(len(matrices))]:
        raise Unavailable("torch._grouped_mm takes operands that lie one after another")
    return first.as_strided((len(matrices), *first.shape), (size, *first.stride()))


def size(problems, M, N, K, mixed=False):
    return {"problems": problems, "M": M, "N": N, "K": K, "mixed": mixed}


CHECK = (  # problems, M, N, K, mixed: where there are 4 or more mixed ones, three are empty
    *((2, 24, 40, 16), (0, 8, 8, 8), (1, 1, 1, 1), (2, 8, 16, 0), (2, 0, 8, 8), (2, 129, 264, 72)),
    *((5, 132, 264, 204, True), (7, 96, 192, 288, True), (1, 130, 258, 201)),
    # rows of one operand start at multiples of 16 bytes; of both, in the shortest problem alone
    *((2, 40, 72, 20), (2, 40, 20, 72), (5, 12, 96, 60, True)),
)

SPEC = KernelSpec(
    name="grouped_gemm",
    day=21,
    title="Grouped matmul",
    reference=grouped_gemm,
    make_inputs=make_inputs,
    work=work,
    check_sizes=tuple(size(*s) for s in CHECK),
    bench_sizes=(
        size(64, 1536, 1536, 1536, mixed=True),  # some 2·4096³ operations
        size(8, 1024, 4096, 4096),
        size(256, 256, 256, 256),
    ),
    headline=size(64, 1536, 1536, 1536, mixed=True),
    huge_sizes=(  # many problems; then one of whose A, B or C has more than 2³¹ elements
        *(size(MAX_PROBLEMS, 9, 14, 20, mixed=True), size(1, 1_044_512, 8, 2056)),
        *(size(1, 8, 1_044_512, 2056), size(1, 46_400, 46_400, 8)),
    ),
    limits={
        "problems": size(MAX_PROBLEMS, 1, 1, 1),
        "M": size(1, MAX_SIDE, 1, 1),
        "N": size(1, 1, MAX_SIDE, 1),
        "K": size(1, 1, 1, MAX_SIDE),
    },
    dtypes=DTYPES,
    agreement=Contraction("K"),
    machine_code=("wide loads", "wide stores", "tensor cores"),
    baselines={"loop": loop, "dense": dense, "grouped_mm": torch_grouped},
    refused={
        "no lists": lambda a_list, b_list: (a_list[0], b_list[0]),
        "one list": lambda a_list, b_list: (a_list, b_list[0]),
        "lengths": lambda a_list, b_list: (a_list, b_list[1:]),
        "no tensor": lambda a_list, b_list: (a_list, [*b_list[:-1], None]),
        "dtypes": lambda a_list, b_list: (a_list, [*b_list[:-1], b_list[-1].to(DTYPES[1])]),
        "inner dimension": lambda a_list, b_list: (
            a_list,
            [*b_list[:-1], b_list[-1].T.contiguous()],
        ),
    },
    sources=(
        "Triton tutorial 08: group GEMM",
        "NVIDIA, CUTLASS: grouped kernel schedulers",
    ),
)
