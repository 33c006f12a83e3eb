"""Day 19: the tiles are no longer chosen by hand, but searched on the GPU that runs them."""

from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch

from implementations.common.check import MAX_SIDE, check_product
from implementations.common.rules import Contraction
from implementations.common.spec import KernelSpec
from implementations.common.tuning import Tuning
from implementations.phase3_matrix_operations.day16_blocked_matmul.matmul_blocked import (
    make_inputs,
    size,
    work,
)

DTYPES = (torch.float16, torch.bfloat16)


class Tiles(NamedTuple):
    """A configuration, in the same words for all backends.

    BLOCK_M, BLOCK_N: rows and columns of C that a block owns. BLOCK_K: elements of K in a step.
    GROUP_M: rows of tiles in a group, as on Day 18; 1 is the order of Day 17. num_warps: of a
    block. num_stages: tiles of A and of B in shared memory.
    """

    BLOCK_M: int
    BLOCK_N: int
    BLOCK_K: int
    GROUP_M: int
    num_warps: int
    num_stages: int

    @property
    def warp(self) -> tuple[int, int]:
        """Rows and columns of C that a warp owns, as square as can be; in doubt more rows."""
        ways = [n for n in (1, 2, 4, 8) if self.num_warps % n == 0]
        parts = [(self.BLOCK_M // n, self.BLOCK_N * n // self.num_warps) for n in ways]
        return min(parts, key=lambda part: max(part) / min(part))

    @property
    def stage_bytes(self) -> int:
        """Of shared memory that a stage takes."""
        return (self.BLOCK_M + self.BLOCK_N) * self.BLOCK_K * 2

    def possible(self) -> bool:
        """Whether a thread has between 32 and 128 sums, all that its registers hold, and a row of a
        tile of B is loaded by a part of the block."""
        sums = self.BLOCK_M * self.BLOCK_N // (32 * self.num_warps)
        return 32 <= sums <= 128 and self.BLOCK_N <= 32 * self.num_warps


SIDES, DEPTHS, GROUPS, WARPS, STAGES = (64, 128, 256), (32, 64), (1, 16), (4, 8), (3, 4, 5)
SPACE = tuple(
    tiles
    for point in product(SIDES, SIDES, DEPTHS, GROUPS, WARPS, STAGES)
    if (tiles := Tiles(*point)).possible()
)
DAY_17 = Tiles(BLOCK_M=128, BLOCK_N=256, BLOCK_K=64, GROUP_M=1, num_warps=8, num_stages=3)


def default(properties):
    """Day 17's configuration, with fewer stages where they do not fit."""
    stages = properties.stages(DAY_17.num_stages, DAY_17.stage_bytes)
    return DAY_17._replace(num_stages=stages)


TUNING = Tuning(SPACE, default, Path(__file__).with_name("matmul_autotuned.csv"))


def matmul_autotuned(a, b):
    """The product a @ b, accumulated in float32 and rounded once, in tiles that were searched.

    a: (M, K), b: (K, N), float16 or bfloat16, contiguous; M, N and K at most 2147482624.
    Returns (M, N) of the same dtype; zeros where K is 0.
    Raises TypeError for another dtype, ValueError for another shape, stride or device.
    """
    return a @ b


def check(a, b):
    check_product(a, b, DTYPES, M=MAX_SIDE, N=MAX_SIDE, K=MAX_SIDE)


CHECK = (  # M, N, K
    *((0, 8, 8), (3, 5, 0), (1, 1, 1), (64, 64, 64), (257, 257, 65), (255, 264, 72)),
    *((16, 8, 9), (16, 9, 8), (16, 8, 200), (300, 1, 129), (40, 136, 328), (2049, 264, 0)),
)
HUGE = ((2**23 + 131, 264, 264), (136, 2**24 + 264, 136), (128, 8, 22_500_008))
BENCH = (
    *((n, n, n) for n in (512, 1024, 2048, 4096, 8192)),
    *((16384, 1024, 4096), (1024, 16384, 4096)),
)

SPEC = KernelSpec(
    name="matmul_autotuned",
    day=19,
    title="Matmul with searched tiles",
    reference=matmul_autotuned,
    make_inputs=make_inputs,
    work=work,
    check_sizes=tuple(size(*s) for s in CHECK),
    bench_sizes=tuple(size(*s) for s in BENCH),
    huge_sizes=tuple(size(*s) for s in HUGE),
    limits={"M": size(MAX_SIDE, 1, 1), "N": size(1, MAX_SIDE, 1), "K": size(1, 1, MAX_SIDE)},
    headline=size(4096, 4096, 4096),
    dtypes=DTYPES,
    agreement=Contraction("K"),
    machine_code=("wide loads", "wide stores", "tensor cores"),
    baselines={"cublas": torch.mm},
    sources=("Triton tutorial 03: matrix multiplication, auto-tuning",),
    ladder="matmul",
    tuning=TUNING,
)
