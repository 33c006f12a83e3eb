"""Blocks that pass a place in global memory one after another, in an order that is always the same:
a counter says whose turn it is. A block may wait for those of a lower index only: GPUs begin these
first, though CUDA does not promise it, so that some block can always go on. The twin of
turnstile.cuh.
"""

from numba.cuda import types

from implementations.instructions.ptx import i32, i64, kind, ptx

LOOK = "ld.acquire.gpu.global.s32 now, [$0]; setp.ne.s32 waits, now, $1; @waits bra look;"


@kind("barrier")
@ptx(
    f"{{ .reg .b32 now; .reg .pred waits; look: {LOOK} }}",
    types.void(i64, i32),
    memory=True,
)
def wait_turn(counter, turn):
    """Wait until the counter is `turn`. One thread of a block waits; after a barrier all of them
    see what the blocks before have stored."""
    if counter[0] != turn:  # blocks run one after another, to their ends
        raise RuntimeError(f"wait_turn: turn {turn} never comes, at {counter[0]}")
    counter[0] = ~turn  # who passes a turn must have waited for it


@kind("barrier")
@ptx("st.release.gpu.global.s32 [$0], $1;", types.void(i64, i32), memory=True)
def pass_turn(counter, turn):
    """Let the counter be `turn`, the next one. One thread of a block does it, after a barrier: what
    all of them have stored is seen by whom it lets go on."""
    if counter[0] != ~(turn - 1):  # on a GPU whoever is late would take back a later turn
        raise RuntimeError(f"pass_turn: turn {turn} does not follow, at {counter[0]}")
    counter[0] = turn
