"""Each program owns BLOCK consecutive elements, and makes the random words of four at a time."""

import torch
import triton
import triton.language as tl

from implementations.phase4_advanced_kernels.day25_low_memory_dropout.seeded_dropout import check

BLOCK_OF = {4: 1024, 2: 2048}  # elements of a program, by the bytes of one


@triton.jit(do_not_specialize=["threshold", "seed"])
def seeded_dropout_kernel(
    x_ptr, y_ptr,
    N,
    threshold: tl.uint32, scale, seed: tl.int64,
    BLOCK: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0).to(tl.int64)  # N may exceed 2^31
    offs = pid * BLOCK + tl.arange(0, BLOCK)
    mask = offs < N

    # the load is under way while the words are made
    x = tl.load(x_ptr + offs, mask=mask)

    offset = pid * (BLOCK // 4) + tl.arange(0, BLOCK // 4)
    low, high = offset.to(tl.uint32), (offset >> 32).to(tl.uint32)
    w0, w1, w2, w3 = tl.philox(seed, low, high, 0, 0)
    words = tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))  # w0 w1 w2 w3 w0 w1 ...

    # in fp32, so that the dtype of x is rounded to once; a NaN is dropped too
    y = tl.where(words >= threshold, x.to(tl.float32) * scale, 0.0)

    tl.store(y_ptr + offs, y, mask=mask)


def seeded_dropout(x, p, seed):
    threshold, scale, seed = check(x, p, seed)
    N = x.numel()
    y = torch.empty_like(x)
    if p == 1:  # no word is as large as the threshold
        return y.zero_()
    if N > 0:
        BLOCK = BLOCK_OF[x.element_size()]
        grid = (triton.cdiv(N, BLOCK),)
        seeded_dropout_kernel[grid](x, y, N, threshold, scale, seed, BLOCK=BLOCK)
    return y
