"""What changes a fingerprint, and what does not."""

import re

import pytest

from implementations.common import registry
from study.bench.fingerprint import (
    code_fingerprint,
    definitions,
    fingerprint,
    parse,
    reached,
    spec_fingerprint,
)
from study.bench.source import Source

HOST = """\"\"\"A number a thread.\"\"\"

from math import exp

import torch

from implementations.phase9_tests.day99_doubling.double_it import check
from implementations.phase9_tests.helpers import scaled

BLOCK = 128


def double_it(x):
    check(x)
    return scaled(x, BLOCK) + exp(0)
"""
HELPERS = """
from implementations.phase9_tests.deeper import factor


def scaled(x, block):
    return factor() * x * (block // 128)
"""
DEEPER = """
TWO = 2


def factor():
    return TWO
"""
SPEC_CHECK = """

LARGEST = 8


def check(x):
    if x.numel() > LARGEST:
        raise ValueError("x must be small")
"""


@pytest.fixture
def tree(new_kernel):
    """A kernel, and what it reaches in two modules; files by name, and its fingerprints."""

    class Tree:
        day = new_kernel
        files = {
            "host": day / "double_it_eager.py",
            "spec": day / "double_it.py",
            "helpers": day.parent / "helpers.py",
            "deeper": day.parent / "deeper.py",
        }
        hash = staticmethod(lambda: fingerprint("double_it", "eager"))
        spec_hash = staticmethod(lambda: spec_fingerprint("double_it"))

        def edit(self, file, old, new):
            text = self.files[file].read_text()
            assert old in text
            self.files[file].write_text(text.replace(old, new))

    tree = Tree()
    spec = tree.files["spec"]
    spec.write_text(spec.read_text().replace("\n\nSPEC = ", SPEC_CHECK + "\n\nSPEC = "))
    for name, text in (("host", HOST), ("helpers", HELPERS), ("deeper", DEEPER)):
        tree.files[name].write_text(text)
    return tree


NOTHING = {
    "a comment": ("host", "BLOCK = 128", "BLOCK = 128  # threads"),
    "a comment of its own": ("deeper", "def factor", "# why\ndef factor"),
    "the module's docstring": ("host", "A number a thread.", "A thread has a number."),
    "a docstring": ("deeper", "():\n", '():\n    """Two."""\n'),
    "white space": ("host", "return scaled(x, BLOCK) +", "return   scaled( x,BLOCK )+"),
    "line breaks": ("helpers", "(block // 128)", "(\n        block\n        // 128\n    )"),
    "a new definition": (
        "deeper",
        "TWO = 2",
        "TWO = 2\nTHREE = 3\n\n\ndef other():\n    return THREE",
    ),
    "a new import": ("helpers", "\nfrom", "\nimport os\nfrom"),
    "an imported module": (
        "helpers",
        "from implementations.phase9_tests.deeper import factor",
        "from implementations.phase9_tests.deeper import factor, TWO",
    ),
    "the text of a refusal": ("spec", "x must be small", "x must have at most 8 elements"),
    "the limit of a refusal": ("spec", "LARGEST = 8", "LARGEST = 9"),
    "a size": ("spec", '"N": 1024', '"N": 2048'),
}
ANOTHER = {
    "a constant": ("host", "BLOCK = 128", "BLOCK = 256"),
    "an operation": ("host", ") + exp", ") - exp"),
    "a name": ("host", "x, BLOCK", "x, block=BLOCK"),
    "a string": ("host", "+ exp(0)", "+ exp(0) * len('a')"),
    "a helper": ("helpers", "* x *", "* -x *"),
    "a helper two steps away": ("deeper", "return TWO", "return TWO + 0"),
    "a constant two steps away": ("deeper", "TWO = 2", "TWO = 3"),
    "where a name is from": ("host", "from math import exp", "from numpy import exp"),
}


@pytest.mark.parametrize(("file", "old", "new"), NOTHING.values(), ids=NOTHING)
def test_does_not_change_it(tree, file, old, new):
    before = tree.hash()
    tree.edit(file, old, new)
    assert tree.hash() == before


@pytest.mark.parametrize(("file", "old", "new"), ANOTHER.values(), ids=ANOTHER)
def test_changes_it(tree, file, old, new):
    before = tree.hash()
    tree.edit(file, old, new)
    assert tree.hash() != before


def test_what_is_read_for_another_does_not_hide_a_change(tree):
    """An answer is kept until a file changes; one that was read since has changed all the same."""
    before = tree.hash()
    tree.edit("helpers", "* x *", "* -x *")
    parse(tree.files["helpers"])
    assert tree.hash() != before


def test_strings_keep_their_white_space_and_marks(tree):
    tree.edit("host", "exp(0)", "len('a # b')")
    before = tree.hash()
    tree.edit("host", "'a # b'", "'a # c'")
    assert tree.hash() != before


def test_a_moved_helper_changes_nothing(tree):
    before = tree.hash()
    tree.files["moved"] = tree.day.parent / "moved.py"
    tree.files["moved"].write_text(DEEPER)
    tree.edit("helpers", "phase9_tests.deeper", "phase9_tests.moved")
    tree.files["deeper"].unlink()
    assert tree.hash() == before
    tree.edit("moved", "TWO = 2", "TWO = 3")
    assert tree.hash() != before


IMPORTS = {
    "the name": (
        "from implementations.phase9_tests.deeper import factor",
        "factor()",
    ),
    "the name, as another": (
        "from implementations.phase9_tests.deeper import factor as two",
        "two()",
    ),
    "the module": (
        "from implementations.phase9_tests import deeper",
        "deeper.factor()",
    ),
    "the module, as another": (
        "from implementations.phase9_tests import deeper as below",
        "below.factor()",
    ),
    "the whole path": (
        "import implementations.phase9_tests.deeper",
        "implementations.phase9_tests.deeper.factor()",
    ),
}


@pytest.mark.parametrize(("statement", "call"), IMPORTS.values(), ids=IMPORTS)
def test_imports_written_in_any_way_are_followed_and_equal(tree, statement, call):
    before = tree.hash()
    tree.edit("helpers", IMPORTS["the name"][0], statement)
    tree.edit("helpers", IMPORTS["the name"][1], call)
    assert tree.hash() == before
    tree.edit("deeper", "TWO = 2", "TWO = 3")
    assert tree.hash() != before


def test_an_import_within_a_function_is_followed(tree):
    statement = IMPORTS["the name"][0]
    tree.edit("helpers", f"{statement}\n", "")
    tree.edit("helpers", "block):\n", f"block):\n    {statement}\n\n")
    before = tree.hash()
    tree.edit("deeper", "TWO = 2", "TWO = 3")
    assert tree.hash() != before


@pytest.mark.parametrize("statement", ["from .deeper import factor", "from math import *"])
def test_imports_that_cannot_be_followed_are_refused(tree, statement):
    tree.edit("helpers", IMPORTS["the name"][0], statement)
    with pytest.raises(RuntimeError, match=r"helpers.py:2: imports must be absolute and name what"):
        tree.hash()


def test_a_name_that_is_not_defined_is_named(tree):
    tree.edit("deeper", "def factor", "def divisor")
    with pytest.raises(RuntimeError, match=r"deeper\.py must define factor, which others"):
        tree.hash()


WRAPPER = """
from implementations.instructions.ptx import i32, ptx


@ptx("mov.u32 $0, 2;", i32())
def factor():
    return 2
"""


def test_the_meaning_of_a_wrapper_on_the_cpu_changes_nothing(tree):
    tree.files["deeper"].write_text(WRAPPER)
    before = tree.hash()
    tree.edit("deeper", "return 2", "return cpu.lane() + 2")
    assert tree.hash() == before
    tree.edit("deeper", "mov.u32 $0, 2;", "mov.u32 $0, 3;")
    assert tree.hash() != before


# --- the spec and the baselines -------------------------------------------------------------------

SPEC_CHANGES = {
    "the inputs": ("spec", "torch.randn(N", "torch.rand(N"),
    "the reference": ("spec", "return 2 * x", "return x + x"),
    "the rule": ("spec", "agreement=Exact()", "agreement=Unary(2)"),
    "a refusal": ("spec", "x must be small", "x must be tiny"),
    "the limit of a refusal": ("spec", "LARGEST = 8", "LARGEST = 9"),
}
SPEC_KEEPS = {
    "bench sizes": ("spec", '"N": 1024', '"N": 2048'),
    "check sizes": ("spec", '"N": 5', '"N": 6'),
    "the work": ("spec", "itemsize, N)", "itemsize, 2 * N)"),
    "a docstring": ("spec", "2 x, element by element.", "Twice x."),
    "a host": ("host", "BLOCK = 128", "BLOCK = 256"),
}


@pytest.fixture
def with_rules(tree):
    tree.edit("spec", "rules import Exact", "rules import Exact, Unary")
    return tree


@pytest.mark.parametrize(("file", "old", "new"), SPEC_CHANGES.values(), ids=SPEC_CHANGES)
def test_changes_the_specs(with_rules, file, old, new):
    before = with_rules.spec_hash()
    with_rules.edit(file, old, new)
    assert with_rules.spec_hash() != before


@pytest.mark.parametrize(("file", "old", "new"), SPEC_KEEPS.values(), ids=SPEC_KEEPS)
def test_does_not_change_the_specs(with_rules, file, old, new):
    before = with_rules.spec_hash()
    with_rules.edit(file, old, new)
    assert with_rules.spec_hash() == before


def test_a_baselines_is_of_its_own_expression(tree):
    def hashes():
        return [fingerprint("double_it", name) for name in ("torch", "sum")]

    tree.edit("spec", "baselines={}", 'baselines={"torch": double_it, "sum": lambda x: x + x}')
    first, second = hashes()
    assert first != second
    tree.edit("spec", "lambda x: x + x", "lambda x: x + 1 * x")
    assert hashes()[0] == first and hashes()[1] != second
    second = hashes()[1]
    tree.edit("spec", "return 2 * x", "return x + x")
    assert hashes()[0] != first and hashes()[1] == second
    with pytest.raises(RuntimeError, match="must list 'none' in `baselines`"):
        fingerprint("double_it", "none")


# --- CUDA C++ -------------------------------------------------------------------------------------

CU = """#include <cuda_fp16.h>
#include "scale.cuh"

constexpr int BLOCK = 128;

__global__ void double_it_kernel(float* x) { x[threadIdx.x] *= scale(x[0]); }
"""
CUH = """#pragma once
#include "deeper.cuh"

struct Pair {
    float x, y;
};

__device__ float unused(float x) { return x; }

template <int COUNT>
__device__ float scale(float x) {
#ifdef STUDY_CPU
    return 1.f;
#else
    return FACTOR * twice(x);
#endif
}
"""
DEEPER_CUH = """#define FACTOR 2.f
__device__ float twice(float x) { return 2 * x; }
"""


@pytest.fixture
def cuda(new_kernel):
    """As `tree`, of a kernel in CUDA C++ and two headers beside it."""

    class Tree:
        def edit(self, name, old, new):
            text = (new_kernel / name).read_text()
            assert old in text
            (new_kernel / name).write_text(text.replace(old, new))

        hash = staticmethod(lambda: fingerprint("double_it", "cupy"))

    files = {"double_it.cu": CU, "scale.cuh": CUH, "deeper.cuh": DEEPER_CUH}
    files["double_it_cupy.py"] = "def double_it(x):\n    return x\n"
    for name, text in files.items():
        (new_kernel / name).write_text(text)
    return Tree()


CUDA_NOTHING = {
    "a comment": ("double_it.cu", "constexpr", "// threads\nconstexpr"),
    "a comment in a header": ("scale.cuh", "template", "/* by FACTOR */ template"),
    "white space": ("scale.cuh", "return FACTOR * twice(x);", "return FACTOR*twice( x ) ;"),
    "the meaning on the CPU": ("scale.cuh", "return 1.f;", "return 2.f;"),
    "what is not used": ("scale.cuh", "return x;", "return -x;"),
    "a new definition": ("deeper.cuh", "#define", "struct New {};\n#define"),
    "a header": (
        "double_it.cu",
        '#include "scale.cuh"',
        '#include "scale.cuh"\n#include "mma.cuh"',
    ),
}
CUDA_ANOTHER = {
    "a constant": ("double_it.cu", "128", "256"),
    "a definition that is used": ("scale.cuh", "FACTOR *", "FACTOR +"),
    "its template": ("scale.cuh", "int COUNT", "int COUNT = 1"),
    "a definition two steps away": ("deeper.cuh", "2 * x", "x + x"),
    "a macro two steps away": ("deeper.cuh", "FACTOR 2.f", "FACTOR 3.f"),
}


@pytest.mark.parametrize(("file", "old", "new"), CUDA_NOTHING.values(), ids=CUDA_NOTHING)
def test_does_not_change_that_of_cuda(cuda, file, old, new):
    before = cuda.hash()
    cuda.edit(file, old, new)
    assert cuda.hash() == before


@pytest.mark.parametrize(("file", "old", "new"), CUDA_ANOTHER.values(), ids=CUDA_ANOTHER)
def test_changes_that_of_cuda(cuda, file, old, new):
    before = cuda.hash()
    cuda.edit(file, old, new)
    assert cuda.hash() != before


def test_a_header_that_is_nowhere_is_named(cuda):
    cuda.edit("double_it.cu", "scale.cuh", "nowhere.cuh")
    with pytest.raises(RuntimeError, match=r"double_it\.cu includes nowhere\.cuh, which is not in"):
        cuda.hash()


# --- the project's own files ----------------------------------------------------------------------

SHARED = sorted(path for path in registry.HEADERS.iterdir() if path.suffix == ".cuh")
KERNELS = [
    path
    for kernel in registry.kernels()
    for path in registry.files(kernel, "cupy")
    if path.suffix == ".cu"
]


@pytest.mark.parametrize("path", [*SHARED, *KERNELS], ids=lambda path: path.name)
def test_statements_are_those_of_a_real_parser(path):
    source = Source(path)
    parsed = {
        (node.start_byte, frozenset(names))
        for names, node in source.statements()
        if node.is_named
        and node.type not in ("preproc_include", "preproc_call")
        and node != node.parent.child_by_field_name("condition")  # of an #if
    }
    ours = {(d.start, d.names) for d in parse(path).definitions}
    assert ours == parsed


@pytest.mark.parametrize("kernel", registry.kernels())
@pytest.mark.parametrize("backend", registry.BACKENDS)
def test_no_kernel_reaches_a_tier_a_spec_or_a_refusal(kernel, backend):
    found = reached(definitions(kernel, backend), follow=lambda definition: True)
    fingerprint(kernel, backend)
    assert not [d.path for d in found if "tiers" in d.path.parts]
    assert all(re.fullmatch(r"\w+", name) for d in found for name in d.names)


def test_a_table_that_is_named_counts_but_not_as_code(tree):
    """As the winners of a search, which are found by timing the code."""
    table = tree.day.parent / "winners.csv"
    table.write_text("gpu,BLOCK\n")
    tree.edit("helpers", "def scaled", 'TABLE = "winners.csv"\n\n\ndef scaled')
    tree.edit("helpers", "return", "assert TABLE\n    return")
    found = []
    for row in ("", "A,64\n", "B,128\n"):
        table.write_text(table.read_text() + row)
        found.append((tree.hash(), code_fingerprint("double_it", "eager")))
    assert len({whole for whole, _ in found}) == 3 and len({code for _, code in found}) == 1


def test_the_kernels_of_another_day_count(tree):
    """A source that is taken from another day's host file brings the kernels that it names."""
    cuda = tree.day.parent / "other.cu"
    cuda.write_text("__global__ void f(int* x) { *x = 1; }\n")
    tree.edit("helpers", "def scaled", 'SOURCE = "other.cu"\n\n\ndef scaled')
    tree.edit("helpers", "return", "assert SOURCE\n    return")
    before = tree.hash()
    cuda.write_text("__global__ void f(int* x) { *x = 1; }  // one\n")
    assert tree.hash() == before
    cuda.write_text("__global__ void f(int* x) { *x = 2; }\n")
    assert tree.hash() != before
