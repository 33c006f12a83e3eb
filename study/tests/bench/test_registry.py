"""A kernel is one folder, a backend one row and one file: each is found with no other edit."""

import subprocess
import sys
from textwrap import dedent

import pytest

from implementations.common import registry
from implementations.common.device import Properties
from implementations.common.registry import Backend, Unavailable
from study.agree import verify
from study.bench import cells

HOST = """
import torch


def double_it(x):
    return torch.add(x, x, out=torch.empty_like(x))
"""


def test_new_kernel_and_backend_are_found_loaded_and_verified(new_kernel):
    (new_kernel / "double_it_eager.py").write_text(HOST)

    assert registry.kernels()[-1] == "double_it"
    assert registry.phase("double_it") == 9
    assert registry.spec("double_it").title == "Doubling"
    assert registry.load("double_it", "eager").__module__.endswith("double_it_eager")
    assert registry.files("double_it", "eager") == (new_kernel / "double_it_eager.py",)

    (cell,) = cells.select("double_it", "eager").cells("check")
    assert str(cell) == "double_it-eager-float32-N=5"
    row = verify.check(cell)
    assert (row["status"], row["error"], row["deterministic"]) == ("agrees", "", True)
    assert len(row["source_hash"]) == 12


def test_other_parameters_than_the_references_are_named(new_kernel):
    (new_kernel / "double_it_eager.py").write_text("def double_it(y, n=1):\n    return y\n")
    message = r"double_it\(y, n=1\) must have the reference's parameters \(x\)"
    with pytest.raises(TypeError, match=message):
        registry.load("double_it", "eager")


def test_missing_spec_is_named(new_kernel):
    (new_kernel / "double_it.py").write_text("def double_it(x):\n    return 2 * x\n")
    with pytest.raises(TypeError, match="double_it.py must define SPEC, a KernelSpec"):
        registry.spec("double_it")


def test_missing_package_is_named(new_kernel, monkeypatch):
    absent = Backend("Absent", ("no_such_package.module",))
    monkeypatch.setitem(registry.BACKENDS, "absent", absent)
    with pytest.raises(Unavailable, match="absent: package no_such_package is not installed"):
        registry.load("double_it", "absent")
    (cell,) = cells.select("double_it", "absent").cells("check")
    assert verify.check(cell)["status"] == "unavailable"


def test_missing_capability_is_named(new_kernel, monkeypatch):
    monkeypatch.setattr(registry, "DEVICE", "cuda")
    monkeypatch.setattr(registry.torch.cuda, "is_initialized", lambda: True)
    older = Properties((8, 6), multiprocessors=84, shared_bytes=99 * 1024)
    monkeypatch.setattr(registry.device, "describe", lambda device: older)
    (new_kernel / "double_it_eager.py").write_text(HOST + "\n\nCAPABILITY = (9, 0)\n")
    message = r"double_it in eager: needs compute capability 9.0, this is 8.6"
    with pytest.raises(Unavailable, match=message):
        registry.load("double_it", "eager")


def test_registry_and_specs_import_no_backend():
    code = """
        import sys
        from implementations.common import registry
        for kernel in registry.kernels():
            registry.spec(kernel)
        print(*sorted({"triton", "cupy", "numba"} & set(sys.modules)))
    """
    done = subprocess.run(
        [sys.executable, "-c", dedent(code)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []
