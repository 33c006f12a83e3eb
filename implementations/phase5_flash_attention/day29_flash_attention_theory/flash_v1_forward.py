"""Day 29: attention in the order of the first FlashAttention: keys outside, queries inside."""

from torch.nn.attention import SDPBackend

from implementations.common.check import MAX_SCALE, check_attention
from implementations.common.rules import Attention, LogSumExp
from implementations.common.spec import KernelSpec
from implementations.phase4_advanced_kernels.day27_standard_attention import attention_standard
from implementations.phase4_advanced_kernels.day27_standard_attention.attention_standard import (
    DTYPES,
    HEAD_DIMS,
    LIMITS,
    not_finite,
    sdpa,
    size,
)
from implementations.phase5_flash_attention.day32_flash_forward import flash_forward

BLOCK_M, BLOCK_N = 128, 128  # queries and keys of a tile


def flash_v1_forward(q, k, v, causal, sm_scale):
    """softmax(sm_scale·q@kᵀ) @ v for each head, and the logarithm of the sum of its exponentials.

    q: (B, H, M, D), k and v: (B, H, N, D), float16 or bfloat16, contiguous; D 64 or 128. causal:
    query i sees the keys j ≤ i + N - M only, so that the last one sees all. sm_scale: positive.
    Returns o, (B, H, M, D) of the same dtype, and lse, (B, H, M) of float32. A query that sees no
    key gets zeros and -inf.

    Scores are float32, and so are the sums, which lie in memory between two tiles of keys; weights
    are rounded to that dtype for their product with v. A value that is not finite reaches the
    queries that see its key, and may reach others.
    Raises TypeError for another dtype, ValueError for another shape, stride, device or scale.
    """
    return flash_forward.flash_forward(q, k, v, causal, sm_scale)


def check(q, k, v, causal, sm_scale):
    scale = check_attention(q, k, v, causal, sm_scale, DTYPES, HEAD_DIMS)
    if not 0 < scale <= MAX_SCALE:
        raise ValueError(f"sm_scale must be positive and at most {MAX_SCALE:g}, got {scale}")
    return scale


def make_inputs(dtype, device, seed, B, H, M, N, D, causal):
    return flash_forward.make_inputs(dtype, device, seed, B, H, 1, M, N, D, causal)


def work(dtype, B, H, M, N, D, causal):
    return flash_forward.work(dtype, B, H, 1, M, N, D, causal)


def traffic(dtype, B, H, M, N, D, causal):
    """The compulsory bytes, but q for each tile of keys that a query sees any of, and for each of
    those o, m and l in float32, which are written and read."""
    visits = sum(min(M, N - n) if causal else M for n in range(0, N, BLOCK_N))
    compulsory = work(dtype, B, H, M, N, D, causal).bytes
    again = (visits - M) * D * dtype.itemsize
    return compulsory + B * H * (again + 2 * visits * 4 * (D + 2))


def padded(M):
    """Rows of whole tiles of queries."""
    return -(-M // BLOCK_M) * BLOCK_M


def workspace(gpu, dtype, B, H, M, N, D, causal):
    return 4 * B * H * padded(M) * (D + 2)


REFUSED = attention_standard.REFUSED | {
    "no scale": lambda q, k, v, causal, sm_scale: (q, k, v, causal, 0),
    "large scale": lambda q, k, v, causal, sm_scale: (q, k, v, causal, 2.0**101),
}
CHECK = (  # B, H, M, N, D, causal
    *((2, 2, 3, 5, 64, True), (0, 1, 2, 2, 64, False), (1, 2, 0, 3, 64, True)),
    *((1, 2, 3, 0, 128, False), (1, 1, 1, 1, 128, True), (4, 1, 2, 17, 64, False)),
    *((1, 1, 133, 150, 64, True), (1, 1, 133, 5, 64, True), (1, 1, 130, 129, 64, False)),
    (1, 1, 20, 260, 128, True),
)
BENCH = tuple(
    size(4, 16, n, n, D, causal)
    for D in HEAD_DIMS
    for causal in (False, True)
    for n in (512, 1024, 2048, 4096)
)
HUGE = (  # many queries, in two ways: q; many keys: k and v
    *((1, 2**19 + 3, 67, 9, 64, False), (2**20 + 3, 1, 33, 9, 64, False)),
    (2**20 + 3, 1, 3, 33, 64, False),
)

SPEC = KernelSpec(
    name="flash_v1_forward",
    day=29,
    title="Flash attention, keys outside",
    reference=flash_v1_forward,
    make_inputs=make_inputs,
    work=work,
    check_sizes=tuple(size(*s) for s in CHECK),
    bench_sizes=BENCH,
    headline=size(4, 16, 4096, 4096, 128, False),
    huge_sizes=tuple(size(*s) for s in HUGE),
    counted=tuple(size(1, 16, n, n, 128, False) for n in (1024, 2048, 4096, 8192, 16384)),
    limits=LIMITS,
    dtypes=DTYPES,
    agreement=(Attention(rounded_scores=False), LogSumExp()),
    traffic=traffic,
    workspace=workspace,
    not_finite=not_finite,
    refused=REFUSED,
    machine_code=("wide loads", "wide stores", "tensor cores"),
    baselines={"sdpa_flash": sdpa(SDPBackend.FLASH_ATTENTION)},
    sources=("Dao, Fu, Ermon, Rudra and Ré, FlashAttention, 2022, algorithm 1",),
    ladder="attention",
)
