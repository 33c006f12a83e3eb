"""Random words by a counter (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011):
no state is kept, so any thread makes the words of any place. The twin of philox.cuh.
"""

import numpy as np
from numba import cuda, int32, uint32

from implementations.instructions.ptx import i32, i64, ptx

LOW = 0xFFFFFFFF  # the lower word of 64 bits
M0, M1 = 0xD2511F53 - 2**32, 0xCD9E8D57 - 2**32  # as int32, which registers are


@ptx("mul.wide.u32 $0, $1, $2;", i64(i32, i32))
def mul_wide(a, b):
    """a * b in 64 bits, all unsigned. The compiler would widen the factors too, and add up halves
    that are zero."""
    return np.int64(np.uint64(np.uint32(a)) * np.uint64(np.uint32(b)))


@cuda.jit(device=True)
def philox_4x32(seed, offset):
    """The words of Philox4x32-10, uint32, under the key `seed`, at the counter (offset, 0); both
    are int64, of either sign."""
    c0, c1, c2, c3 = uint32(offset & LOW), uint32(offset >> 32 & LOW), uint32(0), uint32(0)
    k0, k1 = uint32(seed & LOW), uint32(seed >> 32 & LOW)
    for _ in range(10):
        p0, p1 = mul_wide(int32(c0), int32(M0)), mul_wide(int32(c2), int32(M1))
        c0 = uint32(uint32(p1 >> 32 & LOW) ^ c1 ^ k0)
        c1 = uint32(p1 & LOW)
        c2 = uint32(uint32(p0 >> 32 & LOW) ^ c3 ^ k1)
        c3 = uint32(p0 & LOW)
        # Numba adds in 64 bits: what is above 32 is cut off again
        k0, k1 = uint32(k0 + uint32(0x9E3779B9)), uint32(k1 + uint32(0xBB67AE85))
    return c0, c1, c2, c3
