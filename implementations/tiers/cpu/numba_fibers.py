"""Numba CUDA kernels on the CPU: the threads of a block, or of a cluster, are greenlets of
one OS thread.

`install()` gives `numba.cuda`, imported with NUMBA_ENABLE_CUDASIM=1, another `jit`, whose kernels
run as plain Python, and what they find under `cuda.`: indices, barriers, shuffles, votes, shared
and local arrays. Shared and local arrays start with every byte 0xFF, NaN in any float dtype, -1 in
the integers.

A thread runs until it must wait for others; then, of those that are ready, the first in an order of
blocks, warps and lanes that stays the same: a warp runs as far ahead of the later ones as barriers
let it. The order is that of the indices, or by STUDY_THREAD_SEED, an integer, the reverse (1) or a
random one. So of two warps or two lanes between which a barrier is missing, each runs ahead of the
other in one of the first two orders. With a seed, arrays start with bytes of 0x7F, a large number
in float32, for a maximum ignores NaN.

Stricter than a GPU: a thread that has ended never counts as arrived at a barrier, and a shuffle may
not read a lane that takes no part in it.
"""

import os
import random
import sys
from collections import defaultdict
from functools import cache, partial
from heapq import heappop, heappush
from importlib import import_module
from itertools import chain, count, groupby
from types import FunctionType, SimpleNamespace

import numpy as np
import torch
from greenlet import getcurrent, greenlet
from numba import cuda
from numba.cuda import libdevice as cuda_libdevice
from numba.cuda import types
from numba.cuda.np.numpy_support import as_dtype
from numba.cuda.simulator.kernelapi import Dim3, FakeCUDAModule

from implementations.common import numba_cuda
from implementations.tiers.cpu import ONE_AT_A_TIME, demand_clusters, libdevice

WARP = 32
FULL = 0xFFFFFFFF
MAX_THREADS = 1024
MAX_BLOCKS = 8  # of a cluster


class Thread(greenlet):
    """One thread. `cuda.<name>`, where it differs from thread to thread, is an attribute here."""

    warpsize = WARP

    def __init__(self, body, block, index, threadIdx, place):
        super().__init__(body, block.cluster.host)
        self.block, self.index, self.threadIdx = block, index, threadIdx
        self.place = place  # in the order of the threads
        self.blockIdx, self.blockDim, self.gridDim = block.blockIdx, block.blockDim, block.gridDim
        self.shared = block
        self.warp, self.laneid = divmod(index, WARP)
        self.state = {}
        self.operation = None  # that it waits in
        self.arrivals = self.waits = 0  # at the barrier of its cluster


class Meeting:
    """Threads that wait for each other, each with a value, until all `expected` have come."""

    def __init__(self):
        self.values, self.waiting, self.result = {}, [], None


class Phases:
    """A barrier in shared memory, which a thread that waits passes when a phase has ended."""

    def __init__(self, cluster, arrivals):
        self.cluster = cluster
        self.expected = self.missing = arrivals  # of a phase; that the one under way still needs
        self.bytes = 0  # that it needs: fewer than 0 where some came before their arrival
        self.ended = 0  # phases
        self.waiting = []
        # what came, in which phase; it takes its place when a thread has waited for it
        self.sent = []
        self.fenced = False  # whether others than threads of the block may know it

    def end_if_complete(self):
        """End the phase if nothing is missing."""
        if not self.missing and not self.bytes:
            self.ended, self.missing = self.ended + 1, self.expected
            self.cluster.make_ready(self.waiting)
            self.waiting = []


class Block:
    """One block: its threads, where they meet, and its shared memory (`cuda.shared`)."""

    def __init__(self, cluster, blockIdx, blockDim, gridDim, shared_bytes):
        self.cluster = cluster
        self.blockIdx, self.blockDim, self.gridDim = blockIdx, blockDim, gridDim
        self.size = blockDim.x * blockDim.y * blockDim.z
        self.dynamic = _poisoned(shared_bytes, np.dtype(np.uint8))
        self.arrays = {}
        self.meetings = {}
        self.phases = []

    def array(self, shape, dtype, alignment=None):
        """`cuda.shared.array`: one for each call in the source; of shape 0, the dynamic one."""
        dtype = _numpy(dtype)
        if shape in (0, (0,)):
            return self.dynamic[: self.dynamic.size // dtype.itemsize * dtype.itemsize].view(dtype)
        caller = sys._getframe(1)
        site = id(caller.f_code), caller.f_lasti
        if site not in self.arrays:
            self.arrays[site] = _poisoned(shape, dtype)
        return self.arrays[site]

    def begin(self, body):
        """Make its threads ready to run `body`."""
        indices = np.ndindex(*reversed(tuple(self.blockDim)))  # x runs fastest
        places = self.cluster.places[len(self.cluster.blocks) - 1]
        self.threads = [
            Thread(body, self, i, Dim3(x, y, z), places[i]) for i, (z, y, x) in enumerate(indices)
        ]
        self.cluster.make_ready(self.threads)

    def ended(self):
        return all(thread.dead for thread in self.threads)

    def where(self):
        """The threads by where they wait, e.g. "threads 0-30 wait in syncwarp at sum.py:12"."""
        groups = defaultdict(list)
        for thread in self.threads:
            if not thread.dead:
                frame = thread.gr_frame
                while frame.f_code.co_filename == __file__:
                    frame = frame.f_back
                groups[f"wait in {thread.operation} at {_line(frame)}"].append(thread.index)
        groups["have ended"] = [thread.index for thread in self.threads if thread.dead]
        return "; ".join(f"threads {_ranges(found)} {at}" for at, found in groups.items() if found)

    def meet(self, key, expected, who, value, combine):
        """Wait until `expected` threads are at `key`; what `combine` makes of their values."""
        if value is None:  # a barrier: copies under way to shared memory are still undefined
            for dst, values in chain(*thread_state().get("copies", ())):
                dst[: len(values)].view(np.uint8)[:] = 0xFF
        meeting = self.meetings.get(key)
        if meeting is None:
            meeting = self.meetings[key] = Meeting()
        thread = getcurrent()
        meeting.values[who] = value
        meeting.waiting.append(thread)
        if len(meeting.values) == expected:
            del self.meetings[key]
            meeting.result = combine(meeting.values) if combine else meeting.values
            self.cluster.make_ready(meeting.waiting)
        _wait(thread, key[0])
        if value is None:
            thread.state["fenced"] = False
        return meeting.result

    def twin(self, owner, peer):
        """The array of the block `peer` that stands there for one in this block's shared memory."""
        if owner is self.dynamic:
            return peer.dynamic
        for site, array in self.arrays.items():
            if array is owner:
                if site not in peer.arrays:
                    peer.arrays[site] = _poisoned(array.shape, array.dtype)
                return peer.arrays[site]
        raise ValueError("an address in shared memory is needed")


class Cluster:
    """Blocks that run together: one, or as many along x as `form` is told."""

    def __init__(self, function, args, *block):
        self.block = block  # the first one's index, dimensions and so on
        self.host = getcurrent()
        self.blocks = []
        self.places = _places(int(os.environ.get("STUDY_THREAD_SEED") or 0))
        self.ready, self.at = [], {}  # a heap of places; place → thread
        self.rounds = self.arrived = 0  # of its barrier: how often all came, how many have since
        self.waiting = []

        def body():
            with np.errstate(all="ignore"):  # integers wrap, x / 0 is infinite, as on a GPU
                function(*args)

        self.body = body
        self._add()

    def _add(self):
        first, *rest = self.block
        block = Block(self, Dim3(first.x + len(self.blocks), first.y, first.z), *rest)
        self.blocks.append(block)
        block.begin(self.body)

    def form(self, size):
        """Begin the other blocks of a cluster of `size`, unless it is formed."""
        across = self.blocks[0].gridDim.x
        if not 1 <= size <= MAX_BLOCKS or across % size:
            raise ValueError(
                f"a grid must have clusters of 1 to {MAX_BLOCKS} blocks along x, "
                f"got {across} blocks in {size}s"
            )
        while len(self.blocks) < size:
            self._add()

    def make_ready(self, threads):
        """Let these threads run again, when their turn comes."""
        for thread in threads:
            self.at[thread.place] = thread
            heappush(self.ready, thread.place)

    def run(self):
        """Run every thread to its end; the number of blocks. RuntimeError where a thread fails, or
        where all left wait."""
        while self.ready:
            thread = self.at[heappop(self.ready)]
            try:
                thread.switch()
            except Exception as error:
                raise RuntimeError(
                    f"thread {thread.threadIdx} of block {thread.blockIdx}, {_place(error)}: "
                    f"{type(error).__name__}: {error}"
                ) from error
        for block in self.blocks:
            if not block.ended():
                raise RuntimeError(f"deadlock in block {block.blockIdx}: {block.where()}")
        return len(self.blocks)


@cache
def _places(seed):
    """By block of a cluster and thread, its place in the order of all: whole blocks follow each
    other, in each whole warps. 0: by their indices; 1: the reverse; else drawn by the seed."""
    draw = random.Random(seed)
    orders = [list(range(count)) for count in (MAX_BLOCKS, MAX_THREADS // WARP, WARP)]
    for order in orders:
        if seed == 1:
            order.reverse()
        elif seed:
            draw.shuffle(order)
    blocks, warps, lanes = orders
    return [[(b * len(warps) + w) * WARP + l for w in warps for l in lanes] for b in blocks]


def _wait(thread, operation):
    """Let others run until this thread, the current one, is ready again."""
    thread.operation = operation
    thread.parent.switch()


def _ranges(numbers):
    """[0, 1, 2, 5] → "0-2, 5"."""
    texts, position = [], count()
    for _, group in groupby(sorted(numbers), key=lambda n: n - next(position)):
        first, *rest = group
        texts.append(f"{first}-{rest[-1]}" if rest else str(first))
    return ", ".join(texts)


def _line(frame, number=None):
    return f"{os.path.basename(frame.f_code.co_filename)}:{number or frame.f_lineno}"


def _place(error):
    """The innermost line of the error outside of this file."""
    trace, place = error.__traceback__, ""
    while trace:
        if trace.tb_frame.f_code.co_filename != __file__:
            place = _line(trace.tb_frame, trace.tb_lineno)
        trace = trace.tb_next
    return place


def _poisoned(shape, dtype):
    array = np.empty(shape, dtype)
    array.view(np.uint8).fill(0x7F if os.environ.get("STUDY_THREAD_SEED") else 0xFF)
    return array


@cache
def _numpy(dtype):
    return np.dtype(as_dtype(dtype) if isinstance(dtype, types.Type) else dtype)


# What this thread is, for the CPU meanings of PTX instructions.


def lane() -> int:
    """This thread's lane in its warp."""
    return getcurrent().laneid


def warp() -> int:
    """This thread's warp in its block."""
    return getcurrent().warp


def thread_state() -> dict:
    """Whatever is to be kept for this thread until it ends."""
    return getcurrent().state


def exchange(value, combine=None, operation="a warp-wide instruction", mask=FULL):
    """Wait for the lanes of `mask`; lane → value of each, or what `combine` makes of that table.

    `combine` is called once for all lanes. Lanes that the block does not have are not waited for.
    """
    thread, mask = getcurrent(), int(mask) & FULL
    if not mask >> thread.laneid & 1:
        raise RuntimeError(f"lane {thread.laneid} must be in the mask of {operation}, {mask:#010x}")
    lanes = min(WARP, thread.block.size - thread.warp * WARP)
    expected = (mask & (1 << lanes) - 1).bit_count()
    key = operation, thread.warp, mask
    return thread.block.meet(key, expected, thread.laneid, value, combine)


def mbarrier_init(place, arrivals):
    """Begin phase 0 of a barrier of mbarrier.py, whose place in shared memory holds its number."""
    block = getcurrent().block
    if place.__array_interface__["data"][0] % 8 or _word(place).nbytes != 8:
        raise ValueError("a barrier must be 8 bytes of shared memory, at a multiple of them")
    _word(place).view(np.int64)[0] = len(block.phases)
    block.phases.append(Phases(block.cluster, arrivals))


def fence_mbarrier_init():
    """Have others than threads of the block know its barriers."""
    for phases in getcurrent().block.phases:
        phases.fenced = True


def _word(place):
    return place[: 8 // place.itemsize]


def _phases(place, block=None):
    phases = (block or getcurrent().block).phases
    number = int(_word(place).view(np.int64)[0])
    if not 0 <= number < len(phases):
        raise RuntimeError("a barrier must have begun, and nothing else be stored in its place")
    return phases[number]


def mbarrier_arrive(place, bytes=0):
    """Arrive there, and have the phase need `bytes` more; the last one ends it."""
    phases = _phases(place)
    phases.missing -= 1
    phases.bytes += bytes
    phases.end_if_complete()


def send(dst, values, place, rank=None):
    """Send values to `dst`, in the shared memory of the cluster's block `rank` or of this one,
    where a wait at the barrier finds them, of which `place` is in this block's."""
    if rank is None:
        phases = _phases(place)
    else:
        phases = _phases(remote(place, rank), getcurrent().block.cluster.blocks[rank])
    if not phases.fenced:
        raise RuntimeError(
            "fence_mbarrier_init must follow the beginning of a barrier that counts bytes"
        )
    dst.view(np.uint8)[...] = 0xFF  # undefined until the wait
    phases.bytes -= values.nbytes
    phases.sent.append((phases.ended, dst, values))
    phases.end_if_complete()


def mbarrier_wait(place, parity):
    """Wait there for the end of the phase of this parity."""
    phases, thread = _phases(place), getcurrent()
    while phases.ended % 2 == parity:
        phases.waiting.append(thread)
        _wait(thread, "mbarrier_wait")
    for phase, dst, values in phases.sent:
        if phase < phases.ended:
            dst[...] = values
    phases.sent = [each for each in phases.sent if each[0] >= phases.ended]
    thread.state["fenced"] = False


def form_cluster(blocks):
    """Have this block run in a cluster of so many."""
    if blocks > 1:
        demand_clusters()
    getcurrent().block.cluster.form(blocks)


def cluster_arrive():
    """Arrive at the barrier of the cluster."""
    thread = getcurrent()
    cluster = thread.block.cluster
    if thread.arrivals > thread.waits:
        raise RuntimeError(
            "a thread must wait at its cluster's barrier before it arrives again, "
            "or all may deadlock"
        )
    thread.arrivals += 1
    cluster.arrived += 1
    if cluster.arrived == sum(block.size for block in cluster.blocks):
        cluster.rounds, cluster.arrived = cluster.rounds + 1, 0
        cluster.make_ready(cluster.waiting)
        cluster.waiting = []


def cluster_wait(operation):
    """Wait at the barrier of the cluster until all threads of its blocks have arrived."""
    thread = getcurrent()
    cluster = thread.block.cluster
    if thread.arrivals == thread.waits:
        raise RuntimeError(
            "a thread must arrive at its cluster's barrier before it waits, or all may deadlock"
        )
    if cluster.rounds < thread.arrivals:
        cluster.waiting.append(thread)
    else:
        cluster.make_ready([thread])
    _wait(thread, operation)
    thread.waits += 1


def remote(place, rank):
    """In the shared memory of the cluster's block `rank`, what a view of this block's is here."""
    thread = getcurrent()
    blocks = thread.block.cluster.blocks
    if not 0 <= rank < len(blocks):
        raise IndexError(f"block {rank} is out of bounds for a cluster of {len(blocks)}")
    if thread.waits == 0:
        raise RuntimeError(
            f"block {rank} of the cluster perhaps takes no part yet: "
            "a thread must have waited at its barrier"
        )
    if blocks[rank].ended():
        raise RuntimeError(f"block {rank} of the cluster takes no part any more: it has ended")
    owner = place
    while owner.base is not None:
        owner = owner.base
    address, start = (a.__array_interface__["data"][0] for a in (place, owner))
    twin = thread.block.twin(owner, blocks[rank])
    return twin.reshape(-1).view(np.uint8)[address - start :].view(place.dtype)


# What a kernel finds under `cuda.`.


def _grid(ndim):
    t = getcurrent()
    at = [b * d + i for b, d, i in zip(t.blockIdx, t.blockDim, t.threadIdx, strict=True)]
    return at[0] if ndim == 1 else tuple(at[:ndim])


def _gridsize(ndim):
    t = getcurrent()
    size = [g * b for g, b in zip(t.gridDim, t.blockDim, strict=True)]
    return size[0] if ndim == 1 else tuple(size[:ndim])


def barrier(operation, value=None, combine=None):
    """Wait for all threads of the block; what `combine` makes of the table thread → value."""
    thread = getcurrent()
    return thread.block.meet((operation,), thread.block.size, thread.index, value, combine)


def _count(table):
    return sum(map(bool, table.values()))


def _lanes(table, chosen):
    """The mask of the lanes whose values are `chosen`."""
    return sum(1 << lane for lane, value in table.items() if chosen(value))


def _shuffle(operation, source):
    """source: (lane, argument, first lane of its segment, first beyond it) → the lane to read."""

    def shuffle(mask, value, argument, width=WARP):
        table = exchange(value, None, operation, mask)
        first = lane() // width * width
        at = source(lane(), int(argument), first, first + width)
        if at not in table:
            raise RuntimeError(f"{operation}: lane {lane()} reads lane {at}, which takes no part")
        return table[at]

    return shuffle


def _vote(operation, combine):
    return lambda mask, predicate: exchange(predicate, combine, operation, mask)


def _match_any(mask, value):
    table = exchange(value, None, "match_any_sync", mask)
    return _lanes(table, lambda other: other == value)


def _match_all(mask, value):
    table = exchange(value, None, "match_all_sync", mask)
    same = len(set(table.values())) == 1
    return (_lanes(table, lambda _: True), True) if same else (0, False)


MEANINGS = {
    "grid": _grid,
    "gridsize": _gridsize,
    "syncthreads": partial(barrier, "syncthreads"),
    "syncthreads_count": lambda p: barrier("syncthreads_count", p, _count),
    "syncthreads_and": lambda p: barrier("syncthreads_and", p, lambda t: int(all(t.values()))),
    "syncthreads_or": lambda p: barrier("syncthreads_or", p, lambda t: int(any(t.values()))),
    "syncwarp": lambda mask=FULL: exchange(None, None, "syncwarp", mask),
    "shfl_sync": _shuffle("shfl_sync", lambda l, at, first, end: first + at % (end - first)),
    "shfl_up_sync": _shuffle(
        "shfl_up_sync", lambda l, delta, first, end: l - delta if l - delta >= first else l
    ),
    "shfl_down_sync": _shuffle(
        "shfl_down_sync", lambda l, delta, first, end: l + delta if l + delta < end else l
    ),
    "shfl_xor_sync": _shuffle(
        "shfl_xor_sync", lambda l, bits, first, end: l ^ bits if l ^ bits < end else l
    ),
    "ballot_sync": _vote("ballot_sync", lambda table: _lanes(table, bool)),
    "all_sync": _vote("all_sync", lambda table: all(table.values())),
    "any_sync": _vote("any_sync", lambda table: any(table.values())),
    "eq_sync": _vote("eq_sync", lambda table: len(set(map(bool, table.values()))) == 1),
    "match_any_sync": _match_any,
    "match_all_sync": _match_all,
    "local": SimpleNamespace(
        array=lambda shape, dtype, alignment=None: _poisoned(shape, _numpy(dtype))
    ),
    "fma": libdevice.meaning("fmaf"),
}
SIMULATED = FakeCUDAModule((1, 1, 1), (1, 1, 1), 0)  # atomics, constants, bits, float16
MEANINGS |= {
    name: getattr(SIMULATED, name)
    for name in (
        *("atomic", "const", "fp16", "popc", "brev", "clz", "ffs", "selp"),
        *("threadfence", "threadfence_block", "threadfence_system"),
    )
}


def _of_thread(name):
    try:
        return getattr(getcurrent(), name)
    except AttributeError:
        raise AttributeError(f"cuda.{name} has no meaning on the CPU tier") from None


class Argument(np.ndarray):
    """An array that a kernel is given. A slice of it must lie within it: NumPy would cut it short,
    and ignore what is stored beyond."""

    def _check(self, key):
        if type(key) is slice and key.stop is not None:
            start = key.start or 0
            if not 0 <= start <= key.stop <= len(self):
                raise IndexError(f"{start} to {key.stop} is out of bounds for {len(self)} elements")

    def __getitem__(self, key):
        self._check(key)
        return super().__getitem__(key)

    def __setitem__(self, key, value):
        self._check(key)
        super().__setitem__(key, value)


class Kernel:
    """What `cuda.jit` makes of a function that is launched: kernel[grid, block](*args)."""

    def __init__(self, function):
        self.function = function

    def __getitem__(self, configuration):
        grid, block, *rest = configuration
        grid, block = (Dim3(*d, *(1,) * (3 - len(d))) for d in (grid, block))
        shared_bytes = rest[1] if len(rest) > 1 else 0
        if 0 in grid:  # which the driver refuses too
            raise ValueError(f"a grid must have at least one block, got {tuple(grid)}")
        threads = block.x * block.y * block.z
        if threads > MAX_THREADS:
            raise ValueError(f"a block must have at most {MAX_THREADS} threads, got {threads}")

        def run(*args):
            args = tuple(a.view(Argument) if isinstance(a, np.ndarray) else a for a in args)
            blocks = 1  # of a cluster
            for z, y, x in np.ndindex(*reversed(tuple(grid))):
                if x % blocks == 0:
                    index = Dim3(x, y, z)
                    cluster = Cluster(self.function, args, index, block, grid, shared_bytes)
                    blocks = cluster.run()

        return run


def jit(function=None, device=False, **options):
    """`cuda.jit`: a Kernel, or for device=True the function itself. Options have no effect."""
    if not callable(function):  # called with options, or with a signature
        return partial(jit, device=device)
    # code of its own, so that each closure of a factory has its own shared arrays
    own = FunctionType(
        function.__code__.replace(),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    return own if device else Kernel(own)


def run(kernel, grid: tuple, block: tuple, args: tuple, shared_bytes: int) -> None:
    """Run a kernel to its end: its tensors are NumPy arrays here, bfloat16 as int16 words."""
    with ONE_AT_A_TIME:
        kernel[grid, block, 0, shared_bytes](*map(_on_host, args))


def _on_host(value):
    if not isinstance(value, torch.Tensor):
        return value
    return (value.view(torch.int16) if value.dtype == torch.bfloat16 else value).numpy()


def install() -> None:
    """Replace the simulator's meanings by those of this module, in `numba.cuda` itself."""
    cuda.jit = jit
    numba_cuda.run = run
    for name, function in MEANINGS.items():
        setattr(cuda, name, function)
    cuda.__getattr__ = _of_thread  # threadIdx, shared, laneid, ...
    for kind in (types.Integer, types.Float):  # int32(x) and the like, of which there are many
        kind.__call__ = _converted
    for name in dir(cuda_libdevice):
        if not name.startswith("_"):
            setattr(cuda_libdevice, name, partial(_libdevice, name))
    import_module("implementations.tiers.cpu.numba_products").install()


def _converted(kind, *args):
    """What `kind(value)` is without a compiler; or `kind(*types)`, which is a signature."""
    try:
        return getattr(np, kind.name)(*args)
    except (TypeError, ValueError):
        return types.Type.__call__(kind, *args)


def _libdevice(name, *args):
    return libdevice.of_numbers(name)(*args)
