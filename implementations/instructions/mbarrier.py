"""Barriers in shared memory, at which some threads arrive and others wait: phase after phase, each
of which ends when as many have arrived as the barrier counts.

A barrier is the address of 8 bytes, at a multiple of them. The twin of mbarrier.cuh.
"""

from itertools import chain

from numba.cuda import types

from implementations.instructions.ptx import cpu, i32, kind, ptx

WAIT = "mbarrier.try_wait.parity.shared::cta.b64 ended, [$0], $1; @!ended bra again;"


@kind("barrier")
@ptx("mbarrier.init.shared::cta.b64 [$0], $1;", types.void(i32, i32), memory=True)
def mbarrier_init(barrier, arrivals):
    """Begin phase 0 of a barrier that counts `arrivals`. One thread does it, and all others must
    have waited for it at another barrier before they use this one."""
    cpu.mbarrier_init(barrier, arrivals)


@kind("barrier")
@ptx("fence.mbarrier_init.release.cluster;", types.void(), memory=True)
def fence_mbarrier_init():
    """Have the blocks of the cluster and bulk copies see the barriers that this thread has begun,
    once the blocks have met."""
    cpu.fence_mbarrier_init()


@kind("barrier")
@ptx("mbarrier.arrive.shared::cta.b64 _, [$0];", types.void(i32), memory=True)
def mbarrier_arrive(barrier):
    """Arrive: what this thread did before is seen by those that wait for the phase."""
    cpu.mbarrier_arrive(barrier)


@kind("barrier")
@ptx("mbarrier.arrive.expect_tx.shared::cta.b64 _, [$0], $1;", types.void(i32, i32), memory=True)
def mbarrier_expect(barrier, bytes):
    """Arrive, and have the phase wait for `bytes` more, which cp_async_bulk and store_async
    bring."""
    cpu.mbarrier_arrive(barrier, bytes)


@kind("barrier")
@ptx("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [$0];", types.void(i32), memory=True)
def cp_async_arrive(barrier):
    """Arrive, without waiting, once the copies that this thread has started so far are there."""
    for dst, values in chain(*cpu.thread_state().pop("copies", ())):
        dst[: len(values)] = values
    cpu.mbarrier_arrive(barrier)


@kind("barrier")
@ptx(f"{{ .reg .pred ended; again: {WAIT} }}", types.void(i32, i32), memory=True)
def mbarrier_wait(barrier, parity):
    """Wait for the end of the phase of this parity, 0 or 1: of the one under way, or of the one
    before, for which nobody waits any more. So a wait for 1 passes while phase 0 is under way."""
    cpu.mbarrier_wait(barrier, parity)
