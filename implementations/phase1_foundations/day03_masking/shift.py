"""Day 3: a vector is moved by some elements: what may be read is masked, element by element."""

import torch

from implementations.common.check import MAX_ELEMENTS, check_int, check_number, check_tensor
from implementations.common.rules import Exact
from implementations.common.spec import KernelSpec, Work, generator

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def shift(x, offset, fill_value):
    """y[i] = x[i - offset] where x has that element, else fill_value, rounded once.

    x: (N,), float32, float16 or bfloat16, contiguous. offset: an int of either sign, also beyond N.
    fill_value: an int or a float within the range of that dtype, or an infinity or NaN. Returns
    (N,) of the same dtype.
    Raises TypeError for another dtype or type, ValueError for another shape, stride, device or
    range.
    """
    y = torch.full_like(x, float(fill_value))
    N = x.numel()
    first, last = max(offset, 0), min(offset, 0) + N
    if first < last:
        y[first:last] = x[first - offset : last - offset]
    return y


def check(x, offset, fill_value):
    """Refuse what shift does not take; the offset, at most N either way, and the rounded value."""
    check_tensor("x", x, ndim=1, dtypes=DTYPES)
    check_int("offset", offset)
    N = x.numel()
    return max(-N, min(offset, N)), check_number("fill_value", fill_value, x.dtype)


def make_inputs(dtype, device, seed, N, offset):
    x = torch.randn(N, dtype=dtype, device=device, generator=generator(device, seed))
    return x, offset, -1 / 3


def work(dtype, N, offset):
    return Work(bytes=2 * N * dtype.itemsize, flops=0)


def rolled(x, offset, fill_value):
    """The same by torch.roll, and a fill of what came in at the other end."""
    y = torch.roll(x, offset)
    (y[:offset] if offset >= 0 else y[offset:]).fill_(fill_value)
    return y


CHECK = (  # N, offset: blocks end at multiples of 1024 or 2048 elements
    *((0, 5), (1, 0), (7, 3), (255, -7), (1023, 1), (1024, -1), (1025, 1024), (2048, 7)),
    *((2049, -1024), (4096, 16), (4099, 0)),
    *((1000, 1000), (1000, -1000), (1000, 5000), (1000, -(2**70))),
)

SPEC = KernelSpec(
    name="shift",
    day=3,
    title="Shift",
    reference=shift,
    make_inputs=make_inputs,
    work=work,
    check_sizes=tuple({"N": N, "offset": offset} for N, offset in CHECK),
    bench_sizes=tuple({"N": N, "offset": 3} for N in (2**22, 2**25, 2**28)),
    headline={"N": 2**28, "offset": 3},
    huge_sizes=({"N": 2**31 + 4099, "offset": -7},),
    limits={"N": {"N": MAX_ELEMENTS, "offset": 3}},
    dtypes=DTYPES,
    agreement=Exact(),
    baselines={"torch": rolled},
    refused={
        "float offset": lambda x, offset, fill_value: (x, float(offset), fill_value),
        "bool offset": lambda x, offset, fill_value: (x, True, fill_value),
        "bool fill_value": lambda x, offset, fill_value: (x, offset, True),
        "fill_value out of range": lambda x, offset, fill_value: (x, offset, -1e39),
    },
    machine_code=("wide stores",),
)
