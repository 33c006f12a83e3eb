"""What a configuration of a product in tiles should take, before anything is run.

A multiprocessor works on its tiles one after another. Each K-step takes as long as the slower of
two paths, from the L2 and from shared memory, and the last wave as long as a full one.
"""

L2_BYTES = 6150  # that the L2 gives in a clock, to all multiprocessors of an H100 together
SHARED_BYTES = 128  # that its shared memory gives a multiprocessor in a clock


def clocks(tiles, M: int, N: int, K: int, multiprocessors: int) -> float:
    """The clocks of a product (M, K) @ (K, N), 16 bits an element.

    tiles: has BLOCK_M, BLOCK_N, BLOCK_K, num_warps, and as `warp` the part of a warp; which part
    Triton gives a warp is not asked.
    """
    steps = -(-K // tiles.BLOCK_K)
    waves = -(-(-(-M // tiles.BLOCK_M) * -(-N // tiles.BLOCK_N)) // multiprocessors)
    stage = (tiles.BLOCK_M + tiles.BLOCK_N) * tiles.BLOCK_K * 2
    read = tiles.num_warps * sum(tiles.warp) * tiles.BLOCK_K * 2  # each warp reads its rows
    from_l2 = stage / (L2_BYTES / multiprocessors)
    from_shared = (stage + read) / SHARED_BYTES
    return waves * steps * max(from_l2, from_shared)
