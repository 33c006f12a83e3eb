"""Each program owns BLOCK consecutive elements; the function is one of libdevice."""

import torch
import triton
import triton.language as tl
from triton.language.extra import libdevice

from implementations.phase4_advanced_kernels.day26_extern_functions.asin import check

BLOCK_OF = {4: 1024, 2: 2048}  # elements of a program, by the bytes of one


@triton.jit
def asin_kernel(x_ptr, y_ptr, N, BLOCK: tl.constexpr):
    pid = tl.program_id(0).to(tl.int64)  # N may exceed 2^31
    offs = pid * BLOCK + tl.arange(0, BLOCK)
    mask = offs < N

    x = tl.load(x_ptr + offs, mask=mask).to(tl.float32)

    # the function is that of fp32, and its result rounded once, when it is stored
    tl.store(y_ptr + offs, libdevice.asin(x), mask=mask)


def asin(x):
    check(x)
    N = x.numel()
    y = torch.empty_like(x)
    if N > 0:
        BLOCK = BLOCK_OF[x.element_size()]
        grid = (triton.cdiv(N, BLOCK),)
        # or libdevice takes subnormal numbers for 0
        asin_kernel[grid](x, y, N, BLOCK=BLOCK, enable_reflect_ftz=False)
    return y
