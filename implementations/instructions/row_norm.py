"""What the layer norms need alike: the sums of a row over the threads of lanes, a block or a
cluster, its packs in registers, and the step from these to y. The twin of row_norm.cuh.

VEC: elements of a pack. PACKS: packs that a thread holds. THREADS: threads of a row in one block, a
power of two. CLUSTER: the blocks of a row. STEP: the threads of a row in all blocks.
"""

from functools import cache

from numba import cuda, float32

from implementations.instructions.access import load, load_pack, shared_address, store, store_pack
from implementations.instructions.cluster import cluster_barrier, store_remote
from implementations.instructions.reduce import make_sum_lanes


@cache
def make_sum_row(THREADS, CLUSTER):
    """`sum_row(value, sSums, rank)`: adds up a value over the threads of a row, in every one of
    them. `sSums` holds it a warp of the row, and is used once: one barrier suffices. `rank`: this
    block's place in the cluster, whose blocks have begun."""
    IN_BLOCK = max(THREADS // 32, 1)
    WARPS = CLUSTER * IN_BLOCK
    LANES = min(WARPS, 32)
    sum_in_warp, sum_warps = make_sum_lanes(min(THREADS, 32)), make_sum_lanes(LANES)

    @cuda.jit(device=True)
    def sum_row(value, sSums, rank):
        value = sum_in_warp(value)
        if THREADS > 32:
            lane, warp = cuda.threadIdx.x % 32, rank * IN_BLOCK + cuda.threadIdx.x // 32
            if CLUSTER > 1:
                # each lane takes one block, so that every block has the sums of all warps
                if lane < CLUSTER:
                    store_remote(shared_address(sSums, warp), lane, value)
                cluster_barrier()  # all is there; a block that ends now is not written to any more
            else:
                if lane == 0:
                    sSums[warp] = value
                cuda.syncthreads()
            # every warp adds up all; neighbours read neighbouring words: no bank conflict
            value = float32(0)
            for w in range(0, WARPS, LANES):
                value += sSums[w + lane % LANES]
            value = sum_warps(value)
        return value

    return sum_row


@cache
def make_sum_row_pair(THREADS, CLUSTER):
    """`sum_row_pair(a, b, sSums, at, rank)`: sum_row of two values, which meet at one barrier. From
    sSums[at] on it holds the first of each warp, then the second."""
    IN_BLOCK = max(THREADS // 32, 1)
    WARPS = CLUSTER * IN_BLOCK
    LANES = min(WARPS, 32)
    sum_in_warp, sum_warps = make_sum_lanes(min(THREADS, 32)), make_sum_lanes(LANES)

    @cuda.jit(device=True)
    def sum_row_pair(a, b, sSums, at, rank):
        a, b = sum_in_warp(a), sum_in_warp(b)
        if THREADS > 32:
            # of bits the compiler knows that they are no negative index, of % and // it does not
            lane, warp = cuda.threadIdx.x & 31, rank * IN_BLOCK + (cuda.threadIdx.x >> 5)
            if CLUSTER > 1:
                if lane < CLUSTER:
                    store_remote(shared_address(sSums, at + warp), lane, a)
                    store_remote(shared_address(sSums, at + WARPS + warp), lane, b)
                cluster_barrier()
            else:
                if lane == 0:
                    sSums[at + warp] = a
                    sSums[at + WARPS + warp] = b
                cuda.syncthreads()
            a, b = float32(0), float32(0)
            for w in range(0, WARPS, LANES):
                a += sSums[at + w + (lane & (LANES - 1))]
                b += sSums[at + WARPS + w + (lane & (LANES - 1))]
            a, b = sum_warps(a), sum_warps(b)
        return a, b

    return sum_row_pair


@cache
def make_load_row(VEC, PACKS, STEP):
    """`load_row(v, x, start, row_tid, count)`: loads the packs of the row's thread `row_tid`, of
    the `count` elements from x[start] on, as fp32. Beyond these they are 0."""

    @cuda.jit(device=True)
    def load_row(v, x, start, row_tid, count):
        for p in range(PACKS):
            n = (p * STEP + row_tid) * VEC  # neighbours read neighbouring packs
            if n < count:
                if VEC > 1:
                    load_pack(x, start + n, v, p * VEC)
                else:
                    v[p] = load(x, start + n)
            else:
                for k in range(VEC):
                    v[p * VEC + k] = float32(0)

    return load_row


@cache
def make_add_deviations(VEC, PACKS, STEP):
    """`add_deviations(s1, s2, v, shift, row_tid, count)`: adds the deviations of a thread's
    elements from `shift` to s1, and their squares to s2; pack by pack, as a long sum would round
    off more of what it is given."""

    @cuda.jit(device=True)
    def add_deviations(s1, s2, v, shift, row_tid, count):
        for p in range(PACKS):
            if (p * STEP + row_tid) * VEC < count:
                d1, d2 = float32(0), float32(0)
                for k in range(VEC):
                    d = v[p * VEC + k] - shift
                    d1 += d
                    d2 += d * d
                s1 += d1
                s2 += d2
        return s1, s2

    return add_deviations


@cache
def make_store_normalized(VEC, PACKS, STEP):
    """`store_normalized(v, w, b, first, y, start, shift, left, rstd, row_tid, count)`: stores y of
    a thread's elements v, of the `count` elements from y[start] on; those of w and b, which all
    rows share, start at `first` and come from the L1 or the L2. The mean is shift + left."""

    @cuda.jit(device=True)
    def store_normalized(v, w, b, first, y, start, shift, left, rstd, row_tid, count):
        offset = -left * rstd
        w_pack = cuda.local.array(VEC, float32)
        b_pack = cuda.local.array(VEC, float32)
        for p in range(PACKS):
            n = (p * STEP + row_tid) * VEC
            if n < count:
                if VEC > 1:
                    load_pack(w, first + n, w_pack, 0)
                    load_pack(b, first + n, b_pack, 0)
                else:
                    w_pack[0] = load(w, first + n)
                    b_pack[0] = load(b, first + n)
                for k in range(VEC):
                    normal = (v[p * VEC + k] - shift) * rstd + offset
                    v[p * VEC + k] = normal * w_pack[k] + b_pack[k]
                if VEC > 1:
                    store_pack(y, start + n, v, p * VEC)
                else:
                    store(y, start + n, v[p])

    return store_normalized
