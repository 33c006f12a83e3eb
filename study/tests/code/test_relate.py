"""Two states of the sources are related where they launch the same machine code the same way."""

import importlib.util

import pandas as pd
import pytest

from implementations.common import registry
from study.code import relate

KERNEL = registry.kernels()[0]
SOURCE = "__global__ void {name}_kernel(float* x, int n) {{ x[n] = {value}; }}\n"


@pytest.fixture
def compiled(tmp_path):
    """The hash of a small kernel's code, from its name, the number it stores and its line."""
    if not importlib.util.find_spec("cuda.core"):
        pytest.skip("package cuda-core is not installed")
    from implementations.common.cuda_cpp import compile_cubin

    def code(name="store", value="1.f", comment=""):
        path = tmp_path / f"{name}{len(list(tmp_path.iterdir()))}.cu"
        path.write_text(comment + SOURCE.format(name=name, value=value))
        return relate._code(*compile_cubin(path, f"{name}_kernel", "sm_90a"))

    return code


def test_names_and_comments_are_no_machine_code(compiled):
    same = {compiled(), compiled(), compiled("renamed"), compiled(comment="// a comment\n\n")}
    assert len(same) == 1
    assert compiled(value="2.f") not in same


def states(monkeypatch, tmp_path, before, now):
    """Relates two made-up states of KERNEL; the rows of related.csv."""
    monkeypatch.setattr(relate, "RELATED", tmp_path / "related.csv")
    monkeypatch.setattr(registry, "kernels", lambda: (KERNEL,))
    found = {relate.ROOT: now, tmp_path.resolve(): before}
    monkeypatch.setattr(relate, "_recorded", lambda root, kernel: found[root])
    relate.main(str(tmp_path))
    table = pd.read_csv(tmp_path / "related.csv", dtype=str, keep_default_na=False)
    return sorted(map(tuple, table.to_numpy()))


def test_what_is_the_same_is_related(monkeypatch, tmp_path, capsys):
    before = {"triton": ["code 1", "a"], "numba": ["code 2", "b"], "": ["sizes", "s"]}
    now = {"triton": ["code 1", "A"], "numba": ["code 3", "B"], "": ["sizes", "s"]}
    rows = states(monkeypatch, tmp_path, before, now)
    assert rows == [(KERNEL, "triton", "a", "A")]  # the spec kept its fingerprint
    said = capsys.readouterr().out
    assert f"{KERNEL} numba CHANGED" in said and f"{KERNEL} spec same" in said


def test_relations_lead_on(monkeypatch, tmp_path):
    states(monkeypatch, tmp_path, {"triton": ["code", "a"]}, {"triton": ["code", "b"]})
    rows = states(monkeypatch, tmp_path, {"triton": ["code", "b"]}, {"triton": ["code", "c"]})
    assert rows == [(KERNEL, "triton", "a", "c"), (KERNEL, "triton", "b", "c")]
    rows = states(monkeypatch, tmp_path, {"triton": ["code", "c"]}, {"triton": ["other", "d"]})
    assert rows == [(KERNEL, "triton", "a", "c"), (KERNEL, "triton", "b", "c")]


def test_a_backend_that_is_new_is_not_related(monkeypatch, tmp_path):
    assert states(monkeypatch, tmp_path, {}, {"triton": ["code", "b"]}) == []
