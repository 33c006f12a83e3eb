"""Counts of small files, recounted by hand; and that two parsers agree on every real one."""

import re

import pandas as pd
import pytest

from implementations.common import registry
from study.bench import store
from study.bench.cells import select
from study.bench.source import Source, lex
from study.code import complexity

TRITON = '''"""A docstring is no token."""

import torch
import triton
import triton.language as tl

BLOCK = 8  # neither is a comment


@triton.autotune(configs=[triton.Config({}, num_warps=4)], key=["N"])
@triton.jit
def scale_kernel(x_ptr, out_ptr, N, BLOCK: tl.constexpr):
    """Nor this."""
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offs, mask=offs < N, other=0.0)
    y = tl.where(x > 0, x, -x)
    tl.store(out_ptr + offs, y, mask=offs < N)


def scale(x):
    out = torch.empty_like(x)
    if x.numel() > 0 and out.is_contiguous():
        scale_kernel[(1,)](x, out, x.numel(), BLOCK=BLOCK)
    return out
'''

CUDA = """#include <cuda_fp16.h>
constexpr int BLOCK = 32;

__global__ void scale_kernel(const float* x, float* out, int N) {
    __shared__ float s[BLOCK], t;
    const int lane = threadIdx.x % 32;  // a comment
    float v = 0.f;
    for (int i = lane; i < N; i += BLOCK) {
        if (x[i] > v && i + 1 < N) v += __shfl_xor_sync(0xffffffff, x[i], 1);
    }
    s[lane] = v;
    __syncthreads();
    if (lane == 0) atomicAdd(out, s[0]);
}
"""

CUDA_HOST = """from pathlib import Path

from implementations.common.cuda_cpp import CudaSource

SOURCE = CudaSource(Path(__file__).with_name("scale.cu"))


def scale(x):
    return SOURCE.launch("scale_kernel", x)
"""

NUMBA = """from functools import cache

import torch
from numba import cuda, float32

INF = float32(float("inf"))


@cache
def scale_kernel(TILE):
    @cuda.jit
    def kernel(x, out):
        s = cuda.shared.array(TILE, float32)
        tid, i = cuda.threadIdx.x, cuda.grid(1)
        s[tid] = x[i] if i < x.size else INF
        cuda.syncthreads()
        for k in range(tid, TILE):
            while s[k] > 1:
                cuda.atomic.add(out, 0, s[k])

    return kernel


def blocks(N):
    return -(-N // 32)


def scale(x):
    scale_kernel(32)[blocks(x.numel()), 32](x, torch.empty_like(x))
"""


@pytest.fixture
def counts(tmp_path):
    """counts({file: text}) → the scopes of these files as metrics."""

    def count(files):
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        placed = complexity.parts([Source(tmp_path / name) for name in files], "scale")
        return {scope: complexity.measure(parts) for scope, parts in placed.items()}

    return count


def test_triton_by_hand(counts):
    found = counts({"scale_triton.py": TRITON})
    # two imports 2 + 6, decorator 4, def 16, then 19, 20, 15 and 16 in its lines
    expected = {"tokens": 98, "source_lines": 8, "decisions": 0, "nesting": 0, "barriers": 0}
    expected |= {"guards": 6}  # mask= twice, other=, where, offs < N twice; not x > 0
    expected |= {"api_names": 7}  # jit, constexpr, program_id, arange, load, where, store
    expected |= {"index_arithmetic": 6}  # program_id, arange, offs in two sums and two tests
    assert found["device"].items() >= expected.items()
    expected = {"tokens": 55, "source_lines": 6, "decisions": 2, "nesting": 1, "guards": 0}
    assert found["host"].items() >= (expected | {"api_names": 1}).items()
    assert found["tuning"]["tokens"] == 3 + 27  # BLOCK = 8, the autotune decorator


def test_cuda_by_hand(counts):
    found = counts({"scale_cupy.py": CUDA_HOST, "scale.cu": CUDA})
    # 2 of #include, 17, 9, 10, 5, 16, 29, 1, 7, 4, 16, 1 in the lines of the kernel
    expected = {"tokens": 117, "source_lines": 12, "decisions": 4, "nesting": 2}
    expected |= {"guards": 1}  # i + 1 < N; not the loop's condition, not x[i] > v, not lane == 0
    expected |= {"index_arithmetic": 8}  # threadIdx, lane 3 times, i 4 times beside i = and i +=
    # __global__, __shared__, threadIdx, __shfl_xor_sync, __syncthreads, atomicAdd
    expected |= {"api_names": 6, "barriers": 1, "shared_declarations": 2}
    expected |= {"atomics": 1, "shuffles": 1, "inline_ptx": 0}
    assert found["device"].items() >= expected.items()
    assert found["tuning"]["tokens"] == 6
    # imports 4 and 8, SOURCE 14, def 6, return 9
    assert found["host"].items() >= {"tokens": 41, "source_lines": 5, "api_names": 0}.items()


def test_numba_by_hand(counts):
    found = counts({"scale_numba.py": NUMBA})
    expected = {"decisions": 3, "nesting": 2, "guards": 1, "barriers": 1, "atomics": 1}
    # cuda.jit, shared.array, float32, threadIdx, grid, syncthreads, atomic.add
    expected |= {"api_names": 7, "shared_declarations": 1}
    # threadIdx, grid; tid in s[tid] and range; i in x[i] and i < x.size; k twice
    expected |= {"index_arithmetic": 8}
    # imports of cache 4 and numba 6, INF 9, @cache 2, factory 6, @cuda.jit 4, def 8, then 12, 16,
    # 17, 5, 10, 8, 15, return 2
    expected |= {"tokens": 124, "source_lines": 15}
    assert found["device"].items() >= expected.items()
    assert found["host"]["tokens"] == 2 + 6 + 8 + 6 + 26  # import torch, blocks, scale
    assert found["tuning"]["tokens"] == 0


def test_metrics_of_tokens(counts):
    found = counts({"scale_triton.py": "def scale(x):\n    return f'{x[0]}, {x}' + '''a\nb'''\n"})
    # def scale ( x ) : return f'{ x [ 0 ] }, { x }' + '''a b'''
    expected = {"tokens": 17, "distinct_tokens": 15, "source_lines": 3}
    expected |= {"tokens_without_punctuation": 12}  # not ( ) : [ ]
    expected |= {"halstead_volume": 55.5}  # 15 log2 13: without ) and ]
    assert found["host"].items() >= expected.items()


def test_else_if_does_not_nest(counts):
    cuda = "void f(int a) { if (a) { a = 1; } else if (a > 2) { for (;;) a = 2; } }\n"
    python = "def scale(a):\n if a:\n  a = 1\n elif a > 2:\n  while a:\n   a = 2\n"
    found = counts({"scale_cupy.py": python, "scale.cu": cuda})
    for scope in ("host", "device"):
        assert found[scope].items() >= {"decisions": 3, "nesting": 2}.items()


WITH_HEADERS = {
    "_cupy.py": "def double_it(x):\n    return x\n",
    ".cu": """#include "mma.cuh"
#include "async_copy.cuh"

__global__ void double_it_kernel(unsigned* x) {
    unsigned r[4];
    ldmatrix_x4(r, x);
    cp_async_commit();
}
""",
}
WITH_WRAPPERS = {
    "_numba.py": """from numba import cuda

from implementations.instructions.async_copy import cp_async_commit
from implementations.instructions.reduce import Max, reduce_row


@cuda.jit
def double_it_kernel(x):
    x[0] = reduce_row(32, Max, 0)
    cp_async_commit()


def double_it(x):
    double_it_kernel(x)
""",
}


def reached(parts):
    return sorted((source.path.name, source.inside(node)[0].line) for source, node in parts)


def line_of(path, text):
    return (path.name, path.read_text().partition(text)[0].count("\n") + 1)


@pytest.mark.parametrize(
    ("backend", "files", "needed", "kinds", "added"),
    [
        (
            "cupy",
            WITH_HEADERS,
            {
                "async_copy.cuh": ["__device__ __forceinline__ void cp_async_commit() {"],
                "mma.cuh": ["__device__ __forceinline__ void ldmatrix_x4(unsigned"],
            },
            {"cp_async_commit": "barrier", "ldmatrix_x4": "copy"},
            # 17 of cp_async_commit, 72 of ldmatrix_x4, without what stands under STUDY_CPU
            {"tokens": 17 + 72, "inline_ptx": 0, "barriers": 0, "shuffles": 0},
        ),
        (
            "numba",
            WITH_WRAPPERS,
            {
                "async_copy.py": ['@kind("barrier")\n@ptx("cp.async.commit'],
                "ptx.py": ["i32, i64, f32 =", "def kind(", "def on_gpu(", "def ptx("],
                "reduce.py": ["@cuda.jit(device=True)\ndef Max(", "@cache\ndef reduce_row("],
            },
            {
                "async_copy.cp_async_commit": "barrier",
                **dict.fromkeys(("reduce.Max", "reduce.reduce_row", "ptx.ptx", "ptx.on_gpu"), ""),
                **dict.fromkeys(("ptx.kind", "ptx.i32", "ptx.i64", "ptx.f32"), ""),
            },
            # syncthreads of reduce_row, and its two shuffles
            {"inline_ptx": 0, "barriers": 1, "shuffles": 2},
        ),
    ],
    ids=["cupy", "numba"],
)
def test_what_is_reached_of_the_instructions_is_counted(
    new_kernel, backend, files, needed, kinds, added
):
    for suffix, text in files.items():
        (new_kernel / f"double_it{suffix}").write_text(text)
    parts, names = complexity.wrappers("double_it", backend)
    places = [line_of(registry.HEADERS / f, text) for f in needed for text in needed[f]]
    assert reached(parts) == sorted(places)
    assert {name.removeprefix("implementations.instructions."): k for name, k in names.items()} == (
        kinds
    )

    own = [Source(path) for path in registry.files("double_it", backend)]
    rows = complexity.rows("double_it", backend, complexity.parts(own, "double_it"))
    found = {(row["scope"], row["helpers"]): row for row in rows}
    added = {"tokens": sum(len(source.inside(node)) for source, node in parts)} | added
    for scope in ("device", "all"):
        without, with_ = found[scope, "without"], found[scope, "with"]
        assert {name: with_[name] - without[name] for name in added} == added
        assert without["barriers"] == 1
        assert without["inline_ptx"] == sum(map(bool, kinds.values()))
    assert found["host", "without"]["tokens"] == found["host", "with"]["tokens"] > 0


FILES = sorted(
    {
        path
        for kernel in registry.kernels()
        for backend in registry.BACKENDS
        for path in registry.files(kernel, backend)
    }
) + sorted(path for path in registry.HEADERS.iterdir() if path.suffix in (".py", ".cuh"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_pygments_and_tree_sitter_agree(path):
    source = Source(path)
    kept = {token.start for token in source.tokens}
    directives = set()  # which are split at white space, and not as they are parsed
    if path.suffix in (".cu", ".cuh"):
        for found in re.finditer(rb"^#(\\\n|.)*", source.root.text, re.MULTILINE):
            directives |= set(range(*found.span()))
    kept -= directives
    by_pygments = sum(token.start in kept for token in lex(source.parsed, source.language))

    by_tree, end_of_string = 0, None
    for node in source.walk(source.root):
        if node.child_count or not node.text or node.start_byte in directives:
            continue
        if source.root.text[node.start_byte - 1 : node.end_byte] == b"::":  # of asm: one token
            continue
        in_string = "string" in node.type or node.parent.type in (
            *("string", "string_literal", "string_content", "format_specifier"),
            *("interpolation",) * (node.type in ("{", "}", ":")),
        )
        by_tree += not (in_string and end_of_string == node.start_byte)
        end_of_string = node.end_byte if in_string else None
    assert by_pygments == pytest.approx(by_tree, rel=0.03)


def test_a_line_that_does_not_parse_is_named(tmp_path):
    path = tmp_path / "broken.cu"
    path.write_text("__global__ void f() {\n    int a = = 1;\n}\n")
    with pytest.raises(RuntimeError, match=r"broken\.cu:2: .*int a = = 1;"):
        Source(path)


def test_radon_calls_a_cuda_string_perfect(tmp_path):
    (tmp_path / "scale.cu").write_text(CUDA)
    device = complexity.parts([Source(tmp_path / "scale.cu")], "scale")["device"]
    (row,) = complexity.radon_rows(device)
    assert row == {
        **{"radon_cc": 0, "radon_halstead_volume": 0, "radon_mi": 100},
        **{"tokens": 117, "halstead_volume": row["halstead_volume"], "decisions": 4, "guards": 1},
    }
    assert row["halstead_volume"] > 500
    assert complexity.radon_rows([]) == []


def test_ranks_show_ties():
    table = pd.DataFrame({rule: [3, 1, 3] for rule in complexity.RULES})
    table["halstead_volume"] = [1, 2, 3]
    table = table.assign(kernel="k", backend=["a", "b", "c"], scope="all", helpers="without")
    orders = complexity.ranks(table).set_index("rule")["order"]
    assert orders["tokens"] == "b < a = c"
    assert orders["halstead_volume"] == "a < b < c"


def test_a_run_replaces_only_what_was_selected(new_kernel, tmp_path, capsys):
    (new_kernel / "double_it_eager.py").write_text("def double_it(x):\n    return 2 * x\n")
    (new_kernel / "double_it_triton.py").write_text(TRITON.replace("def scale(", "def double_it("))
    complexity.run(select("double_it"), data=tmp_path)
    table = store.read(tmp_path / "complexity.csv")
    assert set(table["backend"]) == {"triton", "eager"} and len(table) == 16
    assert "double_it has no file for numba" in capsys.readouterr().out
    assert list(store.read(tmp_path / "radon.csv")["backend"]) == ["triton"]
    ranks = store.read(tmp_path / "complexity_ranks.csv")
    assert list(ranks["order"]) == ["eager < triton"] * 4

    table.loc[table["backend"] == "triton", "tokens"] = 7
    store.write(tmp_path / "complexity.csv", table)
    (new_kernel / "double_it_eager.py").write_text("def double_it(x):\n    return x + x + 0\n")
    complexity.run(select("double_it", "eager"), data=tmp_path)
    table = store.read(tmp_path / "complexity.csv").query("scope == 'all' and helpers == 'with'")
    assert dict(zip(table["backend"], table["tokens"], strict=True)) == {"triton": 7, "eager": 12}


def test_a_damaged_table_is_left_alone(new_kernel, tmp_path):
    (new_kernel / "double_it_eager.py").write_text("def double_it(x):\n    return 2 * x\n")
    (tmp_path / "radon.csv").write_text('a,b\n"1')
    with pytest.raises(store.DamagedData, match=r"radon\.csv"):
        complexity.run(select("double_it"), data=tmp_path)
    assert (tmp_path / "radon.csv").read_text() == 'a,b\n"1'
    assert not (tmp_path / "complexity.csv").exists()
