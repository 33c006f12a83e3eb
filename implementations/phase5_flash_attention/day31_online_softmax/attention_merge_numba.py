"""Some lanes take each row, a pack of 16 bytes each, and go over its parts, several at a time."""

from functools import cache

import numpy as np
import torch
from numba import cuda, float32, int64
from numba.cuda import libdevice

from implementations.common.numba_cuda import launch
from implementations.instructions.access import load_pack, store_pack
from implementations.phase5_flash_attention.day31_online_softmax.attention_merge import check

BLOCK = 128  # threads of a block
PARTS = 4  # parts of which each thread has a pack under way at once
INF = float32(float("inf"))
# Between these m_i stays, as inf - inf would be NaN: of parts that saw no key, whose lse_s is -inf,
# LOWEST is subtracted, and l_i is 0; of an lse_s of inf LARGEST is, and l_i is inf.
LARGEST, LOWEST = float32(np.finfo(np.float32).max), float32(np.finfo(np.float32).min)


@cache  # a closure is Numba's template: the upper-case names are compile-time constants
def attention_merge_kernel(D, VEC):
    LANES = D // VEC
    ROWS, HELD = BLOCK // LANES, PARTS * VEC

    @cuda.jit(launch_bounds=BLOCK)
    def kernel(o_parts, lse_parts, o, lse, S, rows):
        row = int64(cuda.blockIdx.x) * ROWS + cuda.threadIdx.x // LANES
        d = cuda.threadIdx.x % LANES * VEC
        if row >= rows:
            return  # no barrier below waits for it

        pack = cuda.local.array(HELD, float32)
        lse_s = cuda.local.array(PARTS, float32)
        m_i, l_i = LOWEST, float32(0)
        acc = cuda.local.array(VEC, float32)  # fp32, whatever the elements are
        for k in range(VEC):
            acc[k] = float32(0)
        for s in range(0, S, PARTS):
            for p in range(PARTS):  # all loads are under way before the first is used
                # beyond the last part the last again, as of one that saw no key: without a branch
                # around a load, nobody waits for it before the next is under way
                at = min(s + p, S - 1) * rows + row
                load_pack(o_parts, at * D + d, pack, p * VEC)
                # LANES threads read the same word: one access
                lse_s[p] = lse_parts[at] if s + p < S else -INF

            m = m_i
            for p in range(PARTS):
                m = libdevice.fmaxf(m, lse_s[p])  # a NaN makes l_i and acc NaN
            m = libdevice.fminf(m, LARGEST)
            alpha = libdevice.fast_expf(m_i - m)  # what came before is scaled once for all PARTS
            l_i *= alpha
            for k in range(VEC):
                acc[k] *= alpha
            for p in range(PARTS):
                if lse_s[p] != -INF:  # else o_s may hold anything: 0 * NaN would be NaN
                    w = libdevice.fast_expf(lse_s[p] - m)
                    l_i += w
                    for k in range(VEC):
                        acc[k] += w * pack[p * VEC + k]
            m_i = m

        scale = float32(0) if l_i == float32(0) else float32(1) / l_i
        for k in range(VEC):
            acc[k] *= scale
        store_pack(o, row * D + d, acc, 0)
        if d == 0:
            lse[row] = m_i + libdevice.logf(l_i)

    return kernel


def attention_merge(o_parts, lse_parts):
    check(o_parts, lse_parts)
    S, B, H, M, D = o_parts.shape
    rows = B * H * M
    o = torch.empty((B, H, M, D), dtype=o_parts.dtype, device=o_parts.device)
    lse = torch.empty((B, H, M), dtype=torch.float32, device=o_parts.device)
    if rows > 0:
        VEC = 16 // o.element_size()  # elements of a pack of 16 bytes
        grid = (-(-rows // (BLOCK * VEC // D)),)
        args = (x.view(-1) for x in (o_parts, lse_parts, o, lse))
        launch(attention_merge_kernel(D, VEC), grid, (BLOCK,), *args, S, rows)
    return o, lse
