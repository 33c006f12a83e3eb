"""Products on tensor cores in one step, where Numba's kernels run on the CPU.

In implementations/instructions/ they are hundreds of `ldmatrix` and `mma`, and at each of them the
32 greenlets of a warp meet. Here those of a warp, or of a block, meet once, and NumPy multiplies
what lies in their registers and in memory. The tests hold each against what it stands for.
"""

from functools import cache
from importlib import import_module

import numpy as np

from implementations.instructions.access import aligned
from implementations.instructions.attention import seen_keys
from implementations.instructions.mma import A_COL, A_ROW, D_COL, D_ROW, decoded
from implementations.instructions.tile_product import swizzle
from implementations.tiers.cpu import numba_fibers

MODULES = {  # of implementations/instructions/: what is replaced in them
    "attention": ("multiply_rows", "add_product"),
    "tile_product": ("tile_product",),
    "transposed_product": ("transposed_product",),
}
WRITTEN = {}  # name → the function that is replaced


def install() -> None:
    """Replace those functions by the ones of the same names here."""
    for module, names in MODULES.items():
        instructions = import_module(f"implementations.instructions.{module}")
        for name in names:
            WRITTEN.setdefault(name, getattr(instructions, name))
            setattr(instructions, name, globals()[name])


@cache
def multiply_rows(dtype, BLOCK_M, DEPTH, WARP_M, WARP_N):
    WARPS_M = BLOCK_M // WARP_M

    def multiply(rC, shared, sA, sB):
        warp = numba_fibers.warp()

        def product(table):
            sA, sB = _same(table)
            A = _tile(shared, sA + warp % WARPS_M * WARP_M * DEPTH, WARP_M, DEPTH)
            B = _tile(shared, sB + warp // WARPS_M * WARP_N * DEPTH, WARP_N, DEPTH)
            return _of_lanes(_numbers(A, dtype) @ _numbers(B, dtype).T)

        lane = numba_fibers.lane()
        rC[...] = numba_fibers.exchange((int(sA), int(sB)), product, "multiply_rows")[lane]

    return multiply


@cache
def add_product(dtype, ROWS, DEPTH, COLS):
    def add(rC, rA, shared, sB):
        def product(table):
            sB = _same({lane: at for lane, (_, at) in table.items()})
            A = np.empty((ROWS, 16, DEPTH // 16, 16), np.float32)
            registers = _numbers(np.stack([table[lane][0] for lane in range(32)]), dtype)
            A[:, A_ROW, :, A_COL] = registers.transpose(0, 3, 1, 2)
            B = _numbers(_tile(shared, sB, DEPTH, COLS), dtype)
            return _of_lanes(A.reshape(ROWS * 16, DEPTH) @ B)

        lane = numba_fibers.lane()
        rC += numba_fibers.exchange((rA, int(sB)), product, "add_product")[lane]

    return add


@cache
def tile_product(dtype, ALIGNED, *factors):
    BLOCK_M, BLOCK_N, *_ = factors

    def product(rC, shared, A, B, *sizes):
        def multiply(C, M, N, K, m0, n0, k_begin, k_end):
            k = np.arange(k_begin, k_end)
            if ALIGNED and k.size:
                _chunks(A, m0 * K + k_begin, K)
                _chunks(B, k_begin * N + n0, N)
            of_a = A[np.arange(m0, min(m0 + BLOCK_M, M))[:, None] * K + k]
            of_b = B[k[:, None] * N + np.arange(n0, min(n0 + BLOCK_N, N))]
            C[: len(of_a), : of_b.shape[1]] = _numbers(of_a, dtype) @ _numbers(of_b, dtype)

        _of_block("tile_product", factors, rC, shared, sizes, multiply)

    return product


@cache
def transposed_product(dtype, *factors):
    BLOCK_M, BLOCK_N, BLOCK_K, *_ = factors

    def product(rC, shared, A, B, *sizes):
        def multiply(C, K, N, stride, offset, m0):
            _chunks(A, m0, stride)
            for k in range(max(m0 - offset, 0) // BLOCK_K * BLOCK_K, K, BLOCK_K):
                end = min(k + BLOCK_K, K)
                # whole chunks of 8, as far as a row of the step sees; what they hold, zeros or not
                cols = min(max(-(-(seen_keys(end - 1, N, offset) - m0) // 8) * 8, 0), BLOCK_M)
                of_a = A[np.arange(k, end)[:, None] * stride + m0 + np.arange(cols)]
                of_b = B[k * BLOCK_N : end * BLOCK_N].reshape(-1, BLOCK_N)
                C[:cols] += _numbers(of_a, dtype).T @ _numbers(of_b, dtype)

        _of_block("transposed_product", factors, rC, shared, sizes, multiply)

    return product


def _of_block(operation, factors, rC, shared, sizes, multiply):
    """rC = this thread's fragments of the C of zeros to which `multiply(C, *sizes)` adds a product,
    once for the block. What the tiles leave in `shared` nobody may need."""
    BLOCK_M, BLOCK_N, BLOCK_K, WARP_M, WARP_N, STAGES = factors
    words = STAGES * (BLOCK_M + BLOCK_N) * BLOCK_K
    threads = BLOCK_M // WARP_M * (BLOCK_N // WARP_N) * 32

    def combine(table):
        sizes = _same(table, threads)
        if len(shared) < words:
            raise IndexError(f"the tiles must have {words} words, got {len(shared)}")
        shared[:words] = -1
        C = np.zeros((BLOCK_M, BLOCK_N), np.float32)
        multiply(C, *sizes)
        return [  # of the warps, which go down first
            _of_lanes(C[m : m + WARP_M, n : n + WARP_N])
            for n in range(0, BLOCK_N, WARP_N)
            for m in range(0, BLOCK_M, WARP_M)
        ]

    of_warps = numba_fibers.barrier(operation, tuple(map(int, sizes)), combine)
    rC[...] = of_warps[numba_fibers.warp()][numba_fibers.lane()]


def _numbers(words, dtype):
    """Words of 16 bits, two to a register, as float32."""
    return decoded(np.ascontiguousarray(words), dtype).astype(np.float32)


def _same(table, threads=32):
    """What all threads say, of which there must be so many."""
    first, *others = set(table.values())
    if others:
        raise RuntimeError(f"all threads must say the same, got {sorted([first, *others])}")
    if len(table) != threads:
        raise RuntimeError(f"there must be {threads} threads, got {len(table)}")
    return first


def _chunks(matrix, start, stride):
    """Refuse rows of which 16 bytes cannot be copied at once."""
    aligned(matrix)
    if start % 8 or stride % 8:
        raise ValueError(f"rows must be whole chunks of 8, got {stride} from {start} on")


@cache
def _places(rows, cols):
    """Where each element of a tile stands, from its beginning on."""
    row, col = np.indices((rows, cols))
    return row * cols + swizzle(cols)(row, col)


def _tile(shared, start, rows, cols):
    """The words of a tile that is swizzled."""
    aligned(shared[start:])
    return shared[start + _places(rows, cols)]


def _of_lanes(C):
    """Lane → its fragments of C, (rows // 16, columns // 8, 4)."""
    fragments = C.reshape(C.shape[0] // 16, 16, C.shape[1] // 8, 8)
    return fragments[:, D_ROW, :, D_COL].transpose(0, 2, 3, 1)
