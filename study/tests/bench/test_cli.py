"""The command line as a user meets it: help, wrong names, a machine that lacks something."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from implementations import DEVICE
from implementations.common import registry

ROOT = Path(__file__).parents[3]
KERNEL = registry.kernels()[0]

COMMANDS = (
    "list",
    "verify",
    "mutants",
    "measure",
    "counters",
    "dispatch",
    "stability",
    "train",
    "inspect",
    "complexity",
    "report",
    "compare",
    "status",
    "run",
)


def start(*arguments, cwd=None, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "study", *arguments],
        cwd=cwd,
        env=os.environ | {"COLUMNS": "120"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def study(*arguments, cwd=None, **environment):
    """(exit code, what was printed)."""
    child = start(*arguments, cwd=cwd, **environment)
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
        (("verify", "--kernels", "nothing"), "no kernel is called 'nothing'; the nearest: "),
        (("list", "--backends", "cuda"), "no backend is called 'cuda'; the nearest: "),
        (("complexity", "--phase", "7"), "no phase 7; there are "),
        (("compare", "nvidia-h20"), "no machine is called 'nvidia-h20'; the nearest: nvidia-h200"),
        (("verify", "--kernel", KERNEL), "No such option: --kernel"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_name_offers_the_nearest(arguments, said):
    code, output = study(*arguments)
    assert code == 2
    assert said in output and "Traceback" not in output


def test_nearest_names():
    assert KERNEL in study("verify", "--kernels", KERNEL[:-1])[1]


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
    arguments = ("--kernels", KERNEL, "--backends", "cupy,triton", "--data", str(tmp_path))
    code, said = study("verify", *arguments, CXX="no-such-compiler", STUDY_DEVICE="cpu")
    assert code == 1  # it was asked for by name
    assert "cupy cannot run here: no C++ compiler was found: install g++" in said
    spec = registry.spec(KERNEL)
    cells = len(spec.dtypes) * len(spec.check_sizes)
    assert said.count(f"{cells} of {cells}") == 1


@pytest.mark.parametrize("command", ["report", "status", "compare"])
def test_data_of_the_checkout_are_found_from_any_folder(tmp_path, command):
    _, said = study(command, "--help", cwd=tmp_path, COLUMNS="300")
    assert f"[default: {ROOT / 'data'}]" in said


def test_other_machines_of_the_checkout_are_found_from_any_folder(tmp_path):
    code, said = study("compare", "no-such-gpu", cwd=tmp_path)
    known = sorted(path.name for path in (ROOT / "data").iterdir() if path.is_dir())
    assert code == 2 and any(name in said for name in known)
    assert list(tmp_path.iterdir()) == []


def test_report_without_data_is_refused_in_one_sentence(tmp_path):
    out = tmp_path / "report"
    code, said = study("report", "--data", tmp_path / "data", "--out", out, cwd=tmp_path)
    assert code == 1 and not out.exists()
    (last,) = [line for line in said.splitlines() if line.startswith("study: ")]
    assert last.endswith("timings.csv must hold timings, it has none: `study measure` adds them")
    assert "Traceback" not in said


def test_damaged_data_are_named(tmp_path):
    (tmp_path / "complexity.csv").write_bytes(b'"\xff')
    code, said = study("complexity", "--data", str(tmp_path))
    assert code == 1
    assert said.splitlines()[-1].startswith(f"study: {tmp_path / 'complexity.csv'} is damaged")
    assert "Traceback" not in said


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_interruption_is_one_line(tmp_path, by):
    child = start("verify", "--data", str(tmp_path))
    while "verify 1/" not in child.stdout.readline():
        assert child.poll() is None
    time.sleep(1)
    child.send_signal(by)
    said, _ = child.communicate(timeout=120)
    assert child.returncode == 130
    assert said.splitlines()[-1] == "study: interrupted; what was done so far is kept"
    assert "Traceback" not in said


SAVING = """
import time
from study import cli

def app():
    try:
        print("begun", flush=True)
        time.sleep(60)
    finally:
        time.sleep(0.5)
        print("saved", flush=True)

cli.app = app
cli.main()
"""


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_second_signal_does_not_break_off_the_saving(by):
    """`timeout` sends one to a process and one to its group."""
    child = subprocess.Popen(
        [sys.executable, "-c", SAVING], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert child.stdout.readline() == "begun\n"
    child.send_signal(by)
    time.sleep(0.1)
    child.send_signal(by)
    assert "saved" in child.communicate(timeout=60)[0]
