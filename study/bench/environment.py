"""The machine as NVML sees it, and the file that says what was measured on what."""

import ctypes
import json
import platform
import subprocess
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from study.bench import store

PACKAGES = (
    "torch",
    "triton",
    "cupy-cuda13x",
    "cupy-cuda12x",
    "numba",
    "numba-cuda",
    "llvmlite",
    "cuda-core",
    "cuda-bindings",
    "cuda-toolkit",
    "nvidia-cuda-nvrtc",
    "nvidia-cuda-nvrtc-cu12",
    "nvidia-nvvm",
    "nvidia-nvjitlink",
    "nvidia-cublas",
    "nvidia-cublas-cu12",
    "numpy",
    "pandas",
)

SM_CLOCK, MEMORY_CLOCK = 1, 2  # nvmlClockType_t
REASONS = {  # nvmlClocksThrottleReasons; 0x1, an idle GPU, slows nothing down
    0x2: "application clocks",
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal",
    0x40: "hardware thermal",
    0x80: "power brake",
    0x100: "display clocks",
}


@dataclass(frozen=True)
class State:
    """sm_clock_mhz, temperature_c; throttle: why the clocks are held down, "" if they are not."""

    sm_clock_mhz: int
    temperature_c: int
    throttle: str


class Sensor:
    """The current CUDA device in NVML, the library that every NVIDIA driver brings.

    Raises OSError where there is no such library, RuntimeError where NVML refuses.
    """

    def __init__(self):
        self.nvml = ctypes.CDLL("libnvidia-ml.so.1")
        self._call("nvmlInit_v2")
        self.device = ctypes.c_void_p()
        uuid = f"GPU-{torch.cuda.get_device_properties().uuid}".encode()
        self._call("nvmlDeviceGetHandleByUUID", uuid, ctypes.byref(self.device))

    def state(self) -> State:
        """The device as it is now."""
        bits = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons", ctypes.c_ulonglong)
        return State(
            self._ask("nvmlDeviceGetClockInfo", ctypes.c_uint, SM_CLOCK),
            self._ask("nvmlDeviceGetTemperature", ctypes.c_uint, 0),
            ", ".join(text for bit, text in REASONS.items() if bits & bit),
        )

    def limits(self) -> dict:
        """Highest clocks in MHz and the power limit in W."""
        return {
            "sm_clock_max_mhz": self._ask("nvmlDeviceGetMaxClockInfo", ctypes.c_uint, SM_CLOCK),
            "memory_clock_max_mhz": self._ask(
                "nvmlDeviceGetMaxClockInfo", ctypes.c_uint, MEMORY_CLOCK
            ),
            "power_limit_w": self._ask("nvmlDeviceGetPowerManagementLimit", ctypes.c_uint) / 1000,
        }

    def driver(self) -> str:
        """The version of the driver."""
        text = ctypes.create_string_buffer(80)
        self._call("nvmlSystemGetDriverVersion", text, len(text))
        return text.value.decode()

    def _ask(self, name, kind, *args):
        value = kind()
        self._call(name, self.device, *args, ctypes.byref(value))
        return value.value

    def _call(self, name, *args):
        code = getattr(self.nvml, name)(*args)
        if code:
            raise RuntimeError(f"NVML must answer {name}, it returned error {code}")


def describe() -> dict:
    """The GPU and everything installed that the figures depend on."""
    sensor, gpu = Sensor(), torch.cuda.get_device_properties()
    matmul = torch.backends.cuda.matmul
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "commit": _git("rev-parse", "HEAD"),
        "changed_files": bool(_git("status", "--porcelain", "--", "implementations", "study")),
        "gpu": {
            "name": gpu.name,
            "compute_capability": f"{gpu.major}.{gpu.minor}",
            "multiprocessors": gpu.multi_processor_count,
            "memory_bytes": gpu.total_memory,
            "l2_bytes": gpu.L2_cache_size,
            **sensor.limits(),
        },
        "driver": sensor.driver(),
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "flags": {
            "fast_math": False,
            "torch_allow_tf32": matmul.allow_tf32,
            "torch_fp16_reduced_precision_reduction": matmul.allow_fp16_reduced_precision_reduction,
            "torch_bf16_reduced_precision_reduction": matmul.allow_bf16_reduced_precision_reduction,
        },
    }


def save(path: Path) -> None:
    """Write `describe()` as JSON."""
    with store.replacing(path) as part:
        part.write_text(json.dumps(describe(), indent=2) + "\n")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*args: str) -> str | None:
    """What git prints; None where it is absent or this is no repository."""
    try:
        done = subprocess.run(
            ["git", *args],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
