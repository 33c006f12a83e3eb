"""The kernels under study, each in Triton, in CUDA C++ through CuPy and in Numba CUDA.

`DEVICE` says where they run, decided once, before Triton or Numba is imported:

    cuda     on the GPU (the default where there is one)
    cpu      on the CPU: Triton's interpreter, Numba's simulator, CUDA C++ through the host compiler
    compile  nowhere: every launch compiles its kernel, for sm_90a unless STUDY_ARCH says otherwise,
             and is recorded (no driver needed)

The environment variable `STUDY_DEVICE` overrides the default.
"""

import os

DEVICES = ("cuda", "cpu", "compile")


def _device() -> str:
    import torch

    # by NVML: asking the runtime would leave no GPU to a child that is forked afterwards
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    device = os.environ.get("STUDY_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    if device not in DEVICES:
        raise RuntimeError(f"STUDY_DEVICE must be one of {', '.join(DEVICES)}, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("STUDY_DEVICE=cuda needs a CUDA device, and torch finds none")
    if device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
        os.environ["NUMBA_ENABLE_CUDASIM"] = "1"
    return device


DEVICE = _device()
TORCH_DEVICE = "cuda" if DEVICE == "cuda" else "cpu"  # where the tensors lie
