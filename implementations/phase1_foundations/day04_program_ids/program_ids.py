"""Day 4: every program writes its own number, so that the result shows who wrote what."""

import torch

from implementations import TORCH_DEVICE
from implementations.common.check import check_block_size, check_int, shown
from implementations.common.rules import Exact
from implementations.common.spec import KernelSpec, Work

MAX_N = 2**31 - 1  # beyond it neither n nor an id would fit int32


def program_ids(n, block_size):
    """The number of the program that writes each element: y[i] = i // block_size.

    n: how many elements, from 0 to 2³¹ - 1. block_size: elements a program, a power of two
    up to 1024. Returns (n,), int32, on the study's device.
    Raises TypeError for arguments that are no ints, ValueError for others than these.
    """
    return torch.arange(n, dtype=torch.int32, device=TORCH_DEVICE) // block_size


def check(n, block_size):
    check_int("n", n)
    if not 0 <= n <= MAX_N:
        raise ValueError(f"n must be from 0 to {MAX_N}, got {shown(n)}")
    check_block_size(block_size)


def make_inputs(dtype, device, seed, n, block_size):
    return n, block_size


def work(dtype, n, block_size):
    return Work(bytes=n * dtype.itemsize, flops=0, limit="write")


CHECK = (  # n, block_size
    *((0, 32), (1, 1), (7, 1), (100, 2), (1001, 8), (33, 32), (999, 64)),
    *((1024, 128), (2050, 256), (2048, 1024), (5003, 1024)),
)

SPEC = KernelSpec(
    name="program_ids",
    day=4,
    title="Program ids",
    reference=program_ids,
    make_inputs=make_inputs,
    work=work,
    check_sizes=tuple({"n": n, "block_size": b} for n, b in CHECK),
    bench_sizes=tuple({"n": 2**26, "block_size": b} for b in (32, 64, 128, 256, 512, 1024)),
    headline={"n": 2**26, "block_size": 1024},
    huge_sizes=({"n": MAX_N, "block_size": 1}, {"n": MAX_N, "block_size": 1024}),
    limits={
        "n": {"n": MAX_N, "block_size": 1},
        "block_size": {"n": 1, "block_size": 1024},
    },
    dtypes=(torch.int32,),
    agreement=Exact(),
    baselines={"torch": program_ids},
    refused={
        "no power of two": lambda n, block_size: (n, 3),
        "block of nothing": lambda n, block_size: (n, 0),
        "negative block": lambda n, block_size: (n, -1),
        "block_size a float": lambda n, block_size: (n, float(block_size)),
        "block_size a bool": lambda n, block_size: (n, True),
        "negative n": lambda n, block_size: (-1, block_size),
        "n a float": lambda n, block_size: (float(n), block_size),
        "n a bool": lambda n, block_size: (True, block_size),
    },
    machine_code=(),  # a thread stores one id
)
