"""Each program owns BLOCK consecutive elements, and makes the random words of four at a time."""

import torch
import triton
import triton.language as tl

from implementations.phase4_advanced_kernels.day24_dropout.dropout import check

NUM_WARPS = 4


@triton.jit(do_not_specialize=["threshold", "seed"])
def dropout_kernel(
    x_ptr, y_ptr, keep_ptr,
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

    keep = words >= threshold
    # in fp32, so that the dtype of x is rounded to once; a NaN is dropped too
    y = tl.where(keep, x.to(tl.float32) * scale, 0.0)

    tl.store(y_ptr + offs, y, mask=mask)
    tl.store(keep_ptr + offs, keep, mask=mask)


def dropout(x, p, seed):
    threshold, scale, seed = check(x, p, seed)
    N = x.numel()
    y = torch.empty_like(x)
    keep = torch.empty_like(x, dtype=torch.bool)
    if p == 1:  # no word is as large as the threshold
        return y.zero_(), keep.zero_()
    if N > 0:
        # a pack of 16 bytes a thread, so that x, y and the mask are laid out over threads alike
        BLOCK = NUM_WARPS * 32 * 16 // x.element_size()
        args = x, y, keep, N, threshold, scale, seed
        dropout_kernel[(triton.cdiv(N, BLOCK),)](*args, BLOCK, num_warps=NUM_WARPS)
    return y, keep
