"""Day 25: elements are dropped at random, and the seed tells again which: no mask is stored."""

import torch.nn.functional as F

from implementations.common.baselines import compiled
from implementations.common.check import MAX_ELEMENTS
from implementations.common.rules import Exact
from implementations.common.spec import KernelSpec, Work
from implementations.phase4_advanced_kernels.day24_dropout import dropout as stored


def seeded_dropout(x, p, seed):
    """y[i] = x[i] / (1 - p) for the elements that `dropout` keeps with this p and seed, else 0.

    It is linear in x, so it is its own backward: of dy it gives dx.
    x: any shape, float32, float16 or bfloat16, contiguous. p: an int or a float from 0 to 1. seed:
    an int of 64 bits, signed or unsigned. Returns y, of the shape and dtype of x.
    Raises TypeError for another dtype or type, ValueError for another stride, device or range.
    """
    y, _ = stored.dropout(x, p, seed)
    return y


check = stored.check


def work(dtype, N, p):
    return Work(bytes=2 * N * dtype.itemsize, flops=N)


def random(x, p, seed):
    """Torch's, which keeps another random choice of as many, and stores which."""
    return F.dropout(x, p)


SPEC = KernelSpec(
    name="seeded_dropout",
    day=25,
    title="Dropout by a seed",
    reference=seeded_dropout,
    make_inputs=stored.make_inputs,
    work=work,
    check_sizes=tuple({"N": N, "p": p} for N, p in stored.CHECK),
    bench_sizes=tuple({"N": N, "p": 0.5} for N in (2**20, 2**22, 2**24, 2**26, 2**28)),
    headline={"N": 2**28, "p": 0.5},
    dtypes=stored.DTYPES,
    agreement=Exact(),
    baselines={"torch": random, "torch.compile": compiled(random)},
    random_baselines=("torch", "torch.compile"),
    huge_sizes=({"N": 2**31 + 4099, "p": 0.5},),
    limits={"N": {"N": MAX_ELEMENTS, "p": 0.5}},
    refused=stored.REFUSED,
    sources=(
        "Triton tutorial 04: low-memory dropout",
        "Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011",
    ),
)
