"""Day 34: the gradients of attention, its weights made anew from their logarithmic sums."""

import torch

from implementations.common.check import check_rows, check_same, check_tensor
from implementations.common.rules import AttentionGradient
from implementations.common.spec import KernelSpec, Work, generator
from implementations.phase4_advanced_kernels.day27_standard_attention.attention_standard import (
    DTYPES,
    HEAD_DIMS,
    MAX_ROWS,
    pairs,
)
from implementations.phase5_flash_attention.day32_flash_forward import flash_forward as day_32


def flash_backward(q, k, v, o, lse, do, causal, sm_scale):
    """The gradients of flash attention with respect to q, k and v.

    q, o, do: (B, H, M, D), k and v: (B, H_kv, N, D), float16 or bfloat16; D 64 or 128, H a multiple
    of H_kv: as many neighbouring heads of q share one of k and v. lse: (B, H, M), float32,
    contiguous: with o what `flash_forward` gave. do: the gradient with respect to o. The rows of
    the others are without gaps, and other strides may be any multiples of 8. causal: query i sees
    the keys j ≤ i + N - M only. sm_scale: positive.
    Returns (dq, dk, dv) in the shapes, the dtype and the order of the strides of q, k and v; zeros
    for a query that sees no key and for a key that no query sees.

    Weights and their gradients are calculated in float32, and rounded to that dtype for their
    products; sums are float32.
    Raises TypeError for another dtype, ValueError for another shape, stride, device or scale.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    s = day_32.scores(q, k, causal, sm_scale)
    p = torch.exp(s - lse[..., None]).masked_fill(s == -float("inf"), 0)
    keys, values = (day_32.of_all_heads(x, q).to(wide) for x in (k, v))
    delta = (o.to(wide) * do.to(wide)).sum(-1, keepdim=True)
    ds = (p * (do.to(wide) @ values.mT - delta)).to(q.dtype).to(wide)
    dq, dk = sm_scale * (ds @ keys), sm_scale * (ds.mT @ q.to(wide))
    dv = p.to(q.dtype).to(wide).mT @ do.to(wide)
    group = q.shape[1] // max(1, k.shape[1])
    dk, dv = (x.unflatten(1, (k.shape[1], group)).sum(2) for x in (dk, dv))
    return tuple(x.to(q.dtype) for x in (dq, dk, dv))


def check(q, k, v, o, lse, do, causal, sm_scale):
    scale = day_32.check(q, k, v, causal, sm_scale)
    for name, x in (("o", o), ("do", do)):
        check_tensor(name, x, ndim=4, dtypes=DTYPES, strided=True)
        check_rows(name, x)
        check_same(("q", name), q, x, "shape", "dtype", "device")
    check_tensor("lse", lse, ndim=3, dtypes=(torch.float32,))
    check_same(("q", "lse"), q, lse, "device")
    if lse.shape != q.shape[:3]:
        raise ValueError(
            f"lse must have a number for each row of q, got shapes {tuple(lse.shape)} "
            f"and {tuple(q.shape)}"
        )
    return scale


def of_any_strides(attention_delta, o, do):
    """`attention_delta`, which takes contiguous tensors, of views: in the order of o's strides."""
    order = sorted(range(3), key=o.stride, reverse=True)
    o, do = (x.permute(*order, 3).contiguous() for x in (o, do))
    back = [order.index(d) for d in range(3)]
    return attention_delta(o, do).permute(back).contiguous()


def make_inputs(dtype, device, seed, **size):
    q, k, v, causal, sm_scale = day_32.make_inputs(dtype, device, seed, **size)
    o, lse = day_32.flash_forward(q, k, v, causal, sm_scale)
    do = torch.randn(o.shape, device=device, generator=generator(device, seed + 1)).to(dtype)
    if size.get("heads_last"):  # as flash attention gives o then, in the order of q's strides
        o, do = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (o, do))
    return q, k, v, o, lse, do, causal, sm_scale


def work(dtype, B, H, G, M, N, D, causal, heads_last=False):
    """Five products: the scores, dP, dV, dK and dQ."""
    rows = B * H * G * M
    bytes = 4 * (rows + B * H * N) * D * dtype.itemsize + 4 * rows
    return Work(bytes, flops=10 * B * H * G * pairs(M, N, causal) * D, limit="matmul")


def sdpa_flash(q, k, v, o, lse, do, causal, sm_scale):
    """FlashAttention-2's backward, which torch has; it adds to dq in the order of arrival."""
    none = torch.empty((), dtype=torch.int64, device=q.device)
    return torch.ops.aten._scaled_dot_product_flash_attention_backward(
        do, q, k, v, o, lse, None, None, q.shape[2], k.shape[2], 0.0, causal, none, none,
        scale=sm_scale,
    )  # fmt: skip


def sdpa_cudnn(q, k, v, o, lse, do, causal, sm_scale):
    """cuDNN's backward, which torch calls."""
    none = torch.empty((), dtype=torch.int64, device=q.device)
    return torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
        do, q, k, v, o, lse[..., None], none, none, None, None, None, q.shape[2], k.shape[2], 0.0,
        causal, scale=sm_scale,
    )  # fmt: skip


def arrival_cupy(q, k, v, o, lse, do, causal, sm_scale):
    """The same in CUDA C++, but that blocks add to dq as they arrive."""
    from implementations.phase5_flash_attention.day34_flash_backward.flash_backward_cupy import (
        flash_backward_arrival,
    )

    return flash_backward_arrival(q, k, v, o, lse, do, causal, sm_scale)


def arrival_numba(q, k, v, o, lse, do, causal, sm_scale):
    """The same in Numba, but that blocks add to dq as they arrive."""
    from implementations.phase5_flash_attention.day34_flash_backward.flash_backward_numba import (
        flash_backward_arrival,
    )

    return flash_backward_arrival(q, k, v, o, lse, do, causal, sm_scale)


def changed(i, change):
    """A function from arguments to these with the i-th changed."""
    return lambda *args: (*args[:i], change(args[i]), *args[i + 1 :])


REFUSED = {
    "batches": changed(0, lambda q: q[:1]),
    "heads": lambda q, k, v, o, lse, do, *rest: (
        *(q[:, :1].clone(), k, v, o[:, :1].clone(), lse[:, :1].clone(), do[:, :1].clone(), *rest),
    ),
    "keys": changed(2, lambda v: v[:, :, 1:].clone()),
    "rows of o": changed(3, lambda o: o[:, :, 1:].clone()),
    "rows of lse": changed(4, lambda lse: lse[..., 1:].clone()),
    "dtype of lse": changed(4, torch.Tensor.half),
    "rows of do": changed(5, lambda do: do[:, :, 1:].clone()),
    "dtypes": changed(5, lambda do: do.to(DTYPES[1])),
    "causal": changed(6, int),
    "scale": changed(7, str),
    "NaN": changed(7, lambda scale: float("nan")),
    "no scale": changed(7, lambda scale: 0),
}
LIMITS = {
    "B": day_32.size(MAX_ROWS, 1, 1, 1, 1, 64, False),
    "H": day_32.size(1, MAX_ROWS, 1, 1, 1, 64, False),
    "G": day_32.size(1, 1, MAX_ROWS, 1, 1, 64, False),
    "M": day_32.size(1, 1, 1, MAX_ROWS, 1, 64, False),
    "N": day_32.size(1, 1, 1, 1, MAX_ROWS, 64, False),
    "D": day_32.size(1, 1, 1, 1, 1, max(HEAD_DIMS), False),
}
CHECK = (  # B, H, G, M, N, D, causal; tiles have up to 128 queries or keys
    *((2, 2, 1, 3, 5, 64, True), (0, 1, 1, 2, 2, 64, False), (1, 2, 1, 0, 3, 64, True)),
    *((1, 2, 1, 3, 0, 128, False), (1, 1, 1, 1, 1, 128, True), (2, 2, 3, 2, 17, 64, False)),
    *((1, 1, 2, 65, 200, 64, True), (1, 1, 1, 133, 5, 64, True), (1, 2, 1, 130, 129, 64, False)),
    *((1, 1, 1, 40, 260, 128, True), (3, 1, 1, 2, 3, 64, False), (3, 3, 1, 2, 130, 64, False)),
)
BENCH = tuple(s for s in day_32.BENCH if s["M"] > 512)

SPEC = KernelSpec(
    name="flash_backward",
    day=34,
    title="Flash attention, backward",
    reference=flash_backward,
    make_inputs=make_inputs,
    work=work,
    check_sizes=(
        *(day_32.size(*s) for s in CHECK),
        day_32.size(2, 1, 2, 5, 130, 64, True, heads_last=True),
        day_32.size(1, 2, 1, 33, 20, 128, False, heads_last=True),
    ),
    bench_sizes=BENCH,
    headline=day_32.size(4, 16, 1, 4096, 4096, 128, False),
    huge_sizes=(day_32.size(2**20 + 3, 1, 1, 33, 9, 64, False),),
    limits=LIMITS,
    dtypes=DTYPES,
    agreement=tuple(AttentionGradient(of) for of in "qkv"),
    # not q and k, of whose scores lse would not be; where causal, 0 is multiplied by what a query
    # does not see, in a tile, or it is not
    not_finite=lambda causal, **size: () if causal else ("v", "o", "do"),
    refused=REFUSED,
    machine_code=("wide loads", "wide stores", "tensor cores"),
    baselines={
        "sdpa_flash": sdpa_flash,
        "sdpa_cudnn": sdpa_cudnn,
        "arrival_cupy": arrival_cupy,
        "arrival_numba": arrival_numba,
    },
    random_baselines=("sdpa_flash", "sdpa_cudnn", "arrival_cupy", "arrival_numba"),
    modes={"arrival_cupy": "cupy", "arrival_numba": "numba"},
    sources=(
        "Dao, Fu, Ermon, Rudra and Ré, FlashAttention, 2022, algorithm 4",
        "Dao, FlashAttention-2, 2023, algorithm 2",
    ),
)
