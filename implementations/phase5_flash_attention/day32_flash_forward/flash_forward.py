"""Day 32: attention in one launch, whose scores never leave the chip."""

import torch
from torch.nn.attention import SDPBackend

from implementations.common.check import check_grouped_attention
from implementations.common.rules import Attention, LogSumExp
from implementations.common.spec import KernelSpec, Work, generator
from implementations.phase4_advanced_kernels.day27_standard_attention.attention_standard import (
    DTYPES,
    HEAD_DIMS,
    MAX_ROWS,
    not_finite,
    pairs,
    sdpa,
)


def flash_forward(q, k, v, causal, sm_scale):
    """softmax(sm_scale·q@kᵀ) @ v for each head, and the logarithm of the sum of its exponentials.

    q: (B, H, M, D), k and v: (B, H_kv, N, D), float16 or bfloat16; D 64 or 128, H a multiple of
    H_kv: as many neighbouring heads of q share one of k and v. Their rows are without gaps; other
    strides may be any multiples of 8, so that (B, N, H, D) transposed needs no copy. causal: query
    i sees the keys j ≤ i + N - M only, so that the last one sees all: aligned at the bottom right,
    as one query against a cache of keys wants it. sm_scale: positive.
    Returns o, (B, H, M, D) of the same dtype and in the order of q's strides, and lse, (B, H, M) of
    float32. A query that sees no key gets zeros and -inf.

    Scores are float32, and so are the sums; weights are rounded to that dtype for their product
    with v. A value that is not finite reaches the queries that see its key, and may reach others;
    where a score is inf, o and lse are NaN.
    Raises TypeError for another dtype, ValueError for another shape, stride, device or scale.
    """
    s = scores(q, k, causal, sm_scale)
    p = torch.softmax(s, dim=-1)
    if causal:
        p = p.masked_fill(s == -float("inf"), 0)  # of a query that sees no key, p is NaN
    lse = torch.logsumexp(s, -1)
    return p.to(q.dtype) @ of_all_heads(v, q), lse.masked_fill(lse == float("inf"), float("nan"))


def scores(q, k, causal, sm_scale):
    """sm_scale·q@kᵀ in float32 at least, and -inf where a query does not see a key."""
    wide = torch.promote_types(q.dtype, torch.float32)
    s = sm_scale * (q.to(wide) @ of_all_heads(k, q).to(wide).mT)
    if causal:
        M, N = s.shape[-2:]
        hidden = torch.ones((M, N), dtype=torch.bool, device=s.device).triu(N - M + 1)
        s = s.masked_fill(hidden, -float("inf"))
    return s


def of_all_heads(x, q):
    """Keys or values with as many heads as q has."""
    return x.repeat_interleave(q.shape[1] // max(1, x.shape[1]), 1)


def check(q, k, v, causal, sm_scale):
    return check_grouped_attention(q, k, v, causal, sm_scale, DTYPES, HEAD_DIMS)


def make_inputs(dtype, device, seed, B, H, G, M, N, D, causal, heads_last=False):
    """H: heads of k and v, each for G of q. heads_last: views of (B, N, H, D)."""
    g = generator(device, seed)

    def heads(count, length):
        if heads_last:
            x = torch.randn(B, length, count, D, device=device, generator=g).transpose(1, 2)
        else:
            x = torch.randn(B, count, length, D, device=device, generator=g)
        return x

    q, k, v = heads(H * G, M), heads(H, N), heads(H, N)
    # The scores of two queries of three lie so far from zero that exp under- or overflows, and the
    # later a key, the larger its score: the maximum moves, and sums are worth less and less.
    q[..., 0] = 25 * D**0.5 * ((torch.arange(M, device=device) + 1) % 3 - 1)
    k[..., 0] = 4
    kind = torch.arange(M, device=device) % 4
    q[..., 1] = D**0.5 * (kind < 3)
    k[..., 1] += torch.linspace(-4, 4, N, device=device)
    # Some queries have keys, the last ones of tiles of many sizes, that are worth 10**43 times any
    # before: whose maximum misses one has weights beyond float32. In bfloat16 10**4 times, as
    # gradients would be subnormal there.
    q[..., 2] = D**0.5 * (kind == 2)
    for steps, last in enumerate((15, 31, 47, 63, 127), 1):
        k[..., last : last + 1, 2] = (100 if dtype == torch.float16 else 10) * steps
    # Others have a first key beside which each other one is lost in a float16 sum, not all of them.
    q[..., 3] = D**0.5 * (kind == 3)
    k[..., 3] = 0
    k[..., :1, 3] = 9
    q[..., 4:5, 0] = 17_000  # a score beyond float16
    if dtype == torch.bfloat16:  # beyond it: all values, and a weight, whose value is huge
        v *= 2**20
        k[..., 1:2, 1] = -17
        v[..., 1:2, :] *= 2**25
    return q.to(dtype), k.to(dtype), v.to(dtype), causal, D**-0.5


def work(dtype, B, H, G, M, N, D, causal, heads_last=False):
    rows = B * H * G * M
    bytes = (2 * rows + 2 * B * H * N) * D * dtype.itemsize + 4 * rows
    return Work(bytes, flops=4 * B * H * G * pairs(M, N, causal) * D, limit="matmul")


def size(B, H, G, M, N, D, causal, **layout):
    return {"B": B, "H": H, "G": G, "M": M, "N": N, "D": D, "causal": causal} | layout


REFUSED = {
    "batches": lambda q, k, v, *rest: (q[:1], k, v, *rest),
    "heads": lambda q, k, v, *rest: (q[:, :1], k, v, *rest),
    "keys": lambda q, k, v, *rest: (q, k, v[:, :, 1:], *rest),
    "head dimensions": lambda q, k, v, *rest: (q[..., :32], k, v, *rest),
    "head dimension": lambda q, k, v, *rest: (*(x[..., :32] for x in (q, k, v)), *rest),
    "dtypes": lambda q, k, v, *rest: (q, k.to(DTYPES[1]), v, *rest),
    "gaps": lambda q, k, v, *rest: (q, k, v.repeat_interleave(2, -1)[..., ::2], *rest),
    "rows": lambda q, k, v, *rest: (q.repeat(1, 1, 1, 2)[..., 4 : q.shape[3] + 4], k, v, *rest),
    "causal": lambda q, k, v, causal, sm_scale: (q, k, v, int(causal), sm_scale),
    "scale": lambda q, k, v, causal, sm_scale: (q, k, v, causal, str(sm_scale)),
    "NaN": lambda q, k, v, causal, sm_scale: (q, k, v, causal, float("nan")),
    "infinity": lambda q, k, v, causal, sm_scale: (q, k, v, causal, float("inf")),
    "no scale": lambda q, k, v, causal, sm_scale: (q, k, v, causal, 0),
    "large scale": lambda q, k, v, causal, sm_scale: (q, k, v, causal, 2.0**101),
}
LIMITS = {
    "B": size(MAX_ROWS, 1, 1, 1, 1, 64, False),
    "H": size(1, MAX_ROWS, 1, 1, 1, 64, False),
    "G": size(1, 1, MAX_ROWS, 1, 1, 64, False),
    "M": size(1, 1, 1, MAX_ROWS, 1, 64, False),
    "N": size(1, 1, 1, 1, MAX_ROWS, 64, False),
    "D": size(1, 1, 1, 1, 1, max(HEAD_DIMS), False),
}
CHECK = (  # B, H, G, M, N, D, causal; tiles have up to 128 queries or keys
    *((2, 2, 1, 3, 5, 64, True), (0, 1, 1, 2, 2, 64, False), (1, 2, 1, 0, 3, 64, True)),
    *((1, 2, 1, 3, 0, 128, False), (1, 1, 1, 1, 1, 128, True), (2, 2, 3, 2, 17, 64, False)),
    *((1, 1, 2, 65, 200, 64, True), (1, 1, 1, 133, 5, 64, True), (1, 2, 1, 130, 129, 64, False)),
    *((1, 1, 1, 40, 260, 128, True), (1, 1, 1, 70, 140, 128, True)),
)
BENCH = tuple(
    size(*shape, D, causal)
    for D in HEAD_DIMS
    for causal in (False, True)
    for shape in ((4, 16, 1, 512, 512), (4, 16, 1, 4096, 4096), (1, 16, 1, 16384, 16384))
)
HUGE = (  # many queries, in two ways: q; many keys: k and v
    *((1, 2**13 + 3, 1, 2**12 + 67, 9, 64, False), (2**20 + 3, 1, 1, 33, 9, 64, False)),
    *((1, 1, 1, 3, 2**25 + 67, 64, False),),
)

SPEC = KernelSpec(
    name="flash_forward",
    day=32,
    title="Flash attention, forward",
    reference=flash_forward,
    make_inputs=make_inputs,
    work=work,
    check_sizes=(
        *(size(*s) for s in CHECK),
        size(2, 1, 2, 5, 130, 64, True, heads_last=True),
    ),
    bench_sizes=BENCH,
    headline=size(4, 16, 1, 4096, 4096, 128, False),
    huge_sizes=tuple(size(*s) for s in HUGE),
    counted=tuple(size(1, 16, 1, n, n, 128, False) for n in (1024, 2048, 4096, 8192, 16384)),
    limits=LIMITS,
    dtypes=DTYPES,
    agreement=(Attention(rounded_scores=False), LogSumExp()),
    not_finite=lambda B, H, G, M, N, D, causal, heads_last=False: not_finite(B, H, M, N, D, causal),
    refused=REFUSED,
    machine_code=("wide loads", "wide stores", "tensor cores"),
    baselines={
        "sdpa_flash": sdpa(SDPBackend.FLASH_ATTENTION),
        "sdpa_cudnn": sdpa(SDPBackend.CUDNN_ATTENTION),
    },
    sources=(
        "Dao, Fu, Ermon, Rudra and Ré, FlashAttention, 2022, algorithm 1",
        "Dao, FlashAttention-2, 2023, algorithm 1",
    ),
    ladder="attention",
)
