"""Products of a transposed matrix, as the gradients of keys and values are: a tile of A^T @ B, for
weights A of which a block reads some columns, from the first query that sees one of them on.

What differs from tile_product is how A arrives: its tiles have the rows that B's have, and their
fragments are transposed on their way into the registers. The twin of transposed_product.cuh.
"""

from functools import cache

from numba import cuda, float32, int32, int64, uint32

from implementations.instructions.access import shared_address
from implementations.instructions.async_copy import cp_async_commit, cp_async_wait
from implementations.instructions.attention import seen_keys
from implementations.instructions.mma import ldmatrix_x4_trans, mma_m16n8k16
from implementations.instructions.tile_product import load_part, swizzle


@cache  # a closure is Numba's template: the upper-case names are compile-time constants
def load_transposed(BLOCK_M, BLOCK_N, WARP_M, WARP_N):
    """The function that loads what comes before row i of mma: fragments of 16 columns of A, and of
    B as many times 16 columns as make all of them."""
    COUNT_B = -(-WARP_N // WARP_M)

    @cuda.jit(device=True)
    def load_transposed(rA, rB, buffer, shared, offs_a, offs_b, part, i):
        # The matrices come from rows 0 and 8 of columns 0, then of columns 8. Transposed, these are
        # columns 0 and 8 of rows 0, then of rows 8: mma wants the rows first.
        r = ldmatrix_x4_trans(shared_address(shared, offs_a[i] + part * 16 * BLOCK_M))
        rA[buffer, i, 0], rA[buffer, i, 2], rA[buffer, i, 1], rA[buffer, i, 3] = r
        for h in range(COUNT_B):
            j = i * COUNT_B + h
            if j < WARP_N // 16:
                r = ldmatrix_x4_trans(shared_address(shared, offs_b[j] + part * 16 * BLOCK_N))
                # two fragments: B's rows become the columns that mma wants
                n = 2 * j
                rB[buffer, n, 0], rB[buffer, n, 1], rB[buffer, n + 1, 0], rB[buffer, n + 1, 1] = r

    return load_transposed


@cache
def transposed_product(dtype, BLOCK_M, BLOCK_N, BLOCK_K, WARP_M, WARP_N, STAGES):
    """`product(rC, shared, A, B, K, N, stride, offset, m0)`: rC = A[:, m0:m0 + BLOCK_M]^T @ B of
    row-major A (K, N), in rows of `stride` elements, and B (K, BLOCK_N), both as int16 words: of
    each warp its WARP_M x WARP_N part, as fragments of mma.m16n8k16. Row k of A counts as zero from
    column seen_keys(k, N, offset) on. There A holds zeros up to the last multiple of 8 that any row
    of its step reaches, and beyond may hold anything.

    rC: a local float32 array (WARP_M // 16, WARP_N // 8, 4). K, N, stride, offset: int32. shared:
    the dynamic shared memory as int16, STAGES * (BLOCK_M + BLOCK_N) * BLOCK_K elements.
    dtype: of the operands, torch.float16 or torch.bfloat16. BLOCK_K: the elements of K in a step.
    STAGES: tiles of A and of B in `shared`. The block has a warp for each part, and ends with a
    barrier: the shared memory is free then.

    Tiles travel to shared memory STAGES - 1 steps ahead, in as many parts as a step has
    multiplications, one before each; fragments travel to registers one multiplication ahead, some
    before each row of mma."""
    THREADS = BLOCK_M // WARP_M * (BLOCK_N // WARP_N) * 32
    PARTS = BLOCK_K // 16  # multiplications of a step
    assert PARTS % 2 == 0 and STAGES > 1, "fragments and tiles are loaded ahead"
    A_TILE, B_TILE = BLOCK_K * BLOCK_M, BLOCK_K * BLOCK_N
    STAGE_SIZE = A_TILE + B_TILE  # a tile of A, then a tile of B
    FRAGMENTS_M, FRAGMENTS_N = WARP_M // 16, WARP_N // 8
    COLUMNS_A, COLUMNS_B = WARP_M // 16, WARP_N // 16
    mma, swizzle_a, swizzle_b = mma_m16n8k16(dtype), swizzle(BLOCK_M), swizzle(BLOCK_N)
    load_a = load_part(True, BLOCK_K, BLOCK_M, THREADS // (BLOCK_M // 8), PARTS)
    load_b = load_part(True, BLOCK_K, BLOCK_N, THREADS // (BLOCK_N // 8), PARTS)
    load_next = load_transposed(BLOCK_M, BLOCK_N, WARP_M, WARP_N)
    cp_async_wait_stage, cp_async_wait_all = cp_async_wait(STAGES - 2), cp_async_wait(0)

    @cuda.jit(device=True)
    def product(rC, shared, A, B, K, N, stride, offset, m0):
        tid = cuda.threadIdx.x
        lane, warp = tid % 32, tid // 32
        warp_m = warp % (BLOCK_M // WARP_M) * WARP_M
        warp_n = warp // (BLOCK_M // WARP_M) * WARP_N
        # the step of the first row that sees column m0: those before see none of the tile
        k_begin = int32(max(m0 - offset, 0) // BLOCK_K * BLOCK_K)
        steps = (K - k_begin + BLOCK_K - 1) // BLOCK_K

        # this thread's first chunk of each tile
        row_a, col_a = tid // (BLOCK_M // 8), tid % (BLOCK_M // 8) * 8
        row_b, col_b = tid // (BLOCK_N // 8), tid % (BLOCK_N // 8) * 8
        src_a = int64(k_begin + row_a) * stride + m0 + col_a
        src_b = int64(k_begin + row_b) * BLOCK_N + col_b
        dst_a = row_a * BLOCK_M + swizzle_a(row_a, col_a)
        dst_b = A_TILE + row_b * BLOCK_N + swizzle_b(row_b, col_b)

        for step in range(STAGES - 1):
            # Chunks of which no row of the step sees a column are not read: zero times what lies
            # there need not be zero.
            k0 = k_begin + int32(step * BLOCK_K)
            seen = seen_keys(int32(min(k0 + BLOCK_K, K) - 1), N, offset)
            for part in range(PARTS):
                to = step * STAGE_SIZE
                cols_left = int32(seen - m0 - col_a)
                load_a(part, shared, dst_a + to, A, src_a, K - k0 - row_a, cols_left, stride)
                load_b(part, shared, dst_b + to, B, src_b, K - k0 - row_b, BLOCK_N, BLOCK_N)
            cp_async_commit()
            src_a += int64(BLOCK_K) * stride
            src_b += BLOCK_K * BLOCK_N
        # For an ldmatrix, lane l gives the address of row l % 16, column 0 or 8, of A as of B. The
        # addresses are computed once for each 16 columns of a tile, and then moved from stage to
        # stage.
        frag_row, frag_col = lane % 16, lane // 16 * 8
        offs_a, offs_b = cuda.local.array(COLUMNS_A, int32), cuda.local.array(COLUMNS_B, int32)
        for i in range(COLUMNS_A):
            col = warp_m + i * 16 + frag_col
            offs_a[i] = frag_row * BLOCK_M + swizzle_a(frag_row, col)
        for j in range(COLUMNS_B):
            col = warp_n + j * 16 + frag_col
            offs_b[j] = A_TILE + frag_row * BLOCK_N + swizzle_b(frag_row, col)
        rA = cuda.local.array((2, FRAGMENTS_M, 4), int32)  # the fragments in use and the next
        rB = cuda.local.array((2, FRAGMENTS_N, 2), int32)
        # the wait is for this thread's copies, the barrier for those of all others
        cp_async_wait_stage()
        cuda.syncthreads()  # stage 0 has arrived for all
        for i in range(FRAGMENTS_M):
            load_next(rA, rB, 0, shared, offs_a, offs_b, 0, i)

        # fp32: products of 16 bits are exact, and a sum in 16 bits would stop growing
        for i in range(FRAGMENTS_M):
            for j in range(FRAGMENTS_N):
                for e in range(4):
                    rC[i, j, e] = float32(0)
        for step in range(steps):
            step_ahead = step + STAGES - 1  # whose tiles are being loaded: beyond the last, zeros
            # The stage that is filled is that of the step before: the barrier that ended it says
            # that all warps have left the stage.
            stage, k0 = uint32(step_ahead) % uint32(STAGES), int32(k_begin + step_ahead * BLOCK_K)
            seen = seen_keys(int32(min(k0 + BLOCK_K, K) - 1), N, offset)
            rows_left_a, rows_left_b = int32(K - k0 - row_a), int32(K - k0 - row_b)
            cols_left = int32(seen - m0 - col_a)
            to_a, to_b = int32(dst_a + stage * STAGE_SIZE), int32(dst_b + stage * STAGE_SIZE)
            for part in range(PARTS):
                buffer = part % 2
                load_a(part, shared, to_a, A, src_a, rows_left_a, cols_left, stride)
                load_b(part, shared, to_b, B, src_b, rows_left_b, BLOCK_N, BLOCK_N)
                # the last fragments of this stage are in registers: the next are of the next stage
                if part == PARTS - 1:
                    cp_async_commit()
                    src_a += int64(BLOCK_K) * stride
                    src_b += BLOCK_K * BLOCK_N
                    cp_async_wait_stage()
                    cuda.syncthreads()  # the next stage has arrived for all, and all have left this
                    last = uint32(step) % uint32(STAGES) == STAGES - 1
                    move = int32(-(STAGES - 1) * STAGE_SIZE if last else STAGE_SIZE)
                    for i in range(COLUMNS_A):
                        offs_a[i] += move
                    for j in range(COLUMNS_B):
                        offs_b[j] += move
                for i in range(FRAGMENTS_M):
                    load_next(rA, rB, buffer ^ 1, shared, offs_a, offs_b, (part + 1) % PARTS, i)
                    a = (rA[buffer, i, 0], rA[buffer, i, 1], rA[buffer, i, 2], rA[buffer, i, 3])
                    for j in range(FRAGMENTS_N):
                        # to and fro: a row begins with the fragment of B that the last ended with
                        n = j if i % 2 == 0 else FRAGMENTS_N - 1 - j
                        b = (rB[buffer, n, 0], rB[buffer, n, 1])
                        c = mma(a, b, (rC[i, n, 0], rC[i, n, 1], rC[i, n, 2], rC[i, n, 3]))
                        rC[i, n, 0], rC[i, n, 1], rC[i, n, 2], rC[i, n, 3] = c
        # copies of steps beyond the last write zeros to the tiles: they must end as well
        cp_async_wait_all()
        cuda.syncthreads()  # nobody needs the tiles any more

    return product
