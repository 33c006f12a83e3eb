"""CUDA C++ on the CPU computes what a GPU does, and shows the bugs that a GPU may hide."""

import os
from fractions import Fraction

import numpy as np
import pytest
import torch

from implementations.tiers.cpu import cuda_cpp
from study.agree import verify

pytestmark = pytest.mark.skipif(not cuda_cpp.compiler(), reason=cuda_cpp.NO_COMPILER)

FLOAT16 = pytest.mark.parametrize(
    ("dtype", "types"),
    [(torch.float16, "__half, __half2"), (torch.bfloat16, "__nv_bfloat16, __nv_bfloat162")],
    ids=["float16", "bfloat16"],
)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """A cache of this module's own, and none of the caller's settings."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        patch.delenv("STUDY_SANITIZE", raising=False)
        patch.delenv("STUDY_THREAD_SEED", raising=False)
        yield folder / "triton-cuda-numba-study"


@pytest.fixture
def run(tmp_path):
    """run(source, name, block, *args): launch a kernel of a text, by default in one block."""
    path = tmp_path / "kernel.cu"

    def launch(source, name, block, *args, grid=1, shared_bytes=0):
        path.write_text(source)
        block, grid = (n if isinstance(n, tuple) else (n,) for n in (block, grid))
        cuda_cpp.launch(path, name, grid, block, args, shared_bytes)

    return launch


def line_of(mark, source):
    """The line that holds a mark, as "kernel.cu:12"."""
    return f"kernel.cu:{source[: source.index(mark)].count(chr(10)) + 1}"


# --- numbers -------------------------------------------------------------------------------------

NUMBERS = """
#include <cuda_bf16.h>
#include <cuda_fp16.h>

template <typename T, typename T2>
__global__ void arithmetic(const T* a, const T* b, const T* c, T* out, int N) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= N) return;
    const T2 pair = __hfma2(T2{a[i], b[i]}, T2{b[i], c[i]}, T2{c[i], a[i]});
    T sum = a[i];
    sum += b[i];
    const T results[] = {a[i] + b[i], a[i] - b[i], a[i] * b[i], a[i] / b[i],
                         sum,         hsqrt(a[i]), pair.x,      pair.y};
    for (int k = 0; k < 8; ++k) out[k * N + i] = results[k];
}

template <typename T, typename T2>
__global__ void convert(const float* x, const double* y, const T* z, T* from_float, T* from_double,
                        float* to_float, int N) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= N) return;
    from_float[i] = T(x[i]);
    from_double[i] = T(y[i]);
    to_float[i] = float(z[i]);
}
"""


def every(dtype):
    """Every value of a 16-bit dtype, by its bits."""
    return torch.arange(2**16).to(torch.int32).to(torch.int16).view(dtype)


def nearest(x, dtype):
    """float64 rounded to a 16-bit dtype, to nearest and of two to the even one, by looking."""
    values = every(dtype)[: 2**15].double().numpy()
    infinity = int(np.argmax(np.isinf(values)))
    values = np.append(values[:infinity], 2 * values[infinity - 1] - values[infinity - 2])
    size = np.abs(x)
    above = np.minimum(np.searchsorted(values, size), infinity)
    below = np.maximum(above - 1, 0)
    to_below, to_above = size - values[below], values[above] - size
    up = (to_above < to_below) | ((to_above == to_below) & (above % 2 == 0))
    rounded = every(dtype)[np.where(up, above, below)].double().numpy()
    return np.where(np.isnan(x), np.nan, np.copysign(rounded, x))


def equal(result, expected):
    """Whether a tensor holds these numbers, -0 as -0; one NaN is as good as another."""
    result = result.double().numpy()
    same = (result == expected) & (np.signbit(result) == np.signbit(expected))
    return bool((same | (np.isnan(result) & np.isnan(expected))).all())


@FLOAT16
@np.errstate(all="ignore")
def test_arithmetic_rounds_once(run, dtype, types):
    g = torch.Generator().manual_seed(0)
    special = every(dtype)[[0, 1, 2, 0x7F, 0x80, 0x3FF, 0x400, 0x7BFF, 0x7C00, 0x7F7F, 0x7F80]]
    special = torch.cat([special, -special])
    wild = every(dtype)[torch.randint(2**16, (3, 20_000), generator=g)]
    close = torch.randn(3, 20_000, generator=g).to(dtype)  # exponents so alike that all sums round
    a, b, c = torch.cat([torch.cartesian_prod(*[special] * 3).T, wild, close], 1).contiguous()
    out = torch.empty(8, len(a), dtype=dtype)
    kernel, N = f"arithmetic<{types}>", np.int32(len(a))
    run(NUMBERS, kernel, 1024, a, b, c, out, N, grid=len(a) // 1024 + 1)
    a, b, c = (x.double().numpy() for x in (a, b, c))
    expected = a + b, a - b, a * b, a / b, a + b, np.sqrt(a), a * b + c, b * c + a
    for row, exact in enumerate(expected[:6]):  # or so close that to round again is harmless
        assert equal(out[row], nearest(exact, dtype)), row
    for row, (x, y, z) in ((6, (a, b, c)), (7, (b, c, a))):
        # where a sum in float64 is not exact, its rounding may be the worse of the two
        got, other = out[row].double().numpy(), nearest(expected[row], dtype)
        differ = np.flatnonzero((got != other) & ~(np.isnan(got) & np.isnan(other)))
        assert len(differ) < 100 and (len(differ) > 0) == (dtype == torch.bfloat16)
        for i in differ:
            exact = Fraction(x[i]) * Fraction(y[i]) + Fraction(z[i])
            assert abs(Fraction(got[i]) - exact) < abs(Fraction(other[i]) - exact)


@FLOAT16
def test_conversions_round_to_nearest_even(run, dtype, types):
    g = torch.Generator().manual_seed(0)
    x = torch.randint(-(2**31), 2**31, (2**16,), generator=g).to(torch.int32).view(torch.float32)
    near = every(dtype).double()
    halfway = (near + near.roll(-1)) / 2  # ties, for the most part
    y = torch.where(torch.rand(2**16, generator=g) < 0.5, halfway, halfway * (1 + 2**-50))
    from_float, from_double = torch.empty(2, 2**16, dtype=dtype)
    to_float = torch.empty(2**16)
    args = x, y, every(dtype), from_float, from_double, to_float, np.int32(2**16)
    run(NUMBERS, f"convert<{types}>", 1024, *args, grid=64)
    assert equal(from_float, nearest(x.double().numpy(), dtype))
    assert equal(from_double, nearest(y.numpy(), dtype))
    assert equal(to_float, near.numpy())


FUNCTIONS = """
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <math_constants.h>

__global__ void functions(const float* x, float* out, int* bits, int4* vectors) {
    const float results[] = {expf(x[0]),      __expf(x[0]),         exp2f(x[0]),
                             logf(x[0]),      __logf(x[0]),         rsqrtf(x[0]),
                             fmaf(x[0], x[1], x[2]), __fdividef(x[0], x[1]), erff(x[0]),
                             tanhf(x[0]),     asinf(x[1]),          max(x[0], x[1]),
                             fminf(CUDART_NAN_F, x[0]), -CUDART_INF_F, __saturatef(x[0])};
    for (int k = 0; k < 15; ++k) out[k] = results[k];
    const int words[] = {__popc(0xF0F1), __clz(1), __ffs(8), (int)__brev(1),
                         (int)__umulhi(1u << 31, 6), __float_as_int(1.f), max(-1, 2),
                         (int)__funnelshift_l(1u << 31, 5, 1), warpSize, (int)sizeof(short4)};
    for (int k = 0; k < 10; ++k) bits[k] = words[k];
    vectors[1] = make_int4(vectors[0].w, __ldg(&vectors[0].z), alignof(float4), alignof(float2));
}

extern "C" __global__ void pairs(float* out, int* bits) {
    const __half2 h = __floats2half2_rn(1.f, 2.f), swapped = __halves2half2(h.y, h.x);
    const __nv_bfloat162 b = __float22bfloat162_rn(make_float2(3.f, 4.f));
    const float results[] = {__half22float2(h).y,
                             __low2float(swapped),
                             __half2float(__high2half(swapped)),
                             __low2float(__hadd2(h, __half2half2(h.y))),
                             __high2float(__hmul2(h, __float2half2_rn(0.5f))),
                             __bfloat1622float2(b).x,
                             __bfloat162float(__high2bfloat16(b)),
                             __bfloat162float(hexp(__float2bfloat16(0.f))),
                             __half2float(__hmax(h.x, h.y))};
    for (int k = 0; k < 9; ++k) out[k] = results[k];
    bits[0] = __half_as_ushort(__float2half(1.f));
    bits[1] = __bfloat16_as_ushort(__float2bfloat16_rn(1.f));
    bits[2] = h.x < h.y && !__heq(h.x, h.y) && __hisnan(__ushort_as_half(0x7E00));
}
"""


def test_functions(run):
    x = torch.tensor([1.7, 0.3, 1e-9])
    out, bits = torch.empty(15), torch.empty(10, dtype=torch.int32)
    vectors = torch.arange(8, dtype=torch.int32)
    run(FUNCTIONS, "functions", 1, x, out, bits, vectors)
    a, b, c = x.double()
    exact = [a.exp(), a.exp(), a.exp2(), a.log(), a.log(), a.rsqrt(), a * b + c, a / b, a.erf()]
    exact += [a.tanh(), b.asin(), a, a, -torch.inf, 1]
    torch.testing.assert_close(out, torch.tensor(exact).float(), rtol=3e-7, atol=0)
    one = np.float32(1).view(np.int32)
    assert bits.tolist() == [9, 31, 4, -(2**31), 3, one, 2, 11, 32, 8]
    assert vectors[4:].tolist() == [3, 2, 16, 8]
    run(FUNCTIONS, "pairs", 1, out, bits)
    assert out[:9].tolist() == [2, 2, 1, 3, 1, 3, 4, 1, 2]
    assert bits[:3].tolist() == [0x3C00, 0x3F80, 1]


# --- threads that meet ---------------------------------------------------------------------------

WARP = """
__global__ void shuffles(const double* x, double* out) {
    const int lane = threadIdx.x;
    const double results[] = {
        __shfl_sync(~0u, x[lane], 5),         __shfl_sync(~0u, x[lane], lane * 3, 8),
        __shfl_up_sync(~0u, x[lane], 3),      __shfl_up_sync(~0u, x[lane], 3, 8),
        __shfl_down_sync(~0u, x[lane], 3),    __shfl_down_sync(~0u, x[lane], 3, 8),
        __shfl_xor_sync(~0u, x[lane], 9),     __shfl_xor_sync(~0u, x[lane], 9, 8),
    };
    for (int k = 0; k < 8; ++k) out[k * 32 + lane] = results[k];
    double sum = x[lane];
    for (int bits = 16; bits > 0; bits /= 2) sum += __shfl_xor_sync(~0u, sum, bits);
    out[8 * 32 + lane] = sum;
}

__global__ void votes(const int* x, int* out) {
    const int lane = threadIdx.x, v = x[lane];
    const unsigned bits = v, odd = 0xAAAAAAAA, half = lane % 2 ? odd : ~odd;
    const int results[] = {
        __any_sync(~0u, v == 9),           __any_sync(~0u, v == 99),
        __all_sync(~0u, v < 99),           __all_sync(~0u, v < 31),
        (int)__ballot_sync(~0u, v > 9),    (int)__ballot_sync(half, v > 9),
        (int)__match_any_sync(~0u, v % 4), __reduce_add_sync(half, v),
        __reduce_min_sync(half, v),        __reduce_max_sync(half, v),
        (int)__reduce_and_sync(half, bits), (int)__reduce_or_sync(half, bits),
        (int)__reduce_xor_sync(half, bits), (int)__activemask(),
    };
    for (int k = 0; k < 14; ++k) out[k * 32 + lane] = results[k];
}
"""


def test_shuffles(run):
    x, out = torch.randn(32).double(), torch.empty(9, 32).double()
    run(WARP, "shuffles", 32, x, out)
    lane = np.arange(32)
    first = lane // 8 * 8
    sources = [
        *(lane * 0 + 5, first + lane * 3 % 8),
        *(np.where(lane < 3, lane, lane - 3), np.where(lane - 3 < first, lane, lane - 3)),
        *(np.where(lane > 28, lane, lane + 3), np.where(lane + 3 >= first + 8, lane, lane + 3)),
        *(lane ^ 9, np.where(lane ^ 9 < first + 8, lane ^ 9, lane)),
    ]
    for row, source in enumerate(sources):
        assert torch.equal(out[row], x[source]), row
    torch.testing.assert_close(out[8], x.sum().expand(32))


def test_votes_and_reductions(run):
    x = torch.arange(32, dtype=torch.int32) * 7 % 32
    out = torch.empty(14, 32, dtype=torch.int32)
    run(WARP, "votes", 32, x, out)
    v = x.tolist()

    def mask(lanes):
        return int(np.array(sum(1 << l for l in lanes)).astype(np.uint32).view(np.int32))

    for lane in range(32):
        same = range(lane % 2, 32, 2)
        halves = np.array([v[l] for l in same])
        expected = [1, 0, 1, 0, mask(l for l in range(32) if v[l] > 9)]
        expected += [mask(l for l in same if v[l] > 9)]
        expected += [mask(l for l in range(32) if v[l] % 4 == v[lane] % 4)]
        expected += [halves.sum(), halves.min(), halves.max(), np.bitwise_and.reduce(halves)]
        expected += [np.bitwise_or.reduce(halves), np.bitwise_xor.reduce(halves), mask([lane])]
        assert out[:, lane].tolist() == expected, lane


BLOCK = """
#include <cuda_fp16.h>

__global__ void barriers(int* out, float* poison, int N) {
    extern __shared__ __align__(16) int dynamic[];
    __shared__ float first[3], second;
    alignas(16) __shared__ float4 third[2];
    const int tid = threadIdx.x;
    if (tid == 0) {
        poison[4 * blockIdx.x] = first[2];
        poison[4 * blockIdx.x + 1] = second;
        poison[4 * blockIdx.x + 2] = third[1].w;
        poison[4 * blockIdx.x + 3] = __int_as_float(dynamic[N - 1]);
    }
    __syncthreads();
    if (tid < 3) first[tid] = second = 0.f, third[1].w = 0.f;
    dynamic[tid] = tid * tid;
    const int count = __syncthreads_count(tid % 3 == 0);
    const int results[] = {count, __syncthreads_and(tid < 70), __syncthreads_and(tid < 69),
                           __syncthreads_or(tid == 69), __syncthreads_or(tid == 70),
                           dynamic[N - 1 - tid]};
    for (int k = 0; k < 6; ++k) out[(blockIdx.x * 6 + k) * N + tid] = results[k];
}

__global__ void atomics(int* i, unsigned* u, float* f, __half* h, unsigned long long* l) {
    const int tid = threadIdx.x;
    atomicAdd(&i[0], tid);
    atomicSub(&i[1], tid);
    atomicMin(&i[2], -tid);
    atomicMax(&i[3], tid);
    if (tid == 5) i[8] = atomicExch(&i[4], 77);
    atomicAnd(&i[5], ~(1 << tid % 8));
    atomicOr(&i[6], 1 << tid % 8);
    atomicXor(&i[7], tid);
    atomicInc(&u[0], 9);
    atomicDec(&u[1], 9);
    atomicAdd(f, 0.5f);
    atomicAdd(h, __half(2.f));
    atomicAdd(l, 1ull << 32);
    unsigned old = u[2], seen;  // a lock-free maximum of squares
    do {
        seen = old;
        old = atomicCAS(&u[2], seen, max(seen, tid * tid));
    } while (old != seen);
    while (atomicCAS(&u[3], 0, 1) != 0) {
    }
    u[4] += 1;
    __nanosleep(100);  // others find the lock taken
    atomicExch(&u[3], 0);
}
"""


def test_barriers_and_shared_memory(run):
    N, blocks = 70, 2
    out = torch.empty(blocks, 6, N, dtype=torch.int32)
    poison = torch.zeros(blocks, 4)
    run(BLOCK, "barriers", N, out, poison, np.int32(N), grid=blocks, shared_bytes=4 * N)
    assert (poison.view(torch.int32) == -1).all()  # in the second block as in the first
    squares = torch.arange(N).flip(0) ** 2
    for result in out:
        assert result[:5, 0].tolist() == [24, 1, 0, 1, 0] and (result[:5] == result[:5, :1]).all()
        assert torch.equal(result[5], squares.int())


def test_atomics(run):
    i = torch.tensor([0, 0, 0, 0, 4, -1, 0, 0, 0], dtype=torch.int32)
    u = torch.zeros(5, dtype=torch.int32)
    f, h, l = torch.zeros(1), torch.zeros(1).half(), torch.zeros(1, dtype=torch.int64)
    run(BLOCK, "atomics", 64, i, u, f, h, l)
    assert i.tolist() == [2016, -2016, -63, 63, 77, -256, 255, 0, 4]
    assert u.tolist() == [4, 6, 63**2, 0, 64]
    assert (f.item(), h.item(), l.item()) == (32, 128, 64 << 32)


ORDER = """
__global__ void order(const float* x, float* sum, int* order, int* next) {
    __shared__ float values[96];
    const int tid = threadIdx.x;
    order[atomicAdd(next, 1)] = tid;
    values[tid] = x[tid];
    __syncthreads();
    for (int n = 48; n > 2; n /= 2) {
        if (tid < n) values[tid] += values[tid + n];
        __syncthreads();
    }
    if (tid == 0) *sum = values[0] + values[1] + values[2];
}
"""


def test_a_seed_changes_the_order_and_no_result(run, monkeypatch):
    x = torch.randn(96)
    found = []
    for seed in (None, "1", "2", "1"):
        if seed:
            monkeypatch.setenv("STUDY_THREAD_SEED", seed)
        total, order, count = torch.empty(1), torch.empty(96).int(), torch.zeros(1).int()
        run(ORDER, "order", 96, x, total, order, count)
        found.append((total.item(), order.tolist()))
    totals, orders = zip(*found, strict=True)
    assert len(set(totals)) == 1
    assert orders[0] == list(range(96)) and all(sorted(order) == orders[0] for order in orders)
    assert orders[1] == orders[3] == orders[0][::-1]
    assert orders[2] not in (orders[0], orders[1])


# Sums, then those of the squares, pass through the same shared array. Without the second barrier
# a warp, or a lane, that is ahead stores the second sum before another has read the first.
TWO_USES = """
__device__ float sum(float v) {
    for (int mask = 16; mask > 0; mask /= 2) v += __shfl_xor_sync(~0u, v, mask);
    return v;
}

// WRITER, READER: the warp that stores, that reads; -1: each.
template <int WRITER, int READER, bool BARRIER>
__global__ void warps(const float* x, float* out) {
    __shared__ float parts[8];
    const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32;
    float v = x[tid];
    for (int use = 0; use < 2; ++use, v *= v) {
        const float part = sum(v);
        if (lane == 0 && (WRITER < 0 || warp == WRITER)) parts[warp] = part;
        __syncthreads();
        if (READER < 0 || warp == READER)
            out[use * 256 + tid] = sum(parts[WRITER < 0 ? lane % 8 : WRITER]);
        if (BARRIER) __syncthreads();
    }
}

// WRITER, READER: the lane of each warp.
template <int WRITER, int READER, bool BARRIER>
__global__ void lanes(const float* x, float* out) {
    __shared__ float parts[8];
    const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32;
    float v = x[tid];
    for (int use = 0; use < 2; ++use, v *= v) {
        if (lane == WRITER) parts[warp] = v;
        __syncwarp();
        if (READER < 0 || lane == READER) out[use * 256 + tid] = parts[warp];
        if (BARRIER) __syncwarp();
    }
}
"""
TRIED = [str(run) if run else None for run in range(verify.RUNS)]  # by `verify`, as seeds


@pytest.mark.parametrize(
    "instance",
    [
        *("warps<-1, -1", "warps<0, -1", "warps<7, -1", "warps<-1, 0", "warps<-1, 7"),
        *("lanes<0, -1", "lanes<31, -1", "lanes<5, 20", "lanes<20, 5"),
    ],
)
def test_a_missing_barrier_shows_in_the_orders_that_verify_tries(run, monkeypatch, instance):
    x = torch.arange(256) % 7 + 2.0

    def outputs(barrier, seed):
        out = torch.zeros(2, 256)
        with monkeypatch.context() as patch:
            if seed:
                patch.setenv("STUDY_THREAD_SEED", seed)
            run(TWO_USES, f"{instance}, {barrier}>", 256, x, out)
        return out

    right = outputs("true", None)
    assert right.any()
    assert all(torch.equal(outputs("true", str(seed)), right) for seed in range(1, 9))
    assert not all(torch.equal(outputs("false", seed), right) for seed in TRIED)


# --- PTX -----------------------------------------------------------------------------------------

PTX = """
#include "async_copy.cuh"
#include "mma.cuh"

template <typename T>
__global__ void mma(const unsigned* A, const unsigned* B, float* D) {
    const int lane = threadIdx.x;
    unsigned a[4], b[2];
    float d[4];
    for (int j = 0; j < 4; ++j) a[j] = A[lane * 4 + j], d[j] = D[lane * 4 + j];
    for (int j = 0; j < 2; ++j) b[j] = B[lane * 2 + j];
    mma_m16n8k16<T>(d, a, b);
    for (int j = 0; j < 4; ++j) D[lane * 4 + j] = d[j];
}

__global__ void load(const uint4* rows, unsigned* plain, unsigned* transposed) {
    __shared__ uint4 tiles[32];
    const int lane = threadIdx.x;
    tiles[lane ^ 5] = rows[lane];
    __syncwarp();
    unsigned r[4], t[4];
    ldmatrix_x4(r, &tiles[lane ^ 5]);
    ldmatrix_x4_trans(t, &tiles[lane ^ 5]);
    for (int j = 0; j < 4; ++j) plain[j * 32 + lane] = r[j], transposed[j * 32 + lane] = t[j];
}

template <int PENDING>
__global__ void copy(const float4* x, float4* out) {
    __shared__ float4 s[3];
    for (int i = 0; i < 3; ++i) {
        s[i] = make_float4(1.f, 2.f, 3.f, 4.f);  // a copy may overwrite it from now on
        cp_async_16(&s[i], &x[i], 16 - 8 * i);
        cp_async_commit();
    }
    if (PENDING < 3) cp_async_wait<PENDING>();
    for (int i = 0; i < 3; ++i) out[i] = s[i];
}

template <bool WAITS>
__global__ void reuse(const float4* x, float4* out) {
    __shared__ float4 s;
    cp_async_16(&s, x, 0);
    cp_async_commit();
    if (WAITS) cp_async_wait<0>();
    s = make_float4(1.f, 2.f, 3.f, 4.f);
    __syncthreads();
    *out = s;
}

__global__ void beside(const float* x, float* out) {
    __shared__ float s[4];
    for (int i = 1; i < 4; ++i) s[i] = i;
    cp_async_4(&s[0], x, true);
    cp_async_commit();
    __syncthreads();
    for (int i = 0; i < 4; ++i) out[i] = s[i];
}
"""


@FLOAT16
def test_mma(run, dtype, types):
    g = torch.Generator().manual_seed(0)
    A, B, D = (torch.randn(*shape, generator=g) for shape in ((16, 16), (16, 8), (16, 8)))
    A, B = A.to(dtype), B.to(dtype)
    lane = np.arange(32)[:, None]
    group, t = lane // 4, lane % 4 * 2
    # PTX ISA, "Matrix fragments for mma.m16n8k16": register, then the half of it
    i = np.array([0, 0, 1, 1, 2, 2, 3, 3])
    h = np.array([0, 1, 0, 1, 0, 1, 0, 1])
    a = A[group + i % 2 * 8, t + i // 2 * 8 + h].contiguous()
    b = B[t + i[:4] * 8 + h[:4], group].contiguous()
    rows, columns = group + i[:4] * 8, t + h[:4]
    d = D[rows, columns].contiguous()
    run(PTX, f"mma<{types.split(',')[0]}>", 32, a, b, d)
    exact = D.double() + A.double() @ B.double()
    torch.testing.assert_close(d.double(), exact[rows, columns], rtol=1e-6, atol=1e-5)


def test_ldmatrix(run):
    tiles = torch.arange(4 * 8 * 8, dtype=torch.int16).view(4, 8, 8)
    plain, transposed = torch.empty(2, 4, 32, 2, dtype=torch.int16)
    run(PTX, "load", 32, tiles, plain, transposed)
    # lane l holds elements 2 * (l % 4) and the next of row l // 4
    assert torch.equal(plain.view(4, 8, 8), tiles)
    assert torch.equal(transposed.view(4, 8, 8), tiles.mT)


@pytest.mark.parametrize("pending", range(4))
def test_cp_async_arrives_at_the_wait(run, pending):
    x, out = torch.randn(3, 4), torch.zeros(3, 4)
    run(PTX, f"copy<{pending}>", 1, x, out)
    x[1, 2:] = x[2] = 0  # only the first bytes were asked for
    arrived = 3 - pending
    assert torch.equal(out[:arrived], x[:arrived]) and out[arrived:].isnan().all()


def test_cp_async_may_arrive_late(run):
    x, out = torch.zeros(4), torch.zeros(4)
    run(PTX, "reuse<true>", 1, x, out)
    assert out.tolist() == [1, 2, 3, 4]
    run(PTX, "reuse<false>", 1, x, out)
    assert out.isnan().all()


def test_a_copy_of_4_bytes_leaves_what_lies_beside_it(run):
    out = torch.zeros(4)
    run(PTX, "beside", 1, torch.ones(1), out)
    assert out[0].isnan() and out[1:].tolist() == [1, 2, 3]


CLUSTERS = """
#include "cluster.cuh"

// Every block tells every other its rank, in static and in dynamic shared memory.
template <int CASE, int CLUSTER>
__global__ void __launch_bounds__(64) __attribute__((cluster_dims(CLUSTER, 1, 1)))
clusters(float* out) {
    extern __shared__ float dynamic[];
    __shared__ float ranks[8];
    const int tid = threadIdx.x, rank = blockIdx.x % CLUSTER;
    const int first = CASE == 0 ? ranks[tid % 8] != ranks[tid % 8] : 0;  // poisoned
    if (CASE != 1) cluster_barrier_arrive();
    if (CASE == 3) cluster_barrier_arrive();
    if (CASE != 2) cluster_barrier_wait();
    if (CASE == 8 && rank == 1) return;
    if (CASE != 8 && tid < CLUSTER + (CASE == 6)) {
        store_remote(&ranks[rank], tid, rank + 1);
        store_remote(&dynamic[rank], tid, rank + 1);
    }
    if (CASE == 7 && rank == 1 && tid == 0) store_remote(out, 0, 1.f);
    if (CASE != 4) cluster_barrier();
    if (CASE == 5 && rank == 1 && tid == 0) store_remote(&ranks[0], 0, 9.f);
    float sum = first * 1000.f;
    for (int i = 0; i < CLUSTER; ++i) sum += ranks[i] * dynamic[i];
    out[blockIdx.x * 64 + tid] = sum;
}

__global__ void __attribute__((cluster_dims(2, 1, 1))) pairs(float* out) {
    cluster_barrier();
    out[blockIdx.x] = blockIdx.x;
}
"""


@pytest.mark.parametrize("seed", [None, "1"])
@pytest.mark.parametrize("cluster", [1, 2, 8])
def test_clusters_reach_each_others_shared_memory(run, monkeypatch, cluster, seed):
    if seed:
        monkeypatch.setenv("STUDY_THREAD_SEED", seed)
    out = torch.zeros(8, 64)
    run(CLUSTERS, f"clusters<0, {cluster}>", 64, out, grid=8, shared_bytes=64)
    assert (out == 1000 + sum(r * r for r in range(1, cluster + 1))).all()


@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_sanitizers_are_silent_on_a_right_cluster(run, monkeypatch, sanitizer):
    monkeypatch.setenv("STUDY_SANITIZE", sanitizer)
    out = torch.zeros(1, 4, 64)
    run(CLUSTERS, "clusters<9, 2>", 64, out, grid=4, shared_bytes=64)
    assert (out == 5).all()


def test_a_cluster_of_a_fixed_size(run):
    out = torch.zeros(4)
    run(CLUSTERS, "pairs", 1, out, grid=4)
    assert out.tolist() == [0, 1, 2, 3]


def test_a_cluster_on_a_gpu_without(run, monkeypatch):
    monkeypatch.setenv("STUDY_CAPABILITY", "8.0")
    run(CLUSTERS, "clusters<9, 1>", 64, torch.zeros(64))
    with pytest.raises(RuntimeError, match=r"clusters need compute capability 9\.0"):
        run(CLUSTERS, "clusters<9, 2>", 64, torch.zeros(128), grid=2)


BEGUN = "block 0 of the cluster perhaps takes no part yet: a thread must have waited at its barrier"
WRONG_CLUSTERS = {
    "wait without arrival": (
        1,
        "a thread must arrive at its cluster's barrier before it waits, or all may deadlock",
    ),
    "store before the barrier": (2, BEGUN),
    "arrival without wait": (
        3,
        "a thread must wait at its cluster's barrier before it arrives again, or all may deadlock",
    ),
    "no barrier at the end": (4, "block 0 of the cluster takes no part any more: it has ended"),
    "store to a block that has ended": (
        5,
        "block 0 of the cluster takes no part any more: it has ended",
    ),
    "no such block": (6, "block 2 is out of bounds for a cluster of 2"),
    "global memory": (7, "an address in shared memory is needed"),
    "block that leaves": (
        8,
        "deadlock in block (0, 0, 0): threads 0-63 wait in cluster_barrier at cluster.cuh",
    ),
}


@pytest.mark.parametrize(("case", "message"), WRONG_CLUSTERS.values(), ids=WRONG_CLUSTERS)
def test_wrong_clusters(run, case, message):
    with pytest.raises(RuntimeError) as error:
        run(CLUSTERS, f"clusters<{case}, 2>", 64, torch.zeros(128), grid=2, shared_bytes=64)
    assert message in str(error.value)


def test_a_grid_of_broken_clusters_is_refused(run):
    for cluster, blocks in ((4, 6), (16, 16)):
        error = f"clusters of 1 to 8 blocks along x, got {blocks} blocks in {cluster}s"
        with pytest.raises(RuntimeError, match=error):
            run(CLUSTERS, f"clusters<0, {cluster}>", 64, torch.zeros(1024), grid=blocks)


TURNS = """
#include "turnstile.cuh"

// Blocks append to x, in the order of the indices; FIRST: the turn of block 0.
template <int FIRST>
__global__ void append(float* x, int* counter) {
    const int turn = FIRST + blockIdx.x, tid = threadIdx.x;
    if (tid == 31) wait_turn(counter, turn);
    __syncthreads();
    const float before = x[(tid + 1) % 32];
    __syncthreads();
    x[tid] = 10 * before + turn;
    __syncthreads();
    if (tid == 0) pass_turn(counter, turn + 1);
}
"""


@pytest.mark.parametrize("sanitizer", [None, "thread"])
def test_blocks_take_turns(run, monkeypatch, sanitizer):
    if sanitizer:
        monkeypatch.setenv("STUDY_SANITIZE", sanitizer)
    x, counter = torch.zeros(32), torch.zeros(1, dtype=torch.int32)
    run(TURNS, "append<0>", 32, x, counter, grid=4)
    assert (x == 123).all()
    assert counter.item() == 4


def test_a_turn_that_never_comes(run):
    x, counter = torch.zeros(32), torch.zeros(1, dtype=torch.int32)
    with pytest.raises(RuntimeError, match="wait_turn: turn 1 never comes, at 0"):
        run(TURNS, "append<1>", 32, x, counter)


def test_a_turn_is_passed_once(run):
    source = """
#include "turnstile.cuh"
__global__ void pass_twice(int* counter) { pass_turn(counter, 1); }
"""
    with pytest.raises(RuntimeError, match="pass_turn: turn 1 does not follow, at 1"):
        run(source, "pass_twice", 2, torch.zeros(1, dtype=torch.int32))


WGMMA = """
#include "async_copy.cuh"
#include "mbarrier.cuh"
#include "wgmma.cuh"

// C (64, 256) = A[0] B + A[1] B of A (2, 64, 64) and B (64, 256): warp 4 copies, a warpgroup
// multiplies. CASE: 0 as it should be, or a bug.
template <int CASE, typename T>
__global__ void product(const T* A, const T* B, float* C) {
    extern __shared__ __align__(1024) unsigned char shared[];
    T *sA = (T*)shared, *sB = sA + 64 * 64;
    auto full = (unsigned long long*)(sB + 64 * 256) + 2 * (CASE == 8), empty = full + 1;
    const int tid = threadIdx.x, lane = tid % 32;
    if (CASE != 1 && tid == 0) mbarrier_init(full, 32), mbarrier_init(empty, 128 + (CASE == 2));
    __syncthreads();
    if (tid >= 128) {
        for (int turn = 0; turn < 2; ++turn) {
            mbarrier_wait(empty, turn ^ 1);
            for (int i = lane; i < 64 * 8; i += 32) {
                const int r = i / 8, c = i % 8 * 8, to = r * 64 + (c ^ r % 8 * 8);
                cp_async_16(sA + to, A + turn * 64 * 64 + r * 64 + c, 16);
                for (int j = 0; j < 4; ++j)
                    cp_async_16(sB + j * 64 * 64 + to, B + r * 256 + j * 64 + c, 16);
            }
            if (CASE == 3) memset(full, 0xFF, 8);
            cp_async_arrive(full);
        }
        return;
    }
    float d[32][4] = {};
    for (int turn = 0; turn < 2; ++turn) {
        mbarrier_wait(full, turn);
        if (CASE != 4) fence_async();
        wgmma_m64n256k64(d, sA, sB, CASE == 7 || turn > 0);
        if (CASE == 5 && turn == 0) mbarrier_arrive(empty), mbarrier_wait(full, 1);
        if (CASE != 6) wgmma_wait(d);
        if (CASE != 5) mbarrier_arrive(empty);
    }
    C += (tid / 32 * 16 + lane / 4) * 256 + lane % 4 * 2;
    for (int j = 0; j < 32; ++j)
        for (int e = 0; e < 4; ++e) C[e / 2 * 8 * 256 + j * 8 + e % 2] = d[j][e];
}
"""


def warpgroup_product(run, case, dtype=torch.float16):
    """What the kernel stores, and what it should: operands are small integers."""
    A, B = (torch.randint(-3, 4, shape).to(dtype) for shape in ((2, 64, 64), (64, 256)))
    C, T = torch.zeros(64, 256), "__half" if dtype == torch.float16 else "__nv_bfloat16"
    run(WGMMA, f"product<{case}, {T}>", 160, A, B, C, shared_bytes=64 * 320 * 2 + 16)
    return C, A.float().sum(0) @ B.float()


@pytest.mark.parametrize("seed", [None, "1", "2"])
@pytest.mark.parametrize("sanitizer", [None, "address", "thread"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_warpgroup_multiplies_what_others_copy(run, monkeypatch, dtype, sanitizer, seed):
    for name, value in (("STUDY_SANITIZE", sanitizer), ("STUDY_THREAD_SEED", seed)):
        if value:
            monkeypatch.setenv(name, value)
    assert torch.equal(*warpgroup_product(run, 0, dtype))


def test_a_product_may_add_to_what_there_is(run):
    assert torch.equal(*warpgroup_product(run, 7))


def test_a_product_that_is_not_waited_for(run):
    C, _ = warpgroup_product(run, 6)
    assert C.isnan().all()


WRONG_PRODUCTS = {
    "no barrier has begun": (1, "a barrier must have begun, and nothing else be stored in its"),
    "arrivals that never come": (2, "deadlock in block (0, 0, 0): threads 0-159 wait in mbarrier"),
    "a barrier overwritten": (3, "a barrier must have begun, and nothing else be stored in its"),
    "a barrier elsewhere": (8, "a barrier must be 8 bytes of shared memory, at a multiple of them"),
    "no fence": (4, "fence_async must stand between the wait for operands and their use"),
    "operands overwritten": (5, "operands must stay as they are until the product is waited for"),
}


def test_a_product_on_a_gpu_without_wgmma(run, monkeypatch):
    monkeypatch.setenv("STUDY_CAPABILITY", "8.0")
    with pytest.raises(RuntimeError, match="wgmma needs compute capability 9.0"):
        warpgroup_product(run, 0)


@pytest.mark.parametrize(("case", "message"), WRONG_PRODUCTS.values(), ids=WRONG_PRODUCTS)
def test_wrong_products_of_a_warpgroup(run, case, message):
    with pytest.raises(RuntimeError) as error:
        warpgroup_product(run, case)
    assert message in str(error.value)


SENT = """
#include "async_copy.cuh"
#include "cluster.cuh"
#include "mbarrier.cuh"

// Each of two blocks has its 32 elements of x copied twice, and tells both their sum. CASE: 0 as it
// should be, or a bug.
template <int CASE>
__global__ void __attribute__((cluster_dims(2, 1, 1))) sums(const float* x, float* out) {
    __shared__ __align__(16) float s[32];
    __shared__ float of_blocks[2][2];
    __shared__ unsigned long long copied, sent[2];
    const int tid = threadIdx.x, rank = blockIdx.x % 2;
    if (tid == 0) {
        mbarrier_init(&copied, 1), mbarrier_init(&sent[0], 1), mbarrier_init(&sent[1], 1);
        if (CASE != 1) fence_mbarrier_init();
    }
    cluster_barrier();
    for (int turn = 0; turn < 2; ++turn) {
        if (tid == 0) {
            mbarrier_expect(&copied, CASE == 2 ? 256 : 128);
            cp_async_bulk(s, x + (turn * 2 + rank) * 32 + (CASE == 3), 128, &copied);
        }
        if (CASE != 4) mbarrier_wait(&copied, turn);
        float sum = 0;
        for (int i = 0; i < 32; ++i) sum += s[i];
        if (CASE == 5 && tid == 0) cp_async_bulk(s, x, 128, &copied);
        __syncthreads();
        if (tid == 0) mbarrier_expect(&sent[turn], 8);
        if (tid < 2) store_async(&of_blocks[turn][rank], tid, sum, &sent[turn]);
        if (CASE != 6) mbarrier_wait(&sent[turn], 0);
        out[(blockIdx.x * 32 + tid) * 2 + turn] = of_blocks[turn][0] + of_blocks[turn][1];
    }
    if (CASE == 6) cluster_barrier();
}
"""


def sums_of_a_cluster(run, case):
    """What two clusters store, and what they should."""
    x, out = torch.arange(128.0), torch.zeros(2, 64, 2)
    run(SENT, f"sums<{case}>", 32, x, out, grid=4)
    return out, x.view(2, 64).sum(1).expand_as(out)


@pytest.mark.parametrize("seed", [None, "1", "2"])
@pytest.mark.parametrize("sanitizer", [None, "address", "thread"])
def test_copies_and_stores_arrive_at_a_barrier(run, monkeypatch, sanitizer, seed):
    for name, value in (("STUDY_SANITIZE", sanitizer), ("STUDY_THREAD_SEED", seed)):
        if value:
            monkeypatch.setenv(name, value)
    assert torch.equal(*sums_of_a_cluster(run, 0))


@pytest.mark.parametrize("case", [4, 5, 6], ids=["copy", "copy over what is read", "store"])
def test_what_is_not_waited_for_is_undefined(run, case):
    out, _ = sums_of_a_cluster(run, case)
    assert out.isnan().any()


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (1, "fence_mbarrier_init must follow the beginning of a barrier that counts bytes"),
        (2, "deadlock in block (0, 0, 0): threads 0-31 wait in mbarrier_wait"),
        (3, "a bulk copy must be of whole chunks of 16 bytes, at multiples of 16"),
    ],
    ids=["no fence", "bytes that never come", "alignment"],
)
def test_wrong_copies_to_a_barrier(run, case, message):
    with pytest.raises(RuntimeError) as error:
        sums_of_a_cluster(run, case)
    assert message in str(error.value)


# --- errors --------------------------------------------------------------------------------------

WRONG = """
template <int CASE>
__global__ void wrong(float* x, int n) {
    __shared__ float s[32];
    const int tid = threadIdx.x;
    if (CASE == 0 && tid < 31) __syncwarp();  // line 0
    if (CASE == 1 && tid % 2) __syncthreads();  // line 1
    if (CASE == 1 && tid % 2 == 0) __syncthreads_count(1);
    if (CASE == 2) __shfl_sync(0xF, tid, 0);  // line 2
    if (CASE == 3 && tid < 16) __shfl_down_sync(0xFFFF, tid, 8);  // line 3
    if (CASE == 4) s[tid + n] = 1.f;  // line 4
    float2* pair = (float2*)(x + n);
    if (CASE == 5) *pair = {}, pair->x = 1.f;  // line 5
    if (CASE == 6) assert(tid < 31);  // line 6
    if (CASE == 7 && tid < 16) __syncthreads();  // line 7
}
"""


DEADLOCK = "deadlock in block (0, 0, 0): "
THREAD = "thread ({}, 0, 0) of block (0, 0, 0), {{}}: "
WRONGS = {
    "warp with an ended lane": DEADLOCK
    + "threads 0-30 wait in __syncwarp at {}; threads 31 have ended",
    "barriers of two kinds": DEADLOCK + "threads 1, 3, 5, 7 wait in __syncthreads at {}; "
    "threads 0, 2, 4, 6 wait in __syncthreads_count at kernel.cu:8",
    "lane outside its mask": THREAD.format(4)
    + "lane 4 must be in the mask of __shfl_sync, 0x0000000f",
    "source outside the mask": THREAD.format(8)
    + "__shfl_down_sync: lane 8 reads lane 16, which takes no part",
    "index": THREAD.format(31) + "index 32 is out of bounds for 'float[32]'",
    "alignment": THREAD.format(0)
    + "an address of 'float2' must be a multiple of 8 bytes, got 4 beyond one",
    "assertion": THREAD.format(31) + "assert(tid < 31)",
    "barrier in a branch": DEADLOCK
    + "threads 0-15 wait in __syncthreads at {}; threads 16-31 have ended",
}


@pytest.mark.parametrize(("case", "message"), list(enumerate(WRONGS.values())), ids=WRONGS)
def test_wrong_kernels(run, case, message):
    x = torch.zeros(32)
    threads = 8 if case == 1 else 32
    with pytest.raises(RuntimeError) as error:
        run(WRONG, f"wrong<{case}>", threads, x, np.int32(1))
    text = str(error.value).replace("struct ", "").replace("float [", "float[")  # as g++ has it
    assert text == message.format(line_of(f"// line {case}", WRONG))


FINE = """
__global__ void fine(const float* x, float* out, long long n) {
    float sum;
    for (int i = 0; i < n; ++i) sum += x[i];
    out[threadIdx.x] = sum;
}
"""


def test_a_variable_without_a_value_is_noticed(run):
    out = torch.zeros(32)
    run(FINE, "fine", 32, torch.ones(4), out, np.int64(4))
    assert not (out.abs() < 1e6).any()


PARAMETER = "parameter 3 of the kernel is an integer of 8 bytes, got "
THREADS = "a block must have 1 to 1024 threads and 64 along z, got "
BLOCKS = "a grid must have 1 to 2147483647 blocks along x, 65535 along y and z, got "
SHARED = "a block must have at most 232448 bytes of shared memory, got "
REFUSED = {
    "int for long long": ({"args": (np.int32(4),)}, PARAMETER + "an integer of 4 bytes"),
    "double for long long": ({"args": (np.float64(4),)}, PARAMETER + "a float of 8 bytes"),
    "pointer for long long": ({"args": (torch.ones(4),)}, PARAMETER + "a pointer of 8 bytes"),
    "too few arguments": ({"args": ()}, "the kernel has 3 parameters, got 2"),
    "too many threads": ({"block": (32, 33)}, THREADS + "(32, 33, 1)"),
    "too many along z": ({"block": (1, 1, 65)}, THREADS + "(1, 1, 65)"),
    "no threads": ({"block": (4, 0)}, THREADS + "(4, 0, 1)"),
    "too many blocks": ({"grid": (1, 65536)}, BLOCKS + "(1, 65536, 1)"),
    "no blocks": ({"grid": 0}, BLOCKS + "(0, 1, 1)"),
    "too much shared memory": ({"shared_bytes": 232448 + 65}, SHARED),
}


@pytest.mark.parametrize(("launch", "message"), REFUSED.values(), ids=REFUSED)
def test_launches_that_a_driver_refuses(run, launch, message):
    launch = {"block": 32, "args": (np.int64(4),)} | launch
    block, args = launch.pop("block"), launch.pop("args")
    with pytest.raises(RuntimeError) as error:
        run(FINE, "fine", block, torch.ones(4), torch.zeros(32), *args, **launch)
    assert str(error.value).startswith(message)


def test_a_launch_may_use_all_shared_memory(run):
    run(FINE, "fine", 1024, torch.ones(4), torch.zeros(1024), np.int64(4), shared_bytes=227 * 1024)


def test_compile_errors_name_the_thing_and_the_line(run):
    broken = FINE.replace("sum += x[i]", "sum += not_there(x[i])")
    place = line_of("not_there", broken)
    with pytest.raises(RuntimeError, match=rf"^{place}:\d+: error: .*not_there"):
        run(broken, "fine", 32)
    with pytest.raises(RuntimeError, match="finer"):
        run(FINE, "finer", 32)


def test_no_compiler(run, monkeypatch):
    for path, cxx in (("", ""), (os.environ["PATH"], "no-such-compiler")):
        with monkeypatch.context() as patch:
            patch.setenv("PATH", path)
            patch.setenv("CXX", cxx)
            assert cuda_cpp.compiler() is None
            with pytest.raises(RuntimeError, match="no C.. compiler was found: install g.. "):
                cuda_cpp.install()
            with pytest.raises(RuntimeError, match="no C.. compiler was found: install g.. "):
                run(FINE, "fine", 32)


def test_what_goes_into_the_cache(run, cache, tmp_path, monkeypatch):
    def added(*args):
        before = set(cache.iterdir())
        run('#include "factor.cuh"\n' + FINE.replace("+= x", "+= FACTOR * x"), "fine", 1, *args)
        return len(set(cache.iterdir()) - before)

    header, out = tmp_path / "factor.cuh", torch.zeros(1)
    header.write_text("#define FACTOR 1")
    args = torch.ones(4), out, np.int64(4)
    assert added(*args) == 2  # object and library
    assert added(*args) == 0
    header.write_text("#define FACTOR 2")
    assert added(*args) == 2
    monkeypatch.setattr(cuda_cpp, "FLAGS", cuda_cpp.FLAGS + " -DANOTHER")
    assert added(*args) == 3  # the runtime too
    assert not [path for path in cache.iterdir() if path.is_dir()]  # nothing is left behind


# --- sanitizers ----------------------------------------------------------------------------------

BOUNDS = """
template <int CASE>
__global__ void bounds(const float* x, float* out, int n) {
    extern __shared__ float dynamic[];
    __shared__ float first[32], second[32];
    float local[4] = {};
    float* address = CASE == 2 ? first : CASE == 3 ? dynamic : local;
    const int tid = threadIdx.x;
    dynamic[tid] = first[tid] = second[tid] = x[tid];
    __syncthreads();
    if (CASE == 0) out[tid] = 2 * dynamic[31 - tid];
    if (CASE == 1) out[tid] = x[tid + n];  // line 1
    if (CASE >= 2) out[tid] = address[tid + n];  // line 2
}
"""


@pytest.fixture
def address(monkeypatch):
    monkeypatch.setenv("STUDY_SANITIZE", "address")


@pytest.mark.usefixtures("address")
def test_address_sanitizer_is_silent_on_a_right_kernel(run):
    storage = torch.randn(100)
    x, out = storage[10:42], storage[50:82]  # of one storage, and with a gap between
    kept, expected = storage.clone(), 2 * x.flip(0)
    run(BOUNDS, "bounds<0>", 32, x, out, np.int32(0), shared_bytes=128)
    kept[50:82] = expected
    assert torch.equal(storage, kept)
    run(BOUNDS, "bounds<0>", 32, x, x, np.int32(0), shared_bytes=128)  # in place
    assert torch.equal(x, 2 * kept[10:42].flip(0))


@pytest.mark.usefixtures("address")
@pytest.mark.parametrize(
    ("case", "kind"),
    [
        (1, "heap-buffer-overflow: read of size 4"),
        (2, "global-buffer-overflow: read of size 4"),
        (3, "heap-buffer-overflow: read of size 4"),
        (4, "stack-buffer-overflow: read of size 4"),
    ],
)
def test_address_sanitizer_finds_one_element_too_far(run, case, kind):
    x, out = torch.randn(100)[:32], torch.zeros(32)  # that the storage goes on does not help
    with pytest.raises(RuntimeError) as error:
        run(BOUNDS, f"bounds<{case}>", 32, x, out, np.int32(1), shared_bytes=128)
    line = line_of(f"// line {min(case, 2)}", BOUNDS)
    assert str(error.value).startswith(f"AddressSanitizer: {kind} at {line} by thread (")
    assert str(error.value).endswith(", 0, 0) of block (0, 0, 0)") and not out.any()


RACES = """
template <int CASE>
__global__ void race(const float* x, float* out, int* counter) {
    extern __shared__ float dynamic[];
    __shared__ float s[64];
    __shared__ bool last;
    const int tid = threadIdx.x;
    s[tid] = dynamic[tid] = x[tid];
    if (CASE != 1) __syncthreads();
    float sum = s[tid] + dynamic[tid ? tid - 1 : 0];  // line 1
    __syncthreads();
    s[tid] = sum;
    sum += __shfl_xor_sync(~0u, sum, 1);  // which orders no memory
    if (CASE != 2) __syncwarp();
    sum += s[tid ^ 1];  // line 2
    if (tid == 0) atomicAdd(&out[0], sum);
    if (tid == 0 && CASE == 3) out[1] += sum;  // line 3
    out[2 + blockIdx.x * 64 + tid] = sum;
    if (CASE != 4) __threadfence();
    __syncthreads();
    if (tid == 0) last = atomicAdd(counter, 1) == gridDim.x - 1;
    __syncthreads();
    if (last && tid < 2) out[tid] = out[2 + tid] + out[66 + tid];  // line 4
}
"""


@pytest.mark.parametrize("case", range(5))
def test_thread_sanitizer_finds_races_though_the_result_is_right(run, monkeypatch, case):
    x, out, counter = torch.ones(64), torch.zeros(130), torch.zeros(1).int()

    def launch():
        out[:2] = counter[0] = 0
        run(RACES, f"race<{case}>", 64, x, out, counter, grid=2, shared_bytes=256)

    launch()
    assert out.unique().tolist() == [6, 12]
    monkeypatch.setenv("STUDY_SANITIZE", "thread")
    if case == 0:
        launch()
        assert out.unique().tolist() == [6, 12]
    else:
        with pytest.raises(RuntimeError, match="^ThreadSanitizer: data race: ") as error:
            launch()
        assert f"{line_of(f'// line {case}', RACES)} by thread (" in str(error.value)
