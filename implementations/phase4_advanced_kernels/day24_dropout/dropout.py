"""Day 24: elements are dropped at random, and which were kept is stored beside them."""

import torch

from implementations.common.baselines import compiled
from implementations.common.check import (
    MAX_ELEMENTS,
    check_int,
    check_number,
    check_tensor,
    shown,
)
from implementations.common.rules import Exact
from implementations.common.spec import KernelSpec, Work, generator

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LOW = 0xFFFFFFFF  # the lower word of 64 bits
CHUNK = 2**24  # elements whose words the reference holds at once


def dropout(x, p, seed):
    """y[i] = x[i] / (1 - p) where keep[i], else 0; an element is dropped with probability p.

    Element i takes word i % 4 of Philox4x32-10 at the counter i // 4 under the key `seed`, and is
    kept where the word, from 0 to 2^32 - 1, is at least floor(p * 2^32). It is multiplied in
    float32 by 1 / (1 - p), rounded to float32, and the product rounded to the dtype.
    x: any shape, float32, float16 or bfloat16, contiguous. p: an int or a float from 0 to 1. seed:
    an int of 64 bits, signed or unsigned. Returns y, of the shape and dtype of x, and keep, bool.
    Raises TypeError for another dtype or type, ValueError for another stride, device or range.
    """
    keep = kept(x, p, seed)
    scaled = (x.float() * scale(p)).to(x.dtype)
    return torch.where(keep, scaled, 0), keep


def kept(x, p, seed):
    """Which elements are kept, bool, in the shape of x."""
    keep = torch.empty(x.numel(), dtype=torch.bool, device=x.device)
    for start in range(0, x.numel(), CHUNK):
        part = keep[start : start + CHUNK]
        offset = torch.arange(start // 4, -(-(start + part.numel()) // 4), device=x.device)
        words = philox_4x32(seed, offset).view(-1)
        torch.ge(words[: part.numel()], threshold(p), out=part)
    return keep.view(x.shape)


def philox_4x32(seed, offset):
    """The words of Philox4x32-10 (Salmon et al., SC 2011) at the counters (offset, 0).

    seed: the key, an int of 64 bits. offset: int64, any shape. Returns int64 of a shape with a
    last dimension 4 more; the words are from 0 to 2^32 - 1.
    """
    c0, c1 = offset & LOW, offset >> 32 & LOW
    c2 = c3 = torch.zeros_like(offset)
    k0, k1 = seed & LOW, seed >> 32 & LOW
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2  # beyond 63 bits they wrap, and keep their bits
        c0, c1 = (p1 >> 32 & LOW) ^ c1 ^ k0, p1 & LOW
        c2, c3 = (p0 >> 32 & LOW) ^ c3 ^ k1, p0 & LOW
        k0, k1 = k0 + 0x9E3779B9 & LOW, k1 + 0xBB67AE85 & LOW
    return torch.stack((c0, c1, c2, c3), -1)


def threshold(p):
    """The least word that is kept; of p = 1 it is 2^32, which no word reaches."""
    return int(p * 2**32)


def scale(p):
    """What kept elements are multiplied by, rounded to float32; 0 where none is kept."""
    return check_number("scale", 1 / (1 - p), torch.float32) if p < 1 else 0.0


def check(x, p, seed):
    """Refuse what dropout does not take.

    Returns what a kernel is told: the threshold, the scale, and the seed as a signed number.
    """
    check_tensor("x", x, ndim=None, dtypes=DTYPES)
    if not isinstance(p, int | float) or isinstance(p, bool):
        raise TypeError(f"p must be an int or a float, got {type(p).__name__}")
    if not 0 <= p <= 1:
        raise ValueError(f"p must be from 0 to 1, got {shown(p)}")
    check_int("seed", seed)
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed must be from -2^63 to 2^64 - 1, got {shown(seed)}")
    signed = seed - 2**64 if seed >= 2**63 else seed
    return threshold(p), scale(p), signed


def make_inputs(dtype, device, seed, N, p):
    x = torch.randn(N, dtype=dtype, device=device, generator=generator(device, seed))
    key = (seed + 1) * 0x9E3779B97F4A7C15 % 2**64  # of both words, and of either sign
    return x, p, key


def work(dtype, N, p):
    return Work(bytes=2 * N * dtype.itemsize + N, flops=N)


def native(x, p, seed):
    """Torch's, which keeps another random choice of as many."""
    return torch.native_dropout(x, p, True)


CHECK = (  # N, p: blocks end at multiples of 512 to 8192 elements; p = 0.3 rounds in whole ones
    *((0, 0.5), (1, 0.5), (7, 0.25), (255, 0.0), (1023, 1.0), (1024, 0.1), (1025, 0.9)),
    *((2048, 0.75), (2051, 2**-32), (4099, 1 - 2**-32), (10_007, 0.5), (8200, 0.3)),
)
REFUSED = {
    "bool p": lambda x, p, seed: (x, True, seed),
    "text p": lambda x, p, seed: (x, "0.5", seed),
    "negative p": lambda x, p, seed: (x, -1e-30, seed),
    "p beyond 1": lambda x, p, seed: (x, 1 + 2**-52, seed),
    "p is NaN": lambda x, p, seed: (x, float("nan"), seed),
    "huge p": lambda x, p, seed: (x, 10**5000, seed),
    "float seed": lambda x, p, seed: (x, p, float(seed)),
    "bool seed": lambda x, p, seed: (x, p, True),
    "seed beyond 64 bits": lambda x, p, seed: (x, p, 2**64),
    "seed below 64 bits": lambda x, p, seed: (x, p, -(2**63) - 1),
}

SPEC = KernelSpec(
    name="dropout",
    day=24,
    title="Dropout",
    reference=dropout,
    make_inputs=make_inputs,
    work=work,
    check_sizes=tuple({"N": N, "p": p} for N, p in CHECK),
    bench_sizes=tuple({"N": N, "p": 0.5} for N in (2**20, 2**22, 2**24, 2**26, 2**28)),
    headline={"N": 2**28, "p": 0.5},
    dtypes=DTYPES,
    agreement=Exact(),
    baselines={"torch": native, "torch.compile": compiled(native)},
    random_baselines=("torch", "torch.compile"),
    huge_sizes=({"N": 2**31 + 4099, "p": 0.5},),
    limits={"N": {"N": MAX_ELEMENTS, "p": 0.5}},
    refused=REFUSED,
    sources=(
        "Srivastava et al., Dropout, JMLR 15, 2014",
        "Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011",
    ),
)
