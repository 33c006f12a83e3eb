"""The form of the sources: line counts are a result, so the formatters have the last word."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from implementations.common import registry

ROOT = Path(__file__).parents[3]
BIN = Path(sys.executable).parent
CUDA = sorted(p for p in ROOT.glob("*/**/*") if p.suffix in (".cu", ".cuh", ".hpp", ".cpp"))
CUDA = [p for p in CUDA if p.relative_to(ROOT).parts[0] in ("implementations", "study")]
KERNELS = [
    path
    for kernel in registry.kernels()
    for path in registry.files(kernel, "cupy")
    if path.suffix == ".cu"
]


@pytest.mark.parametrize(
    "command",
    [("ruff", "check"), ("ruff", "format", "--check"), ("clang-format", "--dry-run", "-Werror")],
    ids=" ".join,
)
def test_formatted(command):
    program, *arguments = command
    files = CUDA if program == "clang-format" else ["implementations", "study"]
    done = subprocess.run(
        [BIN / program, *arguments, *files], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.stem)
def test_no_raw_asm_in_kernels(path):
    assert not re.search(r"\basm\b", path.read_text())


@pytest.mark.parametrize("kernel", registry.kernels())
@pytest.mark.parametrize("backend", registry.BACKENDS)
def test_every_kernel_is_there_in_every_backend(kernel, backend):
    host, *_ = registry.files(kernel, backend)
    assert host.name == f"{kernel}_{backend}.py"
    text = host.read_text()
    docstring = text[: text.index("\n")]
    assert docstring.startswith('"""') and docstring.endswith('."""'), "one line of decomposition"
    assert f"def {kernel}(" in text and "**kwargs" not in text


def test_commands_in_the_readme_exist():
    text = (ROOT / "README.md").read_text()
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", text, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    for path in re.findall(r"`(implementations/[\w/.]+)`|\]\((implementations[^)]+)\)", text):
        assert (ROOT / (path[0] or path[1])).exists()
