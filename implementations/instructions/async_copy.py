"""Copies from global to shared memory that a thread starts without waiting for them.

They pass by the registers, and are waited for in groups, in the order in which those were closed;
bulk copies at an mbarrier. The twin of async_copy.cuh.
"""

from functools import cache

import numpy as np
from numba.cuda import types

from implementations.instructions.access import aligned
from implementations.instructions.ptx import cpu, i32, i64, kind, ptx


@kind("copy")
@ptx("cp.async.cg.shared.global [$0], [$1], 16, $2;", types.void(i32, i64, i32), memory=True)
def cp_async_16(dst, src, bytes):
    """Copy 16 bytes from global to shared memory without waiting: the first `bytes` of them from
    `src`, zeros for the rest."""
    size, taken = 16 // dst.itemsize, bytes // dst.itemsize
    values = np.zeros(size, dst.dtype)
    if taken:  # of a row beyond the last not even the address matters
        values[:taken] = aligned(src)[:taken]
    cpu.thread_state().setdefault("copies", [[]])[-1].append((aligned(dst), values))


@kind("copy")
@ptx("cp.async.ca.shared.global [$0], [$1], 4, $2;", types.void(i32, i64, i32), memory=True)
def cp_async_4(dst, src, bytes):
    """The same of 4 bytes, which leave a line in L1: all of them, or zeros, for 4 or 0 `bytes`."""
    values = src[:1].copy() if bytes else np.zeros(1, dst.dtype)
    cpu.thread_state().setdefault("copies", [[]])[-1].append((dst[:1], values))


@kind("barrier")
@ptx("cp.async.commit_group;", types.void(), memory=True)
def cp_async_commit():
    """Close this thread's current group of copies."""
    cpu.thread_state().setdefault("copies", [[]]).append([])


@kind("barrier")
@cache
def cp_async_wait(newest):
    """`wait()`: until at most `newest` of this thread's latest groups are still under way."""

    @ptx(f"cp.async.wait_group {newest};", types.void(), memory=True)
    def wait():
        groups = cpu.thread_state().setdefault("copies", [[]])
        while len(groups) > newest + 1:
            for dst, values in groups.pop(0):
                dst[: len(values)] = values  # here and no earlier: a missing wait shows

    return wait


BULK = "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [$0], [$1], $2, [$3];"


@kind("copy")
@ptx(BULK, types.void(i32, i64, i32, i32), memory=True)
def cp_async_bulk(dst, src, bytes, barrier):
    """Copy `bytes` from global to shared memory, all at multiples of 16, without waiting: the copy
    engine does it, and counts the bytes at an mbarrier of this block. Compute capability 9.0."""
    if any(x.__array_interface__["data"][0] % 16 for x in (dst, src)) or bytes % 16:
        raise ValueError("a bulk copy must be of whole chunks of 16 bytes, at multiples of 16")
    size = bytes // dst.itemsize
    cpu.send(dst[:size], src[:size].copy(), barrier)
