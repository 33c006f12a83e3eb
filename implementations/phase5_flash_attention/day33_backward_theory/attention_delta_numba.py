"""Each row belongs to some neighbouring lanes, each of which holds packs of PACKS rows."""

from functools import cache

import numpy as np
import torch
from numba import cuda, float32, int32, int64

from implementations.common.numba_cuda import launch
from implementations.instructions.access import load_pack
from implementations.instructions.reduce import make_sum_lanes
from implementations.phase5_flash_attention.day33_backward_theory.attention_delta import check

THREADS = 256
PACKS = 4  # packs of 16 bytes, of o and of do, that a thread has under way at once


@cache  # a closure is Numba's template: the upper-case names are compile-time constants
def attention_delta_kernel(D):
    LANES, HELD = D // 8, PACKS * 8  # lanes of a row; elements that a thread holds
    STEP = THREADS // LANES  # rows at once
    sum_lanes = make_sum_lanes(LANES)

    # unless told that 5 resident blocks are enough, the compiler saves registers and loads later
    @cuda.jit(launch_bounds=(THREADS, 5))
    def kernel(o, do, delta, rows):
        first = int32(cuda.blockIdx.x * PACKS * STEP + cuda.threadIdx.x // LANES)
        col = cuda.threadIdx.x % LANES * 8  # neighbours read neighbouring packs

        o_pack, do_pack = cuda.local.array(HELD, float32), cuda.local.array(HELD, float32)
        for p in range(PACKS):  # all loads are under way before the first is used
            row = min(first + p * STEP, rows - 1)  # beyond the last row, that one again
            at = int64(row) * D + col  # 64-bit: rows * D may exceed 2^31
            load_pack(o, at, o_pack, p * 8)
            load_pack(do, at, do_pack, p * 8)
        for p in range(PACKS):
            # fp32: a sum in 16 bits would stop growing
            acc = float32(0)
            for k in range(p * 8, p * 8 + 8):
                acc += o_pack[k] * do_pack[k]
            acc = sum_lanes(acc)
            row = first + p * STEP
            if col == 0 and row < rows:
                delta[row] = acc

    return kernel


def attention_delta(o, do):
    check(o, do)
    B, H, M, D = o.shape
    rows, ROWS = B * H * M, PACKS * THREADS // (D // 8)  # of all heads; of a block
    delta = torch.empty((B, H, M), dtype=torch.float32, device=o.device)
    if rows > 0:
        args = (o.view(-1), do.view(-1), delta.view(-1), np.int32(rows))
        launch(attention_delta_kernel(D), (-(-rows // ROWS),), (THREADS,), *args)
    return delta
