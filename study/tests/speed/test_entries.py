"""What is timed together, and the names of cells and sizes in data/."""

import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from implementations.common import registry
from implementations.common.check import dtype_name
from study.bench import entries, environment
from study.bench.cells import Cell, parse_size, select, size_text
from study.bench.entries import FLOOR, checked, groups

NAMES = st.sampled_from(["M", "N", "HEAD_DIM", "causal", "p"])
VALUES = st.integers() | st.booleans() | st.floats(allow_nan=False)


def typed(size):
    return {name: (type(value), value) for name, value in size.items()}


def test_text_of_a_size():
    size = {"N": 4096, "causal": True, "p": 0.1}
    assert size_text(size) == "N=4096,causal=True,p=0.1"
    assert typed(parse_size("N=4096,causal=False,p=1.0,offset=-3")) == typed(
        {"N": 4096, "causal": False, "p": 1.0, "offset": -3}
    )


@given(st.dictionaries(NAMES, VALUES, min_size=1))
def test_text_of_a_size_is_read_back(size):
    assert typed(parse_size(size_text(size))) == typed(size)


@pytest.mark.parametrize("text", ["", "N", "N=", "N=many", "N=1;M=2", "N=1,causal=true"])
def test_what_is_no_size(text):
    with pytest.raises(ValueError):
        parse_size(text)


def test_name_of_a_cell():
    cell = Cell("double_it", "triton", "float32", "N=1")
    assert str(cell) == "double_it-triton-float32-N=1"
    warm = replace(cell, variant="warm")
    assert str(warm) == "double_it-triton-float32-N=1-warm"
    assert cell.key == warm.key
    assert list(cell.key.values()) == ["double_it", "triton", "float32", "N=1"]


def variants(group):
    return [(e.backend, e.variant) for e in group.entries if e.variant]


@pytest.mark.parametrize("kernel", registry.kernels())
def test_the_protocol_is_tested_at_the_headline(kernel):
    spec = registry.spec(kernel)
    for group in groups(select(kernel)):
        headline = group.size == size_text(spec.headline)
        first = group.dtype == dtype_name(spec.dtypes[0])
        planted = [pair for pair in variants(group) if pair[1] != "warm"]
        again, slower = ("triton", "again"), ("triton", "slower")
        assert planted == [again] * headline + [slower] * (headline and first)
    assert not [v for g in groups(select(kernel, "numba")) for _, v in variants(g) if v != "warm"]


@pytest.mark.parametrize("kernel", registry.kernels())
def test_what_fits_in_the_l2_is_timed_warm_where_the_spec_says_so(kernel):
    for group in groups(select(kernel, "triton,numba")):
        warm = [pair for pair in variants(group) if pair[1] == "warm"]
        wanted = registry.spec(kernel).warm and group.work.bytes <= entries.WARM_BYTES
        assert warm == ([("triton", "warm"), ("numba", "warm")] if wanted else [])


def test_some_kernel_is_timed_warm():
    assert any(registry.spec(kernel).warm for kernel in registry.kernels())


@pytest.mark.parametrize("kernel", registry.kernels())
def test_only_the_kernel_as_it_is_gets_a_verdict(kernel):
    for group in groups(select(kernel)):
        assert len(set(group.entries)) == len(group.entries) and FLOOR in group.entries
        ranked = (*registry.BACKENDS, *registry.spec(kernel).baselines)
        cells = [Cell(kernel, name, group.dtype, group.size) for name in ranked]
        assert list(checked(group).entries) == cells


def test_what_is_timed_is_known_without_what_times_it():
    code = "import sys, study.bench.entries; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert "study.bench.cells" in loaded
    heavy = ("study.speed", "study.bench.worker", "triton", "numba", "cupy")
    assert not [name for name in loaded if name.startswith(heavy)]


def test_the_commit_is_that_of_all_sources():
    here = environment._git("ls-files", "--", "implementations", "study")
    if here is None:
        pytest.skip("the sources are in no git repository")
    assert "study/bench/environment.py" in here and "implementations/common/spec.py" in here
