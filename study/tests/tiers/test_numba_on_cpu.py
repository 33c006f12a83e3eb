"""Numba's kernels on the CPU: what the threads of a block do together, and that bugs show."""

import numpy as np
import pytest
import torch

from implementations import DEVICE
from implementations.common import registry

if DEVICE != "cpu" or registry.missing("numba"):
    pytest.skip("needs Numba on the CPU tier", allow_module_level=True)

from numba import cuda, float32, int16, int32
from numba.cuda import libdevice

from implementations.instructions import (
    access,
    async_copy,
    cluster,
    mbarrier,
    mma,
    turnstile,
    wgmma,
)
from implementations.tiers.cpu import numba_products
from study.agree import verify


def run(kernel, *args, grid=(1,), block=(32,), shared_bytes=0):
    cuda.jit(kernel)[grid, block, 0, shared_bytes](*args)
    return args[0]


def lanes(kernel, block=(32,), dtype=np.int64):
    """What each thread of one block leaves in out[thread]."""
    return list(run(kernel, np.zeros(block[0], dtype), block=block))


def test_indices():
    def kernel(out):
        x, y, z = cuda.grid(3)
        out[z, y, x] += cuda.threadIdx.x + 10 * cuda.blockIdx.y + 100 * cuda.gridsize(3)[2]

    out = run(kernel, np.zeros((4, 4, 6), int), grid=(2, 2, 2), block=(3, 2, 2))
    z, y, x = np.ogrid[:4, :4, :6]
    assert (out == x % 3 + 10 * (y // 2) + 400 + 0 * z).all()


SHUFFLES = {
    "shfl_sync": (5, lambda lane, width: lane // width * width + 5 % width),
    "shfl_up_sync": (3, lambda lane, width: lane - 3 if lane % width >= 3 else lane),
    "shfl_down_sync": (3, lambda lane, width: lane + 3 if lane % width < width - 3 else lane),
    "shfl_xor_sync": (3, lambda lane, width: lane ^ 3),
}


@pytest.mark.parametrize("width", [32, 8])
@pytest.mark.parametrize("name", SHUFFLES)
def test_shuffle(name, width):
    argument, source = SHUFFLES[name]

    def kernel(out):
        lane = cuda.laneid
        out[cuda.threadIdx.x] = getattr(cuda, name)(0xFFFFFFFF, 100 + lane, argument, width)

    assert lanes(kernel, (64,)) == 2 * [100 + source(lane, width) for lane in range(32)]


VOTES = {
    "ballot": lambda: cuda.ballot_sync(0xFFFFFFFF, cuda.laneid % 3 == 0),
    "all": lambda: cuda.all_sync(0xFFFFFFFF, cuda.laneid < 31),
    "any": lambda: cuda.any_sync(0xFFFFFFFF, cuda.laneid > 30),
    "eq": lambda: cuda.eq_sync(0xFFFFFFFF, cuda.laneid > 40),
    "match_any": lambda: cuda.match_any_sync(0xFFFFFFFF, cuda.laneid // 31),
    "match_all": lambda: cuda.match_all_sync(0xFFFFFFFF, 7)[0],
    "count": lambda: cuda.syncthreads_count(cuda.laneid < 5),
    "and": lambda: cuda.syncthreads_and(cuda.laneid < 5),
    "or": lambda: cuda.syncthreads_or(cuda.laneid < 5),
}
EXPECTED = {
    "ballot": 0b01001001001001001001001001001001,
    **{"all": False, "any": True, "eq": True, "count": 5, "and": 0, "or": 1},
    "match_all": 0xFFFFFFFF,
}


@pytest.mark.parametrize("name", VOTES)
def test_vote(name):
    def kernel(out):
        out[cuda.threadIdx.x] = VOTES[name]()

    found = lanes(kernel)
    if name == "match_any":
        assert found == 31 * [0x7FFFFFFF] + [0x80000000]
    else:
        assert found == 32 * [EXPECTED[name]]


def reverse(out):
    """Each thread hands its index to its opposite, by shared memory."""
    s = cuda.shared.array(64, int32)
    tid = cuda.threadIdx.x
    s[tid] = tid
    cuda.syncthreads()
    out[tid] = s[63 - tid]


@pytest.mark.parametrize("seed", [None, "1", "2"])
def test_barrier_in_any_order_of_threads(monkeypatch, seed):
    if seed:
        monkeypatch.setenv("STUDY_THREAD_SEED", seed)
    assert lanes(reverse, (64,)) == list(range(63, -1, -1))


def test_order_of_threads_is_drawn_by_the_seed(monkeypatch):
    def kernel(out):
        out[cuda.atomic.add(out, 64, 1)] = cuda.threadIdx.x

    def order():
        return list(run(kernel, np.zeros(65, int), block=(64,))[:64])

    assert order() == list(range(64))
    monkeypatch.setenv("STUDY_THREAD_SEED", "1")
    assert order() == list(range(63, -1, -1))
    monkeypatch.setenv("STUDY_THREAD_SEED", "2")
    drawn = order()
    assert sorted(drawn) == list(range(64)) and drawn not in (drawn[::-1], sorted(drawn))
    assert order() == drawn


def two_uses(writer, reader, barrier):
    """Sums, and then those of the squares, pass through the same shared array. Without the second
    barrier a warp that is ahead stores the second sum before another has read the first.

    writer, reader: the warp that stores, that reads; None: each.
    """

    def kernel(out):
        parts = cuda.shared.array(4, float32)
        tid, lane = cuda.threadIdx.x, cuda.laneid
        warp = tid // 32
        v = tid % 7 + 2
        for use in range(2):
            part = warp_sum(v)
            if lane == 0 and writer in (None, warp):
                parts[warp] = part
            cuda.syncthreads()
            if reader in (None, warp):
                out[use * 128 + tid] = warp_sum(parts[lane % 4 if writer is None else writer])
            if barrier:
                cuda.syncthreads()
            v *= v

    return kernel


def warp_sum(v):
    for mask in (16, 8, 4, 2, 1):
        v += cuda.shfl_xor_sync(0xFFFFFFFF, v, mask)
    return v


def two_uses_in_a_warp(writer, reader, barrier):
    """The same within each warp. writer, reader: lanes."""

    def kernel(out):
        parts = cuda.shared.array(4, float32)
        tid, lane = cuda.threadIdx.x, cuda.laneid
        for use in range(2):
            if lane == writer:
                parts[tid // 32] = tid + use
            cuda.syncwarp()
            if reader in (None, lane):
                out[use * 128 + tid] = parts[tid // 32]
            if barrier:
                cuda.syncwarp()

    return kernel


TRIED = [str(run) if run else None for run in range(verify.RUNS)]  # by `verify`, as seeds


@pytest.mark.parametrize(
    ("make", "writer", "reader"),
    [
        *((two_uses, w, r) for w, r in ((None, None), (0, None), (3, None), (None, 0), (None, 3))),
        *((two_uses_in_a_warp, w, r) for w, r in ((0, None), (31, None), (5, 20), (20, 5))),
    ],
)
def test_a_missing_barrier_shows_in_the_orders_that_verify_tries(monkeypatch, make, writer, reader):
    def outputs(barrier, seed):
        with monkeypatch.context() as patch:
            if seed:
                patch.setenv("STUDY_THREAD_SEED", seed)
            out = run(make(writer, reader, barrier), np.zeros(256), block=(128,))
        return out.tolist()

    right = outputs(True, None)
    assert any(right)
    assert all(outputs(True, str(seed)) == right for seed in range(1, 9))
    assert not all(outputs(False, seed) == right for seed in TRIED)


def test_memory_starts_poisoned_and_sites_are_apart():
    def kernel(out):
        a, b = cuda.shared.array(4, float32), cuda.shared.array(4, float32)
        local, words = cuda.local.array(4, float32), cuda.local.array(4, int32)
        dynamic = cuda.shared.array(0, float32)
        out[0], out[1], out[2], out[3] = a[0], b[1], local[2], dynamic[3]
        out[4] = words[0]
        a[0] = 5
        out[5] = b[0]

    out = run(kernel, np.zeros(6), block=(1,), shared_bytes=16)
    assert np.isnan(out[[0, 1, 2, 3, 5]]).all() and out[4] == -1


def test_shared_arrays_of_closures_are_apart():
    def factory(value):
        @cuda.jit(device=True)
        def keep():
            s = cuda.shared.array(1, float32)
            s[0] = value
            return s

        return keep

    first, second = factory(1), factory(2)

    def kernel(out):
        a, b = first(), second()
        out[0], out[1] = a[0], b[0]

    assert list(run(kernel, np.zeros(2), block=(1,))) == [1, 2]


def divergent_barrier(out):
    if cuda.threadIdx.x < 40:
        cuda.syncthreads()


def early_return(out):
    if cuda.threadIdx.x == 7:
        return
    cuda.syncwarp()


def missing_lane(out):
    if cuda.laneid < 16:
        cuda.shfl_sync(0x0000FFFF, 1, 20)


def outside_the_mask(out):
    cuda.shfl_sync(0x0000FFFF, 1, 0)


def beyond_the_end(out):
    out[cuda.threadIdx.x + 1] = 0


def misaligned(out):
    values = cuda.local.array(4, float32)
    access.load_pack(np.zeros(8, np.float32), 2, values, 0)


def unknown(out):
    cuda.barrier_of_dreams()


@pytest.mark.parametrize(
    ("kernel", "block", "error"),
    [
        (
            divergent_barrier,
            64,
            r"deadlock in block \(0, 0, 0\): threads 0-39 wait in syncthreads at "
            r"test_numba_on_cpu.py:\d+; threads 40-63 have ended",
        ),
        (early_return, 32, "threads 0-6, 8-31 wait in syncwarp at .*; threads 7 have ended"),
        (missing_lane, 32, r"shfl_sync: lane \d+ reads lane 20, which takes no part"),
        (outside_the_mask, 32, "lane 16 must be in the mask of shfl_sync, 0x0000ffff"),
        (
            beyond_the_end,
            32,
            r"thread \(31, 0, 0\) of block \(0, 0, 0\), test_numba_on_cpu.py:\d+: IndexError",
        ),
        (misaligned, 1, "16 bytes must start at a multiple of 16, got an address 8 beyond one"),
        (unknown, 1, "cuda.barrier_of_dreams has no meaning on the CPU tier"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_bugs_are_named(kernel, block, error):
    with pytest.raises(RuntimeError, match=error):
        lanes(kernel, (block,))


def test_block_too_large_is_refused():
    with pytest.raises(ValueError, match="a block must have at most 1024 threads, got 1056"):
        run(reverse, np.zeros(1), block=(33, 32))


def test_grid_of_no_blocks_is_refused():
    with pytest.raises(ValueError, match="a grid must have at least one block, got"):
        run(reverse, np.zeros(1), grid=(0,))


def test_libdevice_rounds_once():
    def kernel(out, x):
        i = cuda.threadIdx.x
        out[0, i] = libdevice.fmaf(x[i], x[i], -1)
        out[1, i] = libdevice.asinf(x[i])
        out[2, i] = libdevice.rsqrtf(x[i])
        out[3, i] = libdevice.float_as_int(x[i])

    x = np.random.default_rng(0).random(32, np.float32) + np.float32(2**-10)
    x = np.minimum(x, np.float32(1))
    out = np.zeros((4, 32), np.float32)
    run(kernel, out, x)
    exact = x.astype(np.float64)
    np.testing.assert_array_equal(out[0], (exact * exact - 1).astype(np.float32))
    np.testing.assert_array_equal(out[1], np.arcsin(exact).astype(np.float32))
    np.testing.assert_array_equal(out[2], (1 / np.sqrt(exact)).astype(np.float32))
    np.testing.assert_array_equal(out[3], x.view(np.int32).astype(np.float32))


def test_libdevice_function_without_meaning_is_named():
    with pytest.raises(RuntimeError, match="libdevice function j0f has no meaning on the CPU tier"):
        lanes(lambda out: libdevice.j0f(1.0))


# PTX: fragments as the PTX ISA lays them out, against float64


def pack(matrix):
    """Pairs of 16-bit elements as registers."""
    return np.ascontiguousarray(matrix).view(np.int32)[..., 0]


def to_bfloat16(x):
    return (x.view(np.uint32) >> 16).astype(np.uint16)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_mma(dtype):
    rng = np.random.default_rng(0)
    A, B, C = (rng.standard_normal(s).astype(np.float32) for s in ((16, 16), (16, 8), (16, 8)))
    if dtype == torch.float16:
        words = [A.astype(np.float16), B.astype(np.float16)]
        values = [w.astype(np.float64) for w in words]
    else:
        words = [to_bfloat16(A), to_bfloat16(B)]
        values = [(w.astype(np.uint32) << 16).view(np.float32).astype(np.float64) for w in words]
    multiply = mma.mma_m16n8k16(dtype)
    D = np.zeros((16, 8), np.float32)

    def kernel(out):
        g, t = cuda.laneid // 4, cuda.laneid % 4 * 2
        at = [(g, t), (g + 8, t), (g, t + 8), (g + 8, t + 8)]
        a = tuple(pack(words[0][row, col : col + 2]) for row, col in at)
        b = tuple(pack(words[1][row : row + 2, g]) for row in (t, t + 8))
        places = [(g, t), (g, t + 1), (g + 8, t), (g + 8, t + 1)]
        d = multiply(a, b, tuple(C[place] for place in places))
        for place, value in zip(places, d, strict=True):
            out[place] = value

    run(kernel, D)
    np.testing.assert_allclose(D, values[0] @ values[1] + C, rtol=0, atol=4e-6)


@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix(transposed):
    tiles = np.arange(4 * 8 * 8, dtype=np.int16).reshape(4, 8, 8)
    load = mma.ldmatrix_x4_trans if transposed else mma.ldmatrix_x4
    out = np.zeros((32, 4), np.int32)

    def kernel(out):
        lane = cuda.laneid
        row = tiles.reshape(-1)[lane * 8 :]  # row lane % 8 of matrix lane // 8
        for j, register in enumerate(load(row)):
            out[lane, j] = register

    run(kernel, out)
    wanted = tiles.transpose(0, 2, 1) if transposed else tiles
    pairs = pack(wanted.reshape(4, 8, 4, 2))  # matrix, row, pair
    lane = np.arange(32)
    for j in range(4):
        np.testing.assert_array_equal(out[:, j], pairs[j, lane // 4, lane % 4])


def words(draw, shape, dtype):
    """Small integers, of which sums of products are exact, as words of 16 bits."""
    return torch.from_numpy(draw.integers(-8, 9, shape)).to(dtype).view(torch.int16).numpy()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["multiply_rows", "add_product"])
def test_products_in_one_step_are_those_of_the_instructions(name, dtype):
    draw, threads = np.random.default_rng(0), 128
    if name == "multiply_rows":  # two warps down, two across
        factors, of_warp = (dtype, 64, 64, 32, 16), (2, 2, 4)
        size = (64 + 32) * 64
    else:
        factors, of_warp = (dtype, 2, 32, 64), (2, 8, 4)
        size = 8 + 32 * 64
    tiles = words(draw, size, dtype)
    operands = words(draw, (threads, 2, 2, 8), dtype).view(np.int32)
    before = draw.integers(-99, 99, (threads, *of_warp)).astype(np.float32)

    def results(made):
        def kernel(out):
            shared = cuda.shared.array(0, np.int16)
            if cuda.threadIdx.x == 0:
                shared[:] = tiles
            cuda.syncthreads()
            rC = before[cuda.threadIdx.x].copy()
            if name == "multiply_rows":
                made(rC, shared, 0, 64 * 64)
            else:
                made(rC, operands[cuda.threadIdx.x], shared, 8)
            out[cuda.threadIdx.x] = rC

        return run(kernel, np.zeros_like(before), block=(threads,), shared_bytes=2 * size)

    step = results(getattr(numba_products, name)(*factors))
    assert len(np.unique(step)) > 100
    assert (step == results(numba_products.WRITTEN[name](*factors))).all()


def both_products(name, factors, A, B, sizes):
    """What 128 threads get of a tile of 32 x 64, in one step and by the instructions."""

    def results(made):
        def kernel(out, A, B):
            rC = cuda.local.array((1, 4, 4), float32)
            made(rC, cuda.shared.array(0, np.int16), A, B, *map(int32, sizes))
            out[cuda.threadIdx.x] = rC

        out = np.zeros((128, 1, 4, 4), np.float32)
        return run(kernel, out, A, B, block=(128,), shared_bytes=2 * 3 * 96 * 32)

    made = getattr(numba_products, name), numba_products.WRITTEN[name]
    return [results(product(*factors)) for product in made]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("ALIGNED", [True, False])
@pytest.mark.parametrize("place", [(32, 64, 32, 72), (0, 128, 0, 70), (0, 0, 0, 0)])
def test_tile_product_in_one_step(dtype, ALIGNED, place):
    draw, (M, N, K) = np.random.default_rng(0), (40, 136, 72)
    A, B = words(draw, M * K, dtype), words(draw, K * N, dtype)
    factors = dtype, ALIGNED, 32, 64, 32, 16, 32, 3

    step, written = both_products("tile_product", factors, A, B, (M, N, K, *place))
    assert (step == written).all()
    assert step.any() == (place[-1] > 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("m0", [0, 32])
@pytest.mark.parametrize(("K", "N", "offset"), [(70, 56, -14), (70, 56, 56), (41, 56, 9)])
def test_transposed_product_in_one_step(dtype, m0, K, N, offset):
    draw, stride, BLOCK_K = np.random.default_rng(0), 64, 32
    rows, cols = np.arange(K)[:, None], np.arange(stride)
    # whole chunks, as far as any row of a step reaches: else NaN, which nobody may read
    last = np.minimum(rows // BLOCK_K * BLOCK_K + BLOCK_K, K) - 1
    reached = -(-np.clip(last + offset + 1, 0, N) // 8) * 8
    values = np.where(cols < np.clip(rows + offset + 1, 0, N), draw.integers(-8, 9, (K, stride)), 0)
    values = np.where(cols < reached, values, np.nan)
    A = torch.from_numpy(values).to(dtype).view(torch.int16).numpy().reshape(-1)
    B = words(draw, K * 64, dtype)
    factors = dtype, 32, 64, BLOCK_K, 16, 32, 3

    step, written = both_products("transposed_product", factors, A, B, (K, N, stride, offset, m0))
    assert step.any() and np.isfinite(step).all()
    assert (step == written).all()


WRONG = {  # arguments of tile_product and of its block → what is said
    "places": (dict(m0=lambda: cuda.threadIdx.x // 100), "all threads must say the same"),
    "threads": (dict(threads=64), "there must be 128 threads, got 64"),
    "shared memory": (dict(shared=64), "the tiles must have 6144 words, got 64"),
    "rows": (dict(K=36), "rows must be whole chunks of 8, got 36 from 0 on"),
    "start": (dict(n0=lambda: 4), "rows must be whole chunks of 8, got 64 from 4 on"),
    "memory": (dict(A=lambda A: A[1:]), "16 bytes must start at a multiple of 16"),
}


@pytest.mark.parametrize("case", WRONG)
def test_products_in_one_step_refuse_what_instructions_would(case):
    wrong, error = WRONG[case]
    product = numba_products.tile_product(torch.float16, True, 32, 64, 32, 16, 32, 2)
    M, N, K = 32, 64, wrong.get("K", 32)

    def kernel(out, A, B):
        shared = cuda.shared.array(0, np.int16)[: wrong.get("shared")]
        m0, n0 = wrong.get("m0", int)(), wrong.get("n0", int)()
        product(np.zeros((1, 4, 4)), shared, A, B, M, N, K, m0, n0, 0, K)

    A, B = np.zeros(M * K + 8, np.int16), np.zeros(K * N, np.int16)
    A = wrong.get("A", lambda A: A)(A)
    with pytest.raises(RuntimeError, match=error):
        block = (wrong.get("threads", 128),)
        run(kernel, np.zeros(1), A, B, block=block, shared_bytes=2 * 2 * 96 * 32)


@pytest.mark.parametrize("waits", [True, False])
def test_copies_arrive_at_the_wait_and_no_earlier(waits):
    wait = async_copy.cp_async_wait(0)

    def kernel(out, x):
        s = cuda.shared.array(8, float32)
        async_copy.cp_async_16(access.shared_address(s, 0), access.global_address(x, 4), 16)
        async_copy.cp_async_16(access.shared_address(s, 4), access.global_address(x, 0), 8)
        async_copy.cp_async_commit()
        if waits:
            wait()
        for i in range(8):
            out[i] = s[i]

    out = run(kernel, np.zeros(8, np.float32), np.arange(8, dtype=np.float32), block=(1,))
    if waits:
        assert list(out) == [4, 5, 6, 7, 0, 1, 0, 0]
    else:
        assert np.isnan(out).all()


@pytest.mark.parametrize("waits", [True, False])
def test_cp_async_may_arrive_late(waits):
    wait = async_copy.cp_async_wait(0)

    def kernel(out, x):
        s = cuda.shared.array(4, float32)
        async_copy.cp_async_16(access.shared_address(s, 0), access.global_address(x, 0), 0)
        async_copy.cp_async_commit()
        if waits:
            wait()
        for i in range(4):
            s[i] = float32(i)
        cuda.syncthreads()
        for i in range(4):
            out[i] = s[i]

    out = run(kernel, np.zeros(4, np.float32), np.zeros(4, np.float32), block=(1,))
    assert list(out) == [0, 1, 2, 3] if waits else np.isnan(out).all()


def test_a_pack_is_added():
    def kernel(out, at):
        access.add_pack(
            access.global_address(out, at), (float32(1), float32(2), float32(3), out[0])
        )

    out = run(kernel, np.arange(8, dtype=np.float32) + 1, 4, block=(2,))
    assert list(out) == [1, 2, 3, 4, 7, 10, 13, 10]
    with pytest.raises(RuntimeError, match="16 bytes must start at a multiple of 16"):
        run(kernel, np.zeros(8, np.float32), 1, block=(1,))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_packs(dtype):
    size = 16 // dtype().itemsize

    def kernel(out, x):
        values = cuda.local.array(2 * size, float32)
        access.load_pack(x, size, values, size)
        for k in range(size, 2 * size):
            values[k] /= float32(3)
        access.store_pack(out, 0, values, size)

    x = np.arange(2 * size).astype(dtype)
    out = run(kernel, np.zeros(size, dtype), x, block=(1,))
    np.testing.assert_array_equal(out, (x[size:].astype(np.float32) / np.float32(3)).astype(dtype))


# Clusters


def meet_in(size, case=None):
    """A kernel whose blocks tell every other of their cluster their rank; or one with a bug."""

    def kernel(out):
        cluster.cluster_dims(size)
        ranks, dynamic = cuda.shared.array(8, float32), cuda.shared.array(0, float32)
        tid, rank = cuda.threadIdx.x, cuda.blockIdx.x % size
        if case != "wait without arrival":
            cluster.cluster_barrier_arrive()
        if case == "arrival without wait":
            cluster.cluster_barrier_arrive()
        if case != "store before the barrier":
            cluster.cluster_barrier_wait()
        if case == "block that leaves" and rank == 1:
            return
        if case != "block that leaves" and tid < size + (case == "no such block"):
            cluster.store_remote(access.shared_address(ranks, rank), tid, rank + 1)
            cluster.store_remote(access.shared_address(dynamic, rank), tid, rank + 1)
        if case == "global memory":
            cluster.store_remote(access.global_address(out, 0), 0, 1)
        if case != "no barrier at the end":
            cluster.cluster_barrier()
        if case == "store to a block that has ended" and rank == 1 and tid == 1:
            cluster.store_remote(access.shared_address(ranks, 0), 0, 9)
        total = 0
        for i in range(size):
            total += ranks[i] * dynamic[i]
        out[cuda.grid(1)] = total

    return kernel


@pytest.mark.parametrize("seed", [None, "1"])
@pytest.mark.parametrize("size", [1, 2, 8])
def test_clusters_reach_each_others_shared_memory(monkeypatch, size, seed):
    if seed:
        monkeypatch.setenv("STUDY_THREAD_SEED", seed)
    out = run(meet_in(size), np.zeros(8 * 16), grid=(8,), block=(16,), shared_bytes=64)
    assert (out == sum(r * r for r in range(1, size + 1))).all()


@pytest.mark.parametrize(
    ("case", "error"),
    [
        ("wait without arrival", "a thread must arrive at its cluster's barrier before it waits"),
        ("arrival without wait", "a thread must wait at its cluster's barrier before it arrives"),
        ("store before the barrier", "block 0 of the cluster perhaps takes no part yet"),
        ("no such block", "block 2 is out of bounds for a cluster of 2"),
        ("global memory", "an address in shared memory is needed"),
        ("no barrier at the end", "block 0 of the cluster takes no part any more: it has ended"),
        (
            "store to a block that has ended",
            "block 0 of the cluster takes no part any more: it has ended",
        ),
        (
            "block that leaves",
            r"deadlock in block \(0, 0, 0\): threads 0-31 wait in cluster_barrier at "
            r"cluster.py:\d+$",
        ),
    ],
)
def test_bugs_of_clusters_are_named(case, error):
    with pytest.raises(RuntimeError, match=error):
        run(meet_in(2, case), np.zeros(64), grid=(2,), shared_bytes=64)


def test_a_cluster_on_a_gpu_without(monkeypatch):
    monkeypatch.setenv("STUDY_CAPABILITY", "8.0")
    run(meet_in(1), np.zeros(32), shared_bytes=64)
    with pytest.raises(RuntimeError, match=r"clusters need compute capability 9\.0"):
        run(meet_in(2), np.zeros(64), grid=(2,), shared_bytes=64)


@pytest.mark.parametrize(("blocks", "size"), [(6, 4), (16, 16)])
def test_a_grid_of_broken_clusters_is_refused(blocks, size):
    error = f"clusters of 1 to 8 blocks along x, got {blocks} blocks in {size}s"
    with pytest.raises(RuntimeError, match=error):
        run(meet_in(size), np.zeros(1), grid=(blocks,), shared_bytes=64)


def append(x, counter, first):
    """Blocks append to x, in the order of the indices; `first`: the turn of block 0."""
    tid, turn = cuda.threadIdx.x, first + cuda.blockIdx.x
    if tid == 31:
        turnstile.wait_turn(access.global_address(counter, 0), turn)
    cuda.syncthreads()
    before = x[(tid + 1) % 32]
    cuda.syncthreads()
    x[tid] = 10 * before + turn
    cuda.syncthreads()
    if tid == 0:
        turnstile.pass_turn(access.global_address(counter, 0), turn + 1)


def test_blocks_take_turns():
    x, counter = np.zeros(32, np.float32), np.zeros(1, np.int32)
    run(append, x, counter, 0, grid=(4,))
    assert (x == 123).all()
    assert counter[0] == 4


def test_a_turn_that_never_comes():
    x, counter = np.zeros(32, np.float32), np.zeros(1, np.int32)
    with pytest.raises(RuntimeError, match="wait_turn: turn 1 never comes, at 0"):
        run(append, x, counter, 1)


def pass_twice(counter, waits):
    place = access.global_address(counter, 0)
    if waits and cuda.threadIdx.x == 0:
        turnstile.wait_turn(place, 0)
    cuda.syncthreads()
    turnstile.pass_turn(place, 1)


@pytest.mark.parametrize(("waits", "at"), [(True, 1), (False, 0)])
def test_a_turn_is_passed_once_and_by_who_waited_for_it(waits, at):
    with pytest.raises(RuntimeError, match=f"pass_turn: turn 1 does not follow, at {at}"):
        run(pass_twice, np.zeros(1, np.int32), waits, block=(2,))


# Warpgroups


def multiply(dtype, case=None):
    """A kernel of C (64, 256) = A[0] B + A[1] B of A (2, 64, 64) and B (64, 256): warp 4 copies, a
    warpgroup multiplies; or one with a bug."""
    product = wgmma.wgmma_m64n256k64(dtype)

    def kernel(C, A, B):
        shared = cuda.shared.array(0, int16)
        sA, sB = 0, 64 * 64
        barriers = 64 * 320 + 8 * (case == "a barrier elsewhere")
        full = access.shared_address(shared, barriers)
        empty = access.shared_address(shared, barriers + 4)
        tid, lane = cuda.threadIdx.x, cuda.threadIdx.x % 32
        if case != "no barrier has begun" and tid == 0:
            mbarrier.mbarrier_init(full, 32)
            mbarrier.mbarrier_init(empty, 128 + (case == "arrivals that never come"))
        cuda.syncthreads()
        if tid >= 128:
            for turn in range(2):
                mbarrier.mbarrier_wait(empty, turn ^ 1)
                for i in range(lane, 64 * 8, 32):
                    r, c = i // 8, i % 8 * 8
                    to = r * 64 + (c ^ r % 8 * 8)
                    place = access.shared_address(shared, sA + to)
                    source = access.global_address(A, turn * 64 * 64 + r * 64 + c)
                    async_copy.cp_async_16(place, source, 16)
                    for j in range(4):
                        place = access.shared_address(shared, sB + j * 64 * 64 + to)
                        source = access.global_address(B, r * 256 + j * 64 + c)
                        async_copy.cp_async_16(place, source, 16)
                if case == "a barrier overwritten":
                    shared[64 * 320] = -1
                mbarrier.cp_async_arrive(full)
            return
        d = cuda.local.array((32, 4), float32)
        d[...] = 0
        for turn in range(2):
            mbarrier.mbarrier_wait(full, turn)
            if case != "no fence":
                wgmma.fence_async()
            a, b = access.shared_address(shared, sA), access.shared_address(shared, sB)
            product(d, a, b, case == "added" or turn > 0)
            if case == "operands overwritten" and turn == 0:
                mbarrier.mbarrier_arrive(empty)
                mbarrier.mbarrier_wait(full, 1)
            if case != "no wait":
                wgmma.wgmma_wait(d)
            if case != "operands overwritten":
                mbarrier.mbarrier_arrive(empty)
        for j in range(32):
            for e in range(4):
                row = tid // 32 * 16 + lane // 4 + e // 2 * 8
                C[row, j * 8 + lane % 4 * 2 + e % 2] = d[j, e]

    return kernel


def warpgroup_product(case=None, dtype=torch.float16):
    """What the kernel stores, and what it should: operands are small integers."""
    A, B = (torch.randint(-3, 4, shape).to(dtype) for shape in ((2, 64, 64), (64, 256)))
    words = [x.view(torch.int16).numpy().reshape(-1) for x in (A, B)]
    C = np.zeros((64, 256), np.float32)
    run(multiply(dtype, case), C, *words, block=(160,), shared_bytes=64 * 320 * 2 + 16)
    return C, (A.float().sum(0) @ B.float()).numpy()


@pytest.mark.parametrize("seed", [None, "1", "2"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_warpgroup_multiplies_what_others_copy(monkeypatch, dtype, seed):
    if seed:
        monkeypatch.setenv("STUDY_THREAD_SEED", seed)
    np.testing.assert_array_equal(*warpgroup_product(dtype=dtype))


def test_a_product_may_add_to_what_there_is():
    np.testing.assert_array_equal(*warpgroup_product("added"))


def test_a_product_that_is_not_waited_for():
    C, _ = warpgroup_product("no wait")
    assert np.isnan(C).all()


def test_a_product_on_a_gpu_without_wgmma(monkeypatch):
    monkeypatch.setenv("STUDY_CAPABILITY", "8.0")
    with pytest.raises(RuntimeError, match="wgmma needs compute capability 9.0"):
        warpgroup_product()


@pytest.mark.parametrize(
    ("case", "error"),
    [
        ("a barrier elsewhere", "a barrier must be 8 bytes of shared memory, at a multiple of"),
        ("no barrier has begun", "a barrier must have begun, and nothing else be stored in its"),
        (
            "arrivals that never come",
            r"deadlock in block \(0, 0, 0\): threads 0-159 wait in mbarrier_wait",
        ),
        ("a barrier overwritten", "a barrier must have begun, and nothing else be stored in its"),
        ("no fence", "fence_async must stand between the wait for operands and their use"),
        ("operands overwritten", "operands must stay as they are until the product is waited for"),
    ],
)
def test_bugs_of_warpgroups_are_named(case, error):
    with pytest.raises(RuntimeError, match=error):
        warpgroup_product(case)


# What arrives at a barrier


def add_up(case=None):
    """A kernel of clusters of two blocks, which have their 32 elements of x copied twice and tell
    both their sum; or one with a bug."""

    def kernel(x, out):
        cluster.cluster_dims(2)
        s, of_blocks = cuda.shared.array(32, float32), cuda.shared.array(4, float32)
        words = cuda.shared.array(6, float32)  # three barriers
        place, copied = access.shared_address(s, 0), access.shared_address(words, 0)
        tid, rank = cuda.threadIdx.x, cuda.blockIdx.x % 2
        if tid == 0:
            for i in range(3):
                mbarrier.mbarrier_init(access.shared_address(words, i * 2), 1)
            if case != "no fence":
                mbarrier.fence_mbarrier_init()
        cluster.cluster_barrier()
        for turn in range(2):
            sent = access.shared_address(words, 2 + turn * 2)
            if tid == 0:
                mbarrier.mbarrier_expect(copied, 256 if case == "bytes that never come" else 128)
                start = (turn * 2 + rank) * 32 + (case == "alignment")
                async_copy.cp_async_bulk(place, access.global_address(x, start), 128, copied)
            if case != "copy":
                mbarrier.mbarrier_wait(copied, turn)
            total = float32(0)
            for i in range(32):
                total += s[i]
            if case == "copy over what is read" and tid == 0:
                async_copy.cp_async_bulk(place, access.global_address(x, 0), 128, copied)
            cuda.syncthreads()
            if tid == 0:
                mbarrier.mbarrier_expect(sent, 8)
            if tid < 2:
                of_block = access.shared_address(of_blocks, turn * 2 + rank)
                cluster.store_async(of_block, tid, total, sent)
            if case != "store":
                mbarrier.mbarrier_wait(sent, 0)
            out[cuda.grid(1), turn] = of_blocks[turn * 2] + of_blocks[turn * 2 + 1]
        if case == "store":
            cluster.cluster_barrier()

    return kernel


def sums_of_a_cluster(case=None):
    """What two clusters store, and what they should."""
    x, out = np.arange(128, dtype=np.float32), np.zeros((128, 2), np.float32)
    run(add_up(case), x, out, grid=(4,), block=(32,))
    return out, np.tile(x.reshape(2, 64).sum(1), (128, 1))


@pytest.mark.parametrize("seed", [None, "1", "2"])
def test_copies_and_stores_arrive_at_a_barrier(monkeypatch, seed):
    if seed:
        monkeypatch.setenv("STUDY_THREAD_SEED", seed)
    np.testing.assert_array_equal(*sums_of_a_cluster())


@pytest.mark.parametrize("case", ["copy", "copy over what is read", "store"])
def test_what_is_not_waited_for_is_undefined(case):
    out, _ = sums_of_a_cluster(case)
    assert np.isnan(out).any()


@pytest.mark.parametrize(
    ("case", "error"),
    [
        ("no fence", "fence_mbarrier_init must follow the beginning of a barrier that counts"),
        (
            "bytes that never come",
            r"deadlock in block \(0, 0, 0\): threads 0-31 wait in mbarrier_wait",
        ),
        ("alignment", "a bulk copy must be of whole chunks of 16 bytes, at multiples of 16"),
    ],
)
def test_wrong_copies_to_a_barrier(case, error):
    with pytest.raises((RuntimeError, ValueError), match=error):
        sums_of_a_cluster(case)
