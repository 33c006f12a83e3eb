"""Faults and where they are planted; every mutant of every kernel is rejected, or said why not.

Here one mutant of each operator is tried in every implementation; `study mutants` tries all, and
what it wrote to data/ is held against the sources.
"""

import hashlib
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import implementations
from implementations.common import registry
from implementations.tiers.cpu import cuda_cpp
from study.agree import faults, mutants, verify
from study.agree.faults import OPERATORS, Mutant, planted
from study.agree.mutants import ON_CPU, Outcome, Trials
from study.bench import store
from study.bench.cells import Cell, select
from study.bench.fingerprint import fingerprint
from study.bench.source import Source
from study.bench.worker import Worker, WorkerFailed
from study.report.data import Data
from study.tests import chosen

DATA = Path(__file__).parents[3] / "data" / "mutants.csv"
IMPLEMENTATIONS = [(k, b) for k in registry.kernels() for b in registry.BACKENDS]

FRAMES = {
    "triton": """
import triton
import triton.language as tl


@triton.jit
def kernel(x_ptr, N, BLOCK: tl.constexpr):
    # mask = offs < N; tl.dot(a, b)
    "tl.load(x, mask=m)"
    {}
""",
    "numba": """
from numba import cuda, float32

HALF = SIZE * 2
INF = float32(float("inf"))


@cuda.jit(launch_bounds=THREADS * ROWS)
def kernel(x, N):
    "cuda.syncthreads()"  # i < N
    {}


def host(x):
    if i < N:
        y = x - z
""",
    "cuda": """
// __syncthreads(); i < N
constexpr int HALF = SIZE * 2;
__global__ void __launch_bounds__(THREADS* ROWS) kernel(float* x, int N) {{
    const char* text = "i < N";
    {}
}}
""",
}


def places(operator, frame, *lines, tmp_path):
    """What an operator makes of the body of a kernel: each line that it changes, as it becomes."""
    path = tmp_path / ("kernel.cu" if frame == "cuda" else "kernel.py")
    path.write_text(FRAMES[frame].format("\n    ".join(lines)))
    source = Source(path)
    found = sorted({(n.start_byte, n.end_byte, text) for n, text in OPERATORS[operator](source)})
    return [planted(path.read_text(), *fault)[2] for fault in found]


@pytest.mark.parametrize(
    ("operator", "frame", "lines", "after"),
    [
        ("mask dropped", "triton", ["x = tl.load(p, mask=i < N, other=0.0)", "tl.store(p, x, m)"],
            ["x = tl.load(p)"]),
        ("mask dropped", "triton", ["tl.store(block, x, boundary_check=(0, 1))"],
            ["tl.store(block, x)"]),
        ("mask dropped", "triton", ["mask = (i < M)[:, None] & (j < N)[None, :]"],
            ["mask = ((i < M) | (i >= M))[:, None] & (j < N)[None, :]",
             "mask = (i < M)[:, None] & ((j < N) | (j >= N))[None, :]"]),
        ("mask dropped", "numba", ["if 0 <= i < N and VEC > 1:", "    x[i] = 0"],
            ["if 0 <= i and VEC > 1:", "if i < N and VEC > 1:"]),
        ("mask dropped", "triton", ["tl.atomic_add(p, x, mask)"], []),
        ("mask dropped", "numba", ["while i < N:", "    i += 1"], []),
        ("mask dropped", "cuda", ["if (i < M && j + 1 < N) x[i] = 0;"],
            ["if (true && j + 1 < N) x[i] = 0;", "if (i < M && true) x[i] = 0;"]),
        ("mask dropped", "cuda", ["static_assert(a < b);", "if (i == N) return;"], []),
        ("condition dropped", "triton", ["mask = mask_m[:, None] & (j < N)[None, :]"],
            ["mask = (j < N)[None, :]"]),
        ("condition dropped", "numba", ["if a > b or isnan(a):", "    x[i & 31] = 0"],
            ["if (a > b):", "if isnan(a):"]),
        ("condition dropped", "numba", ["if in_row and tx == 0 and VEC > 1:", "    x[i] = 0"],
            ["if (tx == 0) and VEC > 1:", "if in_row and VEC > 1:"]),
        ("condition dropped", "cuda", ["if (tid == 0 && row < M) x[i & 31] = a || b ? 1 : 0;"],
            ["if ((row < M)) x[i & 31] = a || b ? 1 : 0;",
             "if (tid == 0 && row < M) x[i & 31] = a ? 1 : 0;",
             "if (tid == 0 && row < M) x[i & 31] = b ? 1 : 0;"]),
        ("iteration missing", "triton", ["for k in tl.range(0, K, BLOCK, stages=2):", "    pass"],
            ["for k in tl.range(0, K - BLOCK, BLOCK, stages=2):"]),
        ("iteration missing", "numba", ["for k in range(n + 1):", "    pass"],
            ["for k in range((n + 1) - 1):"]),
        ("iteration missing", "numba", ["while d > 0:", "    d //= 2"], ["while d > 0 + 1:"]),
        ("iteration missing", "numba", ["while i < N:", "    i += STEP"], ["while i < N - STEP:"]),
        ("iteration missing", "cuda", ["for (int k = 0; k < K; k += 8) s += k;"],
            ["for (int k = 0; k < K - 8; k += 8) s += k;"]),
        ("iteration missing", "cuda", ["for (int k = N; k >= 0; --k) s += k;"],
            ["for (int k = N; k >= 0 + 1; --k) s += k;"]),
        ("iteration missing", "cuda", ["for (int d = 1; d < N; d *= 2) s += d;"],
            ["for (int d = 1; d < N / 2; d *= 2) s += d;"]),
        ("barrier missing", "cuda", ["if (a) __syncthreads();", "f();", "__syncwarp();"],
            ["if (a) ;", ";"]),
        ("barrier missing", "cuda", ["cp_async_wait<STAGES - 2>();"],
            [";", "cp_async_wait<STAGES - 2 + 1>();"]),
        ("barrier missing", "numba", ["cuda.syncthreads()", "wait = cp_async_wait(2)", "wait()"],
            ["pass", "wait = cp_async_wait(2 + 1)", "pass"]),
        ("stride wrong", "triton", ["p = x_ptr + i[:, None] * stride_m + j * 2", "p += BLOCK"],
            ["p = x_ptr + i[:, None] * (stride_m + 1) + j * 2", "p += (BLOCK + 1)"]),
        ("stride wrong", "cuda", ["float* row = x + (long long)m * N;", "s += a * b;",
                                "__shared__ float tile[M * N];"],
            ["float* row = x + (long long)m * (N + 1);"]),
        ("stride wrong", "numba", ["tile = cuda.shared.array(M * N, float32)", "at = i * cols + j"],
            ["at = i * (cols + 1) + j"]),
        ("maximum not subtracted", "triton", ["p = tl.exp2(s - m[:, None]) - tl.expand(m - 1)"],
            ["p = tl.exp2(s) - tl.expand(m - 1)"]),
        ("maximum not subtracted", "cuda", ["p = __expf((s - m) * scale) + expf(-s);"],
            ["p = __expf((s) * scale) + expf(-s);"]),
        ("accumulator stale", "triton", ["m = tl.full([8], -float('inf'), tl.float32)",
                                       "a = tl.zeros([8], tl.float32)"],
            ["m = tl.full([8], float('inf'), tl.float32)", "a = (tl.zeros([8], tl.float32) + 1)"]),
        ("accumulator stale", "triton", ['m = tl.full([8], float("-inf"), tl.float32)'],
            ['m = tl.full([8], float("inf"), tl.float32)']),
        ("accumulator stale", "numba", ["s[0] = float32(0)", "m = -INF", "s = m == -INF"],
            ["s[0] = float32(1)", "m = INF"]),
        ("accumulator stale", "cuda", ["float l = 0.f, c[2] = {}, m = -CUDART_INF_F;",
                                     "for (int i = 0; i < 9; ++i) l += i;"],
            ["float l = 1.f, c[2] = {}, m = -CUDART_INF_F;",
             "float l = 0.f, c[2] = {1}, m = -CUDART_INF_F;",
             "float l = 0.f, c[2] = {}, m = CUDART_INF_F;"]),
        ("neutral element changed", "triton", ["x = tl.load(p, mask=m, other=0.0)",
                                             "n = tl.load(p, mask=m, other=0)",
                                             'm = tl.where(m, x, -float("inf"))',
                                             "a = tl.full([8], 0.0, tl.float32)"],
            ["x = tl.load(p, mask=m, other=1.0)", "n = tl.load(p, mask=m, other=1)",
             "m = tl.where(m, x, 0.0)"]),
        ("neutral element changed", "numba", ["m, l = -INF, float32(0)", "s = float32(0)",
                                            "x = s if s > float32(0) else float32(0)",
                                            "n = 0 if m == -INF else 1"],
            ["m, l = float32(0), float32(0)", "m, l = -INF, float32(1)",
             "x = s if s > float32(0) else float32(1)"]),
        ("neutral element changed", "cuda", ["float l = 0.f, x = i < N ? y : T(0.f);",
                                           "l = reduce(l, -CUDART_INF_F, 0.f);"],
            ["float l = 0.f, x = i < N ? y : T(1.f);", "l = reduce(l, 0.f, 0.f);",
             "l = reduce(l, -CUDART_INF_F, 1.f);"]),
        ("operands swapped", "triton", ["a = tl.dot(x, y, a)", "b = 1.0 / l", "c = N - 1"],
            ["a = tl.dot(y, x, a)", "b = l / 1.0"]),
        ("operands swapped", "numba", ["mma, n = mma_m16n8k16(T), 1", "c = mma(a, b, c)"],
            ["c = mma(b, a, c)"]),
        ("operands swapped", "cuda", ["mma_m16n8k16<T>(d, a, b);", "s = a + b - c;",
                                      "k = tid / 32;"],
            ["mma_m16n8k16<T>(d, b, a);", "s = c - (a + b);"]),
        ("grid too small", "numba", ["steps = (K + BLOCK - 1) // BLOCK", "grid = -(-N // (2 * B))"],
            ["steps = (K // BLOCK)", "grid = (N // (2 * B))"]),
        ("grid too small", "triton", ["n = tl.cdiv(N, a + b)"], ["n = (N // (a + b))"]),
        ("grid too small", "cuda", ["int steps = (K + 32 - 1) / 32, n = (K + 31 - 1) / 32;"],
            ["int steps = (K / 32), n = (K + 31 - 1) / 32;"]),
        ("precision lowered", "triton", ["x = x.to(tl.float32)"], ["x = x.to(tl.float16)"]),
        ("precision lowered", "numba", ["l = float32(0)", "l += x[0]", "n += 1", "l = x[1]",
                                      "y = float32(x[2])", "mma = mma_m16n8k16(T)",
                                      "c = mma(a, b, c)"],
            ["l = float32(float16(l + x[0]))", "y = float32(float16(float32(x[2])))",
             "c = tuple(float32(float16(d)) for d in mma(a, b, c))"]),
        ("precision lowered", "cuda", ["float l = 0.f, v[2];", "v[0] = fmaxf(v[0], l);", "n += 1;",
                                     "l = float(h) + (float)h;"],
            ["v[0] = float(__half(fmaxf(v[0], l)));", "l = float(__half(float(h))) + (float)h;",
             "l = float(h) + float(__half((float)h));"]),
        ("rounded to zero", "triton", ["y = x.to(tl.float32)", "y = y.to(out_ptr.dtype.element_ty)",
                                     "p = word.to(like_ptr.dtype)"],
            ['y = y.to(out_ptr.dtype.element_ty, fp_downcast_rounding="rtz")']),
        ("rounded to zero", "numba", ["y = libdevice.float2half_rn(x)"],
            ["y = libdevice.float2half_rz(x)"]),
        ("rounded to zero", "cuda", ["out[i] = T(0.f);", "h = __float2half_rn(x);"],
            ["h = __float2half_rz(x);"]),
        ("index narrowed", "triton", ["i = (pid // n).to(tl.int64)[:, None] * N",
                                    "i += BLOCK * tl.cast(N, tl.int64)", "x = x.to(tl.int32)"],
            ["i = (pid // n)[:, None] * N", "i += BLOCK * N"]),
        ("index narrowed", "numba", ["i = (int64(pid) * N + j) * VEC", "m = int64(ty)",
                                   "x[uint64(i * N)] = 0"],
            ["i = int32((int64(pid) * N + j) * VEC)", "x[int32(uint64(i * N))] = 0"]),
        ("index narrowed", "cuda", ["const long long i = (long long)(m + r) * N, j = (int)m * N;"],
            ["const long long i = (m + r) * N, j = (int)m * N;"]),
    ],
)  # fmt: skip
def test_operator_finds_all_places_and_no_others(operator, frame, lines, after, tmp_path):
    assert places(operator, frame, *lines, tmp_path=tmp_path) == after


HOST = """
import torch
import triton


@triton.jit
def kernel(x_ptr):
    x = torch.empty(3)


def host(x, N, K):
    ALIGNED = N % 8 == 0 and K % 8 == 0
    y = torch.empty_like(x) if ALIGNED else [x.new_zeros(N)]
    return torch.add(x, y)
"""


@pytest.mark.parametrize(
    ("operator", "after"),
    [
        ("condition dropped", ["ALIGNED = (N % 8 == 0)", "ALIGNED = (K % 8 == 0)"]),
        ("tensor kept", [
            'y = (globals().get("kept") or globals().setdefault("kept", [torch.empty_like(x)]))[0] '
            "if ALIGNED else [x.new_zeros(N)]",
            'y = torch.empty_like(x) if ALIGNED else [(globals().get("kept") or '
            'globals().setdefault("kept", [x.new_zeros(N)]))[0]]',
        ]),
    ],
)  # fmt: skip
def test_operator_finds_places_in_hosts(operator, after, tmp_path):
    path = tmp_path / "host_triton.py"
    path.write_text(HOST)
    source = Source(path)
    found = sorted({(n.start_byte, n.end_byte, text) for n, text in OPERATORS[operator](source)})
    assert sorted(planted(HOST, *fault)[2] for fault in found) == sorted(after)


def test_planted_names_the_place():
    text = "é = 1\nx = f(\n    a,  # why\n    b)\n"
    start, end = len(text[: text.index("f(")].encode()), len(text.encode()) - 1
    line, before, after, content = planted(text, start, end, "g()")
    assert (line, before, after) == (2, "x = f( a, # why b)", "x = g()")
    assert content == "é = 1\nx = g()\n"
    assert planted("x = 1", 4, 5, "2") == (1, "x = 1", "x = 2", "x = 2")


@pytest.mark.parametrize(("kernel", "backend"), IMPLEMENTATIONS)
def test_mutants_are_made_once_each(kernel, backend):
    made = faults.mutants(kernel, backend)
    assert made or kernel in chosen.differentiable()  # which only joins what other days have
    assert len({mutant.key for mutant in made}) == len(made)
    assert len({(mutant.file, mutant.content) for mutant in made}) == len(made)
    texts = {path.name: path.read_text() for path in registry.files(kernel, backend)}
    for mutant in made:
        assert mutant.before != mutant.after
        assert mutant.before.split()[0] in texts[mutant.file].splitlines()[mutant.line - 1]


@pytest.mark.parametrize(
    ("error", "by"),
    [
        ("RuntimeError: deadlock in block (0, 0, 0): threads 0-30 wait in __syncwarp at k.cu:8",
            "deadlock"),
        ("RuntimeError: AddressSanitizer: heap-buffer-overflow: read of size 4 at k.cu:8 by ...",
            "addresses"),
        ("InterpreterError: RuntimeError('1 address(es) of create_masked_load lie in no tensor')",
            "addresses"),
        ("RuntimeError: ThreadSanitizer: data race: read of size 4 at k.cu:8 by thread (1, 0, 0)",
            "races"),
        ("RuntimeError: k.cuh:8: fence_mbarrier_init must follow the beginning of a barrier ...",
            "order"),
        ("RuntimeError: a barrier must have begun, and nothing else be stored in its place",
            "order"),
        ("no answer within 120 s", "time limit"),
        ("BrokenProcessPool: A process in the process pool was terminated abruptly while the ...",
            "crash"),
        ("RuntimeError: thread (9, 0, 0) of block (0, 0, 0), k.py:8: IndexError: index 9 is out "
            "of bounds for axis 0 with size 9", "indices"),
        ("RuntimeError: a grid must have 1 to 2147483647 blocks along x, ..., got (0, 1, 1)",
            "launch"),
        ("RuntimeError: k.cu:12:5: error: 'y' was not declared in this scope", "not built"),
        ("InterpreterError: ValueError('matmul: Input operand 1 has a mismatch ...')", "not built"),
    ],
)  # fmt: skip
def test_what_rejected_it(error, by):
    assert Outcome("failed", "", error).rejected_by == by
    assert Outcome("disagrees", "runs differ", error).rejected_by == "runs differ"
    assert Outcome("agrees", "", "").rejected_by == ""


# --- tried ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def worker():
    with Worker(ON_CPU) as worker:
        yield worker


@pytest.fixture
def tried(worker, tmp_path):
    """The row of one mutant; skips where its backend cannot run."""
    listed = mutants.listed()
    trials = Trials(tmp_path, mutants.known(store.read(DATA)), listed)

    def one(mutant):
        if reason := worker.call(registry.missing, mutant.backend, timeout=verify.FIRST_TIMEOUT):
            pytest.skip(reason)
        return trials(worker, mutant)

    return one


@cache
def seconds():
    """How long each mutant took when all were tried."""
    rows = store.read(DATA)
    keys = rows[mutants.KEY].itertuples(index=False, name=None)
    return dict(zip(keys, rows["seconds"], strict=True))


# every fourth: the backends by turns
@pytest.mark.parametrize(("kernel", "backend"), IMPLEMENTATIONS[:: len(registry.BACKENDS) + 1])
def test_one_mutant_is_killed_again(kernel, backend, tried):
    listed, took = mutants.listed(), seconds()
    wrong = [mutant for mutant in faults.mutants(kernel, backend) if mutant.key not in listed]
    wrong = [mutant for mutant in wrong if took.get(mutant.key, 0) < 10] or wrong
    # always the same, and of another operator in each implementation
    wrong.sort(key=lambda mutant: hashlib.sha256(repr(mutant.key).encode()).digest())
    rows = map(tried, wrong)
    row = next(row for row in rows if row["status"] not in ("not built", mutants.TOO_LARGE))
    assert row["status"] == "killed", (row["file"], row["line"], row["after"])


@cache
def timed():
    """The kernels that were timed on the machine of the report."""
    return {*registry.kernels()} - {*Data.load(DATA.parent).unmeasured}


@pytest.mark.parametrize(("kernel", "backend"), IMPLEMENTATIONS)
def test_all_mutants_were_killed_or_listed_with_a_reason(kernel, backend):
    if kernel not in timed():
        pytest.skip("it is not timed yet, and as it is tuned its mutants will be others")
    table = store.read(DATA)
    rows = table[(table["kernel"] == kernel) & (table["backend"] == backend)]
    made = {mutant.key for mutant in faults.mutants(kernel, backend)}
    tried = {tuple(key) for key in rows[mutants.KEY].itertuples(index=False)}
    if set(rows["source_hash"]) != {fingerprint(kernel, backend)} or not made <= tried:
        pytest.skip(f"not all are tried on the present source: `study mutants --kernels {kernel}`")
    assert tried == made
    assert rows.loc[rows["status"] == "survived", ["file", "line", "after"]].empty
    by_the_list = [mutants._key(row) for row in rows.to_dict("records") if mutants.is_listed(row)]
    assert {*by_the_list} == {key for key in mutants.listed() if key[:2] == (kernel, backend)}


def test_each_entry_of_the_list_is_a_mutant_with_a_reason():
    listed = mutants.listed()
    for kernel, backend in {key[:2] for key in listed}:
        made = {mutant.key for mutant in faults.mutants(kernel, backend)}
        assert {key for key in listed if key[:2] == (kernel, backend)} <= made
    assert all(len(reason.split()) > 3 for reason in listed.values())


SOURCES = {
    "_triton.py": """
import torch
import triton
import triton.language as tl


@triton.jit
def double_it_kernel(x_ptr, out_ptr, N, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < N
    x = tl.load(x_ptr + offs, mask=mask)
    tl.store(out_ptr + offs, 2 * x, mask=mask)


def double_it(x):
    N = x.numel()
    out = torch.empty_like(x)
    double_it_kernel[(triton.cdiv(N, 256),)](x, out, N, BLOCK=256)
    return out
""",
    "_cupy.py": """
from pathlib import Path

import torch

from implementations.common.cuda_cpp import CudaSource

SOURCE = CudaSource(Path(__file__).with_name("double_it.cu"))


def double_it(x):
    N = x.numel()
    out = torch.empty_like(x)
    SOURCE.launch("double_it_kernel", (-(-N // 256),), (256,), x, out, N)
    return out
""",
    ".cu": """
__global__ void double_it_kernel(const float* x, float* out, long long N) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < N) out[i] = 2.f * x[i];
}
""",
    "_numba.py": """
import torch
from numba import cuda

from implementations.common.numba_cuda import launch


@cuda.jit
def double_it_kernel(x, out):
    i = cuda.grid(1)
    if i < x.size:
        out[i] = 2 * x[i]


def double_it(x):
    N = x.numel()
    out = torch.empty_like(x)
    launch(double_it_kernel, (-(-N // 256),), (256,), x, out)
    return out
""",
}


@pytest.fixture
def double_it(new_kernel):
    """The folder of `double_it`, with its sources in every backend."""
    for suffix, text in SOURCES.items():
        (new_kernel / f"double_it{suffix}").write_text(text)
    return new_kernel


def look_below(*roots):
    implementations.__path__[1:] = roots


@pytest.fixture
def tried_there(double_it, tried, worker):
    """As `tried`, for mutants of `double_it`."""
    worker.call(look_below, str(double_it.parents[1]), timeout=verify.FIRST_TIMEOUT)
    yield tried
    worker.call(look_below, timeout=verify.FIRST_TIMEOUT)


def rewritten(backend, old, new, operator="mask dropped", suffix=".py"):
    """A mutant of `double_it` made by hand: `old` in one of its files is `new`."""
    path = next(p for p in registry.files("double_it", backend) if p.suffix == suffix)
    text = path.read_text()
    assert old in text
    content = text.replace(old, new)
    return Mutant("double_it", backend, operator, path.name, 1, old, new, 1, content)


@pytest.mark.parametrize("dtype", ["float", "__half", "__nv_bfloat16"])
def test_what_is_cut_off_is_nearer_to_zero(dtype, tmp_path):
    (line,) = places("rounded to zero", "cuda", "out[i] = T(x[i]);", tmp_path=tmp_path)
    text = f"""#include <cuda_bf16.h>
#include <cuda_fp16.h>
template <typename T> __global__ void cut(const float* x, T* out) {{
    const int i = threadIdx.x;
    {line}
}}
"""
    if not cuda_cpp.compiler():
        pytest.skip(cuda_cpp.NO_COMPILER)
    (tmp_path / "cut.cu").write_text(text)
    name = {"__half": "float16", "__nv_bfloat16": "bfloat16"}.get(dtype, "float32")
    x, out = torch.randn(64), torch.empty(64, dtype=getattr(torch, name))
    cuda_cpp.launch(tmp_path / "cut.cu", f"cut<{dtype}>", (1,), (64,), (x, out))
    near = x.to(out.dtype)
    assert (out.float().abs() <= x.abs()).all()
    assert ((out == near) | (near.float().abs() > x.abs())).all()
    assert torch.equal(out, near) == (name == "float32")


@pytest.mark.parametrize("sizes", [(), ({"N": 2**31 + 1},)], ids=["no huge size", "a huge size"])
def test_what_only_a_huge_size_shows_is_not_tried(tried, worker, double_it, monkeypatch, sizes):
    spec = registry.spec("double_it")
    monkeypatch.setattr(registry, "spec", lambda kernel: replace(spec, huge_sizes=sizes))
    monkeypatch.setattr(Trials, "tried", lambda *_: pytest.fail("it was tried"))
    (mutant,) = (m for m in faults.mutants("double_it", "cupy") if m.operator in faults.BEYOND)
    row = tried(mutant)
    assert (row["status"], row["by"]) == ("too large" if sizes else "survived", "")
    assert ("huge_sizes" in row["reason"]) == bool(sizes)


@pytest.mark.parametrize("backend", registry.BACKENDS)
def test_a_kernel_that_is_not_changed_survives(tried_there, backend):
    row = tried_there(rewritten(backend, "return out", "return out"))
    assert (row["status"], row["by"], row["size"]) == ("survived", "", "")


def test_what_no_check_looks_at_survives(tried_there):
    wrong = "if N == 12_345:\n        out += 1\n    return out"
    row = tried_there(rewritten("triton", "return out", wrong, "barrier missing"))
    assert row["status"] == "survived"


@pytest.mark.parametrize(
    ("host", "by"),
    [
        ("import os\n    os.kill(os.getpid(), 9)", "crash"),
        ("raise IndexError('index 5 is out of bounds')", "indices"),
        ("from implementations.common import nothing", "not built"),
        ("x.add_(1)\n    return out", "inputs changed"),
        ("return out.double()", "allocation"),
        ("out += 1\n    return out", "values"),
    ],
)
def test_what_a_mutant_does_to_its_process_stays_there(tried_there, host, by):
    row = tried_there(rewritten("numba", "return out", host))
    assert (row["by"] or row["status"], row["dtype"], row["size"]) == (by, "float32", "N=5")
    assert (row["status"] == "killed") == (by != "not built")
    assert row["source_hash"] == fingerprint("double_it", "numba")


@pytest.mark.parametrize("backend", registry.BACKENDS)
def test_a_tensor_that_is_kept_is_found_by_what_later_calls_allocate(tried_there, backend):
    (mutant,) = (m for m in faults.mutants("double_it", backend) if m.operator == "tensor kept")
    row = tried_there(mutant)
    assert (row["status"], row["by"], row["size"]) == ("killed", "allocation", "N=5")


THREAD = {"STUDY_SANITIZE": "thread"}
RACE = """
// Lanes exchange values through shared memory; the shuffle makes them meet, but orders nothing.
__global__ void double_it_kernel(const float* x, float* out, long long N) {
    __shared__ float s[256];
    const int tid = threadIdx.x;
    const long long first = (long long)blockIdx.x * blockDim.x;
    const long long i = first + (tid ^ 1);
    s[tid] = i < N ? 2.f * x[i] : 0.f;
    __shfl_xor_sync(~0u, tid, 1);
    BARRIER
    if (first + tid < N) out[first + tid] = s[tid ^ 1];
}
"""


def test_a_race_that_no_order_shows_is_found_by_the_sanitizer(tried_there, worker, tmp_path):
    def made(barrier):
        racy = RACE.replace("BARRIER", barrier)
        return rewritten("cupy", SOURCES[".cu"], racy, "barrier missing", ".cu")

    row = tried_there(made(";"))
    assert (row["by"], row["conditions"]) == ("races", "STUDY_SANITIZE=thread")
    root = tmp_path / "right"
    mutants.write(made("__syncwarp();"), root)
    args = Cell("double_it", "cupy", row["dtype"], row["size"]), root, THREAD
    assert worker.call(mutants.attempt, *args, timeout=verify.TIMEOUT) == Outcome("agrees", "", "")


def test_other_orders_of_threads_are_tried(tried_there):
    wrong = "import os\n    out += os.environ.get('STUDY_THREAD_SEED') == '3'\n    return out"
    row = tried_there(rewritten("numba", "return out", wrong, "barrier missing"))
    assert (row["by"], row["conditions"]) == ("runs differ", "STUDY_THREAD_SEED=3")


def test_a_rejected_kernel_has_no_mutants_to_judge(double_it, monkeypatch, tmp_path):
    trials = Trials(tmp_path, {}, {})
    monkeypatch.setattr(trials, "tried", lambda *_: Outcome("disagrees", "values", "wrong"))
    with pytest.raises(RuntimeError, match="double_it-numba-float32-N=5 must agree before its mut"):
        trials(None, faults.mutants("double_it", "numba")[0])


# --- the order of cells, the command --------------------------------------------------------------


def test_small_cells_first_and_what_killed_it_before_them(double_it):
    text = (double_it / "double_it.py").read_text()
    text = text.replace('({"N": 5},)', '({"N": 600}, {"N": 0}, {"N": 7}, {"N": 1})')
    text = text.replace("(torch.float32,)", "(torch.float32, torch.float16)")
    (double_it / "double_it.py").write_text(text)
    mutant = next(m for m in faults.mutants("double_it", "cupy") if m.operator == "mask dropped")
    found = mutants.attempts(mutant, {})
    plain = [cell for cell, conditions in found if not conditions]
    assert [cell.size for cell in plain] == 2 * ["N=1", "N=7", "N=600", "N=0"]
    assert [cell.dtype for cell in plain] == 4 * ["float32"] + 4 * ["float16"]
    assert set(plain) == set(select("double_it", "cupy").cells("check"))
    stricter = {tuple(conditions.items()) for _, conditions in found[len(plain) :]}
    assert stricter == {(("STUDY_SANITIZE", "address"),)}

    last = ("float16", "N=7", "STUDY_SANITIZE=address")
    first, *rest = mutants.attempts(mutant, {mutant.key: last})
    assert first == (Cell("double_it", "cupy", *last[:2]), {"STUDY_SANITIZE": "address"})
    assert len(rest) == len(found) - 1


def fake(status, by, hashes, seen):
    def trials(self, worker, mutant):
        seen.append(mutant.key)
        row = {name: getattr(mutant, name) for name in (*mutants.KEY, "file", "line")}
        killed = {"dtype": "float32", "size": "N=1"} if by else {}
        kept = {"conditions": "", "reason": self.listed.get(mutant.key, ""), "source_hash": hashes}
        return row | {"status": status, "by": by} | killed | kept

    return trials


@pytest.fixture
def run(double_it, monkeypatch, tmp_path):
    """`mutants.run` on `double_it` in Triton, with a given outcome and list of equivalents."""

    def call(status, by="", listed=None, source="0", **options):
        call.tried = []
        monkeypatch.setattr(Trials, "__call__", fake(status, by, source, call.tried))
        monkeypatch.setattr(mutants, "_missing", lambda worker, backend: None)
        monkeypatch.setattr(mutants, "listed", lambda: listed or {})
        return mutants.run(select("double_it", "triton"), data=tmp_path, **options)

    return call


def test_what_was_tried_on_this_source_is_kept(run, double_it, tmp_path):
    every = [mutant.key for mutant in faults.mutants("double_it", "triton")]
    now = fingerprint("double_it", "triton")
    assert run("killed", "values", source=now) and run.tried == every
    before = (tmp_path / "mutants.csv").read_bytes()
    assert run("survived") and run.tried == []  # not tried: they did not survive before
    assert (tmp_path / "mutants.csv").read_bytes() == before
    assert run("killed", "values", source=now, fresh=True) and run.tried == every

    listed = {every[0]: "it changes no result"}
    assert run("equivalent", listed=listed, source=now) and run.tried == every[:1]
    assert run("survived", listed=listed) and run.tried == []
    assert not run("survived") and run.tried == every[:1]  # of which the list says no more
    assert not run("survived", source=now) and run.tried == every[:1]  # nor may it stay so
    assert run("killed", listed=listed) and run.tried == []  # before the list says why it survived
    found = pd.read_csv(tmp_path / "mutants.csv")
    assert found["status"].tolist() == ["equivalent", *["killed"] * (len(every) - 1)]
    listed = {every[0]: "too large: it takes a matrix of other sizes"}
    assert run("killed", listed=listed) and run.tried == []

    path = double_it / "double_it_triton.py"
    path.write_text(path.read_text().replace("256", "128"))
    mutants._fingerprint.cache_clear()
    assert run("killed", "values", source="0") and len(run.tried) == len(every)


def test_an_interruption_keeps_what_was_tried(run, tmp_path, monkeypatch):
    every = [mutant.key for mutant in faults.mutants("double_it", "triton")]
    now = fingerprint("double_it", "triton")
    assert run("killed", "values", source=now)
    told = []

    def step(text):
        told.append(text)
        if len(told) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(mutants, "progress", lambda *args: nullcontext(step))
    with pytest.raises(KeyboardInterrupt):
        run("survived", source=now, fresh=True)
    found = pd.read_csv(tmp_path / "mutants.csv")
    assert [tuple(key) for key in found[mutants.KEY].itertuples(index=False)] == every
    assert found["status"].tolist() == ["survived", *["killed"] * (len(every) - 1)]


def test_what_was_tried_is_saved_on_the_way(run, tmp_path, monkeypatch):
    every = faults.mutants("double_it", "triton")
    saved = []

    def step(text):
        if saved or (tmp_path / "mutants.csv").exists():
            saved.append(len(pd.read_csv(tmp_path / "mutants.csv")))

    monkeypatch.setattr(mutants, "SAVE_EVERY", 0)
    monkeypatch.setattr(mutants, "progress", lambda *args: nullcontext(step))
    assert run("killed", "values")
    assert saved == [*range(1, len(every))]


def test_run_keeps_rows_and_knows_what_killed(run, tmp_path, capsys):
    assert run("killed", "guard zones")
    assert "guard zones 3" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "mutants.csv")
    made = faults.mutants("double_it", "triton")
    assert len(table) == len(made)
    known = mutants.known(table)
    assert known == {mutant.key: ("float32", "N=1", "") for mutant in made}
    run("killed", "values")
    assert len(pd.read_csv(tmp_path / "mutants.csv")) == len(made)


def test_run_says_what_survived(run, capsys):
    assert not run("survived")
    said = capsys.readouterr().out
    assert "double_it_triton.py:11 mask dropped survived\n  - x = tl.load(x_ptr + offs, " in said
    assert said.count(" survived\n") == len(faults.mutants("double_it", "triton"))


def test_run_says_what_is_wrong_with_the_list(run, capsys):
    key = faults.mutants("double_it", "triton")[0].key
    assert run("equivalent", listed={key: "it is the same"})
    assert not run("killed", "values", {key: "it is the same"})
    assert "is listed as equivalent, but killed by values" in capsys.readouterr().out
    gone = (*key[:3], "x = 1", "x = 2", 1)
    assert not run("killed", "values", {gone: "it is the same"})
    assert "equivalent_mutants.csv lists what is no mutant: ('double_it'" in capsys.readouterr().out
    other = ("another", *gone[1:])
    assert run("killed", "values", {other: "of another kernel"})


def test_interruption_begins_nothing_new():
    begun = []

    def slow(worker, item):
        begun.append(item)
        if item == 0:
            raise KeyboardInterrupt
        with pytest.raises((WorkerFailed, AttributeError, TypeError)):
            worker.call(np.ones, 1, timeout=60)

    with pytest.raises(KeyboardInterrupt), mutants.workers(1) as each:
        list(each(slow, range(50)))
    assert len(begun) < 3
