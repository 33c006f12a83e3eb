"""Day 31: attention over parts of the keys becomes that over all of them by log-sum-exp."""

from dataclasses import dataclass, replace

import torch

from implementations.common.baselines import compiled
from implementations.common.check import MAX_ELEMENTS, check_same, check_tensor
from implementations.common.rules import Reduction
from implementations.common.spec import KernelSpec, Work, generator

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
HEAD_DIMS = (64, 128)
MAX_ROWS = MAX_ELEMENTS // 64  # of o_parts: their indices are 32 bits


def attention_merge(o_parts, lse_parts):
    """o = Σ exp(lse_s - lse)·o_s over the parts s, where lse = log Σ exp(lse_s).

    o_parts: (S, B, H, M, D), S ≥ 1, D 64 or 128, float32, float16 or bfloat16, contiguous: for each
    query the result of attention over some of the keys. lse_parts: (S, B, H, M), float32,
    contiguous: the log of that part's sum of exp(score). Returns o (B, H, M, D) of the dtype of
    o_parts, summed in float32, and lse (B, H, M), float32.

    A part with lse_s = -inf saw no key and is not added, whatever its o_s holds; where no part saw
    one, o is 0 and lse -inf. An lse_s of +inf gives o = NaN and lse = +inf, one of NaN both NaN.
    Raises TypeError for another dtype, ValueError for another shape, stride or device.
    """
    lse = torch.logsumexp(lse_parts, 0)
    unseen = lse_parts == -torch.inf
    w = (lse_parts - lse).exp().masked_fill(unseen, 0)  # where none saw one, -inf - -inf
    o = w[..., None] * o_parts.to(lse.dtype).masked_fill(unseen[..., None], 0)
    return o.sum(0).to(o_parts.dtype), lse


@dataclass(frozen=True)
class MergedOutput(Reduction):
    """As of a Reduction, where Σ|x| is Σ exp(lse_s - lse)·|o_s|."""

    needs_magnitude = False

    def bound(self, oracle):
        o_parts, lse_parts = (x.double() for x in oracle.inputs)
        magnitude, _ = attention_merge(o_parts.abs_(), lse_parts)
        return super().bound(replace(oracle, magnitude=magnitude))


@dataclass(frozen=True)
class MergedLogSumExp(Reduction):
    """As of a Reduction, where Σ|x| is 1: an error that is relative to a sum is the absolute one of
    its logarithm."""

    needs_magnitude = False

    def bound(self, oracle):
        return super().bound(replace(oracle, magnitude=torch.ones_like(oracle.value)))


def check(o_parts, lse_parts):
    check_tensor("o_parts", o_parts, ndim=5, dtypes=DTYPES)
    check_tensor("lse_parts", lse_parts, ndim=4, dtypes=(torch.float32,))
    check_same(("o_parts", "lse_parts"), o_parts, lse_parts, "device")
    if o_parts.shape[:4] != lse_parts.shape:
        raise ValueError(
            "o_parts and lse_parts must have the same parts, batches, heads and queries, "
            f"got shapes {tuple(o_parts.shape)} and {tuple(lse_parts.shape)}"
        )
    S, D = o_parts.shape[0], o_parts.shape[4]
    if S == 0:
        raise ValueError(f"o_parts must have at least 1 part, got shape {tuple(o_parts.shape)}")
    if D not in HEAD_DIMS:
        wanted = " or ".join(map(str, HEAD_DIMS))
        raise ValueError(f"o_parts must have a last dimension of {wanted}, got {D}")


def make_inputs(dtype, device, seed, S, B, H, M, D):
    g = generator(device, seed)
    o_parts = torch.randn(S, B, H, M, D, device=device, generator=g)
    lse_parts = 2 * torch.randn(S, B * H * M, device=device, generator=g)
    row = torch.arange(B * H * M, device=device)
    lse_parts += 1000 * (row % 3 - 1)  # two rows of three: exp under- or overflows
    # of some rows one part is so far above the others that exp of the difference overflows
    lse_parts[row // 8 % S, row] += 92 * (row % 8 == 6)
    # of some rows one part saw no key, of a few none did: what these hold must not be added
    lse_parts[row % S, row] = torch.where(row % 16 == 3, -torch.inf, lse_parts[row % S, row])
    lse_parts[:, 5::64] = -torch.inf
    lse_parts = lse_parts.view(S, B, H, M)
    o_parts.masked_fill_((lse_parts == -torch.inf)[..., None], torch.nan)
    return o_parts.to(dtype), lse_parts


def work(dtype, S, B, H, M, D):
    rows = B * H * M
    bytes = (S + 1) * rows * (D * dtype.itemsize + 4)
    return Work(bytes, flops=2 * S * rows * (D + 2))


def size(S, B, H, M, D):
    return {"S": S, "B": B, "H": H, "M": M, "D": D}


REFUSED = {
    "no part": lambda o_parts, lse_parts: (o_parts[:0].clone(), lse_parts[:0].clone()),
    "parts": lambda o_parts, lse_parts: (o_parts, lse_parts[1:].clone()),
    "queries": lambda o_parts, lse_parts: (o_parts[..., 1:, :].clone(), lse_parts),
    "head dimension": lambda o_parts, lse_parts: (o_parts[..., 1:].clone(), lse_parts),
    "dtype": lambda o_parts, lse_parts: (o_parts, lse_parts.half()),
}
CHECK = (  # S, B, H, M, D; a block has 4 to 16 rows, and takes 4 parts at a time
    *((2, 2, 2, 3, 64), (2, 0, 1, 2, 64), (3, 1, 2, 0, 128), (1, 1, 1, 1, 128), (1, 2, 1, 9, 64)),
    *((4, 1, 3, 17, 128), (5, 1, 1, 23, 64), (9, 2, 1, 7, 128), (33, 1, 1, 2, 64)),
)
BENCH = (  # the last three as in decoding, of one query a head
    *((2, 4, 16, 4096, 128), (8, 4, 16, 4096, 128), (32, 4, 16, 1024, 128), (8, 4, 16, 4096, 64)),
    *((8, 32, 32, 1, 128), (32, 8, 32, 1, 128), (64, 1, 32, 1, 128)),
)
HUGE = ((2, 1, 2**12 + 1, 2**12 + 67, 64), (2**12 + 3, 1, 1, 2**13 + 3, 64))

SPEC = KernelSpec(
    name="attention_merge",
    day=31,
    title="Merging partial attention",
    reference=attention_merge,
    make_inputs=make_inputs,
    work=work,
    check_sizes=tuple(size(*s) for s in CHECK),
    bench_sizes=tuple(size(*s) for s in BENCH),
    headline=size(8, 4, 16, 4096, 128),
    dtypes=DTYPES,
    agreement=(MergedOutput("S"), MergedLogSumExp("S")),
    baselines={"torch": attention_merge, "torch.compile": compiled(attention_merge)},
    huge_sizes=tuple(size(*s) for s in HUGE),
    limits={
        "S": size(MAX_ROWS, 1, 1, 1, 64),
        "B": size(1, MAX_ROWS, 1, 1, 64),
        "H": size(1, 1, MAX_ROWS, 1, 64),
        "M": size(1, 1, 1, MAX_ROWS, 64),
        "D": size(1, 1, 1, 1, max(HEAD_DIMS)),
    },
    refused=REFUSED,
    sources=(
        "Dao, Haziza, Massa and Sizov, Flash-Decoding for long-context inference, 2023",
        "Milakov and Gimelshein, Online normalizer calculation for softmax, 2018, section 3.1",
    ),
)
