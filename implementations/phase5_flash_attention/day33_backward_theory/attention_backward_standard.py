"""Day 33: the gradients of attention, written plainly: P and dS lie in memory between launches."""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from implementations.common.check import check_attention, check_same, check_tensor
from implementations.common.rules import AttentionGradient
from implementations.common.spec import KernelSpec, Work, generator
from implementations.phase4_advanced_kernels.day27_standard_attention import attention_standard
from implementations.phase4_advanced_kernels.day27_standard_attention.attention_standard import (
    BENCH,
    DTYPES,
    HEAD_DIMS,
    LIMITS,
    pairs,
    row_stride,
    size,
)

AT_ONCE = 2**28  # scores that make_inputs holds


def attention_backward_standard(q, k, v, o, do, causal, sm_scale):
    """The gradients of a loss with respect to q, k and v, from do, that with respect to o.

    o is softmax(sm_scale·q@kᵀ) @ v. With s = sm_scale·q@kᵀ and p = softmax(s), of each head:
        dv = pᵀ@do          dp = do@vᵀ          delta = Σ o∘do, of each row
        ds = p∘(dp - delta)          dq = sm_scale·ds@k          dk = sm_scale·dsᵀ@q
    as the gradient of softmax is p∘(dp - Σ p∘dp), and Σ p∘dp = Σ (p@v)∘do = Σ o∘do.

    q, o and do: (B, H, M, D), k and v: (B, H, N, D), float16 or bfloat16, contiguous; D 64 or 128.
    causal: query i sees the keys j ≤ i + N - M only, so that the last one sees all. sm_scale:
    finite. Returns dq, dk and dv in the shapes of q, k and v and of their dtype; zeros where a
    query sees no key.

    s is scaled in float32 and rounded to that dtype, and so is p; dp and delta are float32, and ds
    is calculated in it and rounded before it is scaled. A value that is not finite reaches the
    queries and keys that see each other, and may reach others.
    Raises TypeError for another dtype, ValueError for another shape, stride, device or scale.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    q, k, v, o, do, dtype = *(x.to(wide) for x in (q, k, v, o, do)), q.dtype
    s, (M, N) = (sm_scale * (q @ k.mT)).to(dtype), (q.shape[2], k.shape[2])
    hidden = torch.ones(M, N, dtype=torch.bool, device=s.device).triu(N - M + 1 if causal else N)
    p = torch.softmax(s.masked_fill_(hidden, -float("inf")), dim=-1)
    p = p.masked_fill_(hidden, 0).to(wide)  # of a query that sees no key, it was NaN
    ds = p * (do @ v.mT - (o * do).sum(-1, keepdim=True))
    ds = ds.masked_fill_(hidden, 0).to(dtype).to(wide)  # it is NaN where v is
    dq, dk, dv = sm_scale * (ds @ k), sm_scale * (ds.mT @ q), p.mT @ do
    return dq.to(dtype), dk.to(dtype), dv.to(dtype)


def check(q, k, v, o, do, causal, sm_scale):
    sm_scale = check_attention(q, k, v, causal, sm_scale, DTYPES, HEAD_DIMS)
    for name, x in (("o", o), ("do", do)):
        check_tensor(name, x, ndim=4, dtypes=DTYPES)
        check_same(("q", name), q, x, "shape", "dtype", "device")
    return sm_scale


def make_inputs(dtype, device, seed, B, H, M, N, D, causal):
    q, k, v, causal, sm_scale = attention_standard.make_inputs(
        dtype, device, seed, B, H, M, N, D, causal
    )
    # of few queries the scores lie far from zero: so far, they are rounded to so few digits that
    # gradients of keys, which sum over all queries, could be anything
    q[:, :, 3:-2, 0] = 0
    o = torch.empty_like(q)
    rows = max(1, AT_ONCE // max(1, B * H * N))  # of each head
    for m in range(0, M, rows):
        part = q[:, :, m : m + rows].float()
        seen = max(0, m + part.shape[2] + N - M) if causal else N  # keys, of the last of them
        keys, values = k[:, :, :seen].float(), v[:, :, :seen].float()
        o[:, :, m : m + rows] = attention_standard.attention_standard(
            part, keys, values, causal, sm_scale
        )
    do = torch.randn(q.shape, device=device, generator=generator(device, seed + 1)).to(dtype)
    return q, k, v, o, do, causal, sm_scale


def work(dtype, B, H, M, N, D, causal):
    """The products of the mathematics: s, which is calculated again, dp, dq, dk and dv."""
    bytes = 4 * B * H * (M + N) * D * dtype.itemsize  # q, o, do, dq; k, v, dk, dv
    return Work(bytes, flops=10 * B * H * pairs(M, N, causal) * D, limit="matmul")


def traffic(dtype, B, H, M, N, D, causal):
    """The compulsory bytes; S written and read, P written and read for dS and dv, dS written and
    read for dq and dk."""
    compulsory = work(dtype, B, H, M, N, D, causal).bytes
    return compulsory + 8 * B * H * pairs(M, N, causal) * dtype.itemsize


def workspace(gpu, dtype, B, H, M, N, D, causal):
    """Of P and dS, and delta."""
    return B * H * M * (2 * row_stride(N) * dtype.itemsize + 4)


def not_finite(B, H, M, N, D, causal):
    """q, k and do are multiplied by weights of a whole tile: a zero, of a hidden key, makes NaN."""
    return ("v", "o") if causal else ("q", "k", "v", "o", "do")


def sdpa_math_autograd(q, k, v, o, do, causal, sm_scale):
    """Torch's way with S in memory, forward and backward: autograd has no backward alone, and what
    o holds is calculated again; causal only where M is N."""
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        inputs = [x.detach().requires_grad_() for x in (q, k, v)]
        y = scaled_dot_product_attention(*inputs, is_causal=causal, scale=sm_scale)
        return torch.autograd.grad(y, inputs, do)


def refused(change):
    """What Day 27 refuses, with o and do between."""

    def call(q, k, v, o, do, causal, sm_scale):
        q, k, v, causal, sm_scale = change(q, k, v, causal, sm_scale)
        return q, k, v, o, do, causal, sm_scale

    return call


REFUSED = {what: refused(change) for what, change in attention_standard.REFUSED.items()}
REFUSED |= {
    "queries of o": lambda q, k, v, o, *rest: (q, k, v, o[:, :, 1:].clone(), *rest),
    "queries of do": lambda q, k, v, o, do, *rest: (q, k, v, o, do[:, :, 1:].clone(), *rest),
}
CHECK = (  # B, H, M, N, D, causal; tiles have 128 queries or keys, of which 64 make a step
    *((2, 2, 3, 5, 64, True), (0, 1, 2, 2, 64, False), (1, 2, 0, 3, 64, True)),
    *((1, 2, 3, 0, 128, False), (1, 1, 1, 1, 128, True), (2, 1, 2, 17, 64, False)),
    *((1, 2, 65, 130, 64, True), (1, 2, 133, 5, 64, True), (1, 1, 40, 200, 128, True)),
    # more steps over the queries than stages; rows of P that are longer than a block holds
    *((1, 1, 330, 16, 64, False), (1, 1, 70, 530, 64, False)),
)
HUGE = (  # many queries: q, o and do; many keys: k and v; many scores
    *((1, 2**13 + 3, 2**12 + 67, 9, 64, False), (1, 1, 3, 2**25 + 67, 64, False)),
    *((1, 1, 2**15 + 24, 2**16 + 67, 64, True),),
)

SPEC = KernelSpec(
    name="attention_backward_standard",
    day=33,
    title="Standard attention, backward",
    reference=attention_backward_standard,
    make_inputs=make_inputs,
    work=work,
    check_sizes=tuple(size(*s) for s in CHECK),
    bench_sizes=BENCH,
    headline=size(4, 16, 4096, 4096, 128, False),
    huge_sizes=tuple(size(*s) for s in HUGE),
    limits=LIMITS,
    dtypes=DTYPES,
    agreement=tuple(AttentionGradient(of, rounded_scores=True) for of in "qkv"),
    traffic=traffic,
    workspace=workspace,
    not_finite=not_finite,
    refused=REFUSED,
    machine_code=("wide loads", "wide stores", "tensor cores"),
    baselines={"sdpa_math_autograd": sdpa_math_autograd},
    sources=("Dao et al., FlashAttention, 2022, appendix B.2",),
)
