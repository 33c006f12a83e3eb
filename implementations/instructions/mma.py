"""Tensor cores: a warp multiplies fragments, of which each thread holds a few registers, and loads
them from shared memory.

A fragment is the tuple of one thread's registers. The twin of mma.cuh. Layouts over the lanes: PTX
ISA, "Matrix fragments for mma.m16n8k16" and "ldmatrix".
"""

from functools import cache

import numpy as np
import torch

from implementations.instructions.access import aligned
from implementations.instructions.ptx import cpu, f4, i2, i4, i32, kind, ptx
from implementations.tiers.cpu import bfloat16

MMA = (
    "mma.sync.aligned.m16n8k16.row.col.f32.{0}.{0}.f32 "
    "{{$0,$1,$2,$3}}, {{$4,$5,$6,$7}}, {{$8,$9}}, {{$10,$11,$12,$13}};"
)


# Row and column of the elements in each lane's registers: of A (32, 8), B (32, 4) and D (32, 4).
G, T = (axis[:, None] for axis in (np.arange(32) // 4, np.arange(32) % 4 * 2))
A_ROW, A_COL = G + np.array([0, 0, 8, 8] * 2), T + np.array([0, 1, 0, 1, 8, 9, 8, 9])
B_ROW, B_COL = T + np.array([0, 1, 8, 9]), G + np.zeros(4, int)
D_ROW, D_COL = G + np.array([0, 0, 8, 8]), T + np.array([0, 1, 0, 1])


def decoded(words, dtype):
    """Words of 16 bits, two to a register, as numbers, on the CPU."""
    if dtype == torch.float16:
        return words.view(np.float16)
    return bfloat16.decode(words.view(np.uint16))


def _mma(a, b, c, dtype):
    """This lane's registers of D; the product is formed once, from the registers of all lanes."""

    def product(table):
        ra, rb, rc = zip(*(table[l] for l in range(32)), strict=True)
        A, B = np.empty((16, 16), np.float32), np.empty((16, 8), np.float32)
        A[A_ROW, A_COL] = decoded(np.array(ra, np.int32), dtype)
        B[B_ROW, B_COL] = decoded(np.array(rb, np.int32), dtype)
        return ((A @ B)[D_ROW, D_COL] + np.array(rc, np.float32)).tolist()

    return tuple(cpu.exchange((a, b, c), product, "mma")[cpu.lane()])


@kind("product")
@cache
def mma_m16n8k16(dtype):
    """`mma(a, b, c)` of operands in torch.float16 or torch.bfloat16, two to a register."""

    @ptx(MMA.format("f16" if dtype == torch.float16 else "bf16"), f4(i4, i2, f4))
    def mma(a, b, c):
        return _mma(a, b, c, dtype)

    return mma


LDMATRIX = "ldmatrix.sync.aligned.m8n8.x4{}.shared.b16 {{$0,$1,$2,$3}}, [$4];"


def _ldmatrix(row, transposed):
    """Registers of this lane from the row addresses that all lanes hand in, read once for all."""

    def load(table):
        tiles = np.array([table[l][:8] for l in range(32)]).reshape(4, 8, 8)
        if transposed:
            tiles = np.ascontiguousarray(tiles.transpose(0, 2, 1))
        return tiles.view(np.int32).reshape(4, 32).T.tolist()  # lane l has a pair of row l // 4

    return tuple(cpu.exchange(aligned(row), load, "ldmatrix")[cpu.lane()])


@kind("copy")
@ptx(LDMATRIX.format(""), i4(i32), memory=True)
def ldmatrix_x4(row):
    """Four 8x8 matrices of 16-bit elements; lane l gives where row l % 8 of matrix l // 8 is."""
    return _ldmatrix(row, transposed=False)


@kind("copy")
@ptx(LDMATRIX.format(".trans"), i4(i32), memory=True)
def ldmatrix_x4_trans(row):
    """The same, each matrix transposed on its way into the registers."""
    return _ldmatrix(row, transposed=True)
