"""Day 33: what softmax's gradient subtracts, the sum of each row of o∘do: one number a query."""

import torch

from implementations.common.baselines import compiled
from implementations.common.check import check_same, check_tensor
from implementations.common.rules import Reduction
from implementations.common.spec import KernelSpec, Work, generator

DTYPES = (torch.float16, torch.bfloat16)
HEAD_DIMS = (64, 128)
MAX_ROWS = 2**30 - 1  # of 64 elements, in a tensor of MAX_ELEMENTS: indices of rows are 32 bits


def attention_delta(o, do):
    """The sum of o·do over each row.

    o: what attention returned, do: the gradient with respect to it; both (B, H, M, D), float16 or
    bfloat16, contiguous; D 64 or 128. Returns (B, H, M), float32, as the sums are.
    Raises TypeError for another dtype, ValueError for another shape, stride or device.
    """
    wide = torch.promote_types(o.dtype, torch.float32)
    return (o.to(wide) * do.to(wide)).sum(-1)


def check(o, do):
    for name, x in (("o", o), ("do", do)):
        check_tensor(name, x, ndim=4, dtypes=DTYPES)
    check_same(("o", "do"), o, do, "shape", "dtype", "device")
    if o.shape[3] not in HEAD_DIMS:
        wanted = " or ".join(map(str, HEAD_DIMS))
        raise ValueError(f"o must have a last dimension of {wanted}, got {o.shape[3]}")


def make_inputs(dtype, device, seed, B, H, M, D):
    g = generator(device, seed)
    o, do = (torch.randn(B, H, M, D, device=device, generator=g) for _ in range(2))
    o += 1  # what is left out is missing, and does not cancel
    do += 1
    o[..., -1] += 8  # where a dropped tail shows most
    o[..., 1::2, :] *= 1024  # sums beyond what fp16 holds, and values too
    if dtype == torch.bfloat16:
        o, do = o * 2**20, do * 2**20
    return o.to(dtype), do.to(dtype)


def work(dtype, B, H, M, D):
    rows = B * H * M
    return Work(bytes=2 * rows * D * dtype.itemsize + 4 * rows, flops=2 * rows * D, limit="read")


def size(B, H, M, D):
    return {"B": B, "H": H, "M": M, "D": D}


CHECK = (  # B, H, M, D; a block has 128 or 64 rows, a program 64 or 32
    *((0, 2, 3, 64), (2, 1, 0, 128), (1, 1, 1, 64), (1, 1, 1, 128)),
    *((2, 3, 7, 128), (1, 3, 67, 64), (2, 1, 65, 128), (1, 2, 64, 64)),
)
BENCH = tuple(size(4, 16, M, D) for D in HEAD_DIMS for M in (512, 2048, 8192, 32_768))

SPEC = KernelSpec(
    name="attention_delta",
    day=33,
    title="Delta of attention",
    reference=attention_delta,
    make_inputs=make_inputs,
    work=work,
    check_sizes=tuple(size(*s) for s in CHECK),
    bench_sizes=BENCH,
    headline=size(4, 16, 8192, 128),
    huge_sizes=(size(1, 2**13 + 3, 2**12 + 67, 64),),
    limits={
        "B": size(MAX_ROWS, 1, 1, 64),
        "H": size(1, MAX_ROWS, 1, 64),
        "M": size(1, 1, MAX_ROWS, 64),
        "D": size(1, 1, 1, max(HEAD_DIMS)),
    },
    dtypes=DTYPES,
    agreement=Reduction("D"),
    refused={"head dimension": lambda o, do: (o[..., 1:].clone(), do[..., 1:].clone())},
    machine_code=("wide loads",),
    baselines={"torch": attention_delta, "torch.compile": compiled(attention_delta)},
    sources=("Dao et al., FlashAttention, 2022, appendix B.2",),
)
