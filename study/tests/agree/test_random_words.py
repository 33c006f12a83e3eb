"""Random words: the same from all, of every counter and key; and what dropout makes of them."""

import math

import pytest
import torch
import triton
import triton.language as tl
from numba import cuda, int64

from implementations import DEVICE, TORCH_DEVICE
from implementations.common import registry
from implementations.common.cuda_cpp import CudaSource
from implementations.common.numba_cuda import launch
from implementations.phase4_advanced_kernels.day24_dropout import dropout as reference
from study.tests import chosen
from study.tests.agree import test_limits

last_block, numbers = test_limits.last_block, test_limits.numbers  # fixtures

LOW = 2**32 - 1
OFFSETS = [0, 1, 2, 12345, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**33 + 7, 2**62 + 3]
SEEDS = [0, 1, 16, 2**31 + 3, 2**32 - 1, 2**32 + 9, 2**63 - 1, -1, -(2**31), -(2**63)]
CUDA = """
#include "philox.cuh"
__global__ void words_kernel(const long long* offsets, long long* out, long long seed) {
    const int i = threadIdx.x;
    const Words words = philox_4x32(seed, offsets[i]);
    for (int j = 0; j < 4; ++j) out[4 * i + j] = words.v[j];
}
"""


def philox(counter, key):
    """Philox4x32-10 as its authors have it, of four words and two."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [p1 >> 32 ^ c[1] ^ k[0], p1 & LOW, p0 >> 32 ^ c[3] ^ k[1], p0 & LOW]
        k = [k[0] + 0x9E3779B9 & LOW, k[1] + 0xBB67AE85 & LOW]
    return c


def words_at(seed, offset):
    return philox((offset & LOW, offset >> 32 & LOW, 0, 0), (seed & LOW, seed >> 32 & LOW))


@pytest.mark.parametrize(
    ("word", "known"),
    [
        (0, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        (LOW, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    ],
    ids=["zeros", "ones"],
)
def test_known_answers(word, known):
    """Those of the authors' kat_vectors."""
    assert philox([word] * 4, [word] * 2) == known


@triton.jit(do_not_specialize=["seed"])
def words_kernel(offset_ptr, out_ptr, seed: tl.int64, N: tl.constexpr):
    i = tl.arange(0, N)
    offset = tl.load(offset_ptr + i)
    words = tl.philox(seed, offset.to(tl.uint32), (offset >> 32).to(tl.uint32), 0, 0)
    for j in tl.static_range(4):
        tl.store(out_ptr + 4 * i + j, words[j].to(tl.int64))


def by_triton(seed, offsets, out, tmp_path):
    words_kernel[(1,)](offsets, out, seed, N=len(offsets))


def by_cupy(seed, offsets, out, tmp_path):
    path = tmp_path / "words.cu"
    path.write_text(CUDA)
    CudaSource(path).launch("words_kernel", (1,), (len(offsets),), offsets, out, seed)


def by_numba(seed, offsets, out, tmp_path):
    from implementations.instructions.philox import philox_4x32  # on the tier that is in place

    @cuda.jit
    def kernel(offsets, out, seed):
        i = cuda.threadIdx.x
        words = philox_4x32(seed, offsets[i])
        for j in range(4):
            out[i, j] = int64(words[j])

    launch(kernel, (1,), (len(offsets),), offsets, out, seed)


BY = {"triton": by_triton, "cupy": by_cupy, "numba": by_numba}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("backend", registry.BACKENDS)
def test_words_are_philox(backend, seed, tmp_path):
    if reason := registry.missing(backend):
        pytest.skip(reason)
    offsets = torch.tensor((OFFSETS * 2)[:16], device=TORCH_DEVICE)
    out = torch.empty((len(offsets), 4), dtype=torch.int64, device=TORCH_DEVICE)
    BY[backend](seed, offsets, out, tmp_path)
    assert out.tolist() == [words_at(seed, offset) for offset in offsets.tolist()]


@pytest.mark.parametrize("seed", [*SEEDS, 2**64 - 1])
def test_reference_words_are_philox(seed):
    found = reference.philox_4x32(seed, torch.tensor(OFFSETS))
    assert found.tolist() == [words_at(seed, offset) for offset in OFFSETS]


@pytest.mark.parametrize("p", [0.0, 2**-20, 0.1, 0.5, 0.75, 1 - 2**-20, 1.0])
def test_keep_rate_is_binomial(p):
    for seed in (0, -1, 2**40 + 17):
        keep = reference.kept(torch.ones(2**20), p, seed)
        for part in (keep, keep[:1000], *keep.view(-1, 4).T):  # each word of the four too
            count, n = int(part.sum()), part.numel()
            assert abs(count - n * (1 - p)) <= 6 * math.sqrt(n * p * (1 - p)) + 1e-9


def kept(host, x, p, seed):
    """Which elements of ones a kernel keeps: where it says so, and where its result is not 0."""
    outputs = host(x, p, seed)
    y, *keep = outputs if isinstance(outputs, tuple) else (outputs,)
    assert all(mask.equal(y != 0) for mask in keep)
    return y != 0


@pytest.mark.parametrize("shape", [(), (3, 0, 2), (5, 7, 11), (1031,)], ids=str)
@pytest.mark.parametrize("seed", [3, -5, 2**63 + 1])
def test_all_keep_the_same(shape, seed):
    x = torch.ones(shape, device=TORCH_DEVICE)
    for dtype in registry.spec(chosen.random()[0]).dtypes:
        hosts = [
            registry.load(kernel, backend)
            for kernel in chosen.random()
            for backend in registry.BACKENDS
            if not registry.missing(backend)
        ]
        first, *others = [kept(host, x.to(dtype), 0.3, seed) for host in hosts]
        assert first.shape == shape
        assert all(other.equal(first) for other in others)
        signed = seed - 2**64 if seed >= 2**63 else seed
        assert kept(hosts[0], x.to(dtype), 0.3, signed % 2**64).equal(first)


@pytest.mark.parametrize("backend", registry.BACKENDS)
@pytest.mark.parametrize("kernel", chosen.random())
def test_is_its_own_backward(kernel, backend):
    """Of dy it gives dx, as autograd has it of the same mask."""
    if reason := registry.missing(backend):
        pytest.skip(reason)
    host = registry.load(kernel, backend)
    x, dy = (torch.randn(777, device=TORCH_DEVICE) for _ in range(2))
    mask = kept(host, torch.ones_like(x), 0.5, 9)
    x.requires_grad_()
    (dx,) = torch.autograd.grad(torch.where(mask, x / 0.5, 0), x, dy)
    outputs = host(dy, 0.5, 9)
    assert (outputs[0] if isinstance(outputs, tuple) else outputs).equal(dx)


@pytest.mark.skipif(DEVICE != "cpu", reason="it needs memory that takes no room")
@pytest.mark.parametrize("backend", registry.BACKENDS)
@pytest.mark.parametrize("kernel", chosen.random())
@pytest.mark.parametrize("N", [2**31 + 4115, 2**34 + 4115], ids=["2^31", "2^34"])
def test_words_of_the_last_block_of_a_huge_size(kernel, backend, N, numbers, last_block):
    if reason := registry.missing(backend):
        pytest.skip(reason)
    p, seed, x = 0.5, 2**63 + 5, numbers(torch.empty(N, dtype=torch.bfloat16, device="meta"))
    last_block(True)
    with test_limits.Untouched():
        outputs = registry.load(kernel, backend)(x, p, seed)
    y, *keep = outputs if isinstance(outputs, tuple) else (outputs,)
    places = range(N - N % 8 - 8, N)  # a whole pack, and what is left over
    wanted = [words_at(seed, i // 4)[i % 4] >= 2**31 for i in places]
    assert 0 < sum(wanted) < len(wanted)
    assert all(mask[list(places)].tolist() == wanted for mask in keep)
    assert y[list(places)].equal(torch.where(torch.tensor(wanted), 2 * x[list(places)], 0))
