"""The blocks of a cluster run together, on neighbouring multiprocessors, and reach each other's
shared memory. The twin of cluster.cuh; compute capability 9.0.
"""

import numpy as np
from llvmlite import ir
from numba.cuda import types

from implementations.instructions.ptx import cpu, f32, i32, kind, on_gpu, ptx

ARRIVE, WAIT = "barrier.cluster.arrive.{}.aligned;", "barrier.cluster.wait.acquire.aligned;"


def _cluster_dims(blocks):
    def code(context, builder, signature, args):
        from numba.cuda import cgutils  # the simulator has none

        if blocks.literal_value > 1:
            module, size = builder.module, ir.Constant(ir.IntType(32), blocks.literal_value)
            note = builder.function, ir.MetaDataString(module, "cluster_dim_x"), size
            notes = cgutils.get_or_insert_named_metadata(module, "nvvm.annotations")
            notes.add(module.add_metadata(note))
        return context.get_dummy_value()

    is_constant = isinstance(blocks, types.IntegerLiteral)
    return (types.void(blocks), code) if is_constant else None


@on_gpu(_cluster_dims)
def cluster_dims(blocks):
    """Say, first thing in a kernel, that its blocks run in clusters of so many along x, of which
    the grid must have a whole number. A constant; 8 is the most that every such GPU takes."""
    cpu.form_cluster(blocks)


@kind("barrier")
@ptx(ARRIVE.format("relaxed"), types.void(), memory=True)
def cluster_barrier_arrive():
    """Tell the cluster that this thread is here, without waiting. Orders no memory: what the others
    learn is that this block has begun, before which they may not touch its shared memory."""
    cpu.cluster_arrive()


@kind("barrier")
@ptx(WAIT, types.void(), memory=True)
def cluster_barrier_wait():
    """Wait until every thread of the cluster has arrived."""
    cpu.cluster_wait("cluster_barrier_wait")


@kind("barrier")
@ptx(ARRIVE.format("release") + WAIT, types.void(), memory=True)
def cluster_barrier():
    """Arrive and wait: syncthreads for a cluster. What was stored before is seen after it."""
    cpu.cluster_arrive()
    cpu.cluster_wait("cluster_barrier")


MAPA = "mapa.shared::cluster.u32 there, $0, $1;"


@ptx(
    f"{{ .reg .b32 there; {MAPA} st.shared::cluster.f32 [there], $2; }}",
    types.void(i32, i32, f32),
    memory=True,
)
def store_remote(dst, rank, value):
    """Store a float in the shared memory of the cluster's block `rank`; dst, of `shared_address`,
    is the place in this one's."""
    cpu.remote(dst, rank)[0] = value


@ptx(
    "{ .reg .b32 there, barrier; "
    "mapa.shared::cluster.u32 there, $0, $1; mapa.shared::cluster.u32 barrier, $3, $1; "
    "st.async.shared::cluster.mbarrier::complete_tx::bytes.f32 [there], $2, [barrier]; }",
    types.void(i32, i32, f32, i32),
    memory=True,
)
def store_async(dst, rank, value, barrier):
    """The same without waiting, and without an order: it counts its 4 bytes at the mbarrier of
    block `rank`, of which `barrier` is the address in this one's."""
    cpu.send(cpu.remote(dst, rank)[:1], np.float32([value]), barrier, rank)
