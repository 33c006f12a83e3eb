"""Day 27: attention takes three launches, and its scores lie in memory between them."""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from implementations.common.check import check_attention
from implementations.common.rules import Attention
from implementations.common.spec import KernelSpec, Work, generator

DTYPES = (torch.float16, torch.bfloat16)
HEAD_DIMS = (64, 128)
MAX_ROWS = 2**30 - 1  # of 64 elements, in a tensor of MAX_ELEMENTS: indices of rows are 32 bits


def attention_standard(q, k, v, causal, sm_scale):
    """softmax(sm_scale·q@kᵀ) @ v for each head.

    q: (B, H, M, D), k and v: (B, H, N, D), float16 or bfloat16, contiguous; D 64 or 128. causal:
    query i sees the keys j ≤ i + N - M only, so that the last one sees all. sm_scale: finite.
    Returns (B, H, M, D) of the same dtype; zeros for a query that sees no key.

    The scores are scaled in float32, and rounded to that dtype, beyond whose range they are
    infinite; so are the weights, which are calculated in float32. A value that is not finite
    reaches the queries that see its key, and may reach others.
    Raises TypeError for another dtype, ValueError for another shape, stride, device or scale.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    s = (sm_scale * (q.to(wide) @ k.to(wide).mT)).to(q.dtype)
    if not causal:
        return torch.softmax(s, dim=-1) @ v
    hidden = torch.ones(s.shape[-2:], dtype=torch.bool, device=s.device).triu(
        k.shape[-2] - q.shape[-2] + 1
    )
    p = torch.softmax(s.masked_fill(hidden, -float("inf")), dim=-1)
    return p.masked_fill(hidden, 0) @ v  # of a query that sees no key, p is NaN


def check(q, k, v, causal, sm_scale):
    return check_attention(q, k, v, causal, sm_scale, DTYPES, HEAD_DIMS)


def row_stride(N):
    """Elements from a row of S to the next: a multiple of 32 bytes, so that all rows are aligned,
    and no 0, so that grids are not empty."""
    return max(1, -(-N // 16)) * 16


def make_inputs(dtype, device, seed, B, H, M, N, D, causal):
    g = generator(device, seed)
    q = torch.randn(B, H, M, D, device=device, generator=g)
    k = torch.randn(B, H, N, D, device=device, generator=g)
    v = torch.randn(B, H, N, D, device=device, generator=g)
    # the scores of two queries of three lie so far from zero that exp under- or overflows
    q[..., 0] = 25 * D**0.5 * ((torch.arange(M, device=device) + 1) % 3 - 1)
    k[..., 0] = 4
    if dtype == torch.bfloat16:  # beyond what float16 holds: values, a score, and a weight
        v *= 2**20
        q[..., 3:4, 0] = 20_000 * D**0.5
        q[..., 1] = D**0.5
        k[..., 1:2, 1] = -20
        v[..., 1:2, :] *= 2**30
    return q.to(dtype), k.to(dtype), v.to(dtype), causal, D**-0.5


def pairs(M, N, causal):
    """How many pairs of a query and a key that it sees there are."""
    rows = min(M, N)  # of queries that see a key, where causal: the last sees all
    return rows * (2 * N - rows + 1) // 2 if causal else M * N


def work(dtype, B, H, M, N, D, causal):
    bytes = 2 * B * H * (M + N) * D * dtype.itemsize
    return Work(bytes, flops=4 * B * H * pairs(M, N, causal) * D, limit="matmul")


def traffic(dtype, B, H, M, N, D, causal):
    """The compulsory bytes; S written and read, then P written and read."""
    compulsory = work(dtype, B, H, M, N, D, causal).bytes
    return compulsory + 4 * B * H * pairs(M, N, causal) * dtype.itemsize


def workspace(gpu, dtype, B, H, M, N, D, causal):
    return B * H * M * row_stride(N) * dtype.itemsize


def not_finite(B, H, M, N, D, causal):
    """v is multiplied by the weights of a whole tile: a zero, of a hidden key, makes it NaN."""
    return ("q", "k") if causal else ("q", "k", "v")


def sdpa(backend):
    """What torch calls attention, by one of its own ways; causal only where M is N."""

    def call(q, k, v, causal, sm_scale):
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(q, k, v, is_causal=causal, scale=sm_scale)

    return call


def size(B, H, M, N, D, causal):
    return {"B": B, "H": H, "M": M, "N": N, "D": D, "causal": causal}


REFUSED = {
    "batches": lambda q, k, v, *rest: (q[:1], k, v, *rest),
    "heads": lambda q, k, v, *rest: (q, k[:, :1].clone(), v[:, :1].clone(), *rest),
    "keys": lambda q, k, v, *rest: (q, k, v[:, :, 1:].clone(), *rest),
    "head dimensions": lambda q, k, v, *rest: (q[..., 1:].clone(), k, v, *rest),
    "head dimension": lambda q, k, v, *rest: (*(x[..., 1:].clone() for x in (q, k, v)), *rest),
    "dtypes": lambda q, k, v, *rest: (q, k.to(DTYPES[1]), v, *rest),
    "causal": lambda q, k, v, causal, sm_scale: (q, k, v, int(causal), sm_scale),
    "scale": lambda q, k, v, causal, sm_scale: (q, k, v, causal, str(sm_scale)),
    "scale of a bool": lambda q, k, v, causal, sm_scale: (q, k, v, causal, True),
    "NaN": lambda q, k, v, causal, sm_scale: (q, k, v, causal, float("nan")),
    "infinity": lambda q, k, v, causal, sm_scale: (q, k, v, causal, float("inf")),
    "large scale": lambda q, k, v, causal, sm_scale: (q, k, v, causal, 10**40),
}
LIMITS = {
    "B": size(MAX_ROWS, 1, 1, 1, 64, False),
    "H": size(1, MAX_ROWS, 1, 1, 64, False),
    "M": size(1, 1, MAX_ROWS, 1, 64, False),
    "N": size(1, 1, 1, MAX_ROWS, 64, False),
    "D": size(1, 1, 1, 1, max(HEAD_DIMS), False),
}
CHECK = (  # B, H, M, N, D, causal; tiles have 128 queries or keys, and of M - N that see no key one
    *((2, 2, 3, 5, 64, True), (0, 1, 2, 2, 64, False), (1, 2, 0, 3, 64, True)),
    *((1, 2, 3, 0, 128, False), (1, 1, 1, 1, 128, True), (4, 1, 2, 17, 64, False)),
    *((1, 2, 65, 130, 64, True), (1, 1, 133, 5, 64, True), (1, 2, 129, 16, 64, False)),
    *((1, 1, 160, 150, 64, True), (1, 1, 40, 200, 128, True)),
    *((1, 1, 1, 1030, 64, False),),  # longer than is held
)
MORE = (size(1, 1, 3, 16_400, 64, False),)  # of three parts that are held one after another
BENCH = tuple(
    size(4, 16, n, n, D, causal)
    for D in HEAD_DIMS
    for causal in (False, True)
    for n in (512, 1024, 2048, 4096, 8192)
)
HUGE = (  # many queries, in two ways: q; many keys: k and v; many scores
    *((1, 2**13 + 3, 2**12 + 67, 9, 64, False), (2**20 + 3, 1, 33, 9, 64, False)),
    *((1, 1, 3, 2**25 + 67, 64, False), (1, 1, 2**15 + 24, 2**16 + 67, 64, True)),
)

SPEC = KernelSpec(
    name="attention_standard",
    day=27,
    title="Standard attention",
    reference=attention_standard,
    make_inputs=make_inputs,
    work=work,
    check_sizes=tuple(size(*s) for s in CHECK),
    more_sizes=MORE,
    bench_sizes=BENCH,
    headline=size(4, 16, 4096, 4096, 128, False),
    huge_sizes=tuple(size(*s) for s in HUGE),
    counted=tuple(size(1, 16, n, n, 128, False) for n in (1024, 2048, 4096, 8192, 16384)),
    limits=LIMITS,
    dtypes=DTYPES,
    agreement=Attention(),
    traffic=traffic,
    workspace=workspace,
    not_finite=not_finite,
    refused=REFUSED,
    machine_code=("wide loads", "wide stores", "tensor cores"),
    baselines={
        "sdpa_math": sdpa(SDPBackend.MATH),
        "sdpa_efficient": sdpa(SDPBackend.EFFICIENT_ATTENTION),
    },
    sources=("Vaswani et al., Attention is all you need, 2017, section 3.2.1",),
    ladder="attention",
)
