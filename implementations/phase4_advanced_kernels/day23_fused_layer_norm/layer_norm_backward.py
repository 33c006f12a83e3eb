"""Day 23: the gradients of a layer norm, summed along rows and down columns in one walk."""

import torch

from implementations.common.baselines import compiled
from implementations.common.check import MAX_ELEMENTS, check_same, check_tensor
from implementations.common.rules import Reduction
from implementations.common.spec import KernelSpec, Work, generator
from implementations.phase4_advanced_kernels.day22_layer_normalization import layer_norm as forward

DTYPES = forward.DTYPES


def layer_norm_backward(dy, x, w, mean, rstd):
    """The gradients of y = x̂·w + b, where x̂ = (x - mean)·rstd, with respect to x, w and b.

    dx = rstd·(g - mean(g) - x̂·mean(g·x̂)) with g = dy·w and means over each row; dw = Σ dy·x̂ and
    db = Σ dy down each column.
    dy, x: (M, N), N ≥ 1, float32, float16 or bfloat16, contiguous. w: (N,), of their dtype. mean,
    rstd: (M,), float32, as `layer_norm` returns them. Returns dx (M, N), dw and db (N,), of the
    dtype of x; all sums are float32. Of no rows dw and db are zeros.
    Raises TypeError for another dtype, ValueError for another shape, stride or device.
    """
    wide = (t.double() for t in (dy, x, w, mean[:, None], rstd[:, None]))
    dy64, x64, w64, mean64, rstd64 = wide
    normal, g = (x64 - mean64).mul_(rstd64), dy64 * w64  # in place: huge sizes leave no room
    dw, db = (dy64 * normal).sum(0), dy64.sum(0)
    along = (g * normal).mean(1, keepdim=True)
    dx = g.sub_(g.mean(1, keepdim=True)).sub_(normal.mul_(along)).mul_(rstd64)
    return dx.to(x.dtype), dw.to(w.dtype), db.to(w.dtype)


def check(dy, x, w, mean, rstd):
    check_tensor("dy", dy, ndim=2, dtypes=DTYPES)
    check_tensor("x", x, ndim=2, dtypes=DTYPES)
    check_same(("dy", "x"), dy, x, "shape", "dtype", "device")
    forward.check_of_columns("w", w, x)
    for name, statistic in (("mean", mean), ("rstd", rstd)):
        check_tensor(name, statistic, ndim=1, dtypes=(torch.float32,))
        check_same(("x", name), x, statistic, "device")
        if len(statistic) != len(x):
            raise ValueError(
                f"{name} must have an element for each of x's {len(x)} rows, got {len(statistic)}"
            )


def make_inputs(dtype, device, seed, M, N):
    x, w, b, _ = forward.make_inputs(dtype, device, seed, M, N)
    _, mean, rstd = forward.layer_norm(x, w, b, 1e-5)
    dy = torch.randn(M, N, device=device, generator=generator(device, seed + 1))
    dy += 0.5  # what is left out is missing, and does not cancel
    dy[-1:] += 4  # outliers, where a dropped tail shows most
    dy[:, -1:] -= 4
    dy = dy.to(dtype)
    if dtype == torch.bfloat16:  # beyond what fp16 holds
        dy, w = dy * 2**20, w * 2**20
    return dy, x, w, mean.float(), rstd.float()


def magnitude(dy, x, w, mean, rstd):
    """What errors are measured by, of magnitudes alone: |x - mean| is ||x| - |mean|| where both
    have one sign, and of the order of 1 / rstd where they have not."""
    mean, rstd, g = mean[:, None], rstd[:, None], dy * w
    normal = (x - mean).abs_().mul_(rstd).add_(1)
    dw, along = (dy * normal).sum(0), (g * normal).mean(1, keepdim=True)
    dx = g.add_(g.mean(1, keepdim=True)).add_(normal.mul_(along)).mul_(rstd)
    return dx, dw, dy.sum(0)


def work(dtype, M, N):
    return Work(bytes=3 * (M + 1) * N * dtype.itemsize + 8 * M, flops=13 * M * N)


def in_torch(dy, x, w, mean, rstd):
    gradients = torch.ops.aten.native_layer_norm_backward
    return gradients(dy, x, [len(w)], mean[:, None], rstd[:, None], w, w, [True] * 3)


# M, N; from 8193 on a row takes a cluster, in Triton two readings, from 65,537 on these in all
CHECK = (
    *((0, 8), (1, 1), (300, 7), (2, 9), (130, 16), (67, 64), (5, 257), (6, 1023), (7, 1536)),
    *((3, 8192), (9, 8200), (2, 8195), (1, 16_392)),
    (2, 65_540),  # aligned in fp32 alone: two sizes would take minutes on the CPU
)
MORE = (  # rows that take 48 KB of a block; several rows a cluster, several parts of the rows
    *((1000, 512), (300, 3072)),
    *((200, 8200), (100, 32_776), (50, 65_535), (50, 65_536), (19, 65_539), (19, 65_544)),
)
BENCH = (64, 256, 1024, 4096, 8192, 16384, 32768, 65536, 262144)  # N

SPEC = KernelSpec(
    name="layer_norm_backward",
    day=23,
    title="Layer norm, backward",
    reference=layer_norm_backward,
    make_inputs=make_inputs,
    work=work,
    check_sizes=tuple({"M": M, "N": N} for M, N in CHECK),
    more_sizes=tuple({"M": M, "N": N} for M, N in MORE),
    bench_sizes=tuple({"M": 2**27 // N, "N": N} for N in BENCH),
    other_sizes=tuple({"M": 2**27 // N, "N": N} for N in (64, 8192, 32768, 262144)),
    headline={"M": 16384, "N": 8192},
    huge_sizes=(
        *({"M": 1, "N": 2**20}, {"M": 2**20, "N": 1}),
        *({"M": 2**26 + 1, "N": 33}, {"M": 2**18 + 3, "N": 8200}),
        {"M": 2**15 + 3, "N": 65_544},
    ),
    limits={"M": {"M": MAX_ELEMENTS, "N": 1}, "N": {"M": 1, "N": MAX_ELEMENTS}},
    dtypes=DTYPES,
    agreement=(Reduction("N"), Reduction("M"), Reduction("M")),
    magnitude=magnitude,
    baselines={"torch": in_torch, "torch.compile": compiled(in_torch)},
    sources=("Triton tutorial 05: layer normalization", "Ba, Kiros and Hinton, 2016, section 3"),
)
