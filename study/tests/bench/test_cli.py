"""The command line as a user meets it: help, wrong names, a machine that lacks something."""

import os
import signal
import subprocess
import sys
import time

import pytest

from implementations import DEVICE
from implementations.common import registry

COMMANDS = (
    "list",
    "verify",
    "mutants",
    "measure",
    "counters",
    "stability",
    "inspect",
    "complexity",
    "report",
    "compare",
    "status",
    "run",
)


def start(*arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "study", *arguments],
        env=os.environ | {"COLUMNS": "120"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def study(*arguments, **environment):
    """(exit code, what was printed)."""
    child = start(*arguments, **environment)
    said, _ = child.communicate(timeout=120)
    return child.returncode, said


@pytest.fixture(scope="module")
def general_help():
    code, said = study("--help")
    assert code == 0
    return said


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches(general_help, command):
    assert f" {command} " in general_help
    code, said = study(command, "--help")
    assert code == 0
    options = ("--data",) if command in ("report",) else ("--kernels", "--backends", "--phase")
    assert all(option in said for option in options)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("verify", "--kernels", "vector_ad"), "no kernel is called 'vector_ad'; the nearest: "),
        (("list", "--backends", "cuda"), "no backend is called 'cuda'; the nearest: "),
        (("complexity", "--phase", "7"), "no phase 7; there are "),
        (("compare", "nvidia-h20"), "no machine is called 'nvidia-h20'; the nearest: nvidia-h200"),
        (("verify", "--kernel", "vector_add"), "No such option: --kernel"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_name_offers_the_nearest(arguments, said):
    code, output = study(*arguments)
    assert code == 2
    assert said in output and "Traceback" not in output


def test_nearest_names():
    assert "vector_add" in study("verify", "--kernels", "vectoradd")[1]


def test_list_names_every_kernel_and_backend():
    code, said = study("list")
    assert code == 0
    assert all(name in said for name in registry.kernels())
    assert all(backend.title in said for backend in registry.BACKENDS.values())


@pytest.mark.skipif(DEVICE == "cuda", reason="there is a GPU here")
@pytest.mark.parametrize(
    ("command", "environment", "said"),
    [
        ("measure", {}, "measure needs a CUDA device, and torch finds none"),
        ("verify", {"STUDY_DEVICE": "cuda"}, "STUDY_DEVICE=cuda needs a CUDA device, and torch"),
        ("verify", {"STUDY_DEVICE": "tpu"}, "STUDY_DEVICE must be one of cuda, cpu, compile"),
    ],
)
def test_what_a_machine_lacks_is_one_line(tmp_path, command, environment, said):
    code, output = study(command, "--data", str(tmp_path), **environment)
    assert code == 1
    assert output.startswith(f"study: {said}") and output.count("\n") == 1


def test_without_a_compiler_the_others_carry_on(tmp_path):
    arguments = ("--kernels", "vector_add", "--backends", "cupy,triton", "--data", str(tmp_path))
    code, said = study("verify", *arguments, CXX="no-such-compiler", STUDY_DEVICE="cpu")
    assert code == 1  # it was asked for by name
    assert "cupy cannot run here: no C++ compiler was found: install g++" in said
    assert said.count("24 of 24") == 1


def test_damaged_data_are_named(tmp_path):
    (tmp_path / "complexity.csv").write_bytes(b'"\xff')
    code, said = study("complexity", "--data", str(tmp_path))
    assert code == 1
    assert said.splitlines()[-1].startswith(f"study: {tmp_path / 'complexity.csv'} is damaged")
    assert "Traceback" not in said


def test_interruption_is_one_line(tmp_path):
    child = start("verify", "--data", str(tmp_path))
    while "verify 1/" not in child.stdout.readline():
        assert child.poll() is None
    time.sleep(1)
    child.send_signal(signal.SIGINT)
    said, _ = child.communicate(timeout=30)
    assert child.returncode == 130
    assert said.splitlines()[-1] == "study: interrupted; what was done so far is kept"
    assert "Traceback" not in said
