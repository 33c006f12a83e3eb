"""Day 35: forward and backward joined, as torch differentiates and compiles them."""

from collections.abc import Callable

import torch
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend

from implementations import TORCH_DEVICE
from implementations.common.check import check_rows
from implementations.common.device import properties
from implementations.common.rules import Attention, AttentionGradient
from implementations.common.spec import KernelSpec, Work, generator
from implementations.phase4_advanced_kernels.day27_standard_attention.attention_standard import (
    DTYPES,
    HEAD_DIMS,
    pairs,
    sdpa,
)
from implementations.phase5_flash_attention.day32_flash_forward import flash_forward as day_32

QUERIES = 128  # of a program of the forward, at most
PROGRAMS = 2  # a multiprocessor, below which the keys are parted
PART_KEYS = 512  # of a part at least


def flash_attention(q, k, v, causal, sm_scale):
    """softmax(sm_scale·q@kᵀ) @ v for each head, which torch differentiates by q, k and v.

    q: (B, H, M, D), k and v: (B, H_kv, N, D), float16 or bfloat16; D 64 or 128, H a multiple of
    H_kv: as many neighbouring heads of q share one of k and v. Their rows are without gaps; other
    strides may be any multiples of 8. causal: query i sees the keys j ≤ i + N - M only, so that the
    last one sees all. sm_scale: positive. Returns o, (B, H, M, D), of the same dtype and in the
    order of q's strides. A query that sees no key gets zeros, and its gradient is 0.

    The gradients are those of `flash_backward`, in the order of the strides of q, k and v, and have
    none of their own: a second derivative is refused. Under autocast q, k and v are cast to its
    dtype first; torch.compile takes forward and backward as one operator each.
    Raises TypeError for another dtype, ValueError for another shape, stride, device or scale.
    """
    s = day_32.scores(q, k, causal, sm_scale)
    hidden = s == -float("inf")
    # of a query that sees no key the scores are any, or what torch calculates of them were NaN
    p = torch.softmax(s.masked_fill(hidden.all(-1, keepdim=True), 0), dim=-1)
    return p.masked_fill(hidden, 0).to(q.dtype) @ day_32.of_all_heads(v, q)


check = day_32.check


def joined(name: str, forward: Callable, backward: Callable, merge: Callable) -> Callable:
    """`flash_attention` of the hosts of Days 32, 34 and 31, which are all that backends differ in.

    name: under which torch knows its operators.
    """

    def in_parts(q, k, v, causal, sm_scale):
        return forward_in_parts(forward, merge, q, k, v, causal, sm_scale)

    def of_any_gradient(q, k, v, o, lse, do, causal, sm_scale):
        return backward(q, k, v, o, lse, with_rows(do), causal, sm_scale)

    scalars = "bool causal, float sm_scale"
    forward_operator = operator(
        f"{name}_forward",
        f"(Tensor q, Tensor k, Tensor v, {scalars}) -> (Tensor, Tensor)",
        in_parts,
        lambda q, *rest: (torch.empty_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)),
    )
    backward_operator = operator(
        f"{name}_backward",
        f"(Tensor q, Tensor k, Tensor v, Tensor o, Tensor lse, Tensor do, {scalars}) "
        "-> (Tensor, Tensor, Tensor)",
        of_any_gradient,
        lambda q, k, v, *rest: tuple(map(torch.empty_like, (q, k, v))),
    )

    class FlashAttention(torch.autograd.Function):
        @staticmethod
        def forward(ctx, q, k, v, causal, sm_scale):
            o, lse = forward_operator(q, k, v, causal, sm_scale)
            ctx.save_for_backward(q, k, v, o, lse)
            ctx.scalars = causal, sm_scale
            return o

        @staticmethod
        @once_differentiable
        def backward(ctx, do):
            dq, dk, dv = backward_operator(*ctx.saved_tensors, do, *ctx.scalars)
            return dq, dk, dv, None, None

    def flash_attention(q, k, v, causal, sm_scale):
        if torch.is_autocast_enabled(TORCH_DEVICE):
            dtype = torch.get_autocast_dtype(TORCH_DEVICE)
            q, k, v = (x.to(dtype) for x in (q, k, v))
        if not torch.compiler.is_compiling():  # before autograd looks at the arguments
            with torch.no_grad():
                check(q, k, v, causal, sm_scale)
        return FlashAttention.apply(q, k, v, causal, sm_scale)

    return flash_attention


def operator(name: str, schema: str, function: Callable, fake: Callable) -> Callable:
    """`function`, which torch.compile takes as one operator, as it cannot see into launches.

    fake: gives results of the same shapes, strides and dtypes, without values.
    """

    def on_its_gpu(q, *rest):
        with torch.cuda.device_of(q):
            return function(q, *rest)

    compiled = torch.library.custom_op(
        f"study_flash_attention::{name}", on_its_gpu, mutates_args=(), schema=schema
    )
    compiled.register_fake(fake)

    def call(*arguments):
        return (compiled if torch.compiler.is_compiling() else function)(*arguments)

    return call


def with_rows(do):
    """`do`, or a copy where its rows are not as a kernel takes them: that of a sum is one number,
    expanded."""
    try:
        check_rows("do", do)
    except ValueError:
        return do.clone(memory_format=torch.contiguous_format)
    return do


def forward_in_parts(forward: Callable, merge: Callable, q, k, v, causal, sm_scale):
    """`forward`, where few queries would leave multiprocessors idle, of parts of the keys as if of
    so many batches, merged: a decoder's one query against a long cache."""
    (B, H, M, _), N = q.shape, k.shape[2]
    programs = B * H * -(-M // QUERIES)
    parts = properties(q.device).programs(PROGRAMS) // max(1, programs)
    parts = min(parts, (N - M) // PART_KEYS)
    if parts < 2:
        return forward(q, k, v, causal, sm_scale)

    o = torch.empty_like(q)
    lse = torch.empty((B, H, M), dtype=torch.float32, device=q.device)
    length = (N - M) // parts
    seen = parts * length  # keys that every query sees, in parts alike; the others see to `causal`
    for b in range(B):
        queries = q[b : b + 1]
        early = (x[b, :, :seen].unflatten(1, (parts, length)).transpose(0, 1) for x in (k, v))
        late = (x[b : b + 1, :, seen:] for x in (k, v))
        o_early, lse_early = forward(queries.expand(parts, -1, -1, -1), *early, False, sm_scale)
        o_late, lse_late = forward(queries, *late, causal, sm_scale)
        o_parts = torch.cat((o_early, o_late)).contiguous()[:, None]
        o[b : b + 1], lse[b : b + 1] = merge(o_parts, torch.cat((lse_early, lse_late))[:, None])
    return o, lse


def make_inputs(dtype, device, seed, gradients=True, **size):
    return day_32.make_inputs(dtype, device, seed, **size)


def make_gradient(dtype, device, seed, B, H, G, M, D, gradients=True, **size):
    """The gradient with respect to o; None where it is not asked for."""
    if not gradients:
        return None
    do = torch.randn(B, H * G, M, D, device=device, generator=generator(device, seed + 1))
    return do.to(dtype)


def work(dtype, B, H, G, M, N, D, causal, heads_last=False, gradients=True):
    """Two products of the forward, and five of the backward. A few queries are bound by memory."""
    if not gradients:
        return Work(bytes=2 * B * H * (G * M + N) * D * dtype.itemsize, flops=0, limit="read")
    bytes = 4 * B * H * (G * M + N) * D * dtype.itemsize
    return Work(bytes, flops=14 * B * H * G * pairs(M, N, causal) * D, limit="matmul")


def size(*dimensions, gradients=True, **layout):
    return day_32.size(*dimensions) | layout | ({} if gradients else {"gradients": False})


CHECK = (  # B, H, G, M, N, D, causal
    *((2, 2, 2, 3, 5, 64, True), (0, 1, 1, 2, 2, 64, False), (1, 1, 1, 20, 17, 128, True)),
    *((1, 1, 1, 3, 0, 64, False), (1, 1, 1, 1, 203, 64, True), (1, 2, 1, 113, 64, 64, False)),
)
# The lengths of queries and keys that FlashAttention's own tests take, checked on a GPU only.
LENGTHS = (
    *((113, 203), (128, 217), (113, 211), (108, 256), (256, 512), (512, 256), (1024, 1024)),
    *((1023, 1024), (1024, 1023), (2048, 2048), (1, 239), (3, 799), (127, 512), (127, 513)),
    *((64, 1), (339, 800), (799, 3)),
)
DECODE = tuple(size(1, 16, 1, M, 2**17, 128, False, gradients=False) for M in (1, 8))

SPEC = KernelSpec(
    name="flash_attention",
    day=35,
    title="Flash attention",
    reference=flash_attention,
    make_inputs=make_inputs,
    make_gradient=make_gradient,
    work=work,
    check_sizes=(
        *(size(*s) for s in CHECK),
        size(1, 1, 2, 5, 130, 64, True, heads_last=True),
        size(1, 1, 1, 3, 1031, 64, True, gradients=False),
    ),
    bench_sizes=(*day_32.BENCH, *DECODE),
    other_sizes=(size(4, 16, 1, 4096, 4096, 128, False),),
    headline=size(4, 16, 1, 4096, 4096, 128, False),
    more_sizes=tuple(
        size(2, 2, G, M, N, D, causal)
        for G, causal in ((1, True), (3, False))
        for D in HEAD_DIMS
        for M, N in LENGTHS
    ),
    huge_sizes=tuple(size(*s, gradients=False) for s in day_32.HUGE[:2]),
    limits=day_32.LIMITS,
    dtypes=DTYPES,
    agreement=(
        Attention(rounded_scores=False),
        *(AttentionGradient(of, own_forward=True) for of in "qkv"),
    ),
    not_finite=lambda B, H, G, M, N, D, causal, gradients=True, **layout: (
        () if gradients else day_32.not_finite(B, H * G, M, N, D, causal)
    ),
    refused=day_32.REFUSED,
    machine_code=("wide loads", "wide stores", "tensor cores"),
    baselines={
        "sdpa_flash": sdpa(SDPBackend.FLASH_ATTENTION),
        "sdpa_cudnn": sdpa(SDPBackend.CUDNN_ATTENTION),
    },
    random_baselines=("sdpa_flash", "sdpa_cudnn"),
    sources=(
        "Dao, FlashAttention-2, 2023",
        "Dao, Haziza, Massa and Sizov, Flash-Decoding for long-context inference, 2023",
    ),
)
