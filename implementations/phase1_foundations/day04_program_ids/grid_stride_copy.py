"""Day 4: a fixed number of programs copy a vector, each going on until nothing is left."""

import torch

from implementations.common.check import MAX_ELEMENTS, check_tensor
from implementations.common.rules import Exact
from implementations.common.spec import KernelSpec, Work, generator

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def grid_stride_copy(x):
    """A copy of x.

    x: (N,), float32, float16 or bfloat16, contiguous. Returns (N,) of the same dtype.
    Raises TypeError for another dtype, ValueError for another shape, stride or device.
    """
    return torch.clone(x)


def check(x):
    check_tensor("x", x, ndim=1, dtypes=DTYPES)


def make_inputs(dtype, device, seed, N):
    return (torch.randn(N, dtype=dtype, device=device, generator=generator(device, seed)),)


def work(dtype, N):
    return Work(bytes=2 * N * dtype.itemsize, flops=0)


SPEC = KernelSpec(
    name="grid_stride_copy",
    day=4,
    title="Grid-stride copy",
    reference=grid_stride_copy,
    make_inputs=make_inputs,
    work=work,
    # on the CPU tier two programs copy 4096 float32 or 8192 16-bit elements each in turn
    check_sizes=tuple({"N": n} for n in (0, 1, 7, 255, 4096, 4099, 8193, 16_384, 32_771)),
    bench_sizes=tuple({"N": 4**e} for e in range(4, 16)),  # 1 KB to 4 GB of float32
    headline={"N": 2**28},
    dtypes=DTYPES,
    agreement=Exact(),
    # not clone: that is no kernel but a copy by the driver, which is slower in a graph than alone
    baselines={"torch": lambda x: x * 1},
    huge_sizes=({"N": 2**31 + 4099},),
    limits={"N": {"N": MAX_ELEMENTS}},
    warm=True,
    sources=("Harris, CUDA Pro Tip: Write Flexible Kernels with Grid-Stride Loops, NVIDIA, 2013",),
)
