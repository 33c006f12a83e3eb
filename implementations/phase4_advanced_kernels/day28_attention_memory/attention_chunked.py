"""Day 28: attention takes the queries in chunks, whose scores are few enough to stay in the L2."""

from torch.nn.attention import SDPBackend

from implementations.common.check import check_attention
from implementations.common.rules import Attention
from implementations.common.spec import KernelSpec
from implementations.phase4_advanced_kernels.day27_standard_attention.attention_standard import (
    BENCH,
    DTYPES,
    HEAD_DIMS,
    LIMITS,
    REFUSED,
    attention_standard,
    make_inputs,
    not_finite,
    row_stride,
    sdpa,
    size,
    work,
)

BLOCK_M, BLOCK_N = 128, 128  # queries and keys of a tile of S
# As many elements as TILES tiles for each multiprocessor are in a chunk: of an H100 that is 35 MB,
# two thirds of its L2, and one head of 4096 queries and keys.
TILES = 8


def attention_chunked(q, k, v, causal, sm_scale):
    """softmax(sm_scale·q@kᵀ) @ v for each head, by a workspace that is linear in N.

    q: (B, H, M, D), k and v: (B, H, N, D), float16 or bfloat16, contiguous; D 64 or 128. causal:
    query i sees the keys j ≤ i + N - M only, so that the last one sees all. sm_scale: finite.
    Returns (B, H, M, D) of the same dtype; zeros for a query that sees no key.

    The scores are scaled in float32, and rounded to that dtype, beyond whose range they are
    infinite; so are the weights, which are calculated in float32. A value that is not finite
    reaches the queries that see its key, and may reach others.
    Raises TypeError for another dtype, ValueError for another shape, stride, device or scale.
    """
    return attention_standard(q, k, v, causal, sm_scale)


def check(q, k, v, causal, sm_scale):
    return check_attention(q, k, v, causal, sm_scale, DTYPES, HEAD_DIMS)


def chunk(gpu, count, M, N):
    """Heads of a chunk, of `count`, and its queries of each: some heads whole, or a part of one."""
    elements, stride = gpu.programs(TILES) * BLOCK_M * BLOCK_N, row_stride(N)
    tiles = max(1, elements // stride // BLOCK_M)  # from top to bottom
    return min(max(1, elements // (M * stride)), count), min(tiles * BLOCK_M, M)


def workspace(gpu, dtype, B, H, M, N, D, causal):
    heads, rows = chunk(gpu, B * H, M, N)
    return heads * rows * row_stride(N) * dtype.itemsize


CHECK = (  # B, H, M, N, D, causal; with two multiprocessors a chunk has 32768 elements
    *((2, 2, 3, 5, 64, True), (0, 1, 2, 2, 64, False), (1, 2, 0, 3, 64, True)),
    *((1, 2, 3, 0, 128, False), (1, 1, 1, 1, 128, True), (4, 1, 2, 17, 64, False)),
    *((3, 1, 65, 200, 64, True), (1, 2, 200, 130, 64, True), (1, 2, 129, 16, 64, False)),
    *((1, 1, 40, 200, 128, True), (1, 1, 1, 1030, 64, False)),
)

SPEC = KernelSpec(
    name="attention_chunked",
    day=28,
    title="Attention in chunks",
    reference=attention_chunked,
    make_inputs=make_inputs,
    work=work,
    check_sizes=tuple(size(*s) for s in CHECK),
    bench_sizes=BENCH,
    headline=size(4, 16, 4096, 4096, 128, False),
    huge_sizes=(size(1, 1, 3, 2**25 + 67, 64, False),),  # k and v; a chunk of q is never so large
    # no further: ncu takes a fifth of a second for a launch, and four times as many follow
    counted=tuple(size(1, 16, n, n, 128, False) for n in (1024, 2048, 4096, 8192)),
    limits=LIMITS,
    dtypes=DTYPES,
    agreement=Attention(),
    workspace=workspace,
    not_finite=not_finite,
    refused=REFUSED,
    machine_code=("wide loads", "wide stores", "tensor cores"),
    baselines={
        "sdpa_efficient": sdpa(SDPBackend.EFFICIENT_ATTENTION),
        "sdpa_math": sdpa(SDPBackend.MATH),
    },
    sources=("Rabe and Staats, Self-attention does not need O(n²) memory, 2021",),
    ladder="attention",
)
