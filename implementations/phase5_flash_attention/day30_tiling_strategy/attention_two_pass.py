"""Day 30: attention by tiles, which goes over the keys twice: for the sums, and for the result."""

from torch.nn.attention import SDPBackend

from implementations.common.rules import Attention
from implementations.common.spec import KernelSpec
from implementations.phase4_advanced_kernels.day27_standard_attention.attention_standard import (
    DTYPES,
    HEAD_DIMS,
    LIMITS,
    not_finite,
    sdpa,
    size,
    work,
)
from implementations.phase5_flash_attention.day29_flash_attention_theory.flash_v1_forward import (
    REFUSED,
    flash_v1_forward,
    make_inputs,
)


def attention_two_pass(q, k, v, causal, sm_scale):
    """softmax(sm_scale·q@kᵀ) @ v for each head.

    q: (B, H, M, D), k and v: (B, H, N, D), float16 or bfloat16, contiguous; D 64 or 128. causal:
    query i sees the keys j ≤ i + N - M only, so that the last one sees all. sm_scale: positive.
    Returns (B, H, M, D) of the same dtype; zeros for a query that sees no key.

    Scores are float32, and so are the sums; weights, which add up to 1, are rounded to that dtype
    for their product with v. A value that is not finite reaches the queries that see its key, and
    may reach others.
    Raises TypeError for another dtype, ValueError for another shape, stride, device or scale.
    """
    o, _ = flash_v1_forward(q, k, v, causal, sm_scale)
    return o


CHECK = (  # B, H, M, N, D, causal; tiles have up to 128 queries or keys
    *((2, 2, 3, 5, 64, True), (0, 1, 2, 2, 64, False), (1, 2, 0, 3, 64, True)),
    *((1, 2, 3, 0, 128, False), (1, 1, 1, 1, 128, True), (4, 1, 2, 17, 64, False)),
    *((1, 1, 65, 150, 64, True), (1, 1, 133, 5, 64, True), (1, 1, 130, 70, 64, False)),
    # in the last, a tile of queries of which some see no key
    *((1, 1, 40, 100, 128, True), (1, 1, 20, 12, 64, True)),
)
BENCH = tuple(
    size(*shape, D, causal)
    for D in HEAD_DIMS
    for causal in (False, True)
    for shape in ((4, 16, 512, 512), (4, 16, 4096, 4096), (1, 16, 16384, 16384))
)
HUGE = (  # many queries, in two ways: q; many keys: k and v
    *((1, 2**13 + 3, 2**12 + 67, 9, 64, False), (2**20 + 3, 1, 33, 9, 64, False)),
    (1, 1, 3, 2**25 + 67, 64, False),
)

SPEC = KernelSpec(
    name="attention_two_pass",
    day=30,
    title="Attention in two passes",
    reference=attention_two_pass,
    make_inputs=make_inputs,
    work=work,
    check_sizes=tuple(size(*s) for s in CHECK),
    bench_sizes=BENCH,
    headline=size(4, 16, 4096, 4096, 128, False),
    huge_sizes=tuple(size(*s) for s in HUGE),
    counted=tuple(size(1, 16, n, n, 128, False) for n in (1024, 2048, 4096, 8192, 16384)),
    limits=LIMITS,
    dtypes=DTYPES,
    agreement=Attention(rounded_scores=False),
    not_finite=not_finite,
    refused=REFUSED,
    machine_code=("wide loads", "wide stores", "tensor cores"),
    baselines={"sdpa_flash": sdpa(SDPBackend.FLASH_ATTENTION)},
    sources=(
        "Milakov and Gimelshein, Online normalizer calculation for softmax, 2018, section 2",
        "Dao, Fu, Ermon, Rudra and Ré, FlashAttention, 2022, section 3.1",
    ),
    ladder="attention",
)
